"""AutoAttack's own engine: each formula against its closed form or SciPy, its answers against the original's."""

import cProfile
import math
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from paperlib import models
from paperlib.attacks import Norm, autoattack, lengths, masking_flags, parts, targeted_ratio
from paperlib.attacks.libraries import Part
from paperlib.models.batchnorm import BatchNorm2d, folded
from paperlib.runs.files import InputError


def network(seed: int = 0) -> nn.Module:
    """A small network with batch norm that has seen something."""
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1),
        BatchNorm2d(8),
    ]
    return seen(nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)), torch.rand(32, 3, 8, 8))


def seen(model: nn.Module, images: Tensor) -> nn.Module:
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        for _ in range(20):
            model.train()(images)
    return model.eval()


def flat(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, classes)).eval()


def test_an_output_that_is_nan_is_no_success() -> None:
    """A model that answers NaN off its clean images cannot be fooled; one that does so on a clean image is left alone."""

    class Undefined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            moved = (x - images[:, None]).abs().amax((2, 3, 4)).amin(0) > 1e-6  # from every clean image
            return torch.where(moved[:, None], torch.nan, plain(x))

    plain, images = flat(), torch.rand(4, 3, 6, 6)
    labels = plain(images).argmax(1)
    found = autoattack(Undefined(), images, labels, eps=0.3, norm="linf")
    assert torch.equal(found, images)
    assert not torch.equal(autoattack(plain, images, labels, eps=0.3, norm="linf"), images)


# The whole ---------------------------------------------------------------------


def test_a_model_that_takes_its_wrong_answers_back_is_not_fooled() -> None:
    class Fickle(nn.Module):
        """Wrong at points that it has not seen, and right when asked again."""

        seen = torch.empty(0, 3, 8, 8)

        def forward(self, x: Tensor) -> Tensor:
            known = (x[:, None] == self.seen[None]).flatten(2).all(2).any(1)
            self.seen = torch.cat([self.seen, x.detach()])
            right = torch.where(known, 1.0, -1.0) + 0 * x.flatten(1).sum(1)
            return torch.stack([right, -right, right - 1, right - 2, right - 3], 1)

    model, images = Fickle(), torch.rand(4, 3, 8, 8)
    model(images)
    labels = torch.zeros(4, dtype=torch.long)
    found = autoattack(model, images, labels, eps=0.02, norm="linf", only="apgd-t", short=True)
    assert torch.equal(found, images)


@pytest.mark.parametrize(("norm", "eps", "only"), [("linf", 0.02, None), ("l2", 0.15, "apgd-t"), ("l2", 0.15, "fab-t")])
def test_its_answers_are_the_originals_within_ball_and_box(norm: Norm, eps: float, only: Part | None) -> None:
    model, images = network(), torch.rand(14, 3, 8, 8).mul(1.4).sub(0.2).clamp(0, 1)
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    right = model(images).argmax(1) == labels
    left = {}
    for engine in ("own", "original"):
        torch.manual_seed(1)
        found = autoattack(model, images, labels, eps=eps, norm=norm, only=only, engine=engine)
        left[engine] = model(found).argmax(1) == labels
        change = lengths(found - images, norm)
        assert float(change.max()) <= eps * (1 + 1e-5)
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        if engine == "own":
            assert torch.equal(change > 0, right & ~left["own"])  # whom it does not fool it leaves alone
    assert torch.equal(left["own"], left["original"])
    assert 2 < int(left["own"].sum()) < 12


