from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib import models, studies
from paperlib.data import ImageSet, Splits, as_float
from paperlib.geometry import all_classes, class_gradients, cosine, distance_to_boundary, input_gradients, scores
from paperlib.methods import Batch, Step, baselines, pag
from paperlib.models import external
from paperlib.models.batchnorm import BatchNorm2d
from paperlib.runs import run as runs
from paperlib.runs.files import InputError
from paperlib.studies import pag as pag_study

STEP = Step(0, 1, 0)


def image_set(count: int = 30, classes: int = 3, side: int = 4) -> ImageSet:
    pixels = torch.randint(0, 256, (count, 2, side, side), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % classes, tuple("abcdefgh"[:classes]))


def smooth_net(classes: int = 3, norm: bool = False) -> nn.Module:
    """Twice differentiable, so that finite differences mean something."""
    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(64, classes)]
    if norm:
        layers.insert(1, BatchNorm2d(4))
    return nn.Sequential(*layers).double()


def same(x: Tensor) -> Tensor:
    return x


# Equation 2 ------------------------------------------------------------------


def test_cosine_is_equation_2() -> None:
    v, u = torch.randn(9, 2, 3, dtype=torch.float64), torch.randn(9, 2, 3, dtype=torch.float64)
    a, b = v.flatten(1).numpy(), u.flatten(1).numpy()
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(cosine(v, u), expected)
    torch.testing.assert_close(cosine(v, 5 * v), torch.ones(9, dtype=torch.float64))
    assert cosine(torch.zeros(1, 4), torch.ones(1, 4)).item() == 0
    assert torch.isfinite(
        torch.autograd.functional.jacobian(lambda x: cosine(x, torch.ones(1, 4)), torch.zeros(1, 4))
    ).all()


def test_class_gradients_are_finite_differences_of_the_log_softmax() -> None:
    net = smooth_net()
    images = torch.rand(2, 2, 4, 4, dtype=torch.float64)
    for of in ("log_softmax", "logit"):
        gradients = input_gradients(net, images, torch.tensor([[0, 2], [0, 2]]), of)
        for label, gradient in zip((0, 2), gradients.unbind(1), strict=True):
            step = torch.zeros_like(images)
            step[:, 1, 2, 3] = 1e-6

            def value(x: Tensor, of: str = of, label: int = label) -> Tensor:
                out = net(x).double()
                return (out.log_softmax(1) if of == "log_softmax" else out)[:, label]

            slope = (value(images + step) - value(images - step)) / 2e-6
            torch.testing.assert_close(gradient[:, 1, 2, 3], slope, rtol=1e-3, atol=1e-6)


# Equation 1 ------------------------------------------------------------------


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.rand(4, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1]), same)


def equation_1(net: nn.Module, batch: Batch, targets: Tensor, weight: float) -> Tensor:
    """Written anew with plain loops, one forward pass a class."""
    ce = -sum(net(batch.images).log_softmax(1)[row, label] for row, label in enumerate(batch.labels)) / len(batch.labels)
    total = ce
    for label in range(3):
        x = batch.images.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(net(x).log_softmax(1)[:, label].sum(), x, create_graph=True)
        for row in range(len(x)):
            v, u = gradient[row].flatten(), (targets[label] - batch.images[row]).flatten()
            total = total + weight * (1 - v @ u / (v @ v).sqrt() / (u @ u).sqrt()) / len(x)
    return total


