"""Progress for whoever is watching: a tqdm bar on a terminal or in an open notebook, lines in a log, and a small file.

The file lies in the folder of the run at work; `paperlib status` shows it.
"""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from paperlib.runs.files import InputError, read_json, write_json

LINE = 30.0  # seconds between two lines of a log
NEWS = 5.0  # and between two writings of the file
NAME = "progress.json"
FORM = "{desc}: {n_fmt}/{total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}"

_file: Path | None = None  # of the run at work in this process


def keep_in(folder: Path | None) -> None:
    """From now on, keep in this folder what bars know, in place of what an earlier session left; None: in no folder."""
    global _file
    _file = None if folder is None else folder / NAME
    if _file is not None:
        with suppress(OSError):
            _file.unlink(missing_ok=True)


def live() -> bool:
    """Whether somebody can see a line redraw itself: a terminal, or a kernel with a front end that takes input."""
    if "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        kernel = getattr(shell, "kernel", None)
        if kernel is not None:  # headless clients (papermill, nbconvert) do not allow input
            return bool(getattr(kernel, "_allow_stdin", False))
    return sys.stdout.isatty()


class Bar:
    """A stage of a run that counts up to `total`, from `done` on: its speed is that since it was opened.

    A tqdm bar where somebody is watching, else a line every LINE seconds; and the file of `keep_in`.
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
        """So many more are done; `facts` are what else is known, say the loss."""
        now = time.monotonic()
        self.done, self.facts = self.done + count, self.facts | facts
        self.drawn.update(count)
        if now - self.kept >= NEWS:
            self._keep(ended=False)
        if self.drawn.disable and now - self.printed >= LINE:
            self.printed = now
            print(self, flush=True)

    def caption(self, text: str) -> None:
        """What a live bar shows at its end."""
        self.drawn.set_postfix_str(text)

    def __str__(self) -> str:
        """Stage, count, speed, time left and facts, as tqdm words them."""
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
            with suppress(InputError, OSError):  # news are not worth a run; what matters will be refused as well
                write_json(_file, {"stage": self.stage, "words": str(self), "ended": ended})


def of_run(folder: Path) -> str:
    """What the run in `folder` did last, and how long ago that was told; empty where nothing is known."""
    file = folder / NAME
    if not file.exists():
        return ""
    ago = tqdm.format_interval(max(0.0, time.time() - file.stat().st_mtime))  # a clock may go backwards
    return f"{read_json(file)['words']} ({ago} ago)"