@pytest.mark.parametrize(
    ("part", "norm"), [*product(["apgd-ce", "apgd-t", "fab-t"], ["linf", "l2"]), ("square", "linf"), ("square", "l2")]
)
def test_on_a_linear_model_a_part_fools_whom_the_closed_form_says(part: Part, norm: Norm) -> None:
    model, images = flat(), torch.rand(12, 3, 6, 6) * 0.4 + 0.3
    logits = model(images).detach()
    labels = logits.argmax(1)
    weight = model[1].weight.detach()
    normals = weight - weight[labels][:, None]
    leads = logits.gather(1, labels[:, None]) - logits
    distances = leads / normals.norm(1 if norm == "linf" else 2, 2)
    nearest = distances.scatter(1, labels[:, None], torch.inf).amin(1)
    ordered = nearest.sort().values
    for rank in (4, 8):  # halfway between two images' distances
        eps = float(ordered[rank - 1] + ordered[rank]) / 2
        assert eps < 0.25 or norm == "l2"
        torch.manual_seed(2)
        found = autoattack(model, images, labels, eps=eps, norm=norm, only=part, short=part == "square")
        fooled = model(found).argmax(1) != labels
        assert (fooled <= (nearest < eps)).all()
        # FAB oversteps the boundary by five per cent; of a loss without target, or by chance, an attack only comes near.
        slack = {"apgd-ce": 1.2, "apgd-t": 1.0, "fab-t": 1.05, "square": 1.5}[part]
        assert (fooled >= (nearest < eps / slack)).all()


def test_fewer_than_four_classes_take_the_untargeted_parts() -> None:
    model, images = flat(3), torch.rand(8, 3, 6, 6) * 0.4 + 0.3
    logits = model(images).detach()
    labels, weight = logits.argmax(1), model[1].weight.detach()
    targets = torch.stack([torch.tensor([c for c in range(3) if c != label]) for label in labels.tolist()])
    leads = logits.gather(1, targets) - logits.gather(1, labels[:, None])
    normals = weight[targets] - weight[labels][:, None]
    nearest = (leads.abs() / normals.abs().sum(2)).argmin(1)
    lead, normal = parts.nearest_plane(model, images, labels, targets, "linf")
    rows = torch.arange(8)
    torch.testing.assert_close(lead, leads[rows, nearest])
    torch.testing.assert_close(normal.flatten(1), normals[rows, nearest])
    eps = float((leads.abs() / normals.abs().sum(2)).amin(1).median()) * 1.01
    found = autoattack(model, images, labels, eps=eps, norm="linf")
    assert int((model(found).argmax(1) != labels).sum()) >= 4
    with pytest.raises(InputError, match="fab-t needs four classes"):
        autoattack(model, images, labels, eps=eps, norm="linf", only="fab-t")


def test_an_engine_of_another_name_is_refused() -> None:
    with pytest.raises(InputError, match="engine = 'theirs'; there are own and original"):
        autoattack(flat(), torch.rand(1, 3, 6, 6), torch.tensor([0]), eps=0.1, norm="linf", engine="theirs")  # type: ignore[arg-type]


def test_weights_and_their_gradients_are_left_as_they_were() -> None:
    model, images = network(), torch.rand(2, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    autoattack(model, images, model(images).argmax(1), eps=0.01, norm="linf", only="fab-t")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def test_it_runs_under_a_profiler_that_goes_on() -> None:
    model, images, profiler = flat().eval(), torch.rand(2, 3, 6, 6), cProfile.Profile()
    with profiler:
        autoattack(model, images, model(images).argmax(1), eps=1e-3, norm="linf", only="apgd-ce")
    assert any("auto_pgd" in str(entry.code) for entry in profiler.getstats())


def test_zero_gradients_square_alone_and_probabilities_are_warned_of() -> None:
    class Rounding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = flat()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x * 50).round() / 50)

    model, images = Rounding(), torch.rand(6, 3, 6, 6)
    with masking_flags() as flags:
        autoattack(model, images, model(images).argmax(1), eps=0.05, norm="linf", short=True)
    assert any("zero gradient" in flag for flag in flags)
    assert any("Square has decreased" in flag for flag in flags)
    assert len(flags) == 2
    with masking_flags() as flags:
        soft = nn.Sequential(flat(), nn.Softmax(1)).eval()
        autoattack(soft, images, soft(images).argmax(1), eps=1e-3, norm="linf", only="apgd-ce")
    assert len(flags) == 1
    assert "probability distribution" in flags[0]


