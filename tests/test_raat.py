"""RAAT and its baselines against the paper's equations, written out again with NumPy in double precision."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paperlib import data, models, studies, training
from paperlib.attacks import pgd
from paperlib.data import ImageSet, Splits
from paperlib.methods import Batch, Step, baselines, raat
from paperlib.methods.raat import RAAT, PartitionedAT, RAATSharp, dicar, partition
from paperlib.models.batchnorm import BatchNorm2d
from paperlib.runs import run as runs
from paperlib.runs.files import InputError
from paperlib.studies import measures
from paperlib.studies import raat as study

STEP = Step(0, 1, 0)


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(1)


def js(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Equations 15 and 16."""
    middle = (p + q) / 2
    return (kl(p, middle) + kl(q, middle)) / 2


def logits(seed: int, count: int = 6, classes: int = 5) -> Tensor:
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


# Terms -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_boosted_cross_entropy_is_equation_14_with_marts_constants(seed: int) -> None:
    z = logits(seed)
    p = softmax(z.numpy())
    own = p[np.arange(6), LABELS]
    wrong = np.where(np.eye(5)[LABELS] > 0, -1, p).max(1)
    expected = -np.log(own) - np.log(1.0001 - wrong + 1e-12)
    np.testing.assert_allclose(baselines.boosted_cross_entropy(z, LABELS), expected, rtol=1e-9)
    # The printed equation has 1 for 1.0001: they part only where the wrong class is nearly certain.
    printed = -np.log(own) - np.log(1 - wrong)
    np.testing.assert_allclose(expected, printed, atol=1.1e-4 / (1 - wrong).min())


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_kl_and_js_are_the_equations(seed: int) -> None:
    first, second = logits(seed), logits(seed + 1)
    p, q = softmax(first.numpy()), softmax(second.numpy())
    log_p, log_q = first.log_softmax(1), second.log_softmax(1)
    np.testing.assert_allclose(baselines.kl_divergence(log_p, log_q), kl(p, q), rtol=1e-9)
    np.testing.assert_allclose(baselines.jensen_shannon(log_p, log_q), js(p, q), rtol=1e-6, atol=1e-7)
    weighted = kl(p, q) * (1.0000001 - p[np.arange(6), LABELS])
    np.testing.assert_allclose(baselines.weighted_kl(first, second, LABELS), weighted, rtol=1e-9)
    found = baselines.jensen_shannon(log_p, log_q)
    assert ((found >= 0) & (found <= np.log(2) + 1e-9)).all()
    np.testing.assert_allclose(found, baselines.jensen_shannon(log_q, log_p), rtol=1e-9)


