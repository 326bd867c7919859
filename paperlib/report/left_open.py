"""Presets that could decide the claims that a run left open."""

from collections.abc import Mapping
from contextlib import suppress

import pandas as pd

from paperlib import studies
from paperlib.claims import power
from paperlib.runs.files import InputError
from paperlib.runs.run import PRESETS


def plans(notebook: str) -> dict[str, pd.DataFrame]:
    """Return `power.table` for each preset of a notebook; unreadable presets are skipped."""
    found = {}
    for preset in PRESETS:
        with suppress(InputError):
            settings = studies.resolve(notebook, preset)
            found[preset] = power.table(notebook, settings, studies.plan_of(notebook, settings)).set_index("id")
    return found


def would_do(claim: str, own: str | None, plans: Mapping[str, pd.DataFrame]) -> str:
    """Name the first preset with enough images and seeds for a claim that a run left open; – if plans cannot tell.

    `own` is the answer of the run's own plan. If that run had enough of both, the claim was left open for another reason.
    """
    decides = {preset: plan["decides"].get(claim) for preset, plan in plans.items()}
    if own not in ("no", power.UNTOLD):
        return "–"
    if enough := [preset for preset, word in decides.items() if word == "yes"]:
        return enough[0]
    measured = [preset for preset, word in decides.items() if word in (power.NO_NUMBER, power.UNSAID)]
    if own == power.UNTOLD and measured:
        return f"run at {measured[0]}; whether that is enough cannot be told"
    return "no preset" if set(decides.values()) <= {"no", power.UNTOLD} else "–"
