"""A little of what `make torture` does at length: damaged input is taken or refused, and nothing else happens."""

import time
from contextlib import suppress
from pathlib import Path

import fuzz
import pytest


@pytest.mark.filterwarnings("ignore")  # decoders and unpicklers warn of what is broken
def test_damaged_input_is_taken_or_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    counts, faults = fuzz.fuzz(140, 2, tmp_path / "home")
    assert not faults
    assert all(sum(pair) == 10 for pair in counts.values())


def test_code_in_a_file_of_weights_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer's own alarms: code that ran, a file outside, another error."""

    def runs_code(chance: object, home: Path) -> None:
        fuzz.payload().mkdir()

    def writes_outside(chance: object, home: Path) -> None:
        Path("stray").write_text("")

    def breaks(chance: object, home: Path) -> None:
        raise KeyError("x")

    def writes_inside(chance: object, home: Path) -> None:
        (home / "stray").write_text("")

    def takes_long(chance: object, home: Path) -> None:
        fuzz.LONGEST = usual
        with suppress(Exception):  # as what reads files does with an OSError
            time.sleep(5)

    usual = fuzz.LONGEST
    for number, (target, words) in enumerate(
        ((runs_code, "ran code"), (writes_outside, "wrote"), (breaks, "KeyError"), (writes_inside, "wrote"),
         (takes_long, "took more than")),
    ):  # fmt: skip
        monkeypatch.setattr(fuzz, "LONGEST", 0.2 if target is takes_long else usual)
        faults = fuzz.fuzz(1, 0, tmp_path / str(number) / "home", [target])[1]
        assert len(faults) == 1
        assert words in faults[0]
