"""Progress: a tqdm bar on a terminal or in an open notebook, else lines in a log; and a file in the run's folder.

`paperlib status` shows the file.
"""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from paperlib.runs.files import InputError, read_json, write_json

LINE = 30.0  # seconds between lines of a log
NEWS = 5.0  # seconds between updates of the file
NAME = "progress.json"
FORM = "{desc}: {n_fmt}/{total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}"

_file: Path | None = None  # of this process's run; None before it begins


def keep_in(folder: Path | None) -> None:
    """Write progress to this folder from now on, or to no file for None. Remove an earlier session's file."""
    global _file
    _file = None if folder is None else folder / NAME
    if _file is not None:
        with suppress(OSError):
            _file.unlink(missing_ok=True)


def live() -> bool:
    """Return whether output can redraw a line: on a terminal, or in a kernel with an interactive front end."""
    if "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        kernel = getattr(shell, "kernel", None)
        if kernel is not None:  # headless clients (papermill, nbconvert) do not allow input
            return bool(getattr(kernel, "_allow_stdin", False))
    return sys.stdout.isatty()


class Bar:
    """A progress bar from `done` to `total`, with the mean speed since it was opened.

    If output is `live`, tqdm shows it; otherwise a line is printed every LINE seconds. `keep_in` sets the file's folder.
    """

    def __init__(self, total: int, stage: str, unit: str, done: int = 0) -> None:
        self.total, self.stage, self.unit, self.done, self.first = total, stage, unit, done, done
        self.begun = self.printed = self.kept = time.monotonic()
        self.facts: dict[str, Any] = {}
        self.drawn = tqdm(
            total=total, initial=done, desc=stage, unit=unit, file=sys.stdout, disable=not live(), leave=False
        )

    def __enter__(self) -> Self:
        self._keep(ended=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.drawn.close()
        self._keep(ended=True)

    def update(self, count: int = 1, **facts: Any) -> None:
        """Advance by `count`, and show `facts` beside the bar, such as the loss."""
        now = time.monotonic()
        self.done, self.facts = self.done + count, self.facts | facts
        self.drawn.update(count)
        if now - self.kept >= NEWS:
            self._keep(ended=False)
        if self.drawn.disable and now - self.printed >= LINE:
            self.printed = now
            print(self, flush=True)

    def caption(self, text: str) -> None:
        """Set the text at the end of a live bar."""
        self.drawn.set_postfix_str(text)

    def __str__(self) -> str:
        """Return stage, count, speed, time left and facts, formatted by tqdm."""
        facts, passed = ", ".join(f"{name} {fact}" for name, fact in self.facts.items()), time.monotonic() - self.begun
        return tqdm.format_meter(
            self.done,
            self.total,
            passed,
            prefix=self.stage,
            unit=self.unit,
            initial=self.first,
            postfix=facts,
            bar_format=FORM,
        )

    def _keep(self, ended: bool) -> None:
        self.kept = time.monotonic()
        if _file is not None:
            with suppress(InputError, OSError):  # a full disk stops the run when it writes results
                write_json(_file, {"stage": self.stage, "words": str(self), "ended": ended, "clock": self.kept})


def clock(folder: Path) -> float | None:
    """Return the time of a run's last progress, by `time.monotonic` on its machine; None if there is none."""
    with suppress(OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return float(read_json(folder / NAME)["clock"])
    return None


def of_run(folder: Path) -> str:
    """Return a run's last progress and its age as a line of text; empty if there is none."""
    file = folder / NAME
    if not file.exists():
        return ""
    ago = tqdm.format_interval(max(0.0, time.time() - file.stat().st_mtime))  # the clock may have been set back
    return f"{read_json(file)['words']} ({ago} ago)"
