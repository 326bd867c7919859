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
    """Train a model with each method for each seed of the run. Return the models by method and seed.

    `seeds_of` limits a method to the given number of seeds, the first ones. `changes` replace settings for these
    trainings, such as `epochs`. `attack` is used for validation. Existing weights are reused; see `fit`.
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
    """Return an independent model, trained by `method` or standard training, with a seed that the run does not use.

    It classifies images that other models generate, and is the source of transfer attacks.
    """
    seed = run.settings.seeds[0] + 1000
    return train_each(run, {"judge": method or Standard()}, data, seeds=[seed])["judge"][seed]


def build(settings: Any, data: Splits, seed: int) -> nn.Module:
    """Build the untrained network named in the settings, for these images; for points, the toy network."""
    if data.train.images.ndim == 2:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return models.toy_net(*getattr(settings, "toy_hidden", (32,)))
    channels, size = data.train.images.shape[1], data.train.images.shape[-1]
    return models.of_settings(settings, classes=len(data.train.classes), channels=channels, size=size, seed=seed)


def one_batch(run: Run[TrainingSettings], data: Splits, averaged: nn.Module | None = None) -> tuple[Batch, Step]:
    """Return a batch as `fit` passes it to a method, on the run's device, and a step in the middle of the training.

    `averaged` is the step's moving average of the weights. The global generators are seeded, so the loss of the batch is
    reproducible. Nothing is trained.
    """
    settings, seed = run.settings, run.settings.seeds[0]
    batches = Batches.of(data.train, settings, seed, run.device)
    epoch, total = settings.epochs // 2, settings.epochs * len(batches.starts)
    *_, batch = next(batches.in_epoch(epoch, 0))
    draw_from(mix(seed, epoch, 0))
    return batch, Step(total // 2, total, epoch, averaged, settings.epochs)


def histories(run: Run[TrainingSettings], methods: Collection[str]) -> pd.DataFrame:
    """Tabulate the epochs of each finished training of the named methods, one row per epoch.

    The columns are method, seed, seconds (of the whole training, without validation), epoch, losses and accuracies.
    Missing values are NaN.
    """
    rows = [
        {"method": method, "seed": int(file.parent.name.rpartition("-seed")[2]), "seconds": history["seconds"], **epoch}
        for method in methods
        for file in sorted(run.folder.glob(f"training/{method}-seed*/history.json"))
        for history in [read_json(file)]
        for epoch in history["epochs"]
    ]
    return pd.DataFrame(rows, columns=None if rows else ["method", "seed", "seconds", "epoch"])
