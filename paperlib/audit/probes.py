"""How a model's gradient lies, and which images fall to which attack: the measurements behind the audit.

Each probe takes a classifier in evaluation mode, images N×C×H×W in [0,1] and their labels N, and returns one value an
image, by name. "Fooled" includes images that the model has wrong anyway. Random numbers are the global generator's.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib import models
from paperlib.attacks import (
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
    square,
)  # fmt: skip
from paperlib.data import ImageSet, as_float
from paperlib.evaluation import fooled
from paperlib.geometry import cosine
from paperlib.runs.files import InputError

Found = dict[str, Tensor]
PATH = 100  # steps of the path that is followed, each of ε / 10
DRAWS = 8  # of noise, of the attack on averaged gradients
QUERIES = 300  # of Square
ANYTHING = 0.5  # ε (linf) within which every image can become mid-grey, and so any classifier be fooled


class Connected(nn.Module):
    """A user's model as the attacks need it: from images to logits N×classes of the images' type, which hang on them.

    Where the graph is cut, gradients are zero and not an error. The model gets a copy, which it may change, in the type of
    its weights. Of a tuple it answers with the first member counts, of a mapping or object "logits". Raises InputError for
    answers that are not N×classes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        types = {one.dtype for one in model.parameters() if one.is_floating_point()}
        self.weights = types.pop() if len(types) == 1 else None  # of mixed ones the model itself must know
        self.name = "pixel_values" if "pixel_values" in inspect.signature(model.forward).parameters else None

    def forward(self, x: Tensor) -> Tensor:
        given = x.to(self.weights, copy=True) if self.weights else x.clone()
        answer = self.model(**{self.name: given}) if self.name else self.model(given)
        logits = _logits(answer)
        if not isinstance(logits, Tensor):
            raise InputError(f"the model answers with {type(answer).__name__}; it should be a tensor of N×classes logits")
        if logits.ndim != 2 or len(logits) != len(x):
            raise InputError(f"the model answers {len(x)} images with {tuple(logits.shape)}; it should be N×classes")
        return logits.to(x.dtype) + 0 * x.flatten(1).sum(1, keepdim=True)


def _logits(answer: Any) -> Any:
    if isinstance(answer, tuple | list) and not hasattr(answer, "logits") and answer:
        return answer[0]
    return answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", answer)


class Averaged(nn.Module):
    """A model's logits averaged over DRAWS of noise in the ball of radius `reach` around each image."""

    def __init__(self, model: nn.Module, reach: float, norm: Norm) -> None:
        super().__init__()
        self.model, self.reach, self.norm = model, reach, norm

    def forward(self, x: Tensor) -> Tensor:
        def noise() -> Tensor:
            return project(torch.empty_like(x).uniform_(-self.reach, self.reach), self.reach, self.norm)

        return torch.stack([self.model(x + noise()) for _ in range(DRAWS)]).mean(0)


# Answers and gradients ---------------------------------------------------------------------------------------------


@torch.no_grad()
def answers(model: nn.Module, images: Tensor, labels: Tensor, *, classes: int) -> Found:
    """ "no attack": whether the image is wrong; "difference" of two calls, in deviations of the logits; "saturated"; …

    Saturated: the cross-entropy to the model's own answer is zero in single precision. "others": how much the answer
    changes, in deviations, when half of the images are left out, where calls do not differ; zero for an image
    alone. "probabilities": the outputs are such. Raises InputError where the answers are not those of a classifier of
    `classes`.
    """
    try:
        logits, again = model(images), model(images)
        halves = torch.cat([model(half) for half in images.tensor_split(2) if len(half)])
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:  # mostly of shapes, of many libraries' kinds
        if isinstance(error, InputError):
            raise
        shape = "×".join(map(str, images.shape[1:]))
        raise InputError(f"the model cannot answer images of {shape}: {' '.join(str(error).split())[:200]}") from error
    if logits.shape[1] != max(classes, 2):
        raise InputError(
            f"the model has {logits.shape[1]} outputs; the data have {classes} classes. If the model knows others, name "
            "its outputs in their order: --classes FILE, or data.named"
        )
    if logits.isnan().any():
        odd = int(logits.isnan().any(1).sum())
        raise InputError(f"the model's outputs for {odd} of {len(images)} clean images in [0,1] are no numbers (NaN)")

    def apart(other: Tensor) -> Tensor:
        """From the first answers, N, in deviations; −∞, of classes that are impossible, are no difference."""
        spread = logits.nan_to_num(0, 0, 0).std(1).clamp_min(1e-12)
        relative: Tensor = (logits - other).nan_to_num(0, 0, 0).abs().amax(1) / spread
        return relative

    difference = apart(again)
    return {
        "no attack": logits.argmax(1) != labels,
        "difference": difference,
        "others": torch.where(difference > 0, 0.0, apart(halves)) if len(images) > 1 else torch.zeros_like(difference),
        "probabilities": are_probabilities(logits),
        "saturated": F.cross_entropy(logits, logits.argmax(1), reduction="none") == 0,
    }


