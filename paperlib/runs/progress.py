"""Progress for whoever is watching: a live bar on a terminal or in an open notebook, lines in a log, and a file.

The file lies in the folder of the run that is at work: `paperlib status` reads from it what the run is doing.
"""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from paperlib.runs.files import InputError, read_json, write_json

LINE = 30.0  # seconds between two lines of a log
NEWS = 5.0  # and between two writings of the file
QUIET = 120.0  # seconds without news after which a run may have stalled …
PATIENCE = 10  # … if they are so many times the longest that it took between two news before
LONG = 600.0  # seconds after which that is so where there was no news before, and after which a stage is long over
STALLED = "perhaps stalled: "
NAME = "progress.json"

_file: Path | None = None  # of the run at work in this process


def keep_in(folder: Path | None) -> None:
    """From now on, keep what bars know in this folder as well; None: in no folder."""
    global _file
    _file = None if folder is None else folder / NAME


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
        self.begun = self.latest = self.printed = time.monotonic()
        self.kept, self.longest = -NEWS, 0.0
        self.facts: dict[str, Any] = {}
        self.drawn = tqdm(
            total=total, initial=done, desc=stage, unit=unit, file=sys.stdout, disable=not live(), leave=False
        )

    def __enter__(self) -> Self:
        self._keep()
        return self

    def __exit__(self, *_: object) -> None:
        self.drawn.close()
        self.facts["ended"] = True
        self._keep()

    def update(self, count: int = 1, **facts: Any) -> None:
        """So many more are done; `facts` are what else is known, say the loss."""
        now = time.monotonic()
        self.done, self.facts = self.done + count, self.facts | facts
        self.longest, self.latest = max(self.longest, now - self.latest), now
        self.drawn.update(count)
        if now - self.kept >= NEWS:
            self._keep()
        if self.drawn.disable and now - self.printed >= LINE:
            self.printed = now
            print(words(self.about()), flush=True)

    def caption(self, text: str) -> None:
        """What a live bar shows at its end."""
        self.drawn.set_postfix_str(text)

    def about(self) -> dict[str, Any]:
        """What is known: stage, done, total, unit, per_second and seconds left (None before anything is done), facts."""
        passed, more = self.latest - self.begun, self.done - self.first
        speed = more / passed if more and passed > 0 else None
        return {
            "stage": self.stage, "done": self.done, "total": self.total, "unit": self.unit, "per_second": speed,
            "left": None if speed is None else (self.total - self.done) / speed, "longest": self.longest,
            "updated": time.time(), **self.facts,
        }  # fmt: skip

    def _keep(self) -> None:
        self.kept = time.monotonic()
        if _file is not None:
            with suppress(InputError, OSError):  # news are not worth a run; what matters will be refused as well
                write_json(_file, self.about())


def words(about: Mapping[str, Any]) -> str:
    """What a bar knows, as a line: stage, facts, count, speed and time left."""
    parts = [f"{about['stage']}: {about['done']}/{about['total']} {about['unit']}"]
    parts += [f"{name} {about[name]}" for name in ("epoch", "loss") if name in about]
    if about["per_second"] is not None:
        parts += [f"{about['per_second']:.3g} {about['unit']}/s", f"{duration(about['left'])} left"]
    return ", ".join(parts)


def latest(folder: Path) -> float:
    """When the run in `folder` last changed its status or what it is known to do: seconds since 1970, 0 for never."""
    files = [file for name in ("status.json", NAME) if (file := folder / name).exists()]
    return max((file.stat().st_mtime for file in files), default=0.0)


def of_run(folder: Path, since: float, at_work: bool) -> str:
    """What the run in `folder` is doing, or did last, as a line; empty where nothing is known since that time.

    It says so where a stage of a run at work may have stalled: no news for QUIET seconds, and for PATIENCE times the
    longest so far, or LONG where there was none. Of what comes after a stage it says for how long nothing was heard.
    """
    file = folder / NAME
    if not file.exists() or (about := read_json(file))["updated"] < since:
        return ""
    silence = max(0.0, time.time() - about["updated"])  # a clock may go backwards
    if not at_work or silence < (LONG if about.get("ended") else QUIET):
        return words(about)
    if about.get("ended"):
        return f"{words(about)}; no news for {duration(silence)} since"
    stalled = silence > (PATIENCE * about["longest"] or LONG)
    return f"{words(about)}; {STALLED if stalled else ''}no news for {duration(silence)}"


def stalled(folder: Path, since: float) -> str:
    """What `of_run` has of a run at work that may have stalled; empty of one that has not."""
    told = of_run(folder, since, at_work=True)
    return told if STALLED in told else ""


def duration(seconds: float) -> str:
    """Seconds in words, to two units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
