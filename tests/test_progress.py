"""What a bar knows, and what `paperlib status` makes of it."""

from pathlib import Path

import pytest

from paperlib.runs import progress
from paperlib.runs.files import read_json, write_json


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_speed_and_time_left_count_what_was_done_since_it_was_opened(clock: Clock) -> None:
    with progress.Bar(100, "training", "step", done=40) as bar:
        assert bar.about()["per_second"] is None
        for _ in range(10):
            clock.now += 0.5
            bar.update(2, epoch="1/3", loss="0.5")
        about = bar.about()
    assert (about["done"], about["per_second"], about["left"], about["longest"]) == (60, 4.0, 10.0, 0.5)
    assert progress.words(about) == "training: 60/100 step, epoch 1/3, loss 0.5, 4 step/s, 10 s left"


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Bar(100, "attack", "img") as bar:
        for _ in range(7):
            clock.now += 10
            bar.update()
    assert capsys.readouterr().out.splitlines() == [
        "attack: 3/100 img, 0.1 img/s, 16 min 10 s left", "attack: 6/100 img, 0.1 img/s, 15 min 40 s left",
    ]  # fmt: skip


def test_what_is_known_is_kept_beside_the_run_and_a_stall_is_told(clock: Clock, tmp_path: Path) -> None:
    assert progress.of_run(tmp_path, 0.0, at_work=True) == ""
    progress.keep_in(tmp_path)
    try:
        bar = progress.Bar(100, "attack", "img")
        clock.now += 7
        bar.update(7)
        known = "attack: 7/100 img, 1 img/s, 1 min 33 s left"
        assert progress.of_run(tmp_path, 0.0, at_work=True) == known
        assert progress.of_run(tmp_path, clock.now + 1, at_work=True) == ""  # news of an earlier session
    finally:
        progress.keep_in(None)
    assert read_json(tmp_path / progress.NAME)["done"] == 7
    assert progress.of_run(tmp_path, 0.0, at_work=True) == known
    clock.now += 125  # longer than QUIET, and than ten times seven seconds
    assert progress.of_run(tmp_path, 0.0, at_work=True) == f"{known}; perhaps stalled: no news for 2 min 05 s"
    assert progress.of_run(tmp_path, 0.0, at_work=False) == known
    clock.now -= 1000
    assert progress.of_run(tmp_path, 0.0, at_work=True) == known
    about = read_json(tmp_path / progress.NAME)
    write_json(tmp_path / progress.NAME, {**about, "longest": 60.0})  # one that takes its time anyway
    clock.now += 1000
    assert progress.of_run(tmp_path, 0.0, at_work=True) == f"{known}; no news for 2 min 05 s"
    assert progress.stalled(tmp_path, 0.0) == ""
    write_json(tmp_path / progress.NAME, {**about, "longest": 0.0})  # nothing came of it yet
    assert progress.of_run(tmp_path, 0.0, at_work=True) == f"{known}; no news for 2 min 05 s"
    clock.now += 500
    assert progress.stalled(tmp_path, 0.0) == f"{known}; perhaps stalled: no news for 10 min 25 s"
    clock.now -= 500
    write_json(tmp_path / progress.NAME, {**about, "ended": True})  # what came after it has no bar
    assert progress.of_run(tmp_path, 0.0, at_work=True) == known
    clock.now += 500
    assert progress.of_run(tmp_path, 0.0, at_work=True) == f"{known}; no news for 10 min 25 s since"


def test_a_folder_that_cannot_be_written_to_does_not_end_the_run(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    progress.keep_in(tmp_path / "file")  # no folder
    try:
        with progress.Bar(2, "attack", "img") as bar:
            clock.now += 100
            bar.update()
    finally:
        progress.keep_in(None)


def test_durations_have_two_units() -> None:
    assert [progress.duration(seconds) for seconds in (0.4, 59, 60, 3599, 3600, 90061)] == [
        "0 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "25 h 01 min",
    ]  # fmt: skip