@pytest.mark.parametrize("norm", [False, True])
def test_loss_and_its_gradient_are_equation_1(batch: Batch, norm: bool) -> None:
    net, targets = smooth_net(norm=norm), torch.rand(3, 2, 4, 4, dtype=torch.float64)
    method = pag.PAG(partial(pag.toward, targets.unsqueeze(1)), weight=0.7)
    ours = method.loss(net, batch, STEP)["total"]
    theirs = equation_1(net, batch, targets, 0.7)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(ours, list(net.parameters())),
        torch.autograd.grad(theirs, list(net.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)

    # And the gradient against finite differences along a random direction.
    directions = [torch.randn_like(weight) for weight in net.parameters()]
    slopes = torch.autograd.grad(method.loss(net, batch, STEP)["total"], list(net.parameters()))
    expected = sum((slope * direction).sum() for slope, direction in zip(slopes, directions, strict=True))
    values = []
    for sign in (1, -2):  # +h, then −h
        with torch.no_grad():
            for weight, direction in zip(net.parameters(), directions, strict=True):
                weight += sign * 1e-6 * direction
        values.append(method.loss(net, batch, STEP)["total"].detach())
    torch.testing.assert_close((values[0] - values[1]) / 2e-6, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("draw", ["per_image", "per_batch"])
@pytest.mark.parametrize("count", [1, 2])
def test_sampled_classes_are_unbiased_where_no_image_enters_anothers_gradient(batch: Batch, count: int, draw: str) -> None:
    """The mean over many draws of K classes is the sum over all C, in loss and gradient, without batch statistics."""
    torch.manual_seed(2)
    net, pool = smooth_net(), torch.rand(3, 1, 2, 4, 4, dtype=torch.float64)
    targets = partial(pag.toward, pool)

    def outcome(classes: int | None) -> Tensor:
        total = pag.PAG(targets, 0.5, classes, draw=draw).loss(net, batch, STEP)["total"]  # type: ignore[arg-type]
        slopes = torch.autograd.grad(total, list(net.parameters()))
        return torch.cat([total.detach().view(1), *[slope.flatten() for slope in slopes]])

    whole = outcome(None)
    parts = torch.stack([outcome(count) for _ in range(400)])
    error = (parts.mean(0) - whole).norm()
    assert error < 3 * parts.std(0).norm() / 20  # the mean's own deviation, three times
    assert (parts[0] - whole).norm() > error


def test_the_target_stays_in_the_frame_of_the_stored_image(batch: Batch) -> None:
    """With a mirrored input the gradient is mirrored back before it meets r − x."""
    net = smooth_net()
    mirrored = Batch(batch.images, batch.labels, lambda images: images.flip(3))
    direction = torch.rand(2, 4, 4, dtype=torch.float64)
    targets = lambda images, classes: direction.expand(*classes.shape, *images.shape[1:])  # noqa: E731
    ours = pag.PAG(targets, 1.0).loss(net, mirrored, STEP)["misalignment"]
    images = batch.images.flip(3).requires_grad_(True)
    out = scores(net(images), "log_softmax")
    expected = sum(
        (1 - cosine(gradient.flip(3), direction.expand_as(images))).mean()
        for gradient in class_gradients(out, images, all_classes(images, 3), create_graph=True).unbind(1)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_training_raises_the_cosine() -> None:
    data = image_set()
    net, method = smooth_net().float(), pag.PAG(partial(pag.toward, pag.class_mean(data, 1.0)), 5.0)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    values = []
    for _ in range(100):
        terms = method.loss(net, Batch(data.images.float() / 255, data.labels, same), STEP)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        values.append(float(terms["misalignment"].detach()))
    assert values[-1] < values[0] - 0.3


# Section 4: sources ------------------------------------------------------------


def test_class_means_and_samples_come_from_their_class() -> None:
    data = image_set()
    means = pag.class_mean(data, 1.2)
    expected = np.stack([data.images[data.labels == label].numpy().mean(0) / 255 * 1.2 for label in range(3)])
    np.testing.assert_allclose(means[:, 0], expected, rtol=1e-5)
    for pool, count in ((pag.sample(data, 4, seed=1), 4), (pag.one_image(data, seed=1), 1)):
        assert pool.shape == (3, count, 2, 4, 4)
        for label in range(3):
            members = data.images[data.labels == label].float() / 255
            for one in pool[label]:
                assert (members == one).flatten(1).all(1).any()
    assert not torch.equal(pag.one_image(data, 1), pag.one_image(data, 2))


def test_nearest_neighbor_is_equation_3() -> None:
    data = image_set()
    pool, images = pag.sample(data, 10, 0), data.images[:12].float() / 255
    for label in range(3):
        found = pag.toward(pool, images, torch.full((12, 1), label))[:, 0] + images
        for image, neighbor in zip(images, found, strict=True):
            distances = [(float((other - image).norm()), other) for other in pool[label] if not torch.equal(other, image)]
            torch.testing.assert_close(neighbor, min(distances, key=lambda pair: pair[0])[1])
    # Every image of class 0 is in the pool of class 0: it must not be its own neighbour.
    own = data.images[data.labels == 0].float() / 255
    assert (pag.toward(pool, own, torch.zeros(len(own), 1, dtype=torch.long)).flatten(1).norm(dim=1) > 0).all()
    # Classes of each image's own.
    classes = torch.tensor([[2, 0], [1, 2]] * 6)
    mixed = pag.toward(pool, images, classes)
    for row, column in [(0, 0), (3, 1), (7, 1)]:
        alone = pag.toward(pool, images[row : row + 1], classes[row : row + 1, column : column + 1])
        torch.testing.assert_close(mixed[row, column], alone[0, 0])


def test_centroids_find_separate_clusters() -> None:
    centres = torch.tensor([20, 120, 230], dtype=torch.uint8)
    pixels = centres.repeat(20).view(-1, 1, 1, 1).expand(60, 1, 2, 2) + torch.randint(
        0, 5, (60, 1, 2, 2), dtype=torch.uint8
    )
    pool = pag.centroids(ImageSet(pixels, torch.zeros(60, dtype=torch.long), ("a",)), 3, seed=0)
    np.testing.assert_allclose(np.sort(pool.mean((2, 3, 4))[0]) * 255, [22, 122, 232], atol=1)


def test_distilled_gradients_are_the_teachers_in_evaluation_mode() -> None:
    teacher = models.resnet18(3, channels=2, width=4).train()
    images = torch.rand(3, 2, 8, 8)
    found = pag.distilled(teacher, "log_softmax", images, torch.tensor([[0, 1]] * 3))[:, 1]
    assert all(module.training for module in teacher.modules())
    teacher.eval()
    x = images.clone().requires_grad_(True)
    expected = torch.autograd.grad(teacher(x).log_softmax(1)[:, 1].sum(), x)[0]
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_constants_are_those_of_table_3() -> None:
    from paperlib.claims import rows

    for source, row in rows("pag", "table3").items():
        for data, weight in row.items():
            assert pag_study.WEIGHTS[data][source] == weight  # type: ignore[index]


def test_the_controls_have_the_previous_classs_mean_and_a_penalty() -> None:
    data = image_set()
    settings = studies.resolve("cifar_pag", "laptop", {"sources": ["class_mean"], "weights": {"class_mean": 0.3}})
    targets = pag_study.target_sources(settings, data, {}, torch.device("cpu"))
    x, classes = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 2], [1, 0]])
    means = torch.stack([as_float(data.images[data.labels == label]).mean(0) for label in range(3)])
    for image, row, drawn in zip(x, classes, targets["wrong_class"](x, classes), strict=True):
        for label, target in zip(row, drawn, strict=True):
            torch.testing.assert_close(target, means[(label - 1) % 3] - image)
    named = pag_study.methods(settings, targets)
    assert [*named] == ["vanilla", "class_mean", "wrong_class", "gradient_penalty"]
    assert named["wrong_class"].weight == named["class_mean"].weight == 0.3
    assert named["gradient_penalty"] == baselines.GradientPenalty(settings.penalty)
    with pytest.raises(InputError, match=r"controls = \[wrong_class\] needs class_mean among the sources"):
        studies.resolve(
            "cifar_pag", "quick", {"sources": ["kmeans"], "weights": {"kmeans": 1}, "controls": ["wrong_class"]}
        )