@given(st.integers(0, 10_000), st.floats(0.5, 0.99))
@settings(max_examples=30, deadline=None)
def test_dicar_mixes_logits_in_the_code_and_probabilities_in_the_text(seed: int, rate: float) -> None:
    mixed, first, second = (logits(seed + k) for k in range(3))
    z = (rate * first + (1 - rate) * second).numpy()
    code = js(softmax(mixed.numpy() / 0.5), softmax(z / 0.5))
    np.testing.assert_allclose(dicar(mixed, first, second, rate, "code"), code, rtol=1e-6, atol=1e-7)
    q = rate * softmax(first.numpy()) + (1 - rate) * softmax(second.numpy())
    text = js(softmax(mixed.numpy()), q)
    np.testing.assert_allclose(dicar(mixed, first, second, rate, "text"), text, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", ["code", "text"])
def test_gradients_flow_through_all_of_dicar_and_pass_finite_differences(form: Any) -> None:
    inputs = [(logits(seed) / 3).requires_grad_(True) for seed in range(3)]
    assert torch.autograd.gradcheck(lambda *z: dicar(*z, 0.7, form), inputs)
    gradients = torch.autograd.grad(dicar(*inputs, 0.7, form).sum(), inputs)
    assert all(gradient.abs().min() > 0 for gradient in gradients)  # nothing is detached
    z = (logits(5) / 3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: baselines.boosted_cross_entropy(z, LABELS), z)
    assert torch.autograd.gradcheck(lambda z: baselines.weighted_kl(z, logits(6) / 3, LABELS), z)
    assert torch.autograd.gradcheck(lambda z: baselines.weighted_kl(logits(6) / 3, z, LABELS), z)


def test_the_mix_rate_is_one_number_between_a_half_and_one() -> None:
    rates = [raat.mix_rate(0.75) for _ in range(2000)]
    assert min(rates) >= 0.5
    assert max(rates) < 1
    # The mean of max(β, 1 − β) for β ~ Beta(¾, ¾) by numerical integration.
    from scipy import integrate, stats

    mean, _ = integrate.quad(lambda b: max(b, 1 - b) * stats.beta.pdf(b, 0.75, 0.75), 0, 1)
    assert abs(np.mean(rates) - mean) < 4 * np.std(rates) / 2000**0.5


# The theory --------------------------------------------------------------------------------------------------------


def test_dicar_is_zero_for_a_linear_model_between_clean_views() -> None:
    """Robust Alignment (Definition 1) holds for a linear model: with x′ = x, its logits mix exactly."""
    model = nn.Linear(7, 5).double()
    first, second = torch.randn(2, 6, 7, dtype=torch.float64)
    mixed = model(0.7 * first + 0.3 * second)
    assert float(dicar(mixed, model(first), model(second), 0.7).detach().max()) < 1e-12
    # Mixing probabilities is not linear even then, which is what the code avoids.
    assert float(dicar(mixed, model(first), model(second), 0.7, "text").detach().min()) > 1e-6


def test_dicar_grows_with_the_second_derivative_as_theorem_2_says() -> None:
    """(f(λẋ + λ^ẍ) − λf(ẋ) − λ^f(ẍ))² = (Σ_k (λ^ − λ^^k)/k!·f⁽ᵏ⁾Δᵏ)², signs aside: the term k = 2 leads as Δ shrinks.

    On f(x) = exp(a x), whose second derivative is a² exp(a x). DICAR of the two-class logits (f, −f) at temperature ½ is
    then 2 p (1 − p) times that square, p = σ(4 f): the Jensen–Shannon divergence is (Δp)² / (8 p (1 − p)) to leading order.
    """
    x, rate = 0.3, 0.7
    hat = 1 - rate
    for a in (0.25, 0.5, 1.0):
        p = 1 / (1 + np.exp(-4 * np.exp(a * x)))
        leading = 2 * p * (1 - p) * ((hat - hat**2) / 2 * a**2 * np.exp(a * x)) ** 2
        for delta in (0.1, 0.05):
            f = [np.exp(a * point) for point in (rate * x + hat * (x + delta), x, x + delta)]
            z = [torch.tensor([[value, -value]], dtype=torch.float64) for value in f]
            assert float(dicar(*z, rate)) / (leading * delta**4) == pytest.approx(1, abs=6 * a * delta)


def test_dicar_itself_follows_the_second_derivative() -> None:
    """Two-class logits (g, −g) with g(x) = ½ c x²: the mixed logits differ by c times a constant, so DICAR grows as c²."""
    x, delta, rate = 0.1, 0.05, 0.6

    def value(c: float) -> float:
        g = lambda point: 0.5 * c * point**2  # noqa: E731
        rows = [rate * x + (1 - rate) * (x + delta), x, x + delta]
        z = [torch.tensor([[g(row), -g(row)]], dtype=torch.float64) for row in rows]
        return float(dicar(*z, rate))

    assert value(2.0) / value(1.0) == pytest.approx(4, rel=0.01)
    assert value(1e-9) < 1e-15


# The partition -----------------------------------------------------------------------------------------------------


class Threshold(nn.Module):
    """Two classes on either side of x = ½ of the only pixel."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)[:, :1] - 0.5
        return torch.cat([-z, z], 1)


@pytest.mark.parametrize("form", ["code", "text"])
def test_the_partition_sorts_points_by_their_distance_to_the_boundary(form: Any) -> None:
    attack = partial(pgd, eps=0.2, norm="linf", steps=10, step_size=0.05)
    pixels = torch.tensor([0.2, 0.4, 0.49, 0.55, 0.515, 0.9]).view(-1, 1, 1, 1)
    labels = torch.tensor([0, 0, 0, 0, 1, 1])  # 0.55 has the other label
    parts = partition(Threshold(), pixels, labels, attack, 0.1, form)
    assert parts.misclassified.tolist() == [False, False, False, True, False, False]
    assert parts.boundary.tolist() == [False, False, True, False, True, False]  # within 0.02 of ½
    assert parts.non_boundary.tolist() == [True, True, False, False, False, True]
    assert float((parts.reduced - pixels).abs().max()) <= 0.02 + 1e-6
    if form == "code":
        torch.testing.assert_close(parts.reduced - pixels, 0.1 * (parts.full - pixels))


def test_the_code_asks_for_the_full_attack_to_succeed_too() -> None:
    right = torch.tensor([[True, True, False, True], [True, False, False, False], [False, False, False, True]])
    code = raat.Partition(torch.zeros(4), torch.zeros(4), right, "code")
    text = code._replace(form="text")
    assert code.boundary.tolist() == [False, True, False, False]
    assert text.boundary.tolist() == [True, True, False, False]
    for parts in (code, text):
        assert (parts.misclassified.int() + parts.boundary.int() + parts.non_boundary.int() == 1).all()


# The methods, one step each, against the formula -------------------------------------------------------------------


def shift(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: str, step_size: float) -> Tensor:
    """An attack that anyone can follow: add ε to every pixel."""
    return images + eps


ATTACK = partial(shift, eps=0.2, norm="linf", step_size=0.1)


class Views:
    """Augmentations that are known: the first call adds nothing, the second a constant, and so on."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images + 0.3 * (self.calls - 1)


def linear() -> nn.Module:
    """A network that changes its mind often within the images' range, and between x and x + 0.02 for some."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 5)).double()
    with torch.no_grad():
        model[1].weight.mul_(20)
        model[1].bias.sub_(model[1].weight.sum(1) / 2)
        model[3].weight.mul_(4)
    return model


IMAGES = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MANY = torch.arange(40) % 5


def forward(model: nn.Module) -> Any:
    return lambda x: model(x).detach().numpy()


def ce(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -np.log(softmax(z)[np.arange(len(y)), y])


def bce(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    p = softmax(z)
    return ce(z, y) - np.log(1.0001 - np.where(np.eye(5)[y] > 0, -1, p).max(1))


def test_the_baselines_are_their_rows_of_table_4() -> None:
    model = linear()
    f, y = forward(model), MANY.numpy()
    z, z_adv = f(IMAGES), f(IMAGES + 0.2)
    p, p_adv = softmax(z), softmax(z_adv)
    own = p[np.arange(40), y]
    expected = {
        baselines.AdversarialTraining: ce(z_adv, y).mean(),
        baselines.TRADES: ce(z, y).mean() + 6 * kl(p, p_adv).mean(),
        baselines.MART: bce(z_adv, y).mean() + 6 * (kl(p, p_adv) * (1.0000001 - own)).mean(),
    }
    for kind, value in expected.items():
        found = kind(ATTACK).loss(model, Batch(IMAGES, MANY, Views()), STEP)
        assert float(found["total"]) == pytest.approx(value, rel=1e-9), kind
    second = f(IMAGES + 0.5)
    both = np.concatenate([ce(z_adv, y), ce(second, y)]).mean()
    consistency = js(softmax(z_adv / 0.5), softmax(second / 0.5)).mean()
    found = baselines.ConsistencyAT(ATTACK).loss(model, Batch(IMAGES, MANY, Views()), STEP)
    assert float(found["total"]) == pytest.approx(both + consistency, rel=1e-9)


def expected_raat(model: nn.Module, labels: Tensor, form: str, boosted: bool, rate: float) -> tuple[float, int]:
    """Table 4 with numpy, image by image; also how many images are boundary samples."""
    f, y = forward(model), labels.numpy()
    eta, total, consistency = 0.1, [], []
    boundary = 0
    natural = f(IMAGES).argmax(1) == y
    clean = [f(IMAGES), f(IMAGES + 0.3)]
    full = [f(IMAGES + 0.2), f(IMAGES + 0.5)]
    weak = [f(IMAGES + 0.02), f(IMAGES + 0.32)]
    mixed = f(rate * (IMAGES + 0.2) + (1 - rate) * (IMAGES + 0.5))
    supervised = bce if boosted else ce
    for view in range(2):
        for i in range(len(y)):
            rows = {name: group[view][i : i + 1] for name, group in (("x", clean), ("full", full), ("weak", weak))}
            hits = {name: row.argmax() == y[i] for name, row in rows.items()}
            near = hits["x"] and not hits["full"] and not hits["weak"] if form == "code" else not hits["weak"]
            boundary += int(hits["x"] and near)
            value = supervised(rows["weak"] if near else rows["full"], y[i : i + 1])[0]
            if boosted:
                p = softmax(rows["x"])
                extra = kl(p, softmax(rows["full"]))[0] * (1.0000001 - p[0, y[i]])
                value += (6 if form == "code" else 1) * extra
            total.append(value)
    for i in range(len(y)):
        if form == "code":
            if clean[0][i].argmax() == y[i] and clean[1][i].argmax() == y[i]:
                target = rate * clean[0][i : i + 1] + (1 - rate) * clean[1][i : i + 1]
                consistency.append(js(softmax(mixed[i : i + 1] / 0.5), softmax(target / 0.5))[0])
        elif natural[i]:
            target = rate * softmax(clean[0][i : i + 1]) + (1 - rate) * softmax(clean[1][i : i + 1])
            consistency.append(js(softmax(mixed[i : i + 1]), target)[0])
    shared = np.sum(consistency) / (len(consistency) if form == "code" else len(y))
    assert eta == raat.ETA
    return float(np.mean(total) + shared), boundary


@pytest.mark.parametrize("form", ["code", "text"])
@pytest.mark.parametrize("boosted", [False, True])
def test_raat_is_its_row_of_table_4(form: Any, boosted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raat, "mix_rate", lambda gamma: 0.7)
    model = linear()
    # Labels under which all three parts occur: mostly what the model says, of images close to a boundary.
    labels = model(IMAGES).argmax(1)
    labels[::5] = (labels[::5] + 1) % 5
    expected, boundary = expected_raat(model, labels, form, boosted, 0.7)
    found = RAAT(ATTACK, boosted=boosted, form=form).loss(model, Batch(IMAGES, labels, Views()), STEP)
    assert boundary > 0
    assert float(found["boundary"]) == pytest.approx(boundary / 80)
    assert 0 < float(found["misclassified"]) < 1
    assert float(found["total"]) == pytest.approx(expected, rel=1e-9)


def test_neither_idea_is_adversarial_training_and_each_alone_is_part_of_both() -> None:
    model = linear()
    labels = model(IMAGES).argmax(1)

    def loss(**choices: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return RAAT(ATTACK, **choices).loss(model, Batch(IMAGES, labels, Views()), STEP)

    views = Views()
    doubled = Batch(torch.cat([views(IMAGES), views(IMAGES)]), labels.repeat(2), lambda images: images)
    torch.manual_seed(0)
    plain = baselines.AdversarialTraining(ATTACK).loss(model, doubled, STEP)
    assert torch.equal(loss(bound=False, dicar=False)["total"], plain["total"])
    both, bound, aligned = loss(), loss(dicar=False), loss(bound=False)
    torch.testing.assert_close(both["ce"], bound["total"])
    torch.testing.assert_close(both["dicar"], aligned["dicar"])
    torch.testing.assert_close(both["total"], bound["total"] + aligned["total"] - aligned["ce"])
    assert float(both["ce"]) < float(aligned["ce"])  # boundary samples meet a weaker perturbation


def test_dicar_is_skipped_when_no_image_is_right() -> None:
    model = linear()
    labels = (model(IMAGES).argmax(1) + 1) % 5
    labels[model(IMAGES + 0.3).argmax(1) == labels] = -1
    kept = labels >= 0
    found = RAAT(ATTACK).loss(model, Batch(IMAGES[kept], labels[kept], Views()), STEP)
    assert float(found["dicar"]) == 0
    assert torch.isfinite(found["total"])


@pytest.mark.parametrize(
    "method",
    [
        baselines.TRADES(partial(pgd, eps=0.1, norm="linf", steps=2, step_size=0.05, loss="kl", start_deviation=0.001)),
        baselines.MART(partial(pgd, eps=0.1, norm="l2", steps=2, step_size=0.05, start_deviation=0.001)),
        baselines.ConsistencyAT(partial(pgd, eps=0.1, norm="linf", steps=2, step_size=0.05)),
        RAAT(partial(pgd, eps=0.1, norm="linf", steps=2, step_size=0.05)),
        RAAT(partial(pgd, eps=0.1, norm="l2", steps=2, step_size=0.05), boosted=True, form="text"),
        PartitionedAT(partial(pgd, eps=0.1, norm="linf", steps=2, step_size=0.05)),
    ],
    ids=lambda method: type(method).__name__,
)
def test_weight_gradients_pass_finite_differences(method: Any) -> None:
    """The attack is not differentiated through, so its images are held after the first step."""
    model = linear()
    with torch.no_grad():
        labels = model(IMAGES).argmax(1)
    batch = Batch(IMAGES, labels, lambda images: images)
    weight = model[3].weight
    held: dict[float, Tensor] = {}
    attack = method.attack

    def once(network: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> Tensor:
        if settings["eps"] not in held:
            held[settings["eps"]] = partial(attack, **settings)(network, images, labels).detach()
        return held[settings["eps"]]

    frozen = type(method)(**{**method.__dict__, "attack": partial(once, **attack.keywords)})

    def total() -> Tensor:
        torch.manual_seed(0)
        return frozen.loss(model, batch, STEP)["total"]

    total()
    (gradient,) = torch.autograd.grad(total(), weight)
    direction = torch.randn_like(weight)
    size = 1e-5
    with torch.no_grad():
        weight += size * direction
        above = total()
        weight -= 2 * size * direction
        below = total()
    assert float((above - below) / (2 * size)) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


# RAAT# and the study -----------------------------------------------------------------------------------------------


def test_raat_sharp_listens_to_the_averaged_model_and_starts_its_consistency_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raat, "mix_rate", lambda gamma: 0.7)
    model, averaged = linear(), linear()
    with torch.no_grad():
        labels = averaged(IMAGES).argmax(1)
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    method = RAATSharp(ATTACK, dicar_from=0.3)
    early = method.loss(model, Batch(IMAGES, labels, Views()), Step(2, 10, 2, averaged, 10))
    assert float(early["dicar"].detach()) == 0
    views = Views()
    late = method.loss(model, Batch(IMAGES, labels, views), Step(3, 10, 3, averaged, 10))
    assert views.calls == 2
    assert float(late["dicar"]) > 0
    right = averaged(IMAGES).argmax(1) == labels
    fooled = (averaged(IMAGES + 0.2).argmax(1) != labels) & (averaged(IMAGES + 0.02).argmax(1) != labels)
    boundary = right & fooled
    assert 0 < int(boundary.sum()) < len(labels)
    assert float(late["boundary"]) == pytest.approx(float(boundary.double().mean()))
    trained = torch.where(boundary.view(-1, 1, 1, 1), IMAGES + 0.02, IMAGES + 0.2)
    torch.testing.assert_close(late["ce"], F.cross_entropy(model(trained), labels))
    # The consistency of the images that the averaged model has right in both views, on the trained model's outputs.
    members = (right & (averaged(IMAGES + 0.3).argmax(1) == labels)).numpy()
    assert 0 < members.sum() < len(labels)
    f = forward(model)
    first, second = f(IMAGES)[members], f(IMAGES + 0.3)[members]
    mixed = f(0.7 * (IMAGES + 0.2) + 0.3 * (IMAGES + 0.5))[members]
    expected = js(softmax(mixed / 0.5), softmax((0.7 * first + 0.3 * second) / 0.5)).mean()
    assert float(late["dicar"].detach()) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(late["total"], late["ce"] + late["dicar"])
    with pytest.raises(InputError, match="ema = 0"):
        method.loss(model, Batch(IMAGES, labels, Views()), STEP)


def test_raat_sharp_attacks_with_batch_norm_in_training_mode_and_the_others_do_not() -> None:
    modes = []

    def spy(network: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> Tensor:
        modes.append({module.training for module in network.modules()})
        return images

    attack = partial(spy, eps=0.1, norm="linf", step_size=0.1)
    model = models.build("preact_resnet18", classes=5, channels=1, width=4, seed=0).train()
    images = torch.rand(8, 1, 8, 8)
    batch = Batch(images, torch.arange(8) % 5, lambda images: images)
    RAATSharp(attack, 0).loss(model, batch, Step(0, 1, 0, model))
    assert modes == [{True}, {True}]
    modes.clear()
    RAAT(attack).loss(model, batch, STEP)
    assert modes == [{False}]
    assert {module.training for module in model.modules()} == {True}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (baselines.AdversarialTraining, [True]),
        (baselines.TRADES, [True, True, True]),  # the clean images twice
        (baselines.MART, [True, True]),
        (baselines.ConsistencyAT, [True]),  # both views in one batch
        (RAAT, [False, True, True, True]),  # the predictions; x̃; the interpolation; the clean views
        (partial(RAAT, boosted=True), [False, True, True, True, False, True, True]),
        (partial(RAAT, bound=False), [False, True, True, True]),
        (PartitionedAT, [False, True]),
    ],
)
def test_batch_norm_is_in_the_mode_that_the_code_has(method: Any, expected: list[bool]) -> None:
    """Every forward pass after the attack, in order; images that are not shifted, so that DICAR has all that are right."""
    model = models.build("small_cnn", classes=5, channels=1, width=4, seed=0).train()
    with torch.no_grad():
        model[-1].bias[0] = 9
    modes: list[bool] = []
    norm = next(module for module in model.modules() if isinstance(module, BatchNorm2d))
    norm.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    attack = partial(shift, eps=0.01, norm="linf", step_size=0.1)
    method(attack).loss(model, Batch(torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.long), lambda x: x), STEP)
    assert modes == expected
    assert model.training


def count_passes(method: Any) -> tuple[int, int]:
    """Images that pass forward, and in how many forward passes, of one step on eight images."""
    model = models.build("small_cnn", classes=5, channels=1, width=4, seed=0).train()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    averaged = models.build("small_cnn", classes=5, channels=1, width=4, seed=0)
    averaged.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    batch = Batch(torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.long), lambda images: images)
    with torch.no_grad():
        model[-1].bias[0] = 9  # all right, so that DICAR has all images
        averaged[-1].bias[0] = 9
    method.loss(model, batch, Step(0, 1, 0, averaged)).get("total").backward()
    return sum(seen), len(seen)


def test_a_step_passes_no_more_images_than_it_must() -> None:
    attack = partial(pgd, eps=0.1, norm="linf", steps=10, step_size=0.05)
    assert count_passes(baselines.AdversarialTraining(attack)) == (11 * 8, 11)
    assert count_passes(baselines.TRADES(partial(attack, loss="kl"))) == (14 * 8, 14)
    assert count_passes(baselines.MART(attack)) == (12 * 8, 12)
    assert count_passes(baselines.ConsistencyAT(attack)) == (22 * 8, 11)
    # 2B: ten attack steps, one prediction of x, x′ and x″, the loss, the clean views; B: the interpolation.
    assert count_passes(RAAT(attack)) == (20 * 8 + 6 * 8 + 2 * 8 + 2 * 8 + 8, 14)
    assert count_passes(RAAT(attack, boosted=True)) == (20 * 8 + 6 * 8 + 6 * 8 + 2 * 8 + 8 + 2 * 8, 17)
    assert count_passes(RAAT(attack, form="text"))[1] == 14 + 10 + 1  # the second attack, and the stored images
    assert count_passes(RAAT(attack, bound=False, dicar=False)) == (22 * 8, 11)
    # Two attacks that look at their last iterate, four answers, the loss, the interpolation, two clean views, their log.
    assert count_passes(RAATSharp(attack, 1)) == (2 * 11 * 8 + 4 * 8 + 8 + 8 + 2 * 8 + 8, 31)
    assert count_passes(RAATSharp(attack, 0)) == (31 * 8, 31)
    assert count_passes(RAATSharp(attack, 0, bound=False, dicar=False)) == (13 * 8, 13)


@pytest.mark.parametrize(("boundary", "other"), [(1.0, 1.0), (0.1, 1.0), (1.0, 0.0)])
def test_the_proof_of_concept_scales_each_part(boundary: float, other: float) -> None:
    model = linear()
    labels = model(IMAGES).argmax(1)
    labels[::5] = (labels[::5] + 1) % 5
    found = PartitionedAT(ATTACK, boundary=boundary, other=other).loss(model, Batch(IMAGES, labels, Views()), STEP)
    x, full, weak = (forward(model)(IMAGES + change).argmax(1) == labels.numpy() for change in (0, 0.2, 0.02))
    scale = np.where(~x, 0.0, np.where(~full & ~weak, boundary, other))
    assert len(np.unique(scale)) > 1 or (boundary == other == 1.0)
    seen = IMAGES + 0.2 * torch.from_numpy(scale).view(-1, 1, 1, 1)
    assert float(found["total"]) == pytest.approx(ce(forward(model)(seen), labels.numpy()).mean(), rel=1e-9)


# The study's settings and tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seeds_of": {"cons_at": 1}, "methods": ["pgd_at", "raat"]},
            "seeds_of has cons_at, which is in neither methods nor components",
        ),
        ({"sharp": {"epoch": 3}}, "sharp cannot set epoch; it can set batch_size, "),
        ({"sharp": {"ema": 0.0}}, "sharp has ema = 0"),
        ({"toy": {"learning_rate": -1}}, "greater than 0"),
        ({"toy": {"crop_fill": "mirror"}}, "reflect"),
        ({"methods": ["raat"], "weights": {}}, "components, etas and weights need pgd_at and raat"),
        ({"weights": {"mart": [1]}, "methods": ["pgd_at", "raat"]}, "weights has mart, which is not in methods"),
        ({"methods": ["pgd"]}, "pgd_at"),
        ({"norm": "l1"}, "linf"),
        ({"eta": 2}, "less than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        studies.resolve("raat_boundary", "paper", changes)


def test_the_paper_preset_is_appendix_d1() -> None:
    chosen = studies.resolve("raat_boundary", "paper")
    rates = [training.learning_rate(chosen, Step(0, 1, epoch)) for epoch in range(chosen.epochs)]
    assert [rates[epoch] for epoch in (0, 99, 100, 104, 105, 109)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    attack = study.training_attack(chosen)
    assert (attack.keywords["eps"], attack.keywords["step_size"], attack.keywords["steps"]) == (8 / 255, 2 / 255, 10)
    l2 = study.training_attack(studies.resolve("raat_boundary", "paper", {"norm": "l2"}))
    assert (l2.keywords["eps"], l2.keywords["step_size"]) == pytest.approx((128 / 255, 32 / 255))
    sharp = chosen.model_copy(update=chosen.sharp)
    rates = [training.learning_rate(sharp, Step(0, 1, epoch)) for epoch in range(sharp.epochs)]
    assert [rates[epoch] for epoch in (99, 100, 150)] == pytest.approx([0.1, 0.1 / 1.5, 0.1 / 1.5**2])
    assert study.sharp_methods(chosen)["raat_sharp"].dicar_from * sharp.epochs == 105
    assert round(sharp.ema_start * sharp.epochs) == 105
    fixed = {
        "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 128, "epochs": 110, "crop_padding": 4,
        "crop_fill": 0.0, "flip": True, "model": "resnet18_bottleneck", "width": 64, "normalisation": "none", "eta": 0.1,
        "weight": 1.0, "gamma": 0.75, "seeds": [0, 1, 2], "selection": "robust", "train_images": None, "test_images": None,
        "clip": 0.0, "ema": 0.0, "bf16": False, "form": "code",
    }  # fmt: skip
    assert {name: getattr(chosen, name) for name in fixed} == fixed
    assert set(chosen.methods) == {"pgd_at", "trades", "mart", "cons_at", "raat", "raat_plus_plus"}
    assert (sharp.model, sharp.width, sharp.ema, sharp.epochs) == ("preact_resnet18", 64, 0.999, 200)
    assert study.case(chosen) == "cifar10_resnet18_linf"
    wide = studies.resolve("raat_boundary", "paper", {"model": "wide_resnet28", "width": 160, "data": "cifar100"})
    assert study.case(wide) == "cifar100_wide_linf"


def test_figure_2s_schedule_keeps_its_epochs() -> None:
    """Drops at epochs 100 and 105 are after the end of its 100 epochs, and not at 91 and 95."""
    chosen = studies.resolve("raat_boundary", "paper")
    poc = chosen.model_copy(update={"epochs": chosen.study_epochs, "milestones": study.study_milestones(chosen)})
    assert {training.learning_rate(poc, Step(0, 1, epoch)) for epoch in range(100)} == {0.1}
    longer = poc.model_copy(update={"epochs": 120, "study_epochs": 120, "milestones": chosen.milestones})
    longer = longer.model_copy(update={"milestones": [one * 110 / 120 for one in chosen.milestones]})
    rates = [training.learning_rate(longer, Step(0, 1, epoch)) for epoch in (99, 100, 104, 105)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001])


def test_every_method_has_the_attack_that_it_asks_for() -> None:
    chosen = studies.resolve("raat_boundary", "paper")
    built = study.methods(chosen)
    starts = {name: method.attack.keywords["start_deviation"] for name, method in built.items()}  # type: ignore[attr-defined]
    assert starts == {
        "pgd_at": None, "trades": 0.001, "mart": 0.001, "cons_at": None, "raat": None, "raat_plus_plus": 0.001,
    }  # fmt: skip
    assert built["trades"].attack.keywords["loss"] == "kl"  # type: ignore[attr-defined]
    assert set(study.component_methods(chosen)) == {"two_views", "bound", "dicar"}
    swept = study.sweep_methods(chosen)
    assert len(swept) == 4 + 5 + 5 + 5 + 5  # η, and λ of four methods, but for their own
    weights = {name: method.weight for name, method in swept.items() if "lambda" in name}  # type: ignore[attr-defined]
    assert {weights[f"{name}_lambda_2"] for name in ("trades", "mart", "cons_at", "raat")} == {2.0}
    assert "trades_lambda_6" not in swept
    study_settings = studies.resolve("raat_boundary", "paper", {"norm": "l2"})
    in_box = {name: one.attack.keywords["start_in_box"]  # type: ignore[attr-defined]
              for name, one in study.methods(study_settings).items()}  # fmt: skip
    assert {name for name, starts in in_box.items() if starts} == {"pgd_at", "cons_at", "raat"}
    assert set(study.study_methods(chosen)) == {
        "study_full", "study_boundary_0.1", "study_boundary_0", "study_random_0", "study_other_0.1", "study_other_0",
        "study_threshold_0.05", "study_threshold_0.3",  # 0.1 is that of the boundary samples' scale
    }  # fmt: skip


def outcomes(rates: dict[str, float], seed: int = 0, count: int = 10_000) -> list[dict[str, Any]]:
    return [{"method": "raat", "seed": seed, "measure": measure, "each": np.arange(count) < round(rate * count)}
            for measure, rate in rates.items()]  # fmt: skip


def test_mean_and_nrr_are_those_of_section_5_3() -> None:
    rows = [*outcomes({"clean": 0.8276, "autoattack": 0.5165}), *outcomes({"clean": 0.0, "autoattack": 0.0}, 1)]
    table = study.tradeoffs(pd.DataFrame(rows)).set_index(["seed", "measure"])
    found = table["value"]
    assert 100 * found[0, "mean"] == pytest.approx(67.205)  # RAAT# in Table 3
    assert 100 * found[0, "nrr"] == pytest.approx(63.605, abs=0.001)
    assert found[1, "nrr"] == 0
    for measure in ("mean", "nrr"):
        assert table.loc[(0, measure), "each"].mean() == pytest.approx(found[0, measure])
    # The ratio's spread is the jackknife's: leave image by image out and compute it anew.
    small = {row["measure"]: row["each"] for row in outcomes({"clean": 0.8, "autoattack": 0.5}, count=200)}
    left = []
    for i in range(200):
        a, r = (np.delete(small[measure], i).mean() for measure in ("clean", "autoattack"))
        left.append(2 * a * r / (a + r))
    jackknife = 199**0.5 * np.std(left)
    each = study.tradeoffs(pd.DataFrame(outcomes({"clean": 0.8, "autoattack": 0.5}, count=200)))["each"].iloc[1]
    assert each.std() / 200**0.5 == pytest.approx(jackknife, rel=0.02)


def test_the_tables_of_others_stand_beside_runs_of_their_case() -> None:
    own = {data: study.own_rows(studies.resolve("raat_boundary", "paper", {"data": data}))
           for data in ("cifar10", "cifar100", "tiny_imagenet", "folder:x")}  # fmt: skip
    assert own["cifar10"] == own["folder:x"] == {"table2": [], "table3": ["wa", "raat_sharp"]}
    assert own["cifar100"] == {"table2": ["raat"], "table3_cifar100": ["wa", "raat_sharp"]}
    assert own["tiny_imagenet"] == {"table2": [], "table3": []}
    assert study.own_rows(studies.resolve("raat_boundary", "paper", {"norm": "l2"}))["table3"] == []


def test_costs_and_times_are_read_from_the_histories() -> None:
    took = [("pgd_at", 0, 60, 2), ("pgd_at", 1, 120, 2), ("raat", 0, 180, 2), ("pgd_at_long", 0, 190, 4)]
    rows = [(method, seed, seconds, epoch + 1) for method, seed, seconds, epochs in took for epoch in range(epochs)]
    histories = pd.DataFrame(rows, columns=["method", "seed", "seconds", "epoch"])
    summary = pd.DataFrame({"method": ["pgd_at", "raat"], "measure": "clean", "mean": [0.5, 0.6]})
    table = study.costs(histories, summary, pd.Series({"pgd_at": 3.0, "raat": 9.0}))
    assert table["minutes"].to_dict() == pytest.approx({"pgd_at": 1.5, "raat": 3.0, "pgd_at_long": 190 / 60})
    assert table["× PGD-AT"].to_dict() == pytest.approx({"pgd_at": 1, "raat": 2, "pgd_at_long": 190 / 90})
    assert table["epochs"].to_dict() == {"pgd_at": 2, "raat": 2, "pgd_at_long": 4}
    assert table.loc["raat", "clean"] == pytest.approx(60)
    points = study.time_points(table, summary.assign(low=0.4, high=0.7)).set_index("line")
    assert points["training (minutes)"].to_dict() == pytest.approx({"pgd_at": 1.5, "raat": 3.0})  # a mean over seeds
    assert points[["value", "low", "high"]].to_numpy() == pytest.approx(np.array([[50, 40, 70], [60, 40, 70]]))
    assert table.loc["raat", "step"] == 9


def test_the_long_pgd_at_counts_where_it_has_raats_multiplications() -> None:
    def settings(**changes: Any) -> Any:
        return studies.resolve("raat_boundary", "quick", {"epochs": 10, **changes})

    step = pd.Series({"pgd_at": 3.0, "raat": 9.0, "pgd_at_long": 3.0})
    assert study.unequal_compute(step, settings(long_epochs=30)) == {}
    assert study.unequal_compute(step, settings(long_epochs=28)) == {}
    told = study.unequal_compute(step, settings(long_epochs=20))["pgd_at_long"]
    assert "0.67 times RAAT's multiplications; long_epochs = 30" in told
    assert study.unequal_compute(step, settings(long_epochs=None)) == {}
    assert study.unequal_compute(step.drop("raat"), settings(long_epochs=20)) == {}


@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_presets_give_the_long_pgd_at_raats_multiplications(preset: str) -> None:
    """On the small CNN at the preset's attack steps: a network changes what a step costs, hardly the ratio of two."""
    s = studies.resolve("raat_boundary", preset)
    small = s.model_copy(update={"model": "small_cnn", "width": 8, "normalisation": "half", "stem_stride": 2})
    splits = data.load("scenes4", train_images=40, test_images=40)
    step = measures.costs(
        {**study.methods(s), **study.long_methods(s)}, training.build(small, splits, 0), splits, torch.device("cpu")
    )
    assert study.unequal_compute(step, s) == {}


def test_figure_5_has_its_three_panels() -> None:
    chosen = studies.resolve("raat_boundary", "paper")
    methods = ["pgd_at", "raat", "two_views", "bound", "dicar", "eta_0.3", "raat_lambda_6", "mart", "mart_lambda_2"]
    rows = [{"method": method, "measure": measure, "mean": 0.5, "low": 0.4, "high": 0.6}
            for method in methods for measure in ("clean", "pgd_10", "autoattack")]  # fmt: skip
    points = study.ablation_points(chosen, pd.DataFrame(rows))
    places = {key: list(part["x"]) for key, part in points.groupby(["panel", "line"])}
    parts = ["PGD-AT", "2 views", "BOUND", "DICAR", "RAAT"]
    assert places == {
        ("components", "clean"): parts, ("components", "pgd_10"): parts, ("η", "clean"): [0.1, 0.3],
        ("η", "pgd_10"): [0.1, 0.3], ("λ, under PGD-10", "raat"): [1.0, 6.0], ("λ, under PGD-10", "mart"): [2.0, 6.0],
    }  # fmt: skip
    assert set(points["value"]) == {50.0}


def test_defects_are_a_ratio_of_means_with_its_own_spread(home: Any) -> None:
    """A network whose first layer is a square: h(x) = x², so the defect is (μ − μ²) Δ² and the change 2 x Δ + Δ²."""

    class Squared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) ** 2

    model = nn.Sequential(nn.Sequential(Squared()), nn.Linear(4, 2))
    pixels = (255 * torch.rand(30, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 0.8).round().to(torch.uint8)
    data = ImageSet(pixels, torch.zeros(30, dtype=torch.long), ("a", "b"))
    run = runs.Run("raat_boundary", "quick", studies.resolve("raat_boundary", "quick", {"eps_linf": 0.1}), home)
    found = study.defects_each(run, {"raat": {0: model, 1: model}}, data, chunk=7)
    assert list(found["layer"]) == ["0", "1", "probabilities"] * 2
    first = found.iloc[0]
    assert first["value"] == pytest.approx(first["each"].mean())
    assert 0 < first["value"] < 0.3  # Δ² against 2 x Δ + Δ²
    assert found.iloc[1]["value"] > 0  # the linear layer hands the square's defect on
    points = study.defect_points(found)
    assert list(points["layer"]) == ["0", "1", "probabilities"]  # a mean over seeds, one point a layer
    assert (points["low"] < points["value"]).all()
    rows = study.alignment_rows(found)
    assert list(rows["seed"]) == [0, 1]
    assert rows["value"].iloc[0] == pytest.approx(found.iloc[2]["value"])
    assert rows["each"].iloc[0].mean() == pytest.approx(rows["value"].iloc[0])
    table = study.defect_table(found)
    assert table.loc["raat", ("defect", "probabilities")] == pytest.approx(found.iloc[2]["value"], rel=0.2)

    with torch.no_grad():
        model[1].weight.zero_()  # an output that does not move is not aligned: there is nothing to say
    still = study.defects_each(run, {"raat": {0: model}}, data)
    assert still["value"].isna().tolist() == [False, True, True]
    assert study.alignment_rows(still).empty


def test_selecting_on_the_test_images_holds_nothing_out() -> None:
    def images(count: int) -> ImageSet:
        return ImageSet(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), torch.arange(count) % 2, ("a", "b"))

    whole = Splits(images(10), images(4), images(6))
    grey = {"normalisation": "half", "sharp": {}}
    assert study.splits(studies.resolve("raat_boundary", "paper", grey), whole) is whole
    found = study.splits(studies.resolve("raat_boundary", "paper", {**grey, "select_on": "test"}), whole)
    assert (len(found.train), len(found.validation), len(found.test)) == (14, 6, 6)
    with pytest.raises(InputError, match="normalisation = cifar10 is not for images of 1 channels; choose none or half"):
        study.splits(studies.resolve("raat_boundary", "paper"), whole)