def gap(model: nn.Module, images: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """z_first − z_second, N."""
    logits = model(images)
    found: Tensor = (logits.gather(1, first[:, None]) - logits.gather(1, second[:, None])).squeeze(1)
    return found


def gradients(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm) -> Found:
    """Of the margin between the two likeliest classes: whether its gradient is "flat", how it "turned", its "wrong slope".

    Flat: zero or not finite. Turned: 1 − the cosine with the gradient at a random point of the ball. Wrong slope: see
    `wrong_slope`, over ± ε / 10.
    """
    with torch.no_grad():
        first, second = model(images).topk(2, dim=1).indices.unbind(1)

    def gradient(points: Tensor) -> Tensor:
        leaf = points.detach().requires_grad_(True)
        return torch.autograd.grad(gap(model, leaf, first, second).sum(), leaf)[0]

    here = gradient(images)
    there = gradient(pgd(model, images, labels, eps=eps, norm=norm, steps=0, step_size=0.0))  # the random start alone
    return {
        "flat": ~here.isfinite().flatten(1).all(1) | (here.flatten(1).abs().amax(1) == 0),
        "turned": 1 - cosine(_finite(here), _finite(there), eps=1e-30),
        "wrong slope": wrong_slope(model, images, _finite(here), first, second, eps / 10, norm),
    }


def _finite(gradient: Tensor) -> Tensor:
    """Zero where it is no finite number, as the attacks take it."""
    return gradient.nan_to_num(0, 0, 0)


@torch.no_grad()
def wrong_slope(
    model: nn.Module, images: Tensor, gradient: Tensor, first: Tensor, second: Tensor, reach: float, norm: Norm
) -> Tensor:
    """|change − predicted| / (|change| + |predicted|) of the margin from −reach to +reach along its gradient: N in [0,1].

    0 where the function does what its gradient says; 1 where it stands still, goes the other way, or has no gradient. Both
    ends are within [0,1], since models may clamp what is not.
    """
    step = reach * ascent(gradient, norm)
    low, high = (images - step).clamp(0, 1), (images + step).clamp(0, 1)
    predicted = (gradient * (high - low)).flatten(1).sum(1)
    change = gap(model, high, first, second) - gap(model, low, first, second)
    total = change.abs() + predicted.abs()
    return torch.where(total > 0, (change - predicted).abs() / total, 1.0)


def path(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm) -> Found:
    """PGD on cross-entropy for PATH steps of ε / 10 from the image itself, which leaves no image out.

    "roughness": 1 − the cosine of the gradients of neighbouring points, mean over the first 20 steps; "PGD-50" and
    "PGD-100": fooled at any step so far; "lost": fooled on the way, not at the end; "loss, 10 steps before" and "loss".
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
        gradient = gradient / each_image(size, gradient)  # squares of a small one would vanish, and its norm with them
        if 0 < step <= 20:  # later it circles where it cannot climb further
            agreement += cosine(before, gradient) / 20
        now = misclassified(logits.detach(), labels)
        fallen = fallen | now
        losses.append(_finite(loss.detach()))
        found["PGD-50" if step <= PATH // 2 else "PGD-100"] = fallen
        before = gradient
        point = (images + project(point + eps / 10 * ascent(gradient, norm) - images, eps, norm)).clamp(0, 1)
    end = {"lost": fallen & ~now, "loss, 10 steps before": losses[-11], "loss": losses[-1]}
    return {"roughness": 1 - agreement, **found, **end}


# Attacks -----------------------------------------------------------------------------------------------------------


def attacks(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm) -> Found:
    """Who is fooled by "noise", "FGSM", "PGD-20" on cross-entropy, and "margin": by that or by PGD-20 on the margin.

    "undefined": one of the first three ends at outputs that are NaN, and does not count as fooled.
    """
    attack = partial(pgd, model, eps=eps, norm=norm, steps=20, step_size=eps / 8, best=True)
    ends = {
        "noise": pgd(model, images, labels, eps=eps, norm=norm, steps=0, step_size=0.0),
        "FGSM": fgsm(model, images, labels, eps=eps, norm=norm),
        "PGD-20": attack(images, labels),
    }
    outcomes = {name: fooled(model, end, labels) for name, end in ends.items()}
    found = {name: fallen for name, (fallen, _) in outcomes.items()}
    return {
        **found,
        "undefined": torch.stack([undefined for _, undefined in outcomes.values()]).any(0),
        "margin": _besides(found["PGD-20"], model, images, labels, partial(attack, loss="margin")),
    }


def without_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, fallen: Tensor, source: nn.Module, *, eps: float, norm: Norm
) -> Found:
    """Who falls to "transfer" from `source`; `fallen` and those of "Square", or gradients "averaged" over noise: bool N."""
    with evaluating(source):
        moved = pgd(source, images, labels, eps=eps, norm=norm, steps=20, step_size=eps / 8, loss="margin")
    averaged = partial(pgd, Averaged(model, eps / 2, norm), eps=eps, norm=norm, steps=20, step_size=eps / 8, loss="margin")
    queries = partial(square, model, eps=eps, norm=norm, queries=QUERIES)
    return {
        "transfer": fooled(model, moved, labels)[0],
        "Square": _besides(fallen, model, images, labels, queries),
        "averaged": _besides(fallen, model, images, labels, averaged),
    }


def _besides(fallen: Tensor, model: nn.Module, images: Tensor, labels: Tensor, attack: partial[Tensor]) -> Tensor:
    """`fallen`, and whom `attack` fools of the others."""
    found, others = fallen.clone(), ~fallen
    if others.any():
        found[others] = fooled(model, attack(images[others], labels[others]), labels[others])[0]
    return found


def standard(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm) -> Found:
    """Who falls to "AutoAttack", shortened."""
    return {"AutoAttack": fooled(model, autoattack(model, images, labels, eps=eps, norm=norm, short=True), labels)[0]}


def anything(model: nn.Module, images: Tensor, labels: Tensor) -> Found:
    """Who is "right" still after PGD-100 on cross-entropy within ANYTHING."""
    found = pgd(model, images, labels, eps=ANYTHING, norm="linf", steps=100, step_size=ANYTHING / 25, best=True)
    return {"right": ~fooled(model, found, labels)[0]}


def substitute(model: nn.Module, data: ImageSet, device: torch.device, seed: int) -> nn.Module:
    """A small convolutional network that learnt the model's answers on these images, mirrored and with noise on them.

    The source of black-box transfer (Papernot et al. 2017): the model is asked, its gradient is not.
    """
    channels, size, classes = data.images.shape[1], int(data.images.shape[-1]), len(data.classes)
    student = models.build(
        "small_cnn", classes=classes, channels=channels, width=16, seed=seed, stem_stride=2 if size > 40 else 1
    ).to(device)
    student.train()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    for _ in range(150):
        images = as_float(data.images[torch.randint(len(data), (64,))]).to(device)
        mirrored = each_image(torch.rand(len(images), device=device) < 0.5, images)
        images = torch.where(mirrored, images.flip(-1), images)
        images = (images + 0.05 * torch.randn_like(images)).clamp(0, 1)
        with torch.no_grad():
            given = model(images)[:, :classes].argmax(1)
        loss = F.cross_entropy(student(images), given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval().requires_grad_(False)
