"""Attacks without a ball, on models where the nearest misclassified image is known."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paperlib import models
from paperlib.attacks import evaluating, lengths
from paperlib.attacks.minimum_norm import carlini_wagner, ddn, deepfool, distances, elastic_net, l2_attacks, one_pixel
from paperlib.data import ImageSet
from paperlib.evaluation import evaluate
from paperlib.evaluation.intervals import median_ratio
from paperlib.runs.files import InputError


class Plane(nn.Module):
    """Two classes on either side of ⟨w, x⟩ = b."""

    def __init__(self, sharpness: float = 5.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(3 * 4 * 4, generator=generator))
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) - 0.5) @ self.w * self.sharpness
        return torch.stack([-score, score], 1)


def images(count: int = 8) -> Tensor:
    return 0.5 + 0.15 * torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)


ATTACKS: dict[str, Any] = {
    "deepfool": partial(deepfool, norm="l2"), "carlini_wagner": carlini_wagner, "ddn": ddn, "elastic_net": elastic_net,
}  # fmt: skip


@pytest.mark.parametrize("sharpness", [5.0, 0.01])
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_the_distance_to_a_plane_is_found_whatever_the_scale_of_the_outputs(name: str, sharpness: float) -> None:
    """|⟨w, x⟩ − b| / ‖w‖₂ in closed form; EAD trades L2 for L1, so it may only be close."""
    model, x = Plane(sharpness), images()
    y = model(x).argmax(1)
    exact = ((x.flatten(1) - 0.5) @ model.w).abs() / model.w.norm()
    found = distances(model, x, y, ATTACKS[name](model, x, y), "l2")
    assert (found >= exact.detach() * (1 - 1e-3)).all()
    ratios = (found / exact).detach()
    if name == "elastic_net":
        assert float(ratios.median()) < 1.5
    else:
        assert float(ratios.max()) < (1.15 if name == "carlini_wagner" else 1.06)


def test_the_distance_in_the_largest_pixel_is_found_too() -> None:
    model, x = Plane(), images()
    y = model(x).argmax(1)
    exact = ((x.flatten(1) - 0.5) @ model.w).abs() / model.w.abs().sum()
    found = distances(model, x, y, deepfool(model, x, y, norm="linf"), "linf")
    assert (found >= exact.detach() * (1 - 1e-3)).all()
    assert float((found / exact).detach().median()) < 1.1


@pytest.mark.parametrize("name", ["deepfool", "ddn"])
def test_of_probabilities_the_logarithm_is_attacked(name: str, caplog: pytest.LogCaptureFixture) -> None:
    x = images()
    model = Plane(5.0)
    labels = model(x).argmax(1)
    attack = l2_attacks(50)[name]
    of_logits = lengths(attack(model, x, labels) - x, "l2")
    of_probabilities = lengths(attack(nn.Sequential(model, nn.Softmax(1)), x, labels) - x, "l2")
    assert of_probabilities.tolist() == pytest.approx(of_logits.tolist(), rel=0.02)
    assert caplog.messages == ["the outputs are probabilities and not logits: their logarithm is attacked"]
    with pytest.raises(InputError, match=r"images from -1 to 1: should be in \[0,1\]"):
        attack(model, (2 * x - 1) / (2 * x - 1).abs().max(), labels)


class Immune(nn.Module):
    """Says 0 to everything but a black image, and has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        black = (x.flatten(1).amax(1) <= 0).float()
        zero = 0 * x.flatten(1).sum(1)
        return torch.stack([1 - 2 * black + zero, zero + self.bias], 1)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_a_black_image_is_no_success(name: str) -> None:
    """Where C&W and EAD of the library fail they return black, which this model takes for another class."""
    model, x = Immune(), images(4)
    y = torch.zeros(4, dtype=torch.long)
    assert torch.equal(ATTACKS[name](model, x, y), x)
    assert distances(model, x, y, ATTACKS[name](model, x, y), "l2").tolist() == [math.inf] * 4
    if name in ("carlini_wagner", "elastic_net"):
        import foolbox

        kind = {"carlini_wagner": foolbox.attacks.L2CarliniWagnerAttack, "elastic_net": foolbox.attacks.EADAttack}[name]
        raw = kind(binary_search_steps=2, steps=3)(foolbox.PyTorchModel(model.eval(), bounds=(0, 1)), x, y, epsilons=None)
        assert float(raw[1].abs().max()) == 0
        assert raw[2].all()  # the library's report


def test_a_budget_and_what_is_wrong_already_count() -> None:
    model, x = Plane(), images()
    y = model(x).argmax(1)
    y[0] = 1 - y[0]
    free = distances(model, x, y, ddn(model, x, y), "l2")
    assert free[0] == 0
    limit = float(free[1:].median())
    bound = distances(model, x, y, ddn(model, x, y, eps=limit), "l2")
    assert torch.equal(bound.isinf(), free > limit)
    assert bound.isinf().any()
    with pytest.raises(InputError, match="ddn with norm = 'linf': it is an L2 attack"):
        ddn(model, x, y, norm="linf")


