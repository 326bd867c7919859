"""Measurements behind the audit: how the gradient misleads, and which images each attack fools.

Each probe takes a classifier in evaluation mode, images N×C×H×W in [0,1] and their labels N. It returns named values, one
per image. "Fooled" includes images that are wrong without attack. Random numbers come from the global generator.
"""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paperlib import models
from paperlib.attacks import (
    BOX,
    Norm,
    are_probabilities,
    ascent,
    autoattack,
    each_image,
    evaluating,
    fgsm,
    misclassified,
    pgd,
    project,
)  # fmt: skip
from paperlib.attacks.parts import square
from paperlib.data import ImageSet, as_float
from paperlib.evaluation import fooled
from paperlib.geometry import cosine
from paperlib.runs.files import InputError

Found = dict[str, Tensor]
PATH = 100  # steps of ε / 10 in `path`
DRAWS = 8  # noise samples per averaged gradient
RANDOM = 1e-4  # a larger difference between calls, in deviations of the logits, means that a model answers at random
CALLS = 9  # calls of a model that answers at random; the majority decides whether it is fooled
DIRECTIONS = 16  # random directions in which gradients are compared with finite differences
QUERIES, MANY = 300, 1000  # queries of Square; MANY where the gradient cannot be trusted
ANYTHING = 0.5  # ε (linf) within which every image can become mid-grey, so that any classifier can be fooled


class Connected(nn.Module):
    """A user's model as attacks need it: its logits N×classes have the images' type and always a gradient.

    Where the model cuts the graph, the gradient is zero instead of an error. The model gets a copy of the images, which it
    may change, in the type of its weights. Its answer may be the logits, a tuple that begins with them, or a mapping or
    object with "logits". Raises InputError for answers that are not N×classes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        types = {one.dtype for one in model.parameters() if one.is_floating_point()}
        self.weights = types.pop() if len(types) == 1 else None  # with mixed types the model must convert itself
        self.name = "pixel_values" if "pixel_values" in inspect.signature(model.forward).parameters else None

    def forward(self, x: Tensor) -> Tensor:
        given = x.to(self.weights, copy=True) if self.weights else x.clone()
        answer = self.model(**{self.name: given}) if self.name else self.model(given)
        logits = _logits(answer)
        if not isinstance(logits, Tensor):
            raise InputError(f"the model answers with {type(answer).__name__}; it should be a tensor of N×classes logits")
        if logits.ndim != 2 or len(logits) != len(x):
            raise InputError(f"the model answers {len(x)} images with shape {tuple(logits.shape)}; it should be N×classes")
        return logits.to(x.dtype) + 0 * x.flatten(1).sum(1, keepdim=True)


def _logits(answer: Any) -> Any:
    if isinstance(answer, tuple | list) and not hasattr(answer, "logits") and answer:
        return answer[0]
    return answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", answer)


class Averaged(nn.Module):
    """Mean of a model's logits over DRAWS noisy copies of each image, in a ball of radius `reach`."""

    def __init__(self, model: nn.Module, reach: float, norm: Norm) -> None:
        super().__init__()
        self.model, self.reach, self.norm = model, reach, norm

    def forward(self, x: Tensor) -> Tensor:
        def noise() -> Tensor:
            return project(torch.empty_like(x).uniform_(-self.reach, self.reach), self.reach, self.norm)

        return torch.stack([self.model(x + noise()) for _ in range(DRAWS)]).mean(0)


class StraightThrough(nn.Module):
    """Model whose backward pass ignores rounding and `detach`: BPDA with the identity (Athalye et al. 2018)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        with _Through():
            return self.model(x)


class _Through(TorchFunctionMode):
    """Mode in which the gradient passes through PyTorch's functions that stop it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.detach:
            return args[0]
        if func is Tensor.numpy:
            return args[0].detach().numpy()
        answer = func(*args, **(kwargs or {}))
        if func in ROUNDING and isinstance(args[0], Tensor):
            return args[0] + (answer - args[0]).detach()
        return answer


ROUNDING = {
    torch.round, torch.floor, torch.ceil, torch.trunc, torch.sign,
    Tensor.round, Tensor.floor, Tensor.ceil, Tensor.trunc, Tensor.sign,
}  # fmt: skip


# Answers and gradients ---------------------------------------------------------------------------------------------