def test_more_neighbors_than_images_are_refused() -> None:
    with pytest.raises(InputError, match="neighbors = 11, but the smallest class has 10"):
        pag.sample(image_set(), 11, 0)


# Measures ----------------------------------------------------------------------


class Template(nn.Module):
    """Logits are products with templates: its gradients are the templates themselves."""

    def __init__(self, templates: Tensor) -> None:
        super().__init__()
        self.templates = nn.Parameter(templates)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.templates.flatten(1).t()


def test_alignment_of_a_model_whose_gradients_are_known() -> None:
    data = image_set(8, 3)
    templates, directions = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    found = pag.alignment(
        Template(templates),
        data,
        lambda images, classes: directions[classes],
        "logit",
        chunk=3,
    )
    assert found.shape == (8, 3)
    torch.testing.assert_close(found, cosine(templates, directions).expand(8, 3))


def test_alignment_through_batch_statistics_is_that_of_training_mode() -> None:
    model, data = models.resnet18(3, channels=2, width=4).eval(), image_set(8, 3)
    before, directions = model.bn1.running_mean.clone(), torch.randn(3, 2, 4, 4)

    def targets(images: Tensor, classes: Tensor) -> Tensor:
        return directions[classes]

    evaluated = pag.alignment(model, data, targets)
    found = pag.alignment(model, data, targets, batch_statistics=True)
    assert torch.equal(model.bn1.running_mean, before)
    assert not model.training
    assert not torch.allclose(found, evaluated, atol=1e-3)
    x = (data.images.float() / 255).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.train()(x).log_softmax(1)[:, 1].sum(), x)
    torch.testing.assert_close(found[:, 1], cosine(gradient, directions[1].expand_as(x)), rtol=1e-3, atol=1e-4)


def test_one_direction_for_all_is_the_best_by_search() -> None:
    data, directions = image_set(4, 3), torch.randn(3, 2, 4, 4)
    found = pag_study._one_direction(lambda x, classes: directions[classes], data, torch.device("cpu"), 3)
    tried = torch.randn(20000, 1, 32) * 0.05 + torch.nn.functional.normalize(directions.flatten(1), dim=1).mean(0)
    reached = torch.nn.functional.cosine_similarity(tried, directions.flatten(1)[None], dim=2).mean(1)
    assert reached.max() <= found + 1e-6
    assert reached.max() > 0.95 * found


