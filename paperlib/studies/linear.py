"""Proposition 1 of DAAT (Appendix C) as an experiment: linear classifiers with weights on depth edges only, or anywhere.

f(x) = ⟨w, x⟩ + b separates two classes. Under L∞ perturbations of at most ε its logit changes by at most ε Σ|wᵢ|, and this
bound is attained. The proposition compares the bound at the same margin γ = y f(x): "significantly less" with weights on
edges only. Its smallest value is a linear programme. Classifiers on edges are a subset of those on all pixels, so the
smallest bound on all pixels is never larger.
"""

import math
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import linprog, minimize
from torch import Tensor

from paperlib.attacks import pgd
from paperlib.data import ImageSet, as_float
from paperlib.evaluation import at_chance
from paperlib.evaluation.intervals import binomial_interval
from paperlib.geometry import depth
from paperlib.geometry.oracles import Oracle
from paperlib.runs.files import InputError

Training = Literal["plain", "robust"]

SUPPORT = 0.25  # share of the pixels that a restricted classifier may use
STEPS = 1000  # most iterations of L-BFGS-B
RIDGE = 1e-3  # weight of ‖w‖²/2, without which the weights diverge for separable classes


def pair(data: ImageSet, first: int, second: int) -> tuple[Tensor, Tensor, ImageSet]:
    """Return images N×C×H×W of two classes, their signs ±1 N, and the set. Raises InputError if a class has no image."""
    chosen = data[torch.where((data.labels == first) | (data.labels == second))[0]]
    signs = torch.where(chosen.labels == first, 1.0, -1.0)
    if not (signs > 0).any() or not (signs < 0).any():
        raise InputError(f"classes {first} and {second}: one of them has no image here")
    return as_float(chosen.images), signs, chosen


def supports(edges: Tensor) -> dict[str, Tensor]:
    """Return the pixels that a classifier may use, each bool H×W, given depth edges N×H×W of images.

    The supports are all pixels, the quarter with the strongest mean edges, that with the weakest, and a random quarter.
    """
    strength = edges.mean(0)
    count = round(SUPPORT * strength.numel())
    order = strength.flatten().argsort(descending=True)
    drawn = torch.randperm(strength.numel(), generator=torch.Generator().manual_seed(0))

    def mask(places: Tensor) -> Tensor:
        chosen = torch.zeros(strength.numel(), dtype=torch.bool)
        chosen[places] = True
        return chosen.view_as(strength)

    everything = torch.ones_like(strength, dtype=torch.bool)
    return {
        "all pixels": everything, "edges": mask(order[:count]), "off the edges": mask(order[-count:]),
        "random pixels": mask(drawn[:count]),
    }  # fmt: skip


