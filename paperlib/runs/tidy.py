"""Find and remove half-written files, runs that ended early or are from another version, and caches."""

import os
import re
import shutil
import stat
import time
import uuid
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from paperlib import __version__
from paperlib.runs.files import ROOM, InputError, locked, read_json, rooms, root, within
from paperlib.runs.run import hold, release, status

HOUR = 3600.0  # seconds; writing a file takes less, so an older temporary file is left over
# Temporary names of files.write_atomically and `remove`; of safetensors; of a notebook that is being executed.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp|\.tmp\w{6}|\..+\.\d+\.ipynb")
MADE = ("scenes", "oracles", "cache")  # under data/


def removable(*, unfinished: bool = False, old: bool = False, data: bool = False) -> dict[Path, str]:
    """Return removable paths with the reason: half-written files, and what the options name. Running runs are excluded."""
    caches = [place for name in MADE if not (place := root() / "data" / name).is_symlink()]
    hidden = [path for place in (root() / "runs", root() / "zoo", *caches) for path in sorted(place.rglob(".*"))]
    aged = [path for path in hidden if TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime > HOUR]
    found = dict.fromkeys(aged, "half-written")
    left = [one for one in sorted(rooms().glob(f"{ROOM}*")) if os.access(one / ".lock", os.W_OK) and not locked(one)]
    found |= dict.fromkeys(left, "left by a kill")
    for file in sorted((root() / "runs").glob("*/*/status.json")):
        state, version = _state_and_version(file.parent)
        early = unfinished and state in ("failed", "stopped", "killed")
        if early or (old and version != __version__ and state not in ("running", "unknown")):
            found[file.parent] = f"{state}, of version {version}"
    if data:
        found |= {file: "made anew when needed" for place in caches for file in sorted(place.glob("*.safetensors"))}
    return found


def remove(path: Path, reason: str) -> bool:
    """Remove `path`. Return False if it is in use or has changed since it was listed. Raises InputError on failure."""
    try:
        if path.name.startswith(ROOM) and locked(path):
            return False
        if (path / "status.json").exists() and not TEMPORARY.fullmatch(path.name):
            state, version = _state_and_version(path)
            if f"{state}, of version {version}" != reason:
                return False
            hold(path)
            try:  # renamed first, so that an interrupted removal leaves no incomplete run
                gone = path.rename(root() / "runs" / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            finally:
                release(path)
            path = gone
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix == ".safetensors":
            with FileLock(path.with_suffix(".lock"), timeout=0):
                path.unlink(missing_ok=True)
        else:
            path.unlink(missing_ok=True)
    except (Timeout, InputError):
        return False
    except OSError as error:
        raise InputError(f"{path}: cannot be removed ({error})") from error
    return True


def _state_and_version(folder: Path) -> tuple[str, str]:
    """Return state and version of a run; "unknown" if its files are damaged, so that it is kept."""
    try:
        return status(folder)["state"], str(read_json(folder / "environment.json")[-1]["paperlib"])
    except (OSError, InputError, LookupError, TypeError):
        return "unknown", "unknown"


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; links count zero."""
    total = 0
    for file in within(path) if path.is_dir() else [path]:
        with suppress(FileNotFoundError):  # removed meanwhile
            about = os.lstat(file)
            total += about.st_size if stat.S_ISREG(about.st_mode) else 0
    return total
