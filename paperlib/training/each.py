"""The trainings of a run: each method with each seed."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from paperlib import models
from paperlib.attacks import Attack
from paperlib.data import Splits
from paperlib.methods import Method
from paperlib.methods.baselines import Standard
from paperlib.runs.files import read_json
from paperlib.runs.run import Run
from paperlib.training.loop import fit


def train_each(
    run: Run,
    methods: Mapping[str, Method],
    data: Splits,
    attack: Attack | None = None,
    one_seed: Collection[str] = (),
    **changes: Any,
) -> dict[str, dict[int, nn.Module]]:
    """Train a model with each method for each seed of the run: the models by method and seed.

    Methods named in `one_seed` are trained with the first seed alone. The network is the one in the settings; `changes`
    replace settings for these trainings, say `epochs`. `attack` is for validation. What was trained before is read back.
    See `fit` for the rest.
    """
    settings = run.settings.model_copy(update=changes)
    trained: dict[str, dict[int, nn.Module]] = {name: {} for name in methods}
    for name, method in methods.items():
        for seed in settings.seeds[:1] if name in one_seed else settings.seeds:
            folder = run.folder / "training" / f"{name}-seed{seed}"
            model = build(settings, data, seed)
            trained[name][seed] = fit(model, method, data, settings, folder, seed=seed, attack=attack, device=run.device)
    return trained


def judge(run: Run, data: Splits, method: Method | None = None) -> nn.Module:
    """A model of a seed that none of the run's has, trained plainly, or by `method`.

    It says what targeted images look like to a stranger, and its own adversarial images are transferred.
    """
    seed = run.settings.seeds[0] + 1000
    return train_each(run, {"judge": method or Standard()}, data, seeds=[seed])["judge"][seed]


def build(settings: Any, data: Splits, seed: int) -> nn.Module:
    """The untrained network that the settings name, for these images; points get a toy's network."""
    if data.train.images.ndim == 2:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return models.toy_net(*getattr(settings, "toy_hidden", (32,)))
    channels, size = data.train.images.shape[1], data.train.images.shape[-1]
    return models.of_settings(settings, classes=len(data.train.classes), channels=channels, size=size, seed=seed)


def histories(run: Run) -> dict[str, dict[str, Any]]:
    """The history of every finished training of a run, by its name.

    seconds (of training alone), validation_seconds, and epochs with losses and accuracies.
    """
    return {file.parent.name: read_json(file) for file in sorted(run.folder.glob("training/*/history.json"))}
