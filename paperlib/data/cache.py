"""Arrays built once and read back whole: a cache that knows its version, its source and its own checksum."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from paperlib.runs.files import InputError
from paperlib.runs.tensors import read_tensors, write_tensors

VERSION = 1  # of the layout of the cached arrays; raise it when a reader of older files would be wrong

Built = tuple[dict[str, Tensor], dict[str, Any]]


def cached(path: Path, source: dict[str, Any], build: Callable[[], Built]) -> Built:
    """The tensors and their description in `path`, built anew when there are none or `source` has changed.

    Raises InputError, naming the file, when it was written in another version or is damaged: what it holds may be
    the only copy, so it is for the user to delete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # two processes build it once
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
