"""The losses against the authors' public code, derived here anew: the same batch and draws, float64, batch statistics.

Sources: github.com/FlaAI/RAAT (PGD-AT, TRADES, MART, Cons-AT, RAAT, RAAT++, RAAT#) and github.com/royg27/PAG-ROB (PAG).
Compared are the loss, the gradient of every weight, and batch norm's running statistics.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.attacks import Attack, pgd
from paperlib.methods import Batch, Method, Step, baselines, pag, raat
from paperlib.models.batchnorm import BatchNorm2d

CLASSES, COUNT, SIDE = 3, 48, 6
EPS, STEP_SIZE, STEPS = 0.3, 0.1, 4
RATE, ETA, TEMPERATURE = 0.7, 0.1, 0.5
LAST = Step(99, 100, 99, epochs=100)


def network(norm: type[nn.Module] = BatchNorm2d, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A network with batch norm that has some 70 % of the images right, in training mode."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), norm(6), activation(), nn.Conv2d(6, 8, 3, 2, 1), norm(8), activation(),
        nn.Flatten(), nn.Linear(72, CLASSES),
    ).double()  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
    return model.train()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES, LABELS = drawn(1, COUNT, 2, SIDE, SIDE), torch.arange(COUNT) % CLASSES
VIEWS = [(IMAGES + 0.1 * (drawn(2 + k, *IMAGES.shape) - 0.5)).clamp(0, 1) for k in range(2)]


class Views:
    """Augmentations that are known: the next of VIEWS at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        return VIEWS[(self.calls - 1) % 2] + 0 * images


# The authors' attacks ------------------------------------------------------------------------------------------------


def attacked(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "linf",
    start: str = "uniform",
    aim: str = "ce",
    training: bool = False,
) -> Tensor:
    """Projected ascent, batch norm in evaluation mode but for `training`; the step of L2 is 32/255 for ε = 128/255."""
    mode = model.training
    model.train(training)
    if start == "normal":
        adversarial = x + torch.empty_like(x).normal_(0, 0.001)
    elif norm == "linf":
        adversarial = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    else:  # uniform over the box, then into the ball
        change = torch.empty_like(x).uniform_(0, 1) - x
        sizes = change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        adversarial = (x + change * (EPS / sizes).clamp_max(1)).clamp(0, 1)
    reference = model(x).detach().softmax(1) if aim == "kl" else None
    for _ in range(STEPS):
        leaf = adversarial.detach().requires_grad_(True)
        z = model(leaf)
        loss = F.cross_entropy(z, y) if reference is None else (reference * (reference.log() - z.log_softmax(1))).sum()
        (slope,) = torch.autograd.grad(loss, leaf)
        if norm == "linf":
            moved = adversarial + STEP_SIZE * slope.sign()
            adversarial = torch.minimum(torch.maximum(moved, x - EPS), x + EPS).clamp(0, 1)
        else:
            moved = adversarial + STEP_SIZE * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            change = moved.clamp(0, 1) - x  # into the box first, and then into the ball
            adversarial = x + change * (EPS / change.flatten(1).norm(dim=1)).clamp_max(1).view(-1, 1, 1, 1)
    model.train(mode)
    return adversarial.detach()


def ours(norm: str = "linf", start: str = "uniform", aim: str = "ce") -> Attack:
    options = {"start_deviation": 0.001} if start == "normal" else {"start_in_box": norm == "l2"}
    return partial(pgd, eps=EPS, norm=norm, steps=STEPS, step_size=STEP_SIZE, loss=aim, **options)


# Their terms ---------------------------------------------------------------------------------------------------------


def js(first: Tensor, second: Tensor) -> Tensor:
    p, q = (first / TEMPERATURE).softmax(1), (second / TEMPERATURE).softmax(1)
    middle = ((p + q) / 2).clamp(min=1e-8)
    return ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)).mean() / 2


def bce(z: Tensor, y: Tensor) -> Tensor:
    p = z.softmax(1)
    order = p.argsort(1)[:, -2:]
    wrong = torch.where(order[:, -1] == y, order[:, -2], order[:, -1])
    return F.cross_entropy(z, y) - (1.0001 - p.gather(1, wrong[:, None]) + 1e-12).log().mean()