def fit(images: Tensor, signs: Tensor, support: Tensor, eps: float, training: Training) -> tuple[Tensor, Tensor]:
    """Fit weights C×H×W, zero off the `support` bool H×W, and a bias by logistic regression with a small ridge term.

    "robust" trains on the worst perturbation, in closed form for a linear classifier: y f(x + δ) = y f(x) − ε‖w‖₁. Both
    losses are convex. With w = u − v, u, v ≥ 0, they are smooth as well, and L-BFGS-B finds the optimum.
    """
    used = support.expand_as(images[0])
    inputs, signs = (images - 0.5)[:, used].double(), signs.double()
    count, worst = inputs.shape[1], eps if training == "robust" else 0.0

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(values).requires_grad_(True)
        positive, negative, bias = leaf[:count], leaf[count:-1], leaf[-1]
        weight, size = positive - negative, (positive + negative).sum()  # at the optimum one of the two is zero
        margins = signs * (inputs @ weight + bias) - worst * size
        total = F.softplus(-margins).mean() + RIDGE / 2 * (positive.square() + negative.square()).sum()
        (slope,) = torch.autograd.grad(total, leaf)
        return float(total.detach()), slope.numpy()

    bounds = [(0.0, None)] * (2 * count) + [(None, None)]
    found = minimize(loss, np.zeros(2 * count + 1), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": STEPS})
    weight = torch.zeros_like(images[0])
    weight[used] = torch.from_numpy(found.x[:count] - found.x[count:-1]).float()
    return weight, torch.tensor(found.x[-1], dtype=torch.float32)


def smallest_bound(images: Tensor, signs: Tensor, support: Tensor, eps: float) -> float:
    """Return the smallest Δ/γ for images N×C×H×W with signs ±1 N and weights on the `support` bool H×W only.

    γ is the smallest margin. The linear programme is min ε Σ|wᵢ| with yᵢ f(xᵢ) ≥ 1 for all i. The result is infinite if
    no such classifier separates the images.
    """
    used = support.expand_as(images[0])
    inputs = (signs[:, None] * (images - 0.5)[:, used]).double().numpy()
    count = inputs.shape[1]
    cost = np.concatenate([np.full(2 * count, eps), [0.0]])  # of w = u − v with u, v ≥ 0, and the bias
    margins = np.concatenate([inputs, -inputs, signs.double().numpy()[:, None]], axis=1)
    bounds = [(0.0, None)] * (2 * count) + [(None, None)]
    found = linprog(cost, A_ub=-margins, b_ub=-np.ones(len(inputs)), bounds=bounds, method="highs")
    return float(found.fun) if found.status == 0 else math.inf


def smallest_bounds(
    train: ImageSet, oracle: Oracle, first: int, second: int, *, eps: float, operator: depth.Operator, images: int = 60
) -> pd.DataFrame:
    """Return, by support, the smallest Δ/γ for the first `images` training images of each class, and their number n."""
    every, signs, chosen = pair(train, first, second)
    with torch.no_grad():
        edges = depth.outlines(oracle(every, chosen.depth), operator)
    few = torch.cat([torch.where(signs == sign)[0][:images] for sign in (1.0, -1.0)])
    rows = {
        name: {"Δ/γ": smallest_bound(every[few], signs[few], support, eps), "n": len(few)}
        for name, support in supports(edges).items()
    }
    return pd.DataFrame(rows).T.rename_axis("support")


def bound_rows(found: pd.DataFrame) -> pd.DataFrame:
    """Return `smallest_bounds` as rows for the claims: method "smallest: <support>", measure "bound".

    An optimum has no uncertainty on its own images.
    """
    values = []
    for support, row in found.iterrows():
        least = row["Δ/γ"]
        values.append((f"smallest: {support}", "bound", least, np.nan, least, least, 1, int(row["n"]), least, least, None))
    return _frame(values, (0.0, math.inf))


def _score(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (images - 0.5).flatten(1) @ weight.flatten() + bias


def experiment(
    train: ImageSet, test: ImageSet, oracle: Oracle, first: int, second: int, *, eps: float, operator: depth.Operator
) -> pd.DataFrame:
    """Measure margins, bound and accuracies on test images: one row per (training, support).

    Columns: clean (%); γ, the mean margin of correctly classified images; the bound Δ = ε‖w‖₁; Δ/γ; robust (%), the share
    with y f(x) > Δ, with its 95 % interval low … high; "attack (%)", the accuracy under PGD, which can exceed robust (%)
    only because images stay in [0,1]; n; each, whether y f(x) > Δ by image, a bool array.
    """
    images, signs, chosen = pair(train, first, second)
    tested, wanted, _ = pair(test, first, second)
    with torch.no_grad():
        edges = depth.outlines(oracle(images, chosen.depth), operator)
    rows = {}
    for training in ("plain", "robust"):
        for name, support in supports(edges).items():
            weight, bias = fit(images, signs, support, eps, training)
            rows[training, name] = _measured(tested, wanted, weight, bias, eps)
    return pd.DataFrame(rows).T.rename_axis(["training", "support"])


def _measured(images: Tensor, signs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> dict[str, Any]:
    margins = signs * _score(images, weight, bias)
    right = margins > 0
    # DAAT, Proposition 1: Δ = ε Σᵢ |wᵢ|
    bound = eps * float(weight.abs().sum())
    margin = float(margins[right].mean()) if bool(right.any()) else math.nan
    held = margins > bound
    low, high = binomial_interval(int(held.sum()), len(held))
    attacked = pgd(_Linear(weight, bias), images, (signs < 0).long(), eps=eps, norm="linf", steps=10, step_size=eps / 2)
    left = signs * _score(attacked, weight, bias) > 0
    clean, robust, attack = (100 * float(values.double().mean()) for values in (right, held, left))
    return {
        "clean (%)": clean, "γ": margin, "Δ": bound, "Δ/γ": bound / margin, "robust (%)": robust, "low": 100 * low,
        "high": 100 * high, "attack (%)": attack, "n": len(signs), "each": held.numpy(),
    }  # fmt: skip


class _Linear(torch.nn.Module):
    """The linear classifier as a model with two logits, for attacks."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images: Tensor) -> Tensor:
        score = _score(images, self.weight, self.bias)
        return torch.stack([score, -score], 1) / 2


def untold(found: pd.DataFrame) -> dict[str, str]:
    """Return the classifiers of `experiment` that hardly separate the classes, and so decide no claim, with the reason."""
    reason = "tells the two classes apart hardly better than chance"
    low = {
        key: binomial_interval(round(row["clean (%)"] / 100 * row["n"]), int(row["n"]))[0] for key, row in found.iterrows()
    }
    return {f"{training}: {support}": reason for (training, support), least in low.items() if at_chance({"low": least}, 2)}


def rows(found: pd.DataFrame) -> pd.DataFrame:
    """Return the robust shares of `experiment` as rows for the claims: method "<training>: <support>"."""
    values = []
    for (training, support), row in found.iterrows():
        mean, low, high = (row[name] / 100 for name in ("robust (%)", "low", "high"))
        values.append(
            (f"{training}: {support}", "robust", mean, np.nan, low, high, 1, int(row["n"]), low, high, row["each"][None])
        )
    return _frame(values, (0.0, 1.0))


def _frame(values: list[tuple[Any, ...]], limits: tuple[float, float]) -> pd.DataFrame:
    """Return rows as in `evaluation.summary`, of one seed each, for a measure between the limits."""
    columns = ["method", "measure", "mean", "deviation", "low", "high", "seeds", "n", "sample_low", "sample_high", "each"]
    rows = [(*row, np.array([row[2]]), (0,), limits) for row in values]
    return pd.DataFrame(rows, columns=[*columns, "by_seed", "seed_list", "limits"])
