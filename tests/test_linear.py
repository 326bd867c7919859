"""Proposition 1's linear classifiers: the optimum by another optimiser, the bound by the attack that attains it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from paperlib.data import ImageSet
from paperlib.geometry import oracles
from paperlib.runs.files import InputError
from paperlib.studies import linear

EPS = 0.05


def problem(count: int = 60, side: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of two classes that overlap, so that the optimum is finite."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
    images = 0.5 + 0.25 * torch.randn(count, 1, side, side, generator=generator)
    images[:, 0, 0, :2] += 0.2 * signs[:, None]
    return images.clamp(0, 1), signs


@pytest.mark.parametrize("training", ["plain", "robust"])
def test_the_loss_is_as_low_as_another_optimiser_finds_it(training: linear.Training) -> None:
    images, signs = problem()
    support = torch.zeros(4, 4, dtype=torch.bool)
    support[:2] = True

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> float:
        margins = signs * ((images - 0.5).flatten(1) @ weight.flatten() + bias)
        worst = EPS * weight.abs().sum() if training == "robust" else 0
        return float(F.softplus(-(margins - worst)).mean() + linear.RIDGE / 2 * weight.square().sum())

    def of(values: np.ndarray) -> float:
        weight = torch.zeros(1, 4, 4)
        weight[0][support] = torch.tensor(values[:-1], dtype=torch.float32)
        return loss(weight, torch.tensor(values[-1], dtype=torch.float32))

    weight, bias = linear.fit(images, signs, support, EPS, training)
    assert bool((weight[0][~support] == 0).all())
    best = minimize(of, np.zeros(9), method="Powell", options={"maxiter": 20000, "xtol": 1e-6, "ftol": 1e-9}).fun
    assert loss(weight, bias) == pytest.approx(best, abs=1e-4)


def test_the_bound_is_attained_and_what_is_above_it_holds() -> None:
    """y f(x + δ) with δ = −ε y sign(w) is y f(x) − ε‖w‖₁: exactly the images above the bound stay right."""
    images, signs = problem()
    weight, bias = linear.fit(images, signs, torch.ones(4, 4, dtype=torch.bool), EPS, "plain")
    found = linear._measured(images, signs, weight, bias, EPS)
    worst = images - EPS * signs[:, None, None, None] * weight.sign()
    margins = signs * ((worst - 0.5).flatten(1) @ weight.flatten() + bias)
    assert found["robust (%)"] == pytest.approx(100 * float((margins > 0).double().mean()))
    assert found["Δ"] == pytest.approx(EPS * float(weight.abs().sum()))
    assert found["robust (%)"] <= found["attack (%)"] <= found["clean (%)"]


def test_supports_are_the_pixels_they_are_said_to_be() -> None:
    edges = torch.zeros(3, 4, 4)
    edges[:, 1] = 1.0
    edges[:, 3] = -1.0
    found = linear.supports(edges)
    assert {name: int(mask.sum()) for name, mask in found.items()} == {
        "all pixels": 16, "edges": 4, "off the edges": 4, "random pixels": 4,
    }  # fmt: skip
    assert bool(found["edges"][1].all())
    assert bool(found["off the edges"][3].all())


def test_the_experiment_has_a_row_for_each_support_and_training() -> None:
    images, signs = problem(80, 8)
    distance = torch.ones(80, 8, 8)
    distance[:, 2:5] = 2.0
    data = ImageSet((255 * images).to(torch.uint8), torch.where(signs > 0, 3, 1), ("a", "b", "c", "d"), distance)
    found = linear.experiment(data[:40], data[40:], oracles.exact, 3, 1, eps=EPS, operator="sobel")
    assert len(found) == 8
    rows = linear.rows(found)
    assert set(rows["n"]) == {40}
    assert "robust: edges" in set(rows["method"])
    assert bool((rows["low"] <= rows["mean"]).all())
    # Trained on the worst perturbation, every classifier's bound is smaller beside its margin.
    assert bool((found.loc["robust", "Δ/γ"] < found.loc["plain", "Δ/γ"]).all())
    assert set(linear.untold(found)) <= set(rows["method"])
    with pytest.raises(InputError, match="classes 0 and 1: one of them has no image"):
        linear.pair(data, 0, 1)


def test_the_smallest_bound_is_known_where_one_pixel_tells() -> None:
    """Pixels 0.5 ± a of the two classes: weight 1/a on it has margin 1, so Δ/γ = ε / a; off that pixel there is none."""
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0])
    images = torch.full((4, 1, 2, 2), 0.5)
    images[:, 0, 0, 0] += 0.2 * signs
    everything = torch.ones(2, 2, dtype=torch.bool)
    assert linear.smallest_bound(images, signs, everything, 0.03) == pytest.approx(0.03 / 0.2)
    off = everything.clone()
    off[0, 0] = False
    assert linear.smallest_bound(images, signs, off, 0.03) == math.inf


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_subset_of_the_pixels_never_has_a_smaller_bound(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, signs = torch.rand(6, 1, 3, 3, generator=generator), torch.tensor([1.0, -1.0] * 3)
    subset = torch.rand(3, 3, generator=generator) < 0.7
    every = linear.smallest_bound(images, signs, torch.ones(3, 3, dtype=torch.bool), 0.1)
    assert linear.smallest_bound(images, signs, subset, 0.1) >= every - 1e-9
    # And no classifier that tells them apart with margin one has a smaller one: logistic regression's, say.
    weight, bias = linear.fit(images, signs, torch.ones(3, 3, dtype=torch.bool), 0.0, "plain")
    margins = signs * linear._score(images, weight, bias)
    if float(margins.min()) > 0:
        assert every <= 0.1 * float(weight.abs().sum() / margins.min()) + 1e-6