# Folding -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "preact_resnet18"])
def test_the_folded_model_is_the_model(name: str) -> None:
    model = models.build(name, classes=5, channels=3, width=4, seed=0)
    images = torch.rand(8, 3, 16, 16)
    seen(model, images)
    quick = folded(model)
    norms = [sum(isinstance(one, BatchNorm2d) for one in each.modules()) for each in (model, quick)]
    assert norms[1] < norms[0]
    assert norms[1] == {"small_cnn": 0, "resnet18": 3}.get(name, norms[1])  # 3: after projections, a class of their own
    torch.testing.assert_close(quick(images), model(images), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_folded_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.norm = nn.Conv2d(3, 3, 1), BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            between = self.map(x)
            return self.norm(between) + between

    class Branching(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.map(x)) if x.sum() > 0 else x

    class Reading(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.map(x)) + self.map.weight.sum()

    pair = nn.Sequential(nn.Conv2d(3, 3, 1), BatchNorm2d(3))
    assert folded(pair.eval()) is not pair
    for model in (Twice().eval(), Branching().eval(), Reading().eval(), pair.train()):
        assert folded(model) is model


def test_random_outputs_are_warned_of_also_of_a_model_that_is_folded() -> None:
    """Folding keeps the code of a model, here with its noise."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + torch.rand(1)  # traced, this would be a constant; it changes no answer

    model, images = Noisy().eval(), torch.rand(6, 3, 8, 8)
    with masking_flags() as flags:
        autoattack(model, images, model(images).argmax(1), eps=0.02, norm="linf", only="apgd-ce")
    assert any("randomized" in flag for flag in flags)
    quick = folded(model)
    assert not any(isinstance(module, BatchNorm2d) for module in quick.modules())
    assert not torch.equal(quick(images), quick(images))


# Auto-PGD ----------------------------------------------------------------------


def test_the_targeted_ratio_is_its_formula() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5, -2.0, -4.0], [0.0, 1.0, 2.0, 4.0, 8.0]], dtype=torch.float64)
    found = targeted_ratio(logits, torch.tensor([0, 0]), torch.tensor([3, 2]))
    #                −(z_y − z_t) / (z_π1 − (z_π3 + z_π4) / 2)
    expected = [-(3 + 2) / (3 - (0.5 - 2) / 2), -(0 - 2) / (8 - (2 + 1) / 2)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(targeted_ratio(7 * logits, torch.tensor([0, 0]), torch.tensor([3, 2])), found)
    with pytest.raises(InputError, match="four classes or more, this model has 3"):
        targeted_ratio(logits[:, :3], torch.tensor([0, 0]), torch.tensor([1, 2]))


def test_checkpoints_and_halving_are_the_papers() -> None:
    assert parts.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert parts.checkpoints(1000) == [220, 410, 570, 700, 800, 870, 930, 990]
    assert parts.checkpoints(50) == [11, 21, 29, 35, 40, 44, 47, 50]  # rounded up
    halving = partial(parts.halving, best=torch.tensor([1.0]), length=20)
    of = torch.tensor
    assert halving(of([14.0]), halved=of([True]), before=of([0.0])).tolist() == [True]  # 14 of 20 rose: fewer than 75 %
    assert halving(of([15.0]), halved=of([True]), before=of([0.0])).tolist() == [False]
    assert halving(of([15.0]), halved=of([False]), before=of([1.0])).tolist() == [True]  # neither size nor best changed
    assert halving(of([15.0]), halved=of([True]), before=of([1.0])).tolist() == [False]
    assert halving(of([15.0]), halved=of([False]), before=of([0.5])).tolist() == [False]


# FAB ---------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_projection_onto_plane_and_box_is_scipys(norm: Norm) -> None:
    random = np.random.default_rng(0)
    dimension, cases = 5, 40
    points = random.uniform(0, 1, (2, cases, dimension)) * (random.random((2, cases, dimension)) > 0.2)
    normals = random.normal(size=(cases, dimension)) * (random.random((cases, dimension)) > 0.2)
    normals[:, 0] += 0.1
    values = random.normal(size=(2, cases)) * 1.5
    given = (torch.from_numpy(one) for one in (points, normals, values))
    found = parts.onto_plane(*given, norm).numpy()
    reached = 0
    for k in range(2):
        for x, w, v, move in zip(points[k], normals, values[k], found[k], strict=True):
            bounds = list(zip(-x, 1 - x, strict=True))
            far = np.where(-np.sign(v) * w > 0, 1 - x, -x) * (w != 0)
            assert (move >= -x - 1e-12).all()
            assert (move <= 1 - x + 1e-12).all()
            if abs(w @ far) < abs(v):  # out of reach
                np.testing.assert_allclose(w @ move, w @ far, atol=1e-9)
                continue
            reached += 1
            np.testing.assert_allclose(w @ move, -v, atol=1e-5)
            if norm == "linf":  # minimise t with −t ≤ δ ≤ t
                one, rows = np.ones((dimension, 1)), np.eye(dimension)
                best = linprog(
                    [0] * dimension + [1], np.vstack([np.hstack([rows, -one]), np.hstack([-rows, -one])]),
                    np.zeros(2 * dimension), np.append(w, 0)[None], [-v], [*bounds, (0, None)],
                ).fun  # fmt: skip
                np.testing.assert_allclose(np.abs(move).max(), best, atol=1e-5)
            else:
                plane = {"type": "eq", "fun": lambda d, w=w, v=v: w @ d + v, "jac": lambda d, w=w: w}
                start = np.clip(far * abs(v) / abs(w @ far), -x, 1 - x)
                best = minimize(lambda d: d @ d, start, jac=lambda d: 2 * d, bounds=bounds, constraints=[plane], tol=1e-12)
                np.testing.assert_allclose(move @ move, best.fun, atol=1e-4)
    assert 20 < reached < 70


# Square ------------------------------------------------------------------------


def test_windows_shrink_as_in_the_paper() -> None:
    sides = {query: parts.side(query, (32, 32), "linf") for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 8001)}
    shares = [0.8, 0.8, *(0.8 / 2**k for k in (1, 2, 3, 4, 5, 6, 7, 9))]
    assert list(sides.values()) == [max(round(math.sqrt(share * 1024)), 1) for share in shares]
    assert [parts.side(query, (32, 32), "l2") for query in (0, 11, 8001)] == [29, 21, 3]  # odd, three or more
    assert parts.side(0, (5, 40), "linf") == 5


@pytest.mark.parametrize("wide", [3, 6, 9])
def test_the_bump_is_the_papers_sum(wide: int) -> None:
    expected = np.zeros((wide, wide))
    for sign, height, top in ((1, wide // 2, 0), (-1, wide - wide // 2, wide // 2)):
        n = max(height, wide) // 2
        for r in range(height):
            for s in range(wide):
                m = n - max(abs(r - height // 2), abs(s - wide // 2))
                expected[top + r, s] = sign * sum(1 / (n + 1 - k) ** 2 for k in range(m + 1))
    np.testing.assert_allclose(parts.bump(wide).numpy(), expected / np.linalg.norm(expected), rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_query_of_square_changes_windows_alone_within_ball_and_box(norm: Norm) -> None:
    torch.manual_seed(0)
    eps, clean = 0.3, torch.rand(5, 3, 12, 12)
    draw, redraw, start = {
        "linf": (parts._colours, parts._recolour, parts._stripes), "l2": (parts._moves, parts._move, parts._tiles),
    }[norm]  # fmt: skip
    x = start(clean, eps)
    assert float(lengths(x - clean, norm).max()) <= eps * (1 + 1e-5)
    for turn in range(30):
        before, window = x.clone(), parts._window(clean, 3)
        draws = [one[0] for one in draw(1, clean, 3, eps)]
        places, old = redraw(x, clean, window, eps, *draws)
        torch.testing.assert_close(old, before.flatten(1).gather(1, places), rtol=0, atol=0)
        assert float(lengths(x - clean, norm).max()) <= eps * (1 + 1e-5)
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1
        outside = torch.ones(5, 432).scatter_(1, places, 0).bool()
        assert torch.equal(x.flatten(1)[outside], before.flatten(1)[outside])
        if not turn:
            assert len({tuple(row) for row in places.tolist()}) > 1
    for channel in range(3):  # a window of each channel, all at the same place
        assert torch.equal(places[:, :9] + 144 * channel, places[:, 9 * channel : 9 * (channel + 1)])
