import logging
import os
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paperlib import attacks
from paperlib.attacks import Norm, apgd, ascent, autoattack, evaluating, fgsm, masking_flags, pgd, project
from paperlib.attacks.libraries import SHORT
from paperlib.runs.files import InputError

os.environ["GIT_PYTHON_REFRESH"] = "quiet"  # foolbox looks for a git binary when it is imported


class Linear(nn.Module):
    """Two classes, or more, by a linear map of the pixels: attacks on it have closed forms."""

    def __init__(self, classes: int = 2, side: int = 2) -> None:
        super().__init__()
        self.map = nn.Linear(3 * side * side, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x.flatten(1))


def small_net() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5))
    for weight in net.parameters():
        weight.data *= 3
    return net


def size(change: Tensor, norm: Norm) -> float:
    flat = change.flatten(1)
    return float((flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)).max())


# Geometry and losses -----------------------------------------------------------


@settings(max_examples=50, deadline=None)
# Squares of radii below 1e-150 are no doubles any more; nobody attacks there.
@given(st.integers(0, 10**6), st.just(0.0) | st.floats(1e-9, 5), st.sampled_from(["linf", "l2"]))
def test_projection_lands_in_the_ball_moves_nothing_inside_and_is_the_nearest(seed: int, eps: float, norm: Norm) -> None:
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(4, 1, 2, 3, generator=generator, dtype=torch.float64) * 3
    projected = project(vector, eps, norm)
    assert size(projected, norm) <= eps * (1 + 1e-9)
    torch.testing.assert_close(project(projected, eps, norm), projected)
    inside = project(torch.randn(4, 1, 2, 3, generator=generator, dtype=torch.float64), eps, norm)
    # The nearest point of a convex set: every other one lies on the far side.
    assert (((vector - projected) * (inside - projected)).flatten(1).sum(1) <= 1e-9).all()


def test_zero_and_broken_gradients_move_nothing() -> None:
    gradient = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [torch.inf, -2.0], [3.0, -4.0]])
    assert ascent(gradient, "linf").tolist() == [[0, 0], [0, 1], [0, -1], [1, -1]]
    torch.testing.assert_close(ascent(gradient, "l2"), torch.tensor([[0.0, 0], [0, 1], [0, -1], [0.6, -0.8]]))


def test_losses_are_their_formulas() -> None:
    logits, labels = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 6
    z = logits.numpy()
    own = z[np.arange(20), labels]
    others = np.array([np.delete(row, label).max() for row, label in zip(z, labels, strict=True)])
    ordered = np.sort(z, axis=1)
    np.testing.assert_allclose(attacks.margin(logits, labels), others - own)
    dlr = -(own - others) / (ordered[:, -1] - ordered[:, -3])
    np.testing.assert_allclose(attacks.difference_of_logits_ratio(logits, labels), dlr)
    np.testing.assert_allclose(attacks.difference_of_logits_ratio(7 * logits, labels), dlr)
    probabilities, clean = np.exp(z) / np.exp(z).sum(1, keepdims=True), torch.randn(20, 6, dtype=torch.float64)
    reference = np.exp(clean.numpy()) / np.exp(clean.numpy()).sum(1, keepdims=True)
    kl = (reference * (np.log(reference) - np.log(probabilities))).sum(1)
    np.testing.assert_allclose(attacks.attack_loss(logits, labels, "kl", clean), kl)
    with pytest.raises(InputError, match="three classes"):
        attacks.difference_of_logits_ratio(logits[:, :2], labels)


# Against closed forms and another library ------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_attacks_reach_the_exact_maximum(norm: Norm) -> None:
    """max over the ball of w·δ is ε‖w‖ in the dual norm; the box is out of the way."""
    model, images, labels = Linear(), torch.full((6, 3, 2, 2), 0.5), torch.arange(6) % 2
    w = (model.map.weight[1] - model.map.weight[0]).detach()
    best = 0.1 * float(w.abs().sum() if norm == "linf" else w.norm())
    margin = attacks.margin(model(images), labels)
    for attack in (
        partial(fgsm, eps=0.1, norm=norm),
        partial(pgd, eps=0.1, norm=norm, steps=20, step_size=0.02),
        partial(pgd, eps=0.1, norm=norm, steps=20, step_size=0.02, loss="margin", restarts=3),
    ):
        found = attacks.margin(model(attack(model, images, labels)), labels)
        torch.testing.assert_close(found, margin + best, rtol=2e-3, atol=1e-3)


