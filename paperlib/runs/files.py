"""Atomic files, and the project's folder. It does not import PyTorch, which takes seconds."""

import errno
import fcntl
import json
import math
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # with libyaml, ten times as fast
ROOM = "paperlib-"  # prefix of temporary folders' names


class InputError(ValueError):
    """Invalid input; the message names the value and what would be right."""


CHECKOUT = Path(__file__).resolve().parents[2]
INSTALLED = not (CHECKOUT / "notebooks").is_dir()  # a wheel puts notebooks and zoo under share/


def root() -> Path:
    """Return the folder that holds data/ and runs/: PAPERLIB_ROOT, else the checkout, else the current folder."""
    return Path(os.environ.get("PAPERLIB_ROOT") or (Path.cwd() if INSTALLED else CHECKOUT)).absolute()


def shipped(name: str) -> Path:
    """Return a folder that comes with the project, notebooks or zoo: in `root`, or else in the wheel."""
    here = root() / name
    return here if here.is_dir() or not INSTALLED else Path(sys.prefix) / "share" / "paperlib" / name


def rooms() -> Path:
    """Return the place of temporary folders; /tmp if TMPDIR is long, since a socket's path has some 100 bytes at most."""
    usual = tempfile.gettempdir()
    return Path(usual if len(os.fsencode(usual)) < 60 else "/tmp")


@contextmanager
def temporary() -> Iterator[Path]:
    """Yield a temporary folder. Its lock is held while in use, so `clean` recognises folders of killed processes."""
    with tempfile.TemporaryDirectory(prefix=ROOM, dir=rooms()) as place, (Path(place) / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(place)


def locked(folder: Path) -> bool:
    """Return whether a process holds the folder's lock. Writes nothing, so it works on read-only folders."""
    with suppress(FileNotFoundError, PermissionError), (folder / ".lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as filelock does, but without writing
        except BlockingIOError:
            return True
    return False


def within(folder: "os.PathLike[str]") -> Iterator["os.DirEntry[str]"]:
    """Yield all entries below a folder that are not folders, in any order. Links are not followed."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from within(entry)
            else:
                yield entry


def seen(folder: Path, leave: Container[str] = ()) -> list[tuple[str, int, int]]:
    """Return path, size and modification time (ns) of a folder's files, except hidden files and `__pycache__`.

    Files below the top-level folders in `leave` are skipped.
    """
    found = []
    for entry in within(folder):
        name = entry.path.removeprefix(f"{folder}{os.sep}")
        first, *rest = name.split(os.sep)
        if first in leave or entry.name.startswith(".") or "__pycache__" in rest:
            continue
        with suppress(FileNotFoundError):  # removed meanwhile
            about = entry.stat(follow_symlinks=False)
            found.append((name, about.st_size, about.st_mtime_ns))
    return sorted(found)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it, so that `path` is always complete.

    Raises InputError when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors sets permissions for the owner alone
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise InputError(f"{path}: the disk is full; free some space there and start again") from error
        if getattr(error, "errno", None) in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise InputError(f"{path}: cannot be written ({error}); make the folder writable") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically. NaN and infinities become strings that float() reads."""
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Read the JSON value in `path`. Raises InputError naming the file when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error}); delete it and start again") from error


def read_yaml(path: Path) -> Any:
    """Read the YAML value in `path`. Raises InputError naming the file when it is not YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: invalid dates and numbers
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from None
