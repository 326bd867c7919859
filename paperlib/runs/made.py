"""What the site was made from, so that only what changed is made again. Without PyTorch, which takes seconds to import.

A file counts as changed when its name, size or time of change is another.
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
UNREAD = ("training", "evaluation")  # folders of a run, of which the site shows nothing


def stored(target: Path) -> dict[str, Any]:
    """What a site was made from, as last written into its folder; empty where it does not say."""
    with suppress(OSError, InputError):
        kept = read_json(target / KEPT)
        if isinstance(kept, dict) and isinstance(kept.get("runs"), dict):
            return kept
    return {}


def current(target: Path) -> bool:
    """Whether a site is as it was made, and would be made the same."""
    return stored(target).get("site") == [of_site(target), digest(seen(target))]


def of_site(target: Path) -> str:
    """A digest of everything that the site in `target` is made from."""
    folders = sorted(folder for folder in (root() / "runs").glob("*/*") if target.absolute() not in folder.parents)
    runs = [(str(folder), of_run(folder)) for folder in folders if folder.is_dir()]
    return digest(of_all(), seen(root() / "docs" / "results"), runs)


def of_all() -> str:
    """A digest of what every page depends on: code, notebooks, presets, and the names that pages must not show."""
    names = str(root()), os.path.expanduser("~"), platform.node()
    return digest(seen(PACKAGE), seen(shipped("notebooks")), names)


def of_run(folder: Path) -> str:
    """A digest of what a run's page depends on."""
    return digest(seen(folder, UNREAD), locked(folder))


def digest(*values: object) -> str:
    """SHA-256 over values as Python writes them."""
    return hashlib.sha256(repr(values).encode()).hexdigest()