def test_targeted_attack_raises_the_target() -> None:
    model, images = small_net(), torch.rand(30, 3, 8, 8)
    labels = model(images).argmax(1)
    targets = (labels + 1) % 5
    found = pgd(model, images, labels, eps=0.3, norm="linf", steps=20, step_size=0.05, targets=targets)
    assert (model(found).argmax(1) == targets).float().mean() > 0.9


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_equals_foolboxs(norm: Norm) -> None:
    import foolbox

    model, images = small_net().eval(), torch.rand(16, 3, 8, 8)
    labels = model(images).argmax(1)
    eps, kinds = {"linf": 0.05, "l2": 0.5}[norm], {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
    reference = kinds[norm](steps=10, abs_stepsize=eps / 4, random_start=False)
    theirs, _, _ = reference(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=eps)
    ours = pgd(model, images, labels, eps=eps, norm=norm, steps=10, step_size=eps / 4, random_start=False)
    assert (model(ours).argmax(1) == labels).float().mean() < 0.9  # it does something
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["linf", "l2"]),
    loss=st.sampled_from(["ce", "kl", "margin", "dlr"]),
    eps=st.floats(0, 1),
    best=st.booleans(),
    restarts=st.integers(1, 2),
)
def test_pgd_stays_in_ball_and_box(
    seed: int, norm: Norm, loss: attacks.Loss, eps: float, best: bool, restarts: int
) -> None:
    torch.manual_seed(seed)
    model, images, labels = small_net(), torch.rand(4, 3, 8, 8), torch.randint(5, (4,))
    kept = images.clone()
    found = pgd(model, images, labels, eps=eps, norm=norm, steps=3, step_size=eps, loss=loss, best=best, restarts=restarts)
    assert size(found - images, norm) <= eps * (1 + 1e-5) + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(images, kept)
    if eps == 0:
        assert torch.equal(found, images)


def test_best_iterate_and_restarts_are_never_weaker() -> None:
    model, images = small_net(), torch.rand(200, 3, 8, 8)
    labels = model(images).argmax(1)

    def margin(**more: object) -> Tensor:
        torch.manual_seed(5)
        found = pgd(
            model,
            images,
            labels,
            eps=0.02,
            norm="linf",
            steps=5,
            step_size=0.02,
            loss="margin",
            **more,  # type: ignore[arg-type]
        )
        return attacks.margin(model(found), labels).detach()

    last, best, restarted = margin(), margin(best=True), margin(restarts=3)
    assert 0 < (last > 0).sum() < 200
    assert ((best > 0) | (last <= 0)).all()
    assert (restarted >= last).all()
    assert (restarted > last).any()


def test_a_model_that_breaks_down_does_not_break_the_attack() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * torch.nan

    images = torch.rand(2, 3, 2, 2)
    found = pgd(Broken(), images, torch.tensor([0, 1]), eps=0.1, norm="l2", steps=3, step_size=0.1, random_start=False)
    assert torch.equal(found, images)


def test_modes_come_back_module_by_module() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())
    model.train()
    model[1].eval()
    with evaluating(model):
        assert not model[0].training
    assert model[0].training
    assert not model[1].training


# Libraries ---------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_is_at_least_as_strong_as_pgd_and_keeps_to_the_ball(norm: Norm) -> None:
    model = small_net().eval()
    images = torch.rand(12, 3, 8, 8)
    labels = model(images).argmax(1)
    eps = {"linf": 0.01, "l2": 0.1}[norm]
    state, trace = torch.get_rng_state(), sys.gettrace()
    found = {
        "autoattack": autoattack(model, images, labels, eps=eps, norm=norm),
        "apgd": apgd(model, images, labels, eps=eps, norm=norm),
        "pgd": pgd(model, images, labels, eps=eps, norm=norm, steps=20, step_size=eps / 4),
    }
    robust = {name: model(adversarial).argmax(1) == labels for name, adversarial in found.items()}
    assert (robust["autoattack"] <= robust["pgd"]).all()
    assert (robust["autoattack"] <= robust["apgd"]).all()
    assert size(found["autoattack"] - images, norm) <= eps * 1.001
    assert sys.gettrace() is trace
    if norm == "linf":  # the same again
        torch.set_rng_state(state)
        torch.testing.assert_close(autoattack(model, images, labels, eps=eps, norm=norm), found["autoattack"])


