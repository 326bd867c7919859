"""When a run has to end: at a checkpoint shortly before, and wherever it is at that moment.

The moment is in the environment, so that every process which a command starts knows it.
"""

import os
import re
import signal
import threading
import time
from typing import Any

from paperlib.runs.files import InputError

UNTIL = "PAPERLIB_UNTIL"  # of `time.monotonic`, which all processes of a machine share
CODE = 75  # exit code: the same command goes on (EX_TEMPFAIL)
OVER = "the time is over; the same command goes on"
AHEAD = 10.0  # seconds before the moment in which a step ends at a checkpoint
AFTER = 30.0  # and seconds which a command has from that moment for pages and messages
UNITS = {"h": 3600, "m": 60, "s": 1}


class OutOfTime(RuntimeError):
    """The time that the command was given is over."""


def seconds(within: str) -> float:
    """What "9m", "1h30m" or "90s" is in seconds. Raises InputError for anything else, and for less than a minute."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", within.strip()) if within.strip() else None
    if parts is None:
        raise InputError(f"--within {within}: should be a time such as 9m, 1h30m or 90s")
    found = sum(int(number or 0) * unit for number, unit in zip(parts.groups(), UNITS.values(), strict=True))
    if found < 60:
        raise InputError(f"--within {within}: should be a minute or more; a run takes seconds to start and to end")
    return float(found)


def begin(within: str | None) -> None:
    """Have this command, and what it starts, end within that time. An earlier moment that is known already counts."""
    if within is not None:
        moment = time.monotonic() + seconds(within) - AFTER
        os.environ[UNTIL] = str(min(moment, float(os.environ.get(UNTIL, moment))))


def left() -> float:
    """Seconds until the moment; infinite where there is none."""
    moment = os.environ.get(UNTIL)
    return float("inf") if moment is None else float(moment) - time.monotonic()


def near() -> bool:
    """Whether it is time to end at the next checkpoint."""
    return left() < AHEAD


def check() -> None:
    """Raise OutOfTime where it is time to end: to be called where everything computed is saved."""
    if near():
        raise OutOfTime("the time given by --within is over")


def arm() -> None:
    """Have OutOfTime raised in this process at the moment itself, whatever it does then. Files are written atomically."""

    def over(number: int, frame: Any) -> None:
        raise OutOfTime("the time given by --within is over")

    if left() < float("inf") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, max(left(), 0.01))


def disarm() -> None:
    """Undo `arm`."""
    if left() < float("inf") and threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0)
