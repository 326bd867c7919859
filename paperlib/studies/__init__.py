"""The studies: which notebooks there are, and what each can be told, trains, attacks and measures."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from paperlib import methods
from paperlib.data.folder import located
from paperlib.evaluation.settings import Plan
from paperlib.runs import run
from paperlib.runs.files import InputError, root
from paperlib.runs.settings import Settings, check
from paperlib.studies import sizes


def known() -> dict[str, type[Settings]]:
    """The settings of each notebook: the STUDIES of every module here and, of a paper in one file, in `methods`."""
    return declared("STUDIES")


def plan_of(notebook: str, settings: Settings) -> Plan:
    """What settings come to in images and seeds, by the PLANS of the notebook's study. Raises InputError without one."""
    if notebook not in (known := declared("PLANS")):
        raise InputError(f"{notebook}: its study says in no PLANS what it measures; {', '.join(sorted(known))} do")
    plan: Plan = known[notebook](settings)
    return plan


def declared(name: str) -> dict[str, Any]:
    """What the modules of studies, and those of `methods`, have under a name, by notebook."""
    found: dict[str, Any] = {}
    for package, prefix in ((__path__, "paperlib.studies."), (methods.__path__, "paperlib.methods.")):
        for module in pkgutil.iter_modules(package, prefix):
            found |= getattr(importlib.import_module(module.name), name, {})
    return found


def resolve(notebook: str, preset: str = "quick", overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a preset with `overrides` in place. Raises InputError when anything is wrong with them.

    A folder of images that is not named from the project's folder gets its absolute path, as it is another elsewhere.
    """
    presets, kinds = run.read_presets(notebook), known()
    if notebook not in kinds:
        raise InputError(f"no study of notebook {notebook!r}; there are {', '.join(sorted(kinds))}")
    if preset not in presets:
        raise InputError(f"preset = {preset!r}: {notebook} has {', '.join(presets)}")
    settings = check(kinds[notebook], {**presets[preset], **_from_here(overrides or {})})
    sizes.check(settings)
    return settings


def _from_here(given: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(given.get("data", ""))
    if not name.startswith("folder:"):
        return given
    path = name.removeprefix("folder:")
    if not (place := located(path)).is_dir() or place.resolve() == (root() / path).resolve():
        return given
    return {**given, "data": f"folder:{place.resolve()}"}


def start(notebook: str, namespace: Mapping[str, Any]) -> run.Run[Any]:
    """Begin, or go on with, the run whose parameters a notebook's `namespace` holds: pass `globals()`.

    `run.given` says which of them count; the text "null" stands for the value None. Papermill hands misspelt parameters
    over without a word, so the cell it injects is read as well. Raises InputError for parameters that are unknown or
    wrong, or larger than this machine's memory, and when another process is at work in the same folder.
    """
    given = run.given(resolve(notebook).model_dump(), namespace)
    preset = namespace.get("preset", "quick")
    settings = resolve(notebook, preset, given)
    sizes.check_memory(settings)
    return run.begin(notebook, preset, settings)
