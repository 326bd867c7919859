"""The trainings of a run: each method with each seed."""

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
import torch
from torch import nn

from paperlib import models
from paperlib.attacks import Attack
from paperlib.data import Splits
from paperlib.methods import Batch, Method, Step
from paperlib.methods.baselines import Standard
from paperlib.runs.files import read_json
from paperlib.runs.run import Run
from paperlib.runs.settings import TrainingSettings
from paperlib.training.devices import draw_from, mix
from paperlib.training.loop import Batches, fit


def train_each(
    run: Run[TrainingSettings],
    methods: Mapping[str, Method],
    data: Splits,
    attack: Attack | None = None,
    seeds_of: Mapping[str, int] | None = None,
    **changes: Any,
) -> dict[str, dict[int, nn.Module]]:
    """Train a model with each method for each seed of the run: the models by method and seed.

    A method named in `seeds_of` is trained with the first so many seeds alone. The network is the one in the settings;
    `changes` replace settings for these trainings, say `epochs`. `attack` is for validation. What was trained before is
    read back. See `fit` for the rest.
    """
    settings = run.settings.model_copy(update=changes)
    trained: dict[str, dict[int, nn.Module]] = {name: {} for name in methods}
    for name, method in methods.items():
        for seed in settings.seeds[: (seeds_of or {}).get(name)]:
            folder = run.folder / "training" / f"{name}-seed{seed}"
            model = build(settings, data, seed)
            trained[name][seed] = fit(model, method, data, settings, folder, seed=seed, attack=attack, device=run.device)
    return trained


def judge(run: Run[TrainingSettings], data: Splits, method: Method | None = None) -> nn.Module:
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


def one_batch(run: Run[TrainingSettings], data: Splits, averaged: nn.Module | None = None) -> tuple[Batch, Step]:
    """A batch as `fit` hands it to a method, on the run's device, and a step at the middle of the training.

    `averaged` stands for the moving average of the weights, for a method that asks for one. The global generators are
    seeded, so that a loss of the batch is the same each time. Nothing is trained.
    """
    settings, seed = run.settings, run.settings.seeds[0]
    batches = Batches.of(data.train, settings, seed, run.device)
    epoch, total = settings.epochs // 2, settings.epochs * len(batches.starts)
    *_, batch = next(batches.in_epoch(epoch, 0))
    draw_from(mix(seed, epoch, 0))
    return batch, Step(total // 2, total, epoch, averaged, settings.epochs)


def histories(run: Run[TrainingSettings], methods: Collection[str]) -> pd.DataFrame:
    """One row an epoch of each finished training of the named methods.

    Columns method, seed, seconds (of the whole training, without validation), epoch, and the epoch's losses and
    accuracies; NaN where a method has none of that name.
    """
    rows = [
        {"method": method, "seed": int(file.parent.name.rpartition("-seed")[2]), "seconds": history["seconds"], **epoch}
        for method in methods
        for file in sorted(run.folder.glob(f"training/{method}-seed*/history.json"))
        for history in [read_json(file)]
        for epoch in history["epochs"]
    ]
    return pd.DataFrame(rows, columns=None if rows else ["method", "seed", "seconds", "epoch"])
