"""GFA: the cosine and its gradient in double precision, layers found without touching the model, and what training does."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib import attacks, geometry, models, studies, training
from paperlib.attacks import pgd, square, transfer
from paperlib.data import ImageSet, Splits
from paperlib.evaluation import trial
from paperlib.evaluation.intervals import distance_table
from paperlib.geometry.radial import into_cone, pgd_in_cone, radial
from paperlib.methods import Batch, Step, baselines, gfa
from paperlib.methods.gfa import GFA
from paperlib.runs.files import InputError
from paperlib.studies import gfa as study

STEP = Step(0, 10, 0)
LABELS = torch.tensor([0, 1, 2, 3])


def mlp() -> nn.Module:
    """Smooth, so that finite differences mean something."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), nn.Softplus(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 3, 1, 1), nn.BatchNorm2d(5),
        nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    ).double()  # fmt: skip


def images(model: nn.Module) -> Tensor:
    size = 2 if isinstance(model[0], nn.Flatten) else 4
    return torch.rand(4, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("task", ["mse", "mse_softmax", "ce"])
@pytest.mark.parametrize("build", [mlp, cnn])
def test_the_cosine_is_that_of_a_gradient_by_finite_differences(build: Any, task: Any) -> None:
    """At every layer's input: the network is cut there, and what is behind it differentiated numerically."""
    model = build().eval()
    x = images(model)
    layers = geometry.weighted_layers(model, x)
    assert len(layers) == 3
    each, found = gfa.aligned(model, x, LABELS, layers, task)

    def loss(logits: Tensor) -> Tensor:
        target = F.one_hot(LABELS, 4).double()
        if task == "ce":
            return -(logits.log_softmax(1) * target).sum(1)
        return (((logits if task == "mse" else logits.softmax(1)) - target) ** 2).sum(1) / 4

    torch.testing.assert_close(each, loss(model(x)))
    for name, cosines in zip(layers, found, strict=True):
        behind = model[int(name) :]
        with torch.no_grad():
            h = model[: int(name)](x)
            numeric = torch.zeros_like(h).flatten(1)
            for i in range(numeric.shape[1]):
                shift = torch.zeros_like(numeric)
                shift[:, i] = 1e-5
                above, below = (loss(behind(h + sign * shift.view_as(h))) for sign in (1, -1))
                numeric[:, i] = (above - below) / 2e-5
        flat = h.flatten(1).numpy()
        expected = (numeric.numpy() * flat).sum(1) / np.linalg.norm(numeric, axis=1) / np.linalg.norm(flat, axis=1)
        np.testing.assert_allclose(cosines.detach(), expected, atol=1e-6)


@pytest.mark.parametrize("training_mode", [True, False])
@pytest.mark.parametrize("build", [mlp, cnn])
def test_the_gradient_of_the_whole_loss_passes_finite_differences(build: Any, training_mode: bool) -> None:
    model = build().train(training_mode)
    x = images(model)
    layers = tuple(geometry.weighted_layers(model, x))
    method = GFA(layers, (0.5, 0.3, 0.2), alpha=2.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def total() -> Tensor:
        model.load_state_dict(state)
        return method.loss(model, Batch(x, LABELS, lambda images: images), STEP)["total"]

    for weight in (model[int(name)].weight for name in layers):
        (gradient,) = torch.autograd.grad(total(), weight)
        direction = torch.randn_like(weight)
        kept = weight.detach().clone()
        values = []
        for sign in (1, -1):
            state_of = {id(weight): kept + sign * 1e-6 * direction}
            with torch.no_grad():
                name = next(key for key, value in model.named_parameters() if value is weight)
            moved = {**state, name: state_of[id(weight)]}
            model.load_state_dict(moved)
            values.append(float(method.loss(model, Batch(x, LABELS, lambda images: images), STEP)["total"].detach()))
        model.load_state_dict(state)
        numeric = (values[0] - values[1]) / 2e-6
        assert numeric == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-8)


def test_the_total_is_the_formula() -> None:
    model = mlp()
    x = images(model)
    layers = geometry.weighted_layers(model, x)
    batch = Batch(x, LABELS, lambda images: images + 0.1)
    each, cosines = gfa.aligned(model, x + 0.1, LABELS, layers)
    means = cosines.detach().mean(1)
    deep = GFA(tuple(layers), (0.5, 0.3, 0.2), alpha=3.0).loss(model, batch, STEP)
    expected = 3 * each.mean() + (torch.tensor([0.5, 0.3, 0.2]) * (1 - means)).sum()
    torch.testing.assert_close(deep["total"], expected)
    assert [key for key in deep if key.startswith("cosine")] == [f"cosine {name}" for name in layers]
    # β rises over the ramp, and with an aim counts only what is missing to it.
    ramped = GFA(tuple(layers[:1]), (0.5,), ramp=0.5).loss(model, batch, Step(1, 10, 0))
    torch.testing.assert_close(ramped["total"], each.mean() + 2 / 5 * 0.5 * (1 - means[0]))
    low, high = float(means[0]) - 0.1, float(means[0]) + 0.1
    assert float(GFA(tuple(layers[:1]), (0.5,), aim=low).loss(model, batch, STEP)["misalignment"].detach()) == 0
    reached = GFA(tuple(layers[:1]), (0.5,), aim=high).loss(model, batch, STEP)
    assert float(reached["misalignment"].detach()) == pytest.approx(0.05)
    with pytest.raises(InputError, match="2 layers but 1 weights"):
        GFA(("a", "b"), (0.1,))


def blobs(count: int, seed: int) -> ImageSet:
    """Two classes: a bright upper or lower half in noise."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pixels = 0.25 * torch.rand(count, 1, 8, 8, generator=random)
    for half in (0, 1):
        pixels[labels == half, :, 4 * half : 4 * half + 4] += 0.5
    return ImageSet((255 * pixels).round().to(torch.uint8), labels, ("up", "down"))


def test_training_raises_the_cosine_and_the_other_sign_lowers_it(home: Path) -> None:
    """The sign question: 1 − cos added to the loss aligns, subtracted it anti-aligns. And images that no step has seen."""
    data = Splits(blobs(128, 0), blobs(40, 1), blobs(40, 2))
    settings = studies.resolve(
        "toy_pag", "quick", {"epochs": 4, "learning_rate": 0.01, "batch_size": 32, "selection": "last"}
    )
    reached = {}
    for name, weight in (("plain", 0.0), ("aligned", 0.3), ("subtracted", -0.3)):
        model = models.build("mlp", classes=2, channels=1, width=16, seed=0, normalisation="none", size=8)
        method = GFA(("2",), (weight,))
        training.fit(model, method, data, settings, home / name, seed=0)
        reached[name] = float(gfa.cosines(model, data.test, ["2"]).mean())
    assert reached["aligned"] > reached["plain"] + 0.2
    assert reached["subtracted"] < reached["plain"] - 0.2


def test_layers_are_found_in_the_order_of_the_forward_pass_without_touching_the_model() -> None:
    x = torch.rand(2, 3, 32, 32)
    expected = {
        "mlp": ["2", "4", "6"], "cnn": ["1", "4", "7"], "small_cnn": ["1", "4", "7"],
        "resnet18": ["conv1", "layer1.0.conv1", "layer1.0.conv2"],
        "vit": ["vit.patch_embed.proj", "vit.blocks.0.attn.qkv", "vit.blocks.0.attn.proj"],
    }  # fmt: skip
    for name, layers in expected.items():
        model = models.build(name, classes=4, channels=3, width=32, seed=0, size=32)
        hooks = [len(module._forward_pre_hooks) for module in model.modules()]
        assert geometry.weighted_layers(model, x)[:3] == layers
        assert model.training
        before = model(x).detach()
        _, cosines = gfa.aligned(model, x, torch.tensor([0, 1]), layers, create_graph=True)
        assert cosines.shape == (3, 2)
        assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
        if name != "small_cnn":
            torch.testing.assert_close(model(x).detach(), before)
        gfa.check_differentiable_twice(model, x, layers)
        gradients = torch.autograd.grad(cosines.sum(), list(model.parameters()), allow_unused=True)
        assert sum(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients) > 2


def test_operations_in_place_do_not_spoil_the_features() -> None:
    """A layer that overwrites its own input gives the same cosines; one whose input another overwrites is named."""
    torch.manual_seed(0)
    x = torch.rand(4, 3, 2, 2)
    clean = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))
    spoiling = nn.Sequential(*clean[:2], nn.ReLU(inplace=True), clean[3])
    for layer in ("2", "3"):
        torch.testing.assert_close(gfa.aligned(spoiling, x, LABELS, [layer])[1], gfa.aligned(clean, x, LABELS, [layer])[1])

    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x.flatten(1)).tanh() * 1
            out = self.second(h)
            h.mul_(2)
            return out + h

    with pytest.raises(InputError, match="the input of layer 'second' is overwritten in place"):
        gfa.aligned(Overwrites(), x, LABELS, ["second"])


def test_a_model_that_cannot_be_differentiated_twice_is_refused_with_what_helps() -> None:
    x = torch.rand(2, 3, 32, 32)
    fused = models.build("vit", classes=4, channels=3, width=32, seed=0, size=32)
    for block in fused.vit.blocks:
        block.attn.fused_attn = True
    layers = ["vit.patch_embed.proj"]
    with pytest.raises(InputError, match=r"cannot be differentiated twice .*set_fused_attn\(False\)"):
        gfa.check_differentiable_twice(fused, x, layers)

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 2 * gradient

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * 32 * 32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(self.linear(x.flatten(1)))

    with pytest.raises(InputError, match="cannot be differentiated twice"):
        gfa.check_differentiable_twice(Custom(), x, ["linear"])

    class Detached(Custom):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.detach().flatten(1))

    with pytest.raises(InputError, match="layer 'linear' is cut off from the image"):
        gfa.check_differentiable_twice(Detached(), x, ["linear"])
    with pytest.raises(InputError, match="no layer 'conv9' in the model"):
        gfa.check_differentiable_twice(fused, x, ["conv9"])


def test_a_gradient_however_small_has_its_direction() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.rand(4, 12)
    with torch.no_grad():
        model[1].weight *= 1e-25
        model[1].bias.zero_()
    gradient = -model[1].weight[LABELS].double()  # outputs of nothing: (z − y) W is minus the row of the label
    found = gfa.aligned(model, x, LABELS, ["1"])[1][0]
    torch.testing.assert_close(found.double(), F.cosine_similarity(gradient, x.double(), eps=0.0), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        model[1].weight.zero_()
    assert gfa.aligned(model, x, LABELS, ["1"])[1].tolist() == [[0, 0, 0, 0]]


def test_the_gradient_penalty_is_its_equation() -> None:
    model = mlp()
    x = images(model)
    found = baselines.GradientPenalty(0.7, "mse").loss(model, Batch(x, LABELS, lambda images: images), STEP)
    jacobian = torch.autograd.functional.jacobian(
        lambda points: (model(points) - F.one_hot(LABELS, 4)).square().mean(1), x, create_graph=False
    )
    own = torch.stack([jacobian[i, i] for i in range(4)]).flatten(1)
    expected = float((own**2).sum(1).mean())
    assert float(found["penalty"].detach()) == pytest.approx(expected, rel=1e-9)
    assert float(found["total"].detach()) == pytest.approx(float(found["task"].detach()) + 0.7 * expected, rel=1e-9)


def test_plain_and_adversarial_training_take_the_task_loss_and_so_does_the_attack() -> None:
    model = mlp()
    x = images(model)
    batch = Batch(x, LABELS, lambda images: images)
    expected = float((model(x) - F.one_hot(LABELS, 4)).square().mean().detach())
    assert float(baselines.Standard("mse").loss(model, batch, STEP)["total"].detach()) == pytest.approx(expected)
    attack = partial(pgd, eps=0.1, norm="linf", steps=5, step_size=0.05, loss="mse")
    torch.manual_seed(0)
    attacked = float(baselines.AdversarialTraining(attack, "mse").loss(model, batch, STEP)["total"].detach())
    assert attacked > expected
    soft = attacks.squared_error(model(x).softmax(1), LABELS)
    torch.testing.assert_close(baselines.task_loss(model(x), LABELS, "mse_softmax"), soft)


# Attacks of this study ---------------------------------------------------------------------------------------------


def angles(change: Tensor, x: Tensor) -> Tensor:
    """Between each perturbation and the line along its image, in degrees."""
    flat, unit = change.flatten(1), x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True)
    radial = (flat * unit).sum(1)
    across = (flat - radial[:, None] * unit).norm(dim=1)
    return torch.rad2deg(torch.atan2(across, radial.abs()))


@pytest.mark.parametrize("around", ["radial", "tangential"])
@pytest.mark.parametrize("angle", [0, 20, 45, 70, 90])
def test_the_nearest_point_of_a_cone(around: Any, angle: float) -> None:
    """Within the angle, itself if it was, and nearer than many other points of the cone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    change = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    axis = x / x.norm(dim=1, keepdim=True)
    found = into_cone(change, axis, around, angle)
    if angle == 0:  # a line and a plane: the projection is known
        along = (change * axis).sum(1, keepdim=True) * axis
        torch.testing.assert_close(found, along if around == "radial" else change - along)
    limit = angles(found, x) if around == "radial" else 90 - angles(found, x)
    assert (limit[found.norm(dim=1) > 1e-9] <= angle + 1e-6).all()
    torch.testing.assert_close(into_cone(found, axis, around, angle), found)  # idempotent
    if angle == 90:
        torch.testing.assert_close(found, change)
    # No point of the cone is nearer: of many drawn around, those that lie in it.
    others = change + torch.randn(20_000, 30, 6, generator=generator, dtype=torch.float64)
    reached = angles(others.flatten(0, 1), x.repeat(20_000, 1)).view(20_000, 30)
    inside = (reached if around == "radial" else 90 - reached) <= angle
    apart = (others - change).norm(dim=2).where(inside, torch.inf).amin(0)
    assert (apart >= (found - change).norm(dim=1) - 1e-9).all()
    if 20 <= angle <= 70:
        assert float((apart / (found - change).norm(dim=1).clamp_min(0.2)).median()) < 3  # there were some to compare with


def test_the_tip_of_a_cone_is_nothing() -> None:
    axis = torch.tensor([[1.0, 0.0]])
    assert into_cone(2 * axis, axis, "tangential", 30).tolist() == [[0, 0]]  # nothing across: no direction there
    assert into_cone(2 * axis, axis, "radial", 30).tolist() == [[2, 0]]


@pytest.mark.parametrize("name", list(models.NORMALISATIONS))
def test_radial_is_where_an_aligned_gradient_points(name: str) -> None:
    """The image less what is subtracted, over the squared scale; and a loss whose gradient is along h lies along it."""
    torch.manual_seed(0)
    x = torch.rand(3, 3, 8, 8)
    model = models.build("small_cnn", classes=4, channels=3, width=4, seed=0, normalisation=name).eval()
    mean, std = (torch.tensor(one).expand(3).view(3, 1, 1) for one in models.NORMALISATIONS[name] or (0.0, 1.0))
    expected = ((x - mean) / std**2).flatten(1)
    torch.testing.assert_close(radial(model, x).flatten(1), expected / expected.norm(dim=1, keepdim=True))


def test_an_attack_in_a_cone_keeps_its_angle_and_ball_and_tries_both_sides() -> None:
    model = models.build("small_cnn", classes=4, channels=3, width=4, seed=0).eval()
    torch.manual_seed(0)
    x, y = torch.rand(4, 3, 8, 8), LABELS
    line = radial(model, x).double()
    attack = partial(pgd_in_cone, eps=0.8, steps=5, step_size=0.3)
    for around, angle in (("radial", 0), ("radial", 30), ("tangential", 0), ("tangential", 20)):
        change = attack(model, x, y, around=around, angle=angle) - x
        assert float(change.flatten(1).norm(dim=1).max()) <= 0.8 * (1 + 1e-5)
        reached = angles(change.double(), line) if around == "radial" else 90 - angles(change.double(), line)
        assert float(reached.max()) <= angle + 0.01
    free = attack(model, x, y, around="radial", angle=90)
    assert float(attacks.margin(model(free), y).sum()) > float(attacks.margin(model(x), y).sum())

    unit = torch.rand(1, 3, 8, 8)
    unit = unit / unit.norm()
    across = torch.randn_like(unit)
    across = across - (across * unit).sum() * unit
    steep = 0.999 * unit + 0.0447 * across / across.norm()  # a loss nearly along the image: its tangential part is small

    class Plane(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = (x * steep).flatten(1).sum(1)
            return torch.stack([-score, score], 1)

    turned = (
        pgd_in_cone(Plane(), unit, LABELS[:1] * 0, eps=0.5, step_size=0.1, steps=20, around="tangential", angle=0) - unit
    )
    assert float((turned * across / across.norm()).sum()) > 0.95 * 0.5

    class Valley(nn.Module):
        """Fooled only by what is darker than the image; the gradient at the image points to brighter."""

        def forward(self, x: Tensor) -> Tensor:
            size = x.flatten(1).norm(dim=1)
            score = torch.where(size < 0.9, torch.ones_like(size), -1 + 0.1 * (size - 1).clamp_min(-0.05))
            return torch.stack([torch.zeros_like(score), score], 1)

    unit = x[:2] / x[:2].flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    dark = attack(Valley(), unit, LABELS[:2] * 0, eps=0.3, around="radial", angle=0, step_size=0.1)
    assert (dark.flatten(1).norm(dim=1) < 0.9).all()
    with pytest.raises(InputError, match="angle = 120"):
        attack(model, x, y, around="radial", angle=120)
    with pytest.raises(InputError, match="angles are those of l2"):
        attack(model, x, y, around="radial", angle=10, norm="linf")


class Bright(nn.Module):
    """Class 1 where the mean is above a half, by steps: no gradient anywhere."""

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x: Tensor) -> Tensor:
        score = ((x.flatten(1).mean(1) - self.threshold) * 255).round() / 25
        return torch.stack([-score, score], 1)


def test_square_needs_no_gradient_and_returns_the_clean_image_where_it_fails() -> None:
    x = torch.full((4, 1, 8, 8), 0.45)
    x[2:] = 0.2  # out of reach
    y = torch.zeros(4, dtype=torch.long)
    torch.manual_seed(0)
    found = square(Bright(), x, y, eps=0.1, norm="linf", queries=200)
    assert float((found - x).abs().max()) <= 0.1 + 1e-6
    assert (Bright()(found).argmax(1) != y).tolist() == [True, True, False, False]
    assert torch.equal(found[2:], x[2:])
    blind = pgd(Bright(), x, y, eps=0.1, norm="linf", steps=5, step_size=0.05, random_start=False)
    assert torch.equal(blind, x)  # where gradients see nothing


def test_transfer_attacks_the_source_alone() -> None:
    model = models.build("small_cnn", classes=2, channels=1, width=4, seed=0).eval()
    data = blobs(8, 0)
    x, y = data.images.float() / 255, data.labels
    source = models.build("small_cnn", classes=2, channels=1, width=4, seed=1)
    asked = []
    model.register_forward_hook(lambda *_: asked.append(1))
    attack = partial(pgd, steps=2, step_size=0.05)
    torch.manual_seed(0)
    moved = transfer(model, x, y, source=source, attack=attack, eps=0.1, norm="linf")
    assert not asked
    assert source.training  # and back in its mode
    torch.manual_seed(0)
    with attacks.evaluating(source):
        assert torch.equal(moved, pgd(source, x, y, eps=0.1, norm="linf", steps=2, step_size=0.05))


# The study ---------------------------------------------------------------------------------------------------------


def test_a_twin_is_aligned_and_decides_as_before() -> None:
    torch.manual_seed(0)
    model, x, y = mlp(), torch.rand(4, 12, dtype=torch.float64), LABELS
    twin = gfa.RadialTwin(model, "1")
    assert torch.allclose(twin(x).softmax(1), model(x).softmax(1))  # cross-entropy, margins and decisions follow from it
    assert gfa.aligned(model, x, y, ["1"])[1].abs().max() < 0.9
    assert gfa.aligned(twin, x, y, ["model.1"])[1].min() > 0.99


def test_the_adaptive_attack_finds_what_the_squared_error_hides() -> None:
    """Outputs that are their targets: the squared error has no gradient there, the margin has."""

    class Fitted(Bright):
        def forward(self, x: Tensor) -> Tensor:
            score = 8 * (x.flatten(1).mean(1) - self.threshold)
            return torch.stack([1 - score, score], 1)

    x = torch.full((4, 1, 8, 8), 0.5)
    y = torch.zeros(4, dtype=torch.long)
    along = pgd(Fitted(), x, y, eps=0.08, norm="linf", steps=20, step_size=0.02, loss="mse", random_start=False)
    assert torch.equal(along, x)
    torch.manual_seed(0)
    found = study.adaptive(Fitted(), x, y, eps=0.08, norm="linf", steps=20, restarts=2)
    assert float((found - x).abs().max()) <= 0.08 + 1e-6
    assert (Fitted()(found).argmax(1) != y).all()


def outcome_rows(method: str, seed: int = 0, **survived: int) -> list[dict[str, Any]]:
    """Of 200 images, how many survive each attack; those that survive one are the first."""
    return [{"method": method, "seed": seed, "measure": measure, "n": 200, "value": count / 200,
             "each": np.arange(200) < count} for measure, count in survived.items()]  # fmt: skip


def test_the_trial_tells_real_from_masked() -> None:
    rows = [
        *outcome_rows("standard", clean=150, fgsm=40, pgd_task=30, apgd_ce=8, adaptive=4),
        *outcome_rows("honest", clean=120, fgsm=90, pgd_task=80, apgd_ce=70, adaptive=66),
        *outcome_rows("odd", clean=120, fgsm=90, pgd_task=80, apgd_ce=70, adaptive=66),
        *outcome_rows("as all are", clean=120, fgsm=90, pgd_task=80, apgd_ce=70, adaptive=66),
        *outcome_rows("half", clean=140, fgsm=130, pgd_task=130, apgd_ce=120, adaptive=60),
        *outcome_rows("blind", clean=150, fgsm=140, pgd_task=150, apgd_ce=100, adaptive=2),
        *outcome_rows("seeming", clean=150, fgsm=40, pgd_task=30, apgd_ce=24, adaptive=8),
        *outcome_rows("nothing", clean=150, fgsm=40, pgd_task=30, apgd_ce=9, adaptive=4),
        *outcome_rows("not even apparent", clean=150, fgsm=28, pgd_task=28, apgd_ce=8, adaptive=0),
        *outcome_rows("constant", clean=20, fgsm=20, pgd_task=20, apgd_ce=20, adaptive=20),
    ]
    table = pd.DataFrame(rows)
    sign = "images without gradient"
    signs = {name: [sign] for name in ("odd", "seeming", "nothing", "not even apparent")}
    signs |= {"standard": ["margin beats cross-entropy"], "as all are": ["margin beats cross-entropy"]}
    found = trial.judge(trial.worst([table]), signs, 10)
    assert found["outcome"].to_dict() == {
        "standard": "–", "honest": "real", "odd": "partly real", "as all are": "real", "half": "partly real",
        "blind": "masked", "seeming": "masked", "nothing": "none told", "not even apparent": "none told",
        "constant": "not tested",
    }  # fmt: skip
    assert found.loc["half", "overstated by"] == pytest.approx(30)
    assert found.loc["half", "best of all"] == pytest.approx(30)
    few = pd.DataFrame([{**row, "n": 5, "each": row["each"][::40], "value": row["each"][::40].mean()} for row in rows])
    undecided = trial.judge(trial.worst([few]), {}, 10)["outcome"].to_dict()
    assert set(undecided.values()) <= {"–", "none told", "not tested"}  # five images tell nothing
    curve = table[table["method"].isin(["standard", "half"]) & (table["measure"] == "clean")].assign(eps=51 / 255)
    points = trial.points(found, trial.worst([table]), curve, "linf")
    assert "half: partly real" in set(points["line"])
    assert set(points["panel"]) == {"PGD (margin) against ε × 255", "who attacks"}
    swept, least = (points[points["line"] == "half: partly real"].iloc[place] for place in (0, -1))
    assert (swept["x"], swept["value"]) == (pytest.approx(51), pytest.approx(70))
    assert (least["x"], least["value"]) == ("best of all", pytest.approx(30))
    assert swept["low"] < 70 < swept["high"]


def test_an_overstatement_is_of_the_same_trainings_however_far_apart_they_are() -> None:
    """14 points and more in each of three seeds, whose accuracies lie 30 points apart."""
    rows = [row for seed in range(3) for row in outcome_rows("standard", seed, clean=150, apgd_ce=2, adaptive=1)]
    for seed, (apgd, least) in enumerate([(90, 60), (110, 80), (140, 106)]):
        rows += outcome_rows("method", seed, clean=160, apgd_ce=apgd, adaptive=least)
    found = trial.judge(trial.worst([pd.DataFrame(rows)]), {}, 10)
    assert found.loc["method", "outcome"] == "partly real"


def test_the_trial_needs_the_same_images_and_what_it_compares() -> None:
    one = pd.DataFrame(outcome_rows("standard", clean=150, apgd_ce=4))
    both = trial.worst([one, pd.DataFrame(outcome_rows("standard", clean=150, adaptive=9))])
    assert both["measure"].tolist() == ["clean", "apgd_ce", "adaptive", "worst"]  # each training once, or intervals narrow
    assert both["value"].iloc[-1] == 4 / 200
    with pytest.raises(InputError, match="not of the same images"):
        trial.worst([one, pd.DataFrame(outcome_rows("standard", clean=149, adaptive=4))])
    with pytest.raises(InputError, match="needs apgd_ce of standard"):
        trial.judge(trial.worst([pd.DataFrame(outcome_rows("standard", clean=150))]), {}, 10)
    with pytest.raises(InputError, match="needs clean of standard"):
        trial.judge(trial.worst([pd.DataFrame(outcome_rows("deep", clean=150, apgd_ce=3))]), {}, 10)


def test_distances_become_medians_ratios_and_accuracies() -> None:
    each = {"standard": [0.0, 1, 1, 2, 2], "deep": [4.0, 4, np.inf, 8, 0]}
    found = pd.DataFrame([(m, s, "ddn", np.array(v)) for m, v in each.items() for s in (0, 1)],
                         columns=["method", "seed", "attack", "each"])  # fmt: skip
    table = distance_table(found, "standard")
    assert table.loc[("ddn", "deep"), "ratio"] == 8 / 1  # of images 1 to 3: 4, ∞, 8 against 1, 1, 2
    assert table.loc[("ddn", "deep"), "failed (%)"] == 20
    assert table.loc[("ddn", "standard"), "ratio"] == 1
    fewer = found[(found["method"] == "standard") | (found["seed"] == 1)]
    again = distance_table(fewer.assign(seed=fewer["seed"].where(fewer["method"] == "deep", 1 - fewer["seed"])), "standard")
    assert again.loc[("ddn", "deep"), "ratio"] == 8 / 1  # of the seed that both have, in whatever order
    assert again.loc[("ddn", "deep"), "failed (%)"] == 20
    apart = distance_table(found[(found["method"] == "deep") == (found["seed"] == 1)], "standard")
    assert np.isnan(apart.loc[("ddn", "deep"), "ratio"])
    assert apart.loc[("ddn", "deep"), "median"] == 4
    rows = study.distance_rows(found, 1.5).set_index(["method", "seed"])
    assert rows.loc[("standard", 0), "value"] == pytest.approx(0.4)
    assert rows.loc[("deep", 1), "value"] == pytest.approx(0.8)
    ratios = study.ratio_rows(found, "standard").set_index("method")
    assert ratios.loc["deep", "measure"] == "ddn_ratio"
    assert ratios.loc["deep", "seeds"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["pgd_at", "first"]}, "methods needs standard"),
        ({"betas": {"first": [0.1]}}, "betas needs 3 β for deep"),
        ({"mlp": {"data": "scenes"}}, "mlp cannot set data"),
        ({"model": "mlp", "stem_stride": 2}, "^stem_stride = 2: mlp has no first convolution"),
        ({"mlp": {"model": "vit", "stem_stride": 2}}, "^mlp: stem_stride = 2: vit has no first convolution"),
        ({"architectures": {"wide": {"model": "wide"}}}, "wide"),
        ({"cone_angles": [120]}, "less than or equal to 90"),
        ({"task": "hinge"}, "mse"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        studies.resolve("gfa_landscape", "paper", changes)


def test_nothing_is_built_that_was_not_asked_for() -> None:
    bare = studies.resolve("gfa_landscape", "paper", {"mlp": {}, "sweep": [], "tasks": {}, "architectures": {},
                                                   "literal": False,
                                                   "methods": ["standard", "first"]})  # fmt: skip
    names = ["1", "4", "7"]
    assert set(study.methods(bare, names)) == {"standard", "first"}
    assert study.mlp_methods(bare, []) == study.sweep_methods(bare, names) == study.task_methods(bare, names) == {}
    whole = studies.resolve("gfa_landscape", "paper")
    assert study.methods(whole, names)["deep"].layers == tuple(names)  # type: ignore[attr-defined]
    assert study.training_attack(whole).keywords["loss"] == "mse"
    tasked = study.task_methods(whole, names)
    assert tasked["pgd_at_ce"].attack.keywords["loss"] == tasked["pgd_at_ce"].task == "ce"  # type: ignore[attr-defined]
    assert tasked["first_ce"].weights == (whole.tasks["ce"],)  # type: ignore[attr-defined]
    groups = study.by_task(whole, {"standard_ce": {}, "first_mse_softmax": {}}, {"first": {}})
    assert [set(groups[task]) for task in ("ce", "mse_softmax", "mse")] == [
        {"standard_ce"},
        {"first_mse_softmax"},
        {"first"},
    ]


def test_the_literal_sign_pushes_gradients_away_from_the_features() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    images = torch.rand(9, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(9) % 3, lambda x: x)
    parts = {literal: GFA(("1",), (0.5,), literal=literal).loss(model, batch, Step(0, 1, 0)) for literal in (False, True)}
    for literal, sign in ((False, 1), (True, -1)):
        terms = {name: float(value.detach()) for name, value in parts[literal].items()}
        assert terms["total"] == pytest.approx(terms["task"] + sign * 0.5 * (1 - terms["cosine 1"]))


def test_the_papers_basis_is_the_images_that_all_its_models_have_right() -> None:
    def row(method: str, seed: int, measure: str, hits: str) -> dict[str, Any]:
        each = np.array([hit == "x" for hit in hits])
        return {"method": method, "seed": seed, "measure": measure, "n": len(each), "value": each.mean(), "each": each}

    table = pd.DataFrame([
        row("standard", 0, "clean", "xxxx.x"), row("standard", 0, "fgsm", "x....."),
        row("deep", 0, "clean", "xxx.xx"), row("deep", 0, "fgsm", "xx...x"),
        row("deep", 1, "clean", "xx.xxx"), row("deep", 1, "fgsm", "x....x"),
        row("gradient_penalty", 0, "clean", "......"), row("gradient_penalty", 0, "fgsm", "......"),
    ])  # fmt: skip
    found = study.jointly_correct(table).set_index(["method", "seed"])
    assert set(found["measure"]) == {"fgsm_joint"}
    assert set(found["n"]) == {3}  # the first, the second and the last
    assert found["value"].to_dict() == pytest.approx({("standard", 0): 1 / 3, ("deep", 0): 1, ("deep", 1): 2 / 3})
    nothing = table.assign(each=[np.zeros(6, bool)] * len(table))
    assert study.jointly_correct(nothing).empty
