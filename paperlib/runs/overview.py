"""Every run in short: what `paperlib status` shows. Without PyTorch, which takes seconds to import."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paperlib.runs.files import InputError, read_json, read_yaml, root
from paperlib.runs.run import changed, read_presets, status

HELD = ("reproduced", "direction only")  # outcomes of claims
left_out: list[Path] = []  # of this process, by `damaged_left_out`


@contextmanager
def damaged_left_out(folder: Path) -> Iterator[None]:
    """Report a run with damaged files on stderr and go on without it."""
    try:
        yield
    except Exception as error:  # no list of errors has what any content of any file may lead to
        left_out.append(folder)
        print(f"paperlib: {folder} is damaged and left out ({type(error).__name__}: {error})", file=sys.stderr)


def runs() -> list[dict[str, Any]]:
    """Every run with a status, newest first: folder, status, settings, those not as in the preset, and claims."""
    found, usual = [], functools.cache(_usual)
    for file in (root() / "runs").glob("*/*/status.json"):
        folder = file.parent
        claims, settings = folder / "claims.json", folder / "settings.yaml"
        with damaged_left_out(folder):
            about = status(folder)
            told = {**about, "preset": str(about["preset"]), "notebook": folder.parent.name}
            chosen = read_yaml(settings) if settings.exists() else {}
            if not isinstance(chosen, dict):
                raise InputError(f"{settings}: should be settings by name; delete it and start the run again")
            found.append(
                {
                    "folder": folder,
                    "status": told,
                    "settings": chosen,
                    "changed": changed(usual(told["notebook"], told["preset"]), chosen),
                    "claims": read_json(claims) if claims.exists() else [],
                }
            )
    return sorted(found, key=lambda run: run["status"]["started"], reverse=True)


def _usual(notebook: str, preset: str) -> dict[str, Any]:
    """A preset as written; empty where there is no such preset any more."""
    try:
        return read_presets(notebook).get(preset, {})
    except InputError:
        return {}


def tally(claims: list[dict[str, Any]]) -> tuple[int, int, int]:
    """How many claims held, did not hold, and were not tested."""
    held = sum(claim["outcome"] in HELD for claim in claims)
    untested = sum(claim["outcome"] == "not tested here" for claim in claims)
    return held, len(claims) - held - untested, untested