def test_the_library_meets_the_model_in_the_mode_it_is_in_and_leaves_no_trace() -> None:
    """Foolbox does not switch to evaluation mode, and it fills the weights' gradients."""
    model = nn.Sequential(models.build("small_cnn", classes=3, channels=3, width=4, seed=0), nn.Dropout(0.5))
    x, y = images(4), torch.zeros(4, dtype=torch.long)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with evaluating(model):
        y = model(x).argmax(1)
        for name, attack in ATTACKS.items():
            near = attack(model, x, y, steps=10)
            found = distances(model, x, y, near, "l2")
            assert torch.equal(found, distances(model, x, y, near, "l2")), name  # the same answer twice: no dropout
            assert not model.training
    assert model.training
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_they_pass_an_honest_evaluation() -> None:
    model = Plane()
    pixels = (255 * images(6)).round().to(torch.uint8)
    labels = model(pixels.float() / 255).argmax(1)
    data = ImageSet(pixels, labels, ("a", "b"))
    attacks = {
        "ddn": partial(ddn, norm="l2", eps=math.inf),
        "pixel": partial(one_pixel, norm="linf", eps=1.0, generations=2),
    }
    outcomes, flags = evaluate(model, data, attacks)
    assert outcomes["clean"].all()
    assert not outcomes["ddn"].any()
    assert flags == []


class Corner(nn.Module):
    """Class 1 if the red of one pixel is nearly full."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        excess = (x[:, 0, 5, 2] - 0.9) * self.scale
        return torch.stack([-excess, excess], 1)


def test_one_pixel_finds_the_pixel_that_matters_and_changes_no_other() -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 3, 8, 8) * 0.5
    x[2, 0, 5, 2] = 1.0  # wrong already
    y = torch.zeros(3, dtype=torch.long)
    found = one_pixel(Corner(), x, y, population=200, generations=40)
    changed = (found != x).any(1)
    assert changed.flatten(1).sum(1).tolist() == [1, 1, 0]
    assert changed[:2, 5, 2].all()
    assert (Corner()(found).argmax(1) == 1).all()
    torch.manual_seed(0)
    again = torch.rand(3, 3, 8, 8) * 0.5
    again[2, 0, 5, 2] = 1.0
    assert torch.equal(one_pixel(Corner(), again, y, population=200, generations=40), found)  # seeded
    with pytest.raises(InputError, match="any colour"):
        one_pixel(Corner(), x, y, eps=0.1)


def test_seeds_that_disagree_widen_the_interval_of_a_ratio() -> None:
    images = np.random.default_rng(0).uniform(1, 2, 100)
    standard = np.stack([images] * 3)
    alike = median_ratio(standard * np.array([[20.0], [20.5], [19.5]]), standard)
    apart = median_ratio(standard * np.array([[0.5], [20.0], [30.0]]), standard)
    assert 15 < alike[1] < 20 < alike[2] < 25
    assert apart[1] < 1 < apart[0]  # one of three models is less robust: no gain can be told
    logs = np.log([0.5, 20.0, 30.0])
    half = 4.3027 * logs.std(ddof=1) / 3**0.5  # Student's t of two degrees of freedom
    assert apart[1] == pytest.approx(apart[0] * math.exp(-half), rel=0.1)  # the images add little
    assert apart[1] < apart[0] * math.exp(-half)
    assert median_ratio(standard * np.array([[20.0], [np.inf], [30.0]]), standard)[2] == math.inf


def test_ratios_of_medians_have_an_interval_and_know_infinity() -> None:
    random = np.random.default_rng(0)
    second = random.lognormal(0, 0.3, (2, 400))
    value, low, high = median_ratio(3 * second * random.lognormal(0, 0.1, (2, 400)), second)
    assert low < 3 < high
    assert (high - low) / value < 0.2
    # One seed and its copy know no more than one seed: images are drawn, not rows.
    narrow, wide = (median_ratio(np.repeat(3 * second[:1], n, 0), np.repeat(second[1:], n, 0)) for n in (1, 5))
    assert wide == pytest.approx(narrow)
    # Failures are infinitely far.
    failing = np.where(np.arange(400) < 300, np.inf, second)
    assert median_ratio(failing, second) == (math.inf, math.inf, math.inf)
    few = np.where(np.arange(400) < 40, np.inf, second)
    assert 1 <= median_ratio(few, second)[0] < 1.3
    half = np.where(np.arange(400) < 201, np.inf, second)
    assert median_ratio(half, second)[1] < 3 < median_ratio(half, second)[2] == math.inf  # either could be
    # What one of them has wrong does not count.
    wrong = np.where(np.arange(400) < 250, 0.0, 3 * second)
    assert median_ratio(wrong, second)[0] == pytest.approx(3, rel=0.1)
    assert all(map(math.isnan, median_ratio(failing, failing)))
    assert all(map(math.isnan, median_ratio(0 * second, second)))
    with pytest.raises(InputError, match="they should be equal, seeds × images"):
        median_ratio(second, second[:, :10])
