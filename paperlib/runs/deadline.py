"""The deadline of a run: it ends at a checkpoint shortly before, or at the deadline itself wherever it is.

The deadline is an environment variable, so that the processes which a command starts share it.
"""

import os
import re
import signal
import threading
import time
from typing import Any

from paperlib.runs.files import InputError

UNTIL = "PAPERLIB_UNTIL"  # the deadline in seconds of `time.monotonic`, which all processes of a machine share
CODE = 75  # exit code: the same command goes on (EX_TEMPFAIL)
OVER = "the time is over; the same command goes on"
AHEAD = 10.0  # seconds before the deadline from which a run stops at its next checkpoint
AFTER = 30.0  # seconds between the deadline and the end of --within, for pages and messages
UNITS = {"h": 3600, "m": 60, "s": 1}


class OutOfTime(RuntimeError):
    """The time given by --within is over."""


def seconds(within: str) -> float:
    """Return the seconds in "9m", "1h30m" or "90s". Raises InputError for other texts, and below one minute."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", within.strip())
    if parts is None:
        raise InputError(f"--within {within}: should be a time such as 9m, 1h30m or 90s")
    found = sum(int(number or 0) * unit for number, unit in zip(parts.groups(), UNITS.values(), strict=True))
    if found < 60:
        raise InputError(f"--within {within}: should be a minute or more; a run takes seconds to start and to end")
    return float(found)


def begin(within: str | None) -> None:
    """Set the deadline of this command and of the processes that it starts. An earlier deadline stays in force."""
    if within is not None:
        moment = time.monotonic() + seconds(within) - AFTER
        os.environ[UNTIL] = str(min(moment, float(os.environ.get(UNTIL, moment))))


def left() -> float:
    """Return the seconds until the deadline; infinity if there is none."""
    moment = os.environ.get(UNTIL)
    return float("inf") if moment is None else float(moment) - time.monotonic()


def near() -> bool:
    """Return whether to stop at the next checkpoint."""
    return left() < AHEAD


def check() -> None:
    """Raise OutOfTime near the deadline. Call it only when all results are saved."""
    if near():
        raise OutOfTime("the time given by --within is over")


def arm() -> None:
    """Raise OutOfTime in this process at the deadline, from a signal. It is safe, since files are written atomically."""

    def over(number: int, frame: Any) -> None:
        raise OutOfTime("the time given by --within is over")

    if left() < float("inf") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, max(left(), 0.01))


def disarm() -> None:
    """Undo `arm`."""
    if left() < float("inf") and threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0)
