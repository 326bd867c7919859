"""Optimiser, learning-rate schedule, and moving average of the weights."""

import math

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from paperlib.methods import Step
from paperlib.runs.settings import TrainingSettings


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Build the optimiser named in the settings."""
    weights = list(model.parameters())
    decay, rate = settings.weight_decay, settings.learning_rate
    if settings.optimizer == "sgd":
        return torch.optim.SGD(weights, rate, settings.momentum, weight_decay=decay, fused=True)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    found: torch.optim.Optimizer = kinds[settings.optimizer](weights, rate, weight_decay=decay, fused=True)
    return found


def learning_rate(settings: TrainingSettings, step: Step) -> float:
    """Return the learning rate of a step under the settings' schedule.

    step: × decay after each milestone, a fraction of the epochs. cosine: from the full rate to zero. one_cycle: a linear
    rise over the first 30 % of the steps, then a cosine decay to zero.
    """
    full = settings.learning_rate
    if settings.schedule == "constant":
        return full
    if settings.schedule == "step":
        passed = sum(step.epoch >= round(milestone * settings.epochs) for milestone in settings.milestones)
        return full * settings.decay**passed
    share = (step.index + 0.5) / step.total
    if settings.schedule == "cosine":
        return full * (1 + math.cos(math.pi * share)) / 2
    return full * (share / 0.3 if share < 0.3 else (1 + math.cos(math.pi * (share - 0.3) / 0.7)) / 2)


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Set averaged ← decay · averaged + (1 − decay) · model, with batch-norm statistics; copy integer counters."""
    pairs = list(zip(averaged.state_dict().values(), model.state_dict().values(), strict=True))
    means, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    get_ema_multi_avg_fn(decay)(list(means), list(values), 0)
    for counter, value in pairs:
        if not counter.is_floating_point():
            counter.copy_(value)
