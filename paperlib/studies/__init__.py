"""The studies: the settings, trainings, attacks and measures of each notebook."""

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
    """Return the settings class of each notebook, from the STUDIES of all modules in `studies` and `methods`."""
    return declared("STUDIES")


def plan_of(notebook: str, settings: Settings) -> Plan:
    """Return the images and seeds that settings amount to, by the study's PLANS. Raises InputError if it has none."""
    if notebook not in (known := declared("PLANS")):
        raise InputError(f"{notebook}: its study says in no PLANS what it measures; {', '.join(sorted(known))} do")
    plan: Plan = known[notebook](settings)
    return plan


def declared(name: str) -> dict[str, Any]:
    """Collect, by notebook, the dicts that modules of `studies` and `methods` define under a name."""
    found: dict[str, Any] = {}
    for package, prefix in ((__path__, "paperlib.studies."), (methods.__path__, "paperlib.methods.")):
        for module in pkgutil.iter_modules(package, prefix):
            found |= getattr(importlib.import_module(module.name), name, {})
    return found


def resolve(notebook: str, preset: str = "quick", overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of a preset with `overrides` applied. Raises InputError if any setting is wrong.

    A relative folder of images that is not relative to the project's folder becomes an absolute path.
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
    """Start or resume the run whose parameters a notebook's `namespace` holds: pass `globals()`.

    `run.given` selects the parameters; the text "null" stands for None. Papermill passes misspelt parameters silently, so
    the cell that it injects is read as well. Raises InputError for parameters that are unknown, wrong or too large for
    this machine's memory, and if another process works in the same folder.
    """
    given = run.given(resolve(notebook).model_dump(), namespace)
    preset = namespace.get("preset", "quick")
    settings = resolve(notebook, preset, given)
    sizes.check_memory(settings)
    return run.begin(notebook, preset, settings)
