"""A summary of every run, for `paperlib status`. It does not import PyTorch, which takes seconds."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paperlib.runs.files import InputError, read_json, read_yaml, root
from paperlib.runs.run import changed, read_presets, status

HELD = ("reproduced", "direction only")  # outcomes of claims
left_out: list[Path] = []  # damaged runs that this process has skipped


@contextmanager
def damaged_left_out(folder: Path) -> Iterator[None]:
    """Skip a run with damaged files, and report it on stderr."""
    try:
        yield
    except Exception as error:  # arbitrary file contents can raise any error
        left_out.append(folder)
        print(f"paperlib: {folder} is damaged and left out ({type(error).__name__}: {error})", file=sys.stderr)


def runs() -> list[dict[str, Any]]:
    """Return every run with a status, newest first: folder, status, settings, settings unlike its preset, claims."""
    found, usual = [], functools.cache(_usual)
    for file in (root() / "runs").glob("*/*/status.json"):
        folder = file.parent
        claims, settings = folder / "claims.json", folder / "settings.yaml"
        with damaged_left_out(folder):
            about = {**status(folder), "notebook": folder.parent.name}
            about["preset"] = str(about["preset"])
            chosen = read_yaml(settings) if settings.exists() else {}
            if not isinstance(chosen, dict):
                raise InputError(f"{settings}: should be settings by name; delete it and start the run again")
            found.append(
                {
                    "folder": folder,
                    "status": about,
                    "settings": chosen,
                    "changed": changed(usual(about["notebook"], about["preset"]), chosen),
                    "claims": read_json(claims) if claims.exists() else [],
                }
            )
    return sorted(found, key=lambda run: run["status"]["started"], reverse=True)


def _usual(notebook: str, preset: str) -> dict[str, Any]:
    """Return a preset as written; empty if it no longer exists."""
    try:
        return read_presets(notebook).get(preset, {})
    except InputError:
        return {}


def tally(claims: list[dict[str, Any]]) -> tuple[int, int, int]:
    """Count the claims that held, did not hold, and were not tested."""
    held = sum(claim["outcome"] in HELD for claim in claims)
    untested = sum(claim["outcome"] == "not tested here" for claim in claims)
    return held, len(claims) - held - untested, untested