def mart_kl(clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    p, q = clean.softmax(1), adversarial.softmax(1)
    each = (p * (p.log() - (q + 1e-12).log())).sum(1)
    return (each * (1.0000001 - p.gather(1, y[:, None]).squeeze(1))).mean()


def answers(model: nn.Module, x: Tensor, training: bool = False) -> Tensor:
    mode = model.training
    model.train(training)
    with torch.no_grad():
        found = model(x).argmax(1)
    model.train(mode)
    return found


def rebuilt(hits: Sequence[Tensor], full: Tensor, reduced: Tensor) -> Tensor:
    """x″ where right on x, wrong on x′ and on x″; else x′."""
    clean, strong, weak = hits
    return torch.where((clean & ~strong & ~weak).view(-1, 1, 1, 1), reduced, full)


# Their losses --------------------------------------------------------------------------------------------------------

Loss = Callable[[nn.Module], Tensor]


def their_pgd_at(model: nn.Module, norm: str = "linf") -> Tensor:
    return F.cross_entropy(model(attacked(model, VIEWS[0], LABELS, norm=norm)), LABELS)


def their_trades(model: nn.Module) -> Tensor:
    full = attacked(model, VIEWS[0], LABELS, start="normal", aim="kl")
    ce = F.cross_entropy(model(VIEWS[0]), LABELS)
    z = model(full)
    p = model(VIEWS[0]).softmax(1)
    return ce + 6 * (p * (p.log() - z.log_softmax(1))).sum() / COUNT


def their_mart(model: nn.Module) -> Tensor:
    full = attacked(model, VIEWS[0], LABELS, start="normal")
    clean, z = model(VIEWS[0]), model(full)
    return bce(z, LABELS) + 6 * mart_kl(clean, z, LABELS)


def their_cons_at(model: nn.Module) -> Tensor:
    z = model(attacked(model, torch.cat(VIEWS), LABELS.repeat(2)))
    return F.cross_entropy(z, LABELS.repeat(2)) + js(*z.chunk(2))


def their_dicar(model: nn.Module, full: Tensor, right: Tensor) -> Tensor:
    """On the images right under both views: their mixed adversarial images pass alone, all clean views together."""
    members = right.view(2, -1).all(0).nonzero().squeeze(1)
    first, second = full.chunk(2)
    mixed = model(RATE * first[members] + (1 - RATE) * second[members])
    clean_first, clean_second = model(torch.cat(VIEWS)).chunk(2)
    return js(mixed, RATE * clean_first[members] + (1 - RATE) * clean_second[members])


def their_raat(model: nn.Module, norm: str = "linf") -> Tensor:
    x, y = torch.cat(VIEWS), LABELS.repeat(2)
    full = attacked(model, x, y, norm=norm)
    reduced = x + ETA * (full - x)
    hits = [answers(model, variant) == y for variant in (x, full, reduced)]
    assert int((hits[0] & ~hits[1] & ~hits[2]).sum()) > 0  # some are boundary samples
    ce = F.cross_entropy(model(rebuilt(hits, full, reduced)), y)
    return ce + their_dicar(model, full, hits[0])


def their_raat_plus_plus(model: nn.Module) -> Tensor:
    x, y = torch.cat(VIEWS), LABELS.repeat(2)
    full = attacked(model, x, y, start="normal")
    reduced = x + ETA * (full - x)
    hits = [answers(model, variant) == y for variant in (x, full, reduced)]
    adversarial = model(full)
    kl = mart_kl(model(x), adversarial, y)
    supervised = bce(model(rebuilt(hits, full, reduced)), y)
    now = answers(model, x) == y
    assert not torch.equal(now, hits[0])  # the passes have moved the statistics, and with them who is right
    return 6 * kl + supervised + their_dicar(model, full, now)


def their_raat_sharp(model: nn.Module, judge: nn.Module, *, counts: bool, judge_training: bool) -> Tensor:
    full = []
    for view in VIEWS:
        full.append(attacked(model, view, LABELS, training=True))
        with torch.no_grad():
            model(full[-1])
    reduced = VIEWS[0] + ETA * (full[0] - VIEWS[0])
    seen = (VIEWS[0], full[0], reduced, VIEWS[1])
    hits = [answers(judge, variant, judge_training) == LABELS for variant in seen]
    total = F.cross_entropy(model(rebuilt(hits[:3], full[0], reduced)), LABELS)
    members = (hits[0] & hits[3]).nonzero().squeeze(1)
    mixed = model(RATE * full[0][members] + (1 - RATE) * full[1][members])
    clean = [model(view) for view in VIEWS]
    consistency = js(mixed, RATE * clean[0][members] + (1 - RATE) * clean[1][members])
    with torch.no_grad():
        model(full[0])
    return total + consistency if counts else total


# The comparison ------------------------------------------------------------------------------------------------------


def outcome(model: nn.Module, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the gradients of all weights in a row, and batch norm's statistics in a row."""
    slopes = torch.autograd.grad(total, list(model.parameters()))
    statistics = [value.flatten() for name, value in model.named_buffers() if "running" in name]
    return total.detach(), torch.cat([slope.flatten() for slope in slopes]), torch.cat(statistics)


def compare(method: Method, theirs: Loss, tolerance: float, step: Step = LAST) -> None:
    one, other = network(), network(nn.BatchNorm2d)
    torch.manual_seed(0)
    found = outcome(one, method.loss(one, Batch(IMAGES, LABELS, Views()), step)["total"])
    torch.manual_seed(0)
    wanted = outcome(other, theirs(other))
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < tolerance


@pytest.fixture(autouse=True)
def one_mix_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raat, "mix_rate", lambda gamma: RATE)


@pytest.mark.parametrize(
    ("method", "theirs", "tolerance"),
    [
        (baselines.AdversarialTraining(ours()), their_pgd_at, 1e-12),
        (baselines.AdversarialTraining(ours("l2")), partial(their_pgd_at, norm="l2"), 1e-12),
        (baselines.TRADES(ours(start="normal", aim="kl")), their_trades, 1e-12),
        (baselines.MART(ours(start="normal")), their_mart, 1e-9),
        (baselines.ConsistencyAT(ours()), their_cons_at, 1e-12),
        (raat.RAAT(ours()), their_raat, 1e-12),
        (raat.RAAT(ours("l2")), partial(their_raat, norm="l2"), 1e-12),
        (raat.RAAT(ours(start="normal"), boosted=True), their_raat_plus_plus, 1e-9),
    ],
    ids=["pgd_at", "pgd_at-l2", "trades", "mart", "cons_at", "raat", "raat-l2", "raat_plus_plus"],
)
def test_a_step_is_the_authors(method: Method, theirs: Loss, tolerance: float) -> None:
    compare(method, theirs, tolerance)


@pytest.mark.parametrize(("epoch", "counts", "judge_training"), [(3, False, True), (5, True, True), (6, True, False)])
def test_a_step_of_raat_sharp_is_the_authors(epoch: int, counts: bool, judge_training: bool) -> None:
    """Before the average begins (epoch 5 of 10), in its first epoch, and afterwards."""
    judge = copy.deepcopy(network())
    with torch.no_grad():
        for weight in judge.parameters():
            weight.mul_(1.1)
    theirs = partial(their_raat_sharp, judge=copy.deepcopy(judge), counts=counts, judge_training=judge_training)
    compare(raat.RAATSharp(ours(), 0.5), theirs, 1e-12, Step(10 * epoch, 100, epoch, judge, 10))


# PAG -----------------------------------------------------------------------------------------------------------------

CLASS_OF = torch.tensor([1, 0, 2, 2, 1, 0] * 8)  # one class drawn for each image
TARGETS = drawn(9, COUNT, CLASSES, 2, SIDE, SIDE) - 0.5


def targets(images: Tensor, classes: Tensor) -> Tensor:
    return TARGETS[torch.arange(len(images))[:, None], classes]


def their_pag(model: nn.Module, classes: Tensor, passes: int, weight: float) -> Tensor:
    """Classes N×K: each image K times, one gradient of the mean log-softmax, C times the mean of 1 − cos.

    With one pass the gradient is that of the first term's own pass.
    """
    count = classes.shape[1]
    if passes == 2:
        ce = F.cross_entropy(model(VIEWS[0]), LABELS)
        leaf = IMAGES.repeat_interleave(count, 0).requires_grad_(True)
        seen = leaf + (VIEWS[1] - IMAGES).repeat_interleave(count, 0)
        (slope,) = torch.autograd.grad(-F.cross_entropy(model(seen), classes.flatten()), leaf, create_graph=True)
    else:
        leaf = IMAGES.clone().requires_grad_(True)
        z = model(leaf + (VIEWS[0] - IMAGES))
        ce = F.cross_entropy(z, LABELS)
        slopes = [
            torch.autograd.grad(z.log_softmax(1).gather(1, k[:, None]).mean(), leaf, create_graph=True)[0]
            for k in classes.T
        ]
        slope = torch.stack(slopes, 1).flatten(0, 1)
    wanted = TARGETS[torch.arange(COUNT)[:, None], classes].flatten(0, 1)
    return ce + weight * CLASSES * (1 - F.cosine_similarity(slope.flatten(1), wanted.flatten(1), dim=1)).mean()


class Known(pag.PAG):
    """PAG whose draw of classes is known."""

    def drawn(self, images: Tensor, count: int) -> Tensor:
        return torch.stack([CLASS_OF, (CLASS_OF + 1) % CLASSES], 1)[:, : self.classes_per_step]


class Shifts:
    """The views again, as changes of whatever images they are given: the gradient goes through them as through a crop."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        change = VIEWS[(self.calls - 1) % 2] - IMAGES
        return images + change.repeat_interleave(len(images) // COUNT, 0)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_step_of_pag_is_the_authors(count: int, passes: int) -> None:
    one, other = network(), network(nn.BatchNorm2d)
    method = Known(targets, 0.7, count, passes=passes)  # type: ignore[arg-type]
    found = outcome(one, method.loss(one, Batch(IMAGES, LABELS, Shifts()), LAST)["total"])
    classes = torch.stack([CLASS_OF, (CLASS_OF + 1) % CLASSES], 1)[:, :count]
    wanted = outcome(other, their_pag(other, classes, passes, 0.7))
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-12


@pytest.mark.parametrize("passes", [1, 2])
def test_pags_weight_gradient_is_a_finite_difference_with_batch_statistics(passes: int) -> None:
    model = network(activation=nn.Tanh)
    method = Known(targets, 0.7, 1, passes=passes)  # type: ignore[arg-type]

    def value() -> Tensor:
        return method.loss(model, Batch(IMAGES, LABELS, Shifts()), LAST)["total"]

    slopes = torch.autograd.grad(value(), list(model.parameters()))
    torch.manual_seed(1)
    directions = [torch.randn_like(weight) for weight in model.parameters()]
    expected = sum((slope * direction).sum() for slope, direction in zip(slopes, directions, strict=True))
    found = []
    for move in (1e-6, -2e-6):
        with torch.no_grad():
            for weight, direction in zip(model.parameters(), directions, strict=True):
                weight += move * direction
        found.append(value().detach())
    assert float((found[0] - found[1]) / 2e-6) == pytest.approx(float(expected), rel=1e-5)


def test_a_class_for_the_whole_batch_is_another_loss() -> None:
    """What the default was until version 0.5: through batch norm each image's score of the class enters all gradients."""
    model = network()
    leaf = IMAGES.clone().requires_grad_(True)
    own = torch.autograd.grad(model(leaf).log_softmax(1).gather(1, CLASS_OF[:, None]).sum(), leaf)[0]
    shared = torch.stack([torch.autograd.grad(model(leaf).log_softmax(1)[:, k].sum(), leaf)[0] for k in range(CLASSES)], 1)
    same = shared[torch.arange(COUNT), CLASS_OF]
    cosines = F.cosine_similarity(own.flatten(1), same.flatten(1), dim=1)
    assert float(cosines.mean()) < 0.97
    model.eval()  # where no image enters another's gradient, they are the same
    own = torch.autograd.grad(model(leaf).log_softmax(1).gather(1, CLASS_OF[:, None]).sum(), leaf)[0]
    shared = torch.stack([torch.autograd.grad(model(leaf).log_softmax(1)[:, k].sum(), leaf)[0] for k in range(CLASSES)], 1)
    torch.testing.assert_close(own, shared[torch.arange(COUNT), CLASS_OF])


def test_each_image_draws_its_own_classes_and_none_twice() -> None:
    torch.manual_seed(0)
    draws = torch.stack([pag.PAG(targets, 1.0, 2).drawn(IMAGES, CLASSES) for _ in range(300)])
    assert (draws[..., 0] != draws[..., 1]).all()
    assert (draws != draws[:, :1]).any()  # not the same for all
    shares = draws.flatten().bincount() / draws.numel()
    assert float((shares - 1 / CLASSES).abs().max()) < 0.02  # 14,400 draws: five deviations
    shared = pag.PAG(targets, 1.0, 2, draw="per_batch").drawn(IMAGES, CLASSES)
    assert (shared == shared[0]).all()


def test_the_weight_is_smaller_in_the_first_half_where_asked() -> None:
    model = network()
    parts = [
        pag.PAG(targets, 0.6, early=2 / 3).loss(model, Batch(IMAGES, LABELS, Shifts()), Step(index, 100, 0))
        for index in (49, 50)
    ]
    for terms, weight in zip(parts, (0.4, 0.6), strict=True):
        assert float(terms["total"].detach()) == pytest.approx(
            float(terms["ce"].detach() + weight * terms["misalignment"].detach())
        )
