"""Claims that a run left open: which preset would decide them."""

from collections.abc import Mapping
from contextlib import suppress

import pandas as pd

from paperlib import studies
from paperlib.claims import power
from paperlib.runs.files import InputError
from paperlib.runs.run import PRESETS


def plans(notebook: str) -> dict[str, pd.DataFrame]:
    """What each preset of a notebook could decide (`power.table`); a preset that cannot be read is left out."""
    found = {}
    for preset in PRESETS:
        with suppress(InputError):
            settings = studies.resolve(notebook, preset)
            found[preset] = power.table(notebook, settings, studies.plan_of(notebook, settings)).set_index("id")
    return found


def would_do(claim: str, own: str | None, plans: Mapping[str, pd.DataFrame]) -> str:
    """The first preset with the images and seeds for a claim that a run left open, in words; – where none can be named.

    `own` is what the run's own plan said: with enough of both it was left open for another reason, of which plans know
    nothing.
    """
    said = {preset: plan["decides"].get(claim) for preset, plan in plans.items()}
    if own not in ("no", power.UNTOLD):
        return "–"
    if enough := [preset for preset, word in said.items() if word == "yes"]:
        return enough[0]
    measured = [preset for preset, word in said.items() if word in ("no number", "not said")]
    if own == power.UNTOLD and measured:
        return f"run at {measured[0]}; whether that is enough cannot be told"
    return "no preset" if set(said.values()) <= {"no", power.UNTOLD} else "–"
