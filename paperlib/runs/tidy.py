"""What lies in the project's folders and can go: found, listed by size, and removed when asked to."""

import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from paperlib import __version__
from paperlib.runs.files import InputError, read_json, root
from paperlib.runs.run import hold, release, status

HOUR = 3600.0  # a temporary file older than this belongs to nobody: writing one takes seconds
# Of files.write_atomically, and of a notebook at work.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp|\.\w+\.\d+\.ipynb")
REMOVED = ".removed"  # in runs/: what is being removed, out of everybody's way
MADE = ("scenes", "oracles", "cache")  # under data/: what is made anew when it is needed


class Removable(NamedTuple):
    """A file or a run's folder, why it can go, and its bytes."""

    path: Path
    reason: str
    size: int


def removable(*, unfinished: bool = False, old: bool = False, data: bool = False) -> list[Removable]:
    """Half-written files; with `unfinished` runs that ended early, with `old` runs of other versions, with `data` caches.

    A run that a process is at work on is never among them, nor is anything of it.
    """
    found = [*_half_written()]
    for file in sorted((root() / "runs").glob("*/*/status.json")):
        if reason := _why(file.parent, _state(file.parent), unfinished, old):
            found.append(_as(file.parent, reason))
    if data:
        places = (root() / "data" / name for name in MADE)
        files = (file for place in places if not place.is_symlink() for file in sorted(place.glob("*.safetensors")))
        found += [_as(file, "made anew when it is needed") for file in files]
    return found


def remove(found: Sequence[Removable]) -> list[Removable]:
    """Remove them, but for what is in use or has changed since it was listed; those are returned.

    Raises InputError, naming the file, where one cannot be removed.
    """
    kept = []
    for one in found:
        try:
            if (one.path / "status.json").exists():
                gone = _remove_run(one)
            elif one.path.parent.name == REMOVED:
                shutil.rmtree(one.path)
                gone = True
            elif one.path.suffix == ".safetensors":
                gone = _remove_cache(one.path)
            else:
                one.path.unlink(missing_ok=True)
                gone = True
        except OSError as error:
            raise InputError(f"{one.path}: cannot be removed ({error})") from error
        if not gone:
            kept.append(one)
    return kept


def _remove_run(one: Removable) -> bool:
    if _state(one.path) == "running":
        return False
    try:
        hold(one.path)
    except InputError:  # a process has begun to work on it
        return False
    try:
        state = read_json(one.path / "status.json")["state"].replace("running", "killed")  # nobody else is at work
        if _why(one.path, state, True, True) != one.reason:  # it has gone on, and perhaps ended well, since it was listed
            return False
        away = root() / "runs" / REMOVED / uuid.uuid4().hex / one.path.name  # deeper than where runs are looked for
        away.parent.mkdir(parents=True)
        one.path.rename(away)
    finally:
        release(one.path)
    shutil.rmtree(away.parent)
    return True


def _remove_cache(file: Path) -> bool:
    try:
        with FileLock(file.with_suffix(".lock"), timeout=0):
            file.unlink(missing_ok=True)
    except Timeout:  # it is being made
        return False
    return True


def _half_written() -> Iterator[Removable]:
    """What a killed process left in the middle of writing, or of removing."""
    yield from (_as(path, "half-removed") for path in sorted((root() / "runs" / REMOVED).glob("*")))
    for place in ("runs", *(f"data/{name}" for name in MADE)):
        for path in sorted((root() / place).rglob(".*")):
            if TEMPORARY.fullmatch(path.name) and path.is_file() and time.time() - path.stat().st_mtime > HOUR:
                runs = (folder for folder in path.parents if (folder / "status.json").exists())
                if all(_state(folder) != "running" for folder in runs):
                    yield _as(path, "half-written")


def _state(folder: Path) -> str:
    """Of a run; "running" also where its files do not tell, so that it is left alone."""
    try:
        return str(status(folder)["state"])
    except (InputError, LookupError, TypeError, AttributeError):
        return "running"


def _why(folder: Path, state: str, unfinished: bool, old: bool) -> str | None:
    """Why a run in this state can go; None where it cannot, or where its files do not say what it is."""
    try:
        version = str(read_json(folder / "environment.json")[-1]["paperlib"])
    except (FileNotFoundError, InputError, LookupError, TypeError):
        return None
    if state == "running":
        return None
    if old and version != __version__:
        return f"{state}, by version {version}: version {__version__} begins it anew"
    if unfinished and state != "finished":
        return f"{state}; the same command would go on with it"
    return None


def _as(path: Path, reason: str) -> Removable:
    return Removable(path, reason, size_of(path))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links count nothing."""
    total = 0
    with suppress(FileNotFoundError):  # something is gone meanwhile
        for file in path.rglob("*") if path.is_dir() else [path]:
            with suppress(FileNotFoundError):
                total += file.lstat().st_size if file.is_file() and not file.is_symlink() else 0
    return total


def megabytes(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.1f} MB"
