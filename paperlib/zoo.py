"""Trained networks that come with the project: weights and a card each, under zoo/.

A card holds the training's history, its description (`training.kept.asked_of`), and accuracies with intervals. A training
with the same description and code takes the network from here, unless `retrain` is set.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from paperlib import models
from paperlib.runs.files import InputError, read_json, shipped

WEIGHTS, CARD = ".safetensors", ".json"


def folder() -> Path:
    """Return the folder of the networks."""
    return shipped("zoo")


def names() -> list[str]:
    """Return the networks' names, "<data>/<method>-seed<seed>", or "quick/…" for the preset `quick`."""
    return sorted(str(file.relative_to(folder()).with_suffix("")) for file in folder().glob(f"*/*{CARD}"))


def card(name: str) -> dict[str, Any]:
    """Read a network's card. Raises InputError for an unknown name."""
    file = folder() / f"{name}{CARD}"
    if not file.is_file():
        raise InputError(f"zoo: no network {name!r}; there are {', '.join(names()) or 'none'}")
    return dict(read_json(file))


def weights(name: str) -> Path:
    """Return the path of a network's weights."""
    return folder() / f"{name}{WEIGHTS}"


def load(name: str) -> nn.Module:
    """Load a network in evaluation mode, for images in [0,1]. Raises InputError for an unknown name."""
    network = card(name)["asked"]["network"]
    return models.load_weights(models.build(network.pop("model"), seed=0, **network), weights(name)).eval()


def find(asked: dict[str, Any]) -> str | None:
    """Return the name of the network with this description, whatever its code; None if there is none."""
    return next((name for name in names() if card(name)["asked"] | {"code": ""} == asked | {"code": ""}), None)


def table() -> pd.DataFrame:
    """Tabulate the networks: architecture, epochs, and accuracies in percent with 95 % intervals."""
    rows = {}
    for name in names():
        about = card(name)
        network = about["asked"]["network"]
        accuracies = {
            measure: f"{100 * one['value']:.1f} ({100 * one['low']:.1f}–{100 * one['high']:.1f}, n = {one['n']})"
            for measure, one in about["accuracies"].items()
        }
        told = f"{network['model']}, width {network['width']}"
        rows[name] = {"network": told, "epochs": len(about["epochs"]), **accuracies}
    return pd.DataFrame.from_dict(rows, orient="index")
