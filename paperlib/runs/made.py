"""Digests of the site's sources, so that only changed pages are rebuilt. It does not import PyTorch, which takes seconds.

A file counts as changed when its name, size or modification time differs.
"""

import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from paperlib.runs.files import InputError, locked, read_json, root, seen, shipped

KEPT = ".made.json"  # in the site's folder
PACKAGE = Path(__file__).resolve().parents[1]
UNREAD = ("training", "evaluation")  # folders of a run that the site does not read


def stored(target: Path) -> dict[str, Any]:
    """Read the digests stored in a site's folder; empty if there are none."""
    with suppress(OSError, InputError):
        kept = read_json(target / KEPT)
        if isinstance(kept, dict) and isinstance(kept.get("runs"), dict):
            return kept
    return {}


def current(target: Path) -> bool:
    """Return whether neither the site nor its sources have changed since it was built."""
    return stored(target).get("site") == [of_site(target), digest(seen(target))]


def of_site(target: Path) -> str:
    """Return a digest of all sources of the site in `target`."""
    folders = sorted(folder for folder in (root() / "runs").glob("*/*") if target.absolute() not in folder.parents)
    runs = [(str(folder), of_run(folder)) for folder in folders if folder.is_dir()]
    return digest(of_all(), seen(root() / "docs" / "results"), runs)


def of_all() -> str:
    """Return a digest of the sources of every page: code, notebooks, presets, and names that pages must not show."""
    names = str(root()), os.path.expanduser("~"), platform.node()
    return digest(seen(PACKAGE), seen(shipped("notebooks")), names)


def of_run(folder: Path) -> str:
    """Return a digest of the sources of a run's page."""
    return digest(seen(folder, UNREAD), locked(folder))


def digest(*values: object) -> str:
    """Return SHA-256 over the `repr` of the values."""
    return hashlib.sha256(repr(values).encode()).hexdigest()