def test_figure_2_is_read_from_the_histories() -> None:
    clean = {"study_full": 0.8, "study_boundary_0.1": 0.7, "study_threshold_0.3": 0.6, "raat": 0.1}  # one training each
    rows = [(name, epoch, share, share / 2, 0.1) for name, share in clean.items() for epoch in (1, 2)]
    histories = pd.DataFrame(rows, columns=["method", "epoch", "clean_accuracy", "robust_accuracy", "boundary"])
    curves = study.study_curves(histories, 0.1)
    assert set(curves["panel"]) == {
        "boundary samples",
        "threshold of the partition",
    }  # of other samples nothing was trained
    table = study.study_summary(curves)
    assert table.loc["baseline", ("boundary samples", "clean accuracy")] == pytest.approx(80)
    assert table.loc["× 0.1", ("boundary samples", "robust accuracy")] == pytest.approx(35)
    assert table.loc["η = 0.1", ("threshold of the partition", "clean accuracy")] == pytest.approx(70)  # the same training
    assert table.loc["η = 0.3", ("threshold of the partition", "clean accuracy")] == pytest.approx(60)
    shares = study.share_curves(histories)
    assert set(shares["line"]) == {"baseline", "boundary 0.1", "threshold 0.3", "raat"}
    assert set(shares["value"]) == {10.0}


def test_the_control_spares_as_many_right_images_at_random() -> None:
    model = linear()
    labels = model(IMAGES).argmax(1)
    labels[::5] = (labels[::5] + 1) % 5
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))

    def scales(seed: int) -> np.ndarray:
        seen.clear()
        torch.manual_seed(seed)
        PartitionedAT(ATTACK, boundary=0.0, control=True).loss(model, Batch(IMAGES, labels, Views()), STEP)
        return ((seen[-1] - IMAGES) / 0.2).flatten(1).mean(1).round(decimals=6).numpy()

    x, full, weak = (forward(model)(IMAGES + change).argmax(1) == labels.numpy() for change in (0, 0.2, 0.02))
    boundary = x & ~full & ~weak
    found = [scales(seed) for seed in range(20)]
    for scale in found:
        assert set(scale[~x]) == {0.0}
        assert int((scale[x] == 0).sum()) == int(boundary.sum()) > 0
        assert set(scale[x]) == {0.0, 1.0}
    assert len({tuple(scale) for scale in found}) > 1
