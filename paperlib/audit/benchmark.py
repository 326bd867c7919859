"""Evaluate one model in one call: accuracy under AutoAttack with its interval, and an audit."""

from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from paperlib.attacks import Norm, autoattack
from paperlib.audit.checks import Audit, audit, check_radius
from paperlib.data import ImageSet, load_test, subset
from paperlib.evaluation import evaluate
from paperlib.evaluation.intervals import binomial_interval
from paperlib.runs.files import InputError


class Benchmark(NamedTuple):
    """Accuracies in [0,1] with their 95 % intervals, and the audit."""

    clean: float
    clean_interval: tuple[float, float]
    robust: float  # under AutoAttack "standard"
    robust_interval: tuple[float, float]
    images: int
    audit: Audit


def benchmark(
    model: nn.Module,
    data: ImageSet | str,
    *,
    eps: float,
    norm: Norm = "linf",
    count: int = 1000,
    device: torch.device | str = "cpu",
) -> Benchmark:
    """Measure accuracy without attack and under AutoAttack "standard" (Croce & Hein 2020), and audit the model.

    `model` maps images N×C×H×W in [0,1] to logits. `data` is a set of test images, or a data set's name. `eps` is in units
    of [0,1]. At most `count` images are used, equally many of each class. RobustBench's `benchmark` returns the two
    accuracies alone. Raises InputError where data, radius or model do not fit.
    """
    check_radius(eps, norm)
    if count < 1:
        raise InputError(f"count = {count}: should be a number of images of at least 1, say 1000")
    images = load_test(data, count) if isinstance(data, str) else subset(data, count, 0)
    found = audit(model.to(device), images, eps=eps, norm=norm)  # first, since it refuses unfit models
    outcomes, _ = evaluate(model, images, {"autoattack": partial(autoattack, eps=eps, norm=norm)}, device=device)
    hits = {name: int(right.sum()) for name, right in outcomes.items()}
    shares = {name: count / len(images) for name, count in hits.items()}
    intervals = {name: binomial_interval(count, len(images)) for name, count in hits.items()}
    return Benchmark(shares["clean"], intervals["clean"], shares["autoattack"], intervals["autoattack"], len(images), found)
