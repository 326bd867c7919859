"""DAAT: its equations in closed form, what is aligned with what, and what is left alone."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib import models, studies, training
from paperlib.attacks import pgd
from paperlib.data import ImageSet, Splits
from paperlib.data.augment import crop_and_flip
from paperlib.geometry import oracles, saliency
from paperlib.methods import Batch, Step, baselines, daat
from paperlib.methods.daat import DAAT
from paperlib.runs.files import InputError

STEP = Step(0, 100, 0)
ATTACK = partial(pgd, eps=0.03, norm="linf", steps=2, step_size=0.02)


@pytest.fixture
def vit() -> nn.Module:
    return models.build("vit", classes=4, channels=3, width=32, seed=0, size=16, normalisation="half")


def batch(depth: bool = True, augment: Any = lambda images: images) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 16, 16, generator=generator).contiguous(memory_format=torch.channels_last)
    distance = 1 + torch.rand(6, 16, 16, generator=generator) if depth else None
    return Batch(images, torch.arange(6) % 4, augment, distance)


def test_the_weight_of_the_features_falls_to_zero_over_the_first_fifth() -> None:
    """Equation (4), of 100 epochs."""
    expected = [3 * max(0, 1 - t / 20) for t in range(100)]
    assert [daat.feature_weight(t / 100, 3) for t in range(100)] == pytest.approx(expected)
    assert daat.feature_weight(0.2, 3) == daat.feature_weight(0.9, 3) == 0


def test_the_schedule_of_the_alignment_warms_up_and_anneals() -> None:
    found = [daat.alignment_schedule(t / 1000, "warm_up") for t in range(1000)]
    assert max(found) == pytest.approx(1)
    assert found.index(max(found)) == 100
    assert found[0] == 0
    assert 0 < found[-1] < 0.01
    assert all(0 <= value <= 1 for value in found)
    assert daat.alignment_schedule(0.7, "constant") == 1


def test_the_total_is_equation_5(vit: nn.Module) -> None:
    teacher = models.build("vit", classes=4, channels=3, width=32, seed=9, size=16, normalisation="half").eval()
    method = DAAT(ATTACK, saliency.attended, oracles.target(oracles.exact), 0.3, "cosine", "warm_up", teacher, 2.0)
    given, step = batch(), Step(5, 100, 0)
    torch.manual_seed(1)
    terms = method.loss(vit, given, step)
    torch.manual_seed(1)
    vit.eval()
    adversarial = ATTACK(vit, given.images, given.labels)
    vit.train()
    logits, attention = saliency.attended(vit, adversarial)
    assert given.depth is not None
    wanted = oracles.target(oracles.exact)(adversarial, given.depth, (8, 8))
    align = (1 - F.cosine_similarity(attention.flatten(1), wanted.flatten(1))).mean()
    student, other = (saliency.tokens(net, given.images).flatten(1) for net in (vit, teacher))
    feature = (1 - (student * other).sum(1) / student.norm(dim=1) / other.norm(dim=1)).mean()
    task = F.cross_entropy(logits, given.labels)
    torch.testing.assert_close(terms["task"], task)
    torch.testing.assert_close(terms["align"], align)
    torch.testing.assert_close(terms["feature"], feature)
    torch.testing.assert_close(terms["total"], task + 0.3 * 0.5 * align + 2 * (1 - 0.05 / 0.2) * feature)


def test_without_alignment_and_teacher_it_is_adversarial_training(vit: nn.Module) -> None:
    found = []
    for method in (DAAT(ATTACK), baselines.AdversarialTraining(ATTACK)):
        torch.manual_seed(3)
        found.append(method.loss(vit, batch(depth=False), STEP)["total"])
    torch.testing.assert_close(found[0], found[1])


def test_training_raises_the_agreement_with_the_target(vit: nn.Module) -> None:
    def to_the_corner(images: Tensor, distance: Tensor | None, grid: tuple[int, int]) -> Tensor:
        wanted = torch.zeros(len(images), *grid)
        wanted[:, 0, 0] = 1
        return wanted

    method = DAAT(ATTACK, saliency.attended, to_the_corner, weight=1.0)
    optimizer, before = torch.optim.Adam(vit.parameters(), 3e-3), None
    for index in range(30):
        terms = method.loss(vit, batch(depth=False), Step(index, 100, 0))
        before = float(terms["align"].detach()) if before is None else before
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
    assert before is not None
    assert float(terms["align"].detach()) < 0.8 * before


def test_an_image_without_edges_is_left_out_of_the_mean(vit: nn.Module) -> None:
    given = batch()
    assert given.depth is not None
    flat = given.depth.clone()
    flat[1:] = 2.0
    method = DAAT(ATTACK, saliency.attended, oracles.target(oracles.exact))
    torch.manual_seed(0)
    whole = method.loss(vit, Batch(given.images, given.labels, given.augment, flat), STEP)["align"]
    torch.manual_seed(0)
    with torch.no_grad():
        vit.eval()
        adversarial = ATTACK(vit, given.images, given.labels)
        vit.train()
        _, attention = saliency.attended(vit, adversarial)
        wanted = oracles.target(oracles.exact)(adversarial, flat, (8, 8))
    torch.testing.assert_close(whole.detach(), 1 - F.cosine_similarity(attention[0].flatten(), wanted[0].flatten(), 0))
    flat[:] = 2.0
    terms = method.loss(vit, Batch(given.images, given.labels, given.augment, flat), STEP)
    assert float(terms["align"].detach()) == 0
    assert math.isfinite(float(terms["total"].detach()))


def test_attention_is_formed_once_a_step_and_never_in_the_attack(vit: nn.Module) -> None:
    calls: list[bool] = []

    def counted(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(model.training)
        return saliency.attended(model, images)

    DAAT(ATTACK, counted, oracles.target(oracles.exact)).loss(vit, batch(), STEP)
    assert calls == [True]


def test_depth_is_cropped_and_flipped_as_the_images_are(vit: nn.Module) -> None:
    """The depth is written into the images, so that the two can be compared after the augmentation."""
    distance = 1 + torch.rand(6, 16, 16)
    images = (distance[:, None] / 4).expand(6, 3, 16, 16)
    seen: list[tuple[Tensor, Tensor | None]] = []

    def watched(images: Tensor, distance: Tensor | None, grid: tuple[int, int]) -> Tensor:
        seen.append((images, distance))
        return oracles.uniform_target(images, distance, grid)

    augment = partial(crop_and_flip, padding=3, fill="reflect", flip=True)
    still = partial(pgd, eps=0.0, norm="linf", steps=1, step_size=0.0)
    DAAT(still, saliency.attended, watched).loss(vit, Batch(images, torch.arange(6) % 4, augment, distance), STEP)
    ((moved, depth),) = seen
    assert depth is not None
    torch.testing.assert_close(moved[:, 0] * 4, depth)
    assert not torch.equal(depth, distance)


@pytest.mark.parametrize("fill", [0.0, 0.5, 1.0])
def test_depth_is_never_padded_with_a_constant(vit: nn.Module, fill: float) -> None:
    method = DAAT(ATTACK, saliency.attended, oracles.target(oracles.exact))
    with pytest.raises(InputError, match="crop_fill must be reflect"):
        method.loss(vit, batch(augment=partial(crop_and_flip, padding=4, fill=fill, flip=False)), STEP)


def test_training_gives_each_image_its_own_depth(home: Path, vit: nn.Module) -> None:
    """Again the depth is written into the images."""
    levels = torch.arange(1, 21, dtype=torch.uint8)
    images = levels.view(-1, 1, 1, 1).expand(20, 3, 16, 16).clone()
    everything = ImageSet(
        images, torch.arange(20) % 4, tuple("abcd"), levels.float().view(-1, 1, 1).expand(20, 16, 16).clone()
    )
    seen = []

    def watched(images: Tensor, distance: Tensor | None, grid: tuple[int, int]) -> Tensor:
        assert distance is not None
        torch.testing.assert_close(images[:, 0] * 255, distance)
        seen.append(len(images))
        return oracles.uniform_target(images, distance, grid)

    still = partial(pgd, eps=0.0, norm="linf", steps=1, step_size=0.0)
    settings = studies.resolve("gfa_landscape", "quick", {"epochs": 1, "batch_size": 8, "crop_fill": "reflect"})
    splits = Splits(everything, everything[:4], everything[:4])
    training.fit(vit, DAAT(still, saliency.attended, watched), splits, settings, home / "fit", seed=0)
    assert seen == [8, 8, 4]


def test_the_teacher_is_left_alone(vit: nn.Module) -> None:
    teacher = models.build("vit", classes=4, channels=3, width=32, seed=9, size=16, normalisation="half").train()
    DAAT(ATTACK, teacher=teacher).loss(vit, batch(depth=False), STEP)["total"].backward()
    assert teacher.training
    assert all(weight.grad is None for weight in teacher.parameters())


def test_what_does_not_fit_is_refused(vit: nn.Module) -> None:
    with pytest.raises(InputError, match="go together"):
        DAAT(ATTACK, attention=saliency.attended)
    for wrong, message in (
        ({"schedule": "none"}, "schedule = 'none'; choose from constant, warm_up"),
        ({"weight": -0.1}, "weight = -0.1; it must be zero or more"),
    ):
        with pytest.raises(InputError, match=message):
            DAAT(**{"attack": ATTACK, **wrong})  # type: ignore[arg-type]
    wide = models.build("vit", classes=4, channels=3, width=64, seed=9, size=16)
    with pytest.raises(InputError, match=r"\(65, 32\).*\(65, 64\)"):
        DAAT(ATTACK, teacher=wide).loss(vit, batch(), STEP)
    with pytest.raises(InputError, match="no depth of their own"):
        DAAT(ATTACK, saliency.attended, oracles.target(oracles.exact)).loss(vit, batch(depth=False), STEP)


def test_depth_edges_are_told_from_the_image_that_is_asked_for() -> None:
    seen: list[Tensor] = []

    def target(images: Tensor, depth: Tensor | None, grid: tuple[int, int]) -> Tensor:
        seen.append(images.detach())
        return torch.ones(len(images), *grid)

    def attack(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return images + 0.1

    def attention(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        return model(images), torch.ones(len(images), 2, 2)

    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(4, 3, 2, 2)
    batch = Batch(images, torch.arange(4) % 3, lambda x: x)
    for edges_of, change in (("adversarial", 0.1), ("clean", 0.0)):
        DAAT(attack, attention, target, edges_of=edges_of).loss(model, batch, Step(0, 1, 0))  # type: ignore[arg-type]
        torch.testing.assert_close(seen.pop(), images + change)
    with pytest.raises(InputError, match="edges_of = 'both'"):
        DAAT(attack, edges_of="both")  # type: ignore[arg-type]