@torch.no_grad()
def answers(model: nn.Module, images: Tensor, labels: Tensor, *, classes: int) -> Found:
    """Return the model's answers without attack, and what is odd about them.

    "no attack": the image is wrong. "answer": the class. "difference": how far CALLS differ, in deviations of the logits.
    "others": how far the logits change when half of the images are left out; zero for one image, or where calls differ.
    "probabilities": the outputs are probabilities. "saturated": the cross-entropy to the model's own answer is zero in
    single precision. Raises InputError where the model does not answer as a classifier of `classes`.
    """
    try:
        logits, *again = (model(images) for _ in range(CALLS))
        halves = torch.cat([model(half) for half in images.tensor_split(2) if len(half)])
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:  # mostly wrong shapes; libraries differ
        if isinstance(error, InputError):
            raise
        shape = "×".join(map(str, images.shape[1:]))
        raise InputError(f"the model cannot answer images of {shape}: {' '.join(str(error).split())[:200]}") from error
    if logits.shape[1] != max(classes, 2):
        raise InputError(
            f"the model has {logits.shape[1]} outputs; the data have {classes} classes. If the model knows others, name "
            "all in the order of its outputs: --classes FILE, or data.named"
        )
    if logits.isnan().any():
        odd = int(logits.isnan().any(1).sum())
        raise InputError(f"the model's outputs for {odd} of {len(images)} clean images in [0,1] are NaN")

    def apart(other: Tensor) -> Tensor:
        """Return the largest difference from the first logits, N, in deviations; equal infinities do not differ."""
        spread = logits.nan_to_num(0, 0, 0).std(1).clamp_min(1e-12)
        relative: Tensor = (logits - other).nan_to_num(0, 0, 0).abs().amax(1) / spread
        return relative

    difference = torch.stack([apart(other) for other in again]).amax(0)
    return {
        "no attack": logits.argmax(1) != labels,
        "answer": logits.argmax(1),
        "difference": difference,
        "others": torch.zeros_like(difference) if len(images) == 1 or (difference > RANDOM).any() else apart(halves),
        "probabilities": are_probabilities(logits),
        "saturated": F.cross_entropy(logits, logits.argmax(1), reduction="none") == 0,
    }