def test_pag_score_tells_shared_features_from_private_ones() -> None:
    data, templates = image_set(60, 3), torch.randn(3, 2, 4, 4)
    model, judge, stranger = Template(5 * templates), Template(5 * templates), Template(5 * torch.randn(3, 2, 4, 4))
    same = pag.pag_score(model, judge, data, eps=2.0, steps=20).float().mean()
    other = pag.pag_score(model, stranger, data, eps=2.0, steps=20).float().mean()
    assert same > 0.95
    assert other < 0.7


def test_distance_to_a_straight_boundary_is_exact() -> None:
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        net.bias.copy_(torch.tensor([0.0, -3.0]))  # the boundary is x₁ = 3
    points = torch.tensor([[0.0, 5.0], [4.5, 0.0], [40.0, 0.0]])
    found = distance_to_boundary(net, points, torch.tensor([1.0, 0.0]), reach=10.0, step=0.1)
    torch.testing.assert_close(found, torch.tensor([3.0, 1.5, 10.0]), rtol=0, atol=0.11)
    along = distance_to_boundary(net, points, torch.tensor([0.0, 1.0]), reach=10.0, step=0.1)
    assert along.tolist() == [10.0] * 3


# Baselines ---------------------------------------------------------------------


def test_adversarial_training_attacks_in_evaluation_mode_and_trains_in_its_own() -> None:
    modes: list[bool] = []
    model = models.resnet18(3, channels=2, width=4).train()

    def attack(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        modes.append(net.training)
        return images + 0.1

    batch = Batch(torch.rand(6, 2, 8, 8), torch.arange(6) % 3, same)
    before = model.bn1.running_mean.clone()
    total = baselines.AdversarialTraining(attack).loss(model, batch, STEP)["total"]
    assert modes == [False]
    assert model.training
    assert not torch.equal(model.bn1.running_mean, before)  # batch statistics, once
    torch.testing.assert_close(total, F.cross_entropy(model(batch.images + 0.1), batch.labels))
    plain = baselines.Standard().loss(model, batch, STEP)["total"]
    torch.testing.assert_close(plain, F.cross_entropy(model(batch.images), batch.labels))


# The authors' files ------------------------------------------------------------


def authors_checkpoint(path: Path) -> dict[str, Tensor]:
    """A state dict with the names of their ResNet-18 inside DataParallel, as github.com/royg27/PAG-ROB saves it."""
    weights: dict[str, Tensor] = {"conv1.weight": torch.randn(64, 3, 3, 3) / 5}

    def norm(name: str, width: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.rand(width) + 0.5, torch.randn(width) / 9
        weights[f"{name}.running_mean"], weights[f"{name}.running_var"] = torch.randn(width) / 9, torch.rand(width) + 0.5
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    norm("bn1", 64)
    inputs = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            place = f"layer{stage}.{block}"
            weights[f"{place}.conv1.weight"] = torch.randn(width, inputs, 3, 3) / (3 * inputs**0.5)
            weights[f"{place}.conv2.weight"] = torch.randn(width, width, 3, 3) / (3 * width**0.5)
            norm(f"{place}.bn1", width)
            norm(f"{place}.bn2", width)
            if inputs != width:
                weights[f"{place}.shortcut.0.weight"] = torch.randn(width, inputs, 1, 1) / inputs**0.5
                norm(f"{place}.shortcut.1", width)
            inputs = width
    weights["linear.weight"], weights["linear.bias"] = torch.randn(10, 512) / 20, torch.randn(10)
    torch.save({f"module.{name}": value for name, value in weights.items()}, path)
    return weights


def their_resnet(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """What their network computes of images in [-1,1], with functions alone."""

    def norm(name: str, z: Tensor) -> Tensor:
        statistics = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(z, *statistics, w[f"{name}.weight"], w[f"{name}.bias"])

    z = F.relu(norm("bn1", F.conv2d(x, w["conv1.weight"], padding=1)))
    for stage in range(1, 5):
        for block in range(2):
            place, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(norm(f"{place}.bn1", F.conv2d(z, w[f"{place}.conv1.weight"], stride=stride, padding=1)))
            out = norm(f"{place}.bn2", F.conv2d(out, w[f"{place}.conv2.weight"], padding=1))
            if f"{place}.shortcut.0.weight" in w:
                z = norm(f"{place}.shortcut.1", F.conv2d(z, w[f"{place}.shortcut.0.weight"], stride=stride))
            z = F.relu(out + z)
    return F.linear(F.avg_pool2d(z, 4).flatten(1), w["linear.weight"], w["linear.bias"])


def test_the_authors_checkpoints_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = authors_checkpoint(tmp_path / "rn18.pt")
    model, images = external.load_pag_resnet18(tmp_path / "rn18.pt"), torch.rand(2, 3, 32, 32)
    assert not model.training
    torch.testing.assert_close(model(images), their_resnet(weights, 2 * images - 1), rtol=1e-3, atol=1e-3)
    del weights["layer3.0.shortcut.0.weight"]
    torch.save(weights, tmp_path / "less.pt")
    with pytest.raises(InputError, match=r"not PAG's ResNet-18, layer3.0.shortcut.0.weight is missing"):
        external.load_pag_resnet18(tmp_path / "less.pt")


def test_the_authors_target_gradients_are_read_and_looked_up(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pointing = torch.randn(6, 10, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    data = torch.cat([(pixels.float() / 127.5 - 1)[:, None], pointing], 1)
    torch.save(data, tmp_path / "c10_sbg_data.pt")
    torch.save(torch.arange(6), tmp_path / "c10_sbg_label.pt")
    known, gradients = external.load_target_gradients(tmp_path)
    assert torch.equal(known.images, pixels)
    assert torch.equal(known.labels, torch.arange(6))
    targets = pag.tabulated(known.images, gradients)
    classes = torch.tensor([[3, 1], [0, 9], [5, 5]])
    found = targets(pixels[[4, 0, 5]].float() / 255, classes)
    for row, image in enumerate((4, 0, 5)):
        torch.testing.assert_close(found[row], pointing[image][classes[row]])
    with pytest.raises(InputError, match="1 of 2 images are not among the 6"):
        targets(torch.stack([pixels[0].float() / 255, torch.zeros(3, 32, 32)]), classes[:2])
    torch.save(data[:, :10], tmp_path / "c10_sbg_data.pt")
    with pytest.raises(InputError, match="should be a tensor M×11×3×32×32"):
        external.load_target_gradients(tmp_path)
    (tmp_path / "c10_sbg_label.pt").unlink()
    with pytest.raises(InputError, match="no such file"):
        external.load_target_gradients(tmp_path)


def test_alignment_with_published_gradients_is_that_of_training_images() -> None:
    data = image_set()
    gradients = torch.randn(len(data), 3, *data.images.shape[1:], generator=torch.Generator().manual_seed(0))
    targets = {"published": pag.tabulated(data.images, gradients)}
    others = ImageSet(255 - data.images, data.labels, data.classes)
    network = nn.Sequential(nn.Flatten(), nn.Linear(data.images[0].numel(), 3))
    settings = SimpleNamespace(score_images=len(data), gradient="log_softmax")
    run: Any = SimpleNamespace(settings=settings, device=torch.device("cpu"))
    trained = {"vanilla": {0: network}, "published": {0: network}}
    found = pag_study.alignment_each(run, trained, targets, Splits(data, others, others)).loc["published"]
    expected = float(pag.alignment(network, data, targets["published"]).mean())
    assert found["vanilla"] == found["trained on them"] == pytest.approx(expected, abs=1e-6)
    assert 0 < found["one direction for all"] < 1


def test_published_gradients_need_their_folder() -> None:
    with pytest.raises(InputError, match="go together"):
        studies.resolve("cifar_pag", "quick", {"sources": "[published]", "weights": "{published: 1.5}"})


def test_both_norms_become_one_measure_and_alignment_a_row() -> None:
    table = pd.DataFrame({"method": "class_mean", "measure": ["clean", "pgd_l2", "pgd_linf"], "value": [0.8, 0.5, 0.2]})
    found = pag_study.norm_rows(table)
    assert found[["method", "measure", "value"]].to_numpy().tolist() == [
        ["class_mean on L2", "pgd", 0.5], ["class_mean on L∞", "pgd", 0.2],
    ]  # fmt: skip
    data, templates, directions = image_set(8, 3), torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    chosen = studies.resolve("cifar_pag", "quick", {"gradient": "logit", "device": "cpu"})
    run = runs.Run("cifar_pag", "quick", chosen, Path("unused"))
    rows = pag_study.alignment_rows(run, {"lambda_1": {0: Template(templates)}}, lambda x, k: directions[k], data)
    assert rows["value"].iloc[0] == pytest.approx(float(cosine(templates, directions).mean()), abs=1e-6)
    assert rows["n"].iloc[0] == len(rows["each"].iloc[0]) == 8
