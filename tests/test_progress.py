"""What a bar knows, and what `paperlib status` makes of it."""

import os
from pathlib import Path

import pytest

from paperlib.runs import progress
from paperlib.runs.files import read_json


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
        assert str(bar) == "training: 40/100 step, ?step/s, ? left"
        for _ in range(10):
            clock.now += 0.5
            bar.update(2, epoch="1/3", loss="0.5")
        assert bar.done == 60
        assert str(bar) == "training: 60/100 step,  4.00step/s, 00:10 left, epoch 1/3, loss 0.5"


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Bar(100, "attack", "img") as bar:
        for _ in range(7):
            clock.now += 10
            bar.update()
    assert capsys.readouterr().out.splitlines() == [
        "attack: 3/100 img, 10.00s/img, 16:10 left", "attack: 6/100 img, 10.00s/img, 15:40 left",
    ]  # fmt: skip


def test_what_is_known_is_kept_beside_the_run_with_its_age(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / progress.NAME).write_text("of an earlier session")
    progress.keep_in(tmp_path)
    try:
        assert progress.of_run(tmp_path) == ""
        with progress.Bar(100, "attack", "img") as bar:
            for _ in range(2):  # the first is too soon to be written down
                clock.now += 3
                bar.update(3)
            os.utime(tmp_path / progress.NAME, (clock.now, clock.now))
            clock.now += 125
            assert progress.of_run(tmp_path) == "attack: 6/100 img,  1.00img/s, 01:34 left (02:05 ago)"
            clock.now -= 1000
            assert progress.of_run(tmp_path).endswith("(00:00 ago)")
            assert read_json(tmp_path / progress.NAME)["ended"] is False
        assert read_json(tmp_path / progress.NAME)["ended"] is True
    finally:
        progress.keep_in(None)


def test_a_folder_that_cannot_be_written_to_does_not_end_the_run(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    progress.keep_in(tmp_path / "file")  # no folder
    try:
        with progress.Bar(2, "attack", "img") as bar:
            clock.now += 100
            bar.update()
    finally:
        progress.keep_in(None)