def gap(model: nn.Module, images: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return z_first − z_second: N."""
    logits = model(images)
    found: Tensor = (logits.gather(1, first[:, None]) - logits.gather(1, second[:, None])).squeeze(1)
    return found


def gradients(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm) -> Found:
    """Return how the gradient of the margin between the two likeliest classes behaves.

    "flat": it is zero or not finite. "turned": 1 − its cosine with the gradient at a random point of the ball. "wrong
    slope" and "unlike": see `wrong_slope` and `unlike_differences`, over ± ε / 10.
    """
    with torch.no_grad():
        first, second = model(images).topk(2, dim=1).indices.unbind(1)

    def gradient(points: Tensor) -> Tensor:
        leaf = points.detach().requires_grad_(True)
        return torch.autograd.grad(gap(model, leaf, first, second).sum(), leaf)[0]

    here = gradient(images)
    there = gradient(pgd(model, images, labels, eps=eps, norm=norm, steps=0, step_size=0.0))  # only the random start
    return {
        "flat": ~here.isfinite().flatten(1).all(1) | (here.flatten(1).abs().amax(1) == 0),
        "turned": 1 - cosine(_finite(here), _finite(there), eps=1e-30),
        "wrong slope": wrong_slope(model, images, _finite(here), first, second, eps / 10, norm),
        "unlike": unlike_differences(model, images, _finite(here), first, second, eps / 10, norm),
    }


def _finite(gradient: Tensor) -> Tensor:
    """Replace values that are not finite by zero, as the attacks do."""
    return gradient.nan_to_num(0, 0, 0)


@torch.no_grad()
def wrong_slope(
    model: nn.Module, images: Tensor, gradient: Tensor, first: Tensor, second: Tensor, reach: float, norm: Norm
) -> Tensor:
    """Return |change − predicted| / (|change| + |predicted|) of the margin over ± reach along its gradient: N in [0,1].

    0 where the change is as the gradient predicts; 1 where it is zero, has the other sign, or there is no gradient. Both
    ends are clamped to [0,1], since models may clamp their input.
    """
    step = reach * ascent(gradient, norm)
    low, high = (images - step).clamp(0, 1), (images + step).clamp(0, 1)
    predicted = (gradient * (high - low)).flatten(1).sum(1)
    change = gap(model, high, first, second) - gap(model, low, first, second)
    total = change.abs() + predicted.abs()
    return torch.where(total > 0, (change - predicted).abs() / total, 1.0)


@torch.no_grad()
def unlike_differences(
    model: nn.Module, images: Tensor, gradient: Tensor, first: Tensor, second: Tensor, reach: float, norm: Norm
) -> Tensor:
    """Return 1 − the cosine of predicted and true changes of the margin over ± reach in DIRECTIONS: N in [0,2].

    Its expectation is nearly 1 − the cosine of the gradient and the true one: 0 for a smooth function's own gradient, 1 for
    an unrelated one. It is also 1 where the gradient or all changes are zero. NaN for outputs of half precision, whose
    rounding hides such changes.
    """
    logits = model(images)
    if any(torch.equal(logits, logits.to(half).to(logits)) for half in (torch.float16, torch.bfloat16)):
        return torch.full_like(logits[:, 0], torch.nan)
    changes, predicted = [], []
    for _ in range(DIRECTIONS):
        step = reach * ascent(torch.randn_like(images), norm)
        low, high = (images - step).clamp(0, 1), (images + step).clamp(0, 1)
        changes.append(gap(model, high, first, second) - gap(model, low, first, second))
        predicted.append((gradient * (high - low)).flatten(1).sum(1))
    return 1 - cosine(torch.stack(changes, 1), torch.stack(predicted, 1), eps=1e-30)


def path(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm, calls: int = 1) -> Found:
    """Follow PGD on cross-entropy for PATH steps of ε / 10 from the image itself.

    "roughness": 1 − the cosine of successive gradients, mean over the first 20 steps. "PGD-50" and "PGD-100": fooled at
    any step so far. "lost": fooled on the way, not at the end. "loss" at the end, and "loss, 10 steps before". With several
    `calls` only their majority at step 50 or 100 counts: among a hundred random answers one is wrong by chance.
    """
    point, before = images, torch.zeros_like(images)
    fallen = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    agreement, found, losses = torch.zeros(len(images), device=images.device), {}, []
    for step in range(PATH + 1):
        leaf = point.detach().requires_grad_(True)
        logits = model(leaf)
        loss = F.cross_entropy(logits, labels, reduction="none")
        gradient = _finite(torch.autograd.grad(loss.sum(), leaf)[0])
        size = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        gradient = gradient / each_image(size, gradient)  # else the squares of small values underflow
        if 0 < step <= 20:  # later it circles around a maximum
            agreement += cosine(before, gradient) / 20
        now = misclassified(logits.detach(), labels)
        if calls == 1:
            fallen = fallen | now
        elif step in (PATH // 2, PATH):
            fallen = now = fallen | falls(model, point.detach(), labels, calls)
        losses.append(_finite(loss.detach()))
        found["PGD-50" if step <= PATH // 2 else "PGD-100"] = fallen
        before = gradient
        point = (images + project(point + eps / 10 * ascent(gradient, norm) - images, eps, norm)).clamp(0, 1)
    end = {"lost": fallen & ~now, "loss, 10 steps before": losses[-11], "loss": losses[-1]}
    return {"roughness": 1 - agreement, **found, **end}


# Attacks -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def falls(model: nn.Module, images: Tensor, labels: Tensor, calls: int = 1) -> Tensor:
    """Return which images most of `calls` classify wrongly: bool N."""
    return torch.stack([fooled(model, images, labels)[0] for _ in range(calls)]).float().mean(0) > 0.5


def attacks(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm, calls: int = 1) -> Found:
    """Return which images "noise", "FGSM", "PGD-20" on cross-entropy, and "margin" fool: bool N.

    "margin" is PGD-20 on cross-entropy or on the margin. "undefined": one of the first three ends at outputs that are NaN,
    which do not count as fooled. With several `calls` "no attack" is measured again.
    """
    attack = partial(pgd, model, eps=eps, norm=norm, steps=20, step_size=eps / 8, best=calls == 1)
    ends = {
        "noise": pgd(model, images, labels, eps=eps, norm=norm, steps=0, step_size=0.0),
        "FGSM": fgsm(model, images, labels, eps=eps, norm=norm),
        "PGD-20": attack(images, labels),
    }
    with torch.no_grad():
        undefined = torch.stack([fooled(model, end, labels)[1] for end in ends.values()]).any(0)
    found = {name: falls(model, end, labels, calls) for name, end in ends.items()} | {"undefined": undefined}
    found["margin"] = _besides(found["PGD-20"], model, images, labels, partial(attack, loss="margin"), calls)
    return found | ({"no attack": falls(model, images, labels, calls)} if calls > 1 else {})


def around(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    fallen: Tensor,
    source: nn.Module | None,
    *,
    eps: float,
    norm: Norm,
    calls: int = 1,
    blind: bool = False,
) -> Found:
    """Return which images are fooled by "transfer" from `source`, and by attacks around a hidden gradient: bool N.

    "Square" and "averaged" (gradients over noise) include `fallen`, and so does "through": gradients that pass through
    rounding and `detach`. `blind` says that the gradient cannot be trusted: only then "through" is tried, and Square has
    MANY queries.
    """
    attack = partial(pgd, eps=eps, norm=norm, steps=20, step_size=eps / 8, loss="margin")
    none = torch.zeros_like(fallen)
    if source is not None:
        with evaluating(source):
            moved = attack(source, images, labels)
        none = falls(model, moved, labels, calls)
    queries = partial(searched, model, eps=eps, norm=norm, queries=MANY if blind else QUERIES, calls=calls)
    averaged, through = partial(attack, Averaged(model, eps / 2, norm)), partial(attack, StraightThrough(model))
    found = {
        "transfer": none,
        "averaged": _besides(fallen, model, images, labels, averaged, calls),
        "through": fallen,
    }
    if blind:
        with suppress(RuntimeError):  # some functions refuse detached tensors with a gradient
            found["through"] = _besides(fallen, model, images, labels, through, calls)
    return found | {"Square": _besides(fallen, model, images, labels, queries, calls)}


@torch.no_grad()
def searched(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm, queries: int, calls: int = 1
) -> Tensor:
    """Run Square (Andriushchenko et al. 2020), with windows that shrink over `queries`; failures return clean images."""
    found, left = images.clone(), torch.ones_like(labels, dtype=torch.bool)

    def leave(members: Tensor, points: Tensor, fooled: Tensor) -> Tensor:
        rows = fooled.nonzero().squeeze(1)
        rows = rows[falls(model, points[rows], labels[members[rows]], calls)] if calls > 1 and len(rows) else rows
        found[members[rows]], left[members[rows]] = points[rows], False
        return left[members]

    everyone = torch.arange(len(images), device=images.device)
    square(model, images, labels, everyone, leave, eps=eps, norm=norm, queries=queries, schedule=queries)
    return found


def _besides(
    fallen: Tensor, model: nn.Module, images: Tensor, labels: Tensor, attack: partial[Tensor], calls: int
) -> Tensor:
    """Return `fallen`, and which of the other images `attack` fools."""
    found, others = fallen.clone(), ~fallen
    if others.any():
        found[others] = falls(model, attack(images[others], labels[others]), labels[others], calls)
    return found


def standard(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm, calls: int = 1) -> Found:
    """Return which images "AutoAttack", in its short form, fools."""
    found = autoattack(model, images, labels, eps=eps, norm=norm, short=True)
    return {"AutoAttack": falls(model, found, labels, calls)}


def anything(model: nn.Module, images: Tensor, labels: Tensor, *, calls: int = 1) -> Found:
    """Return which images are "right" after PGD-100 on cross-entropy within ANYTHING."""
    attack = partial(pgd, eps=ANYTHING, norm="linf", steps=100, step_size=ANYTHING / 25, best=calls == 1)
    return {"right": ~falls(model, attack(model, images, labels), labels, calls)}


def substitute(model: nn.Module, data: ImageSet, device: torch.device, seed: int, eps: float, norm: Norm) -> nn.Module:
    """Train a small convolutional network on the model's logits, for noisy images and for its own adversarial ones.

    It is the source of black-box transfer (Papernot et al. 2017), which needs no gradient of the model.
    """
    channels, size, classes = data.images.shape[1], int(data.images.shape[-1]), len(data.classes)
    student = models.build(
        "small_cnn", classes=classes, channels=channels, width=16, seed=seed, stem_stride=2 if size >= 32 else 1
    ).to(device)
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)

    def centred(logits: Tensor) -> Tensor:
        logits = logits[:, :classes].nan_to_num(0, 0, 0)
        return logits - logits.mean(1, keepdim=True)

    for step in range(150):
        chosen = torch.randint(len(data), (32,))
        images, labels = as_float(data.images[chosen]).to(device), data.labels[chosen].to(device)
        if step % 2:
            student.eval()
            points = pgd(student, images, labels, eps=eps, norm=norm, steps=1, step_size=2 * eps)
        else:
            points = (images + 0.05 * torch.randn_like(images)).clamp(*BOX)
        with torch.no_grad():
            given = centred(model(points))
        student.train()
        loss = F.mse_loss(centred(student(points)), given / given.std().clamp_min(1e-12))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval().requires_grad_(False)