@pytest.mark.parametrize(("classes", "parts"), [(5, ["apgd-ce", "apgd-t", "square"]), (2, ["apgd-ce", "square"])])
def test_shortened_autoattack_leaves_parts_out_and_asks_less(
    classes: int, parts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = Linear(classes, side=4).eval()
    images = torch.rand(3, 3, 4, 4)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    with caplog.at_level("DEBUG", logger="auto-attack"):
        autoattack(model, images, model(images).argmax(1), eps=1e-6, norm="linf", short=True)
    ran = [record.getMessage().split()[1] for record in caplog.records if record.getMessage().startswith("running ")]
    assert ran == parts
    targets = 3 if classes > 3 else 0
    assert SHORT["queries"] <= len(calls) < SHORT["queries"] + 110 * (1 + targets) + 50


def test_autoattack_works_with_few_classes_and_one_image() -> None:
    model = Linear(2, side=8).eval()
    images = torch.rand(5, 3, 8, 8)
    labels = model(images).argmax(1)
    margin = -attacks.margin(model(images), labels).detach()
    w = (model.map.weight[1] - model.map.weight[0]).detach()
    eps = float(margin.median() / w.norm())
    found = autoattack(model, images, labels, eps=eps * 1.01, norm="l2")
    assert (model(found).argmax(1) != labels).sum() >= 2
    assert autoattack(model, images[:1], labels[:1], eps=0.01, norm="linf").shape == (1, 3, 8, 8)


def test_masking_flags_are_caught_once_and_not_carried_over() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Linear(5, side=8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + 0.1 * torch.randn(len(x), 5)

    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    with masking_flags() as flags:
        autoattack(Noisy().eval(), images, labels, eps=0.01, norm="linf")
    assert any("randomized" in flag for flag in flags)
    assert len(flags) == len(set(flags))

    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Linear(5, side=8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                probe = x.detach().requires_grad_(True)
                F.cross_entropy(self.inner(probe), torch.zeros(len(x), dtype=torch.long)).backward()
            return self.inner(x)

    with masking_flags() as flags:
        autoattack(Dynamic().eval(), images, labels, eps=0.01, norm="linf")
    assert any("dynamic" in flag for flag in flags)
    honest = Linear(5, side=8).eval()
    with masking_flags() as flags:
        autoattack(honest, images, honest(images).argmax(1), eps=0.01, norm="linf")
    assert flags == []
    assert logging.getLogger("auto-attack").propagate


def test_the_margin_counts_no_further_than_kappa() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0], [0.0, 9.0, 1.0]])
    labels = torch.tensor([0, 0])
    assert attacks.attack_loss(logits, labels, "margin").tolist() == [-4.0, 9.0]
    assert attacks.attack_loss(logits, labels, "margin", kappa=3.0).tolist() == [-4.0, 3.0]
    leaf = logits.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(attacks.attack_loss(leaf, labels, "margin", kappa=3.0).sum(), leaf)
    assert gradient[1].abs().max() == 0  # fooled by enough: no reason to move on
    assert gradient[0].abs().max() == 1
    with pytest.raises(InputError, match="kappa = 3 bounds how far a wrong class leads"):
        attacks.pgd(
            nn.Identity(),
            logits,
            labels,
            eps=0.1,
            norm="linf",
            steps=1,
            step_size=0.1,
            loss="margin",
            kappa=3.0,
            targets=labels,
        )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_normal_start_has_the_deviation_that_is_asked_for(norm: attacks.Norm) -> None:
    images = torch.full((20, 3, 16, 16), 0.5)
    start = attacks.pgd(
        torch.nn.Flatten(), images, torch.zeros(20, dtype=torch.long),
        eps=1.0, norm=norm, steps=0, step_size=0.1, start_deviation=0.001,
    )  # fmt: skip
    assert float((start - images).std()) == pytest.approx(0.001, rel=0.03)
    with_steps = partial(attacks.pgd, eps=0.0005, norm=norm, steps=1, step_size=0.1, start_deviation=0.001)
    ended = with_steps(torch.nn.Flatten(), images, torch.zeros(20, dtype=torch.long))
    assert float(attacks.lengths(ended - images, norm).max()) <= 0.0005 + 1e-7


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_l2_from_the_box_ends_in_ball_and_box(seed: int) -> None:
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    torch.manual_seed(seed)
    attack = partial(attacks.pgd, eps=0.5, norm="l2", step_size=0.2, start_in_box=True)
    for steps in (0, 3):
        found = attack(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), images, torch.arange(6) % 3, steps=steps
        )
        assert float(attacks.lengths(found - images, "l2").max()) <= 0.5 + 1e-6
        assert float(found.min()) >= -1e-7
        assert float(found.max()) <= 1 + 1e-7
    with pytest.raises(InputError, match="box is None"):
        attack(torch.nn.Flatten(), images, torch.arange(6) % 3, steps=1, box=None)


def test_a_part_of_autoattack_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()
    images, labels = torch.rand(12, 3, 2, 2), torch.arange(12) % 5
    labels = model(images).argmax(1)
    attack = partial(autoattack, eps=0.3, norm="linf")
    whole = model(attack(model, images, labels)).argmax(1) == labels
    for part in ("apgd-ce", "apgd-t", "fab-t", "square"):
        left = model(attack(model, images, labels, only=part)).argmax(1) == labels
        assert (left | ~whole).all()  # what a part fools, all of them fool
        assert int(left.sum()) < 12
    with pytest.raises(InputError, match="apgd-t needs four classes"):
        attack(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), images, labels % 3, only="apgd-t")
