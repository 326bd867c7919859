"""Cache of arrays on disk, with version, source and checksum."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from paperlib.runs.files import InputError
from paperlib.runs.tensors import read_tensors, write_tensors

VERSION = 1  # version of the cached arrays' layout; raise it when older files would be misread

Built = tuple[dict[str, Tensor], dict[str, Any]]


def cached(path: Path, source: dict[str, Any], build: Callable[[], Built]) -> Built:
    """Return the tensors and description in `path`; build them first when the file is missing or `source` changed.

    Raises InputError when the file has another version or is damaged. The user must delete it, since it may be the only
    copy.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # one process builds, others wait
        if path.exists():
            tensors, about = read_tensors(path)
            if about.get("version") != VERSION:
                raise InputError(
                    f"{path}: written in cache version {about.get('version')}, this is {VERSION}; "
                    "delete the file, and it is built anew"
                )
            if about["source"] == source:
                return tensors, about
        tensors, about = build()
        about = {**about, "version": VERSION, "source": source}
        write_tensors(path, tensors, about)
        return tensors, about
