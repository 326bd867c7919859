"""Projected gradient ascent, the inner maximiser of both training and evaluation.

Every attack is a function `attack(model, images, labels, *, eps, norm, …)` that returns adversarial images of the same
shape; `functools.partial` fixes its settings. Attacks do not change the model's mode: `evaluation` and the training methods
set it. Random numbers come from PyTorch's global generator; the caller sets its seed.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from paperlib.attacks.losses import Loss, attack_loss, misclassified
from paperlib.data.images import check_pixels
from paperlib.runs.files import InputError

Norm = Literal["linf", "l2"]
Attack = partial[Tensor]  # an attack function with all settings fixed but model, images and labels
BOX = (0.0, 1.0)  # the range of pixel values
OTHERS = 0.01  # largest change of logits with the other images of a batch, in their standard deviations; rounding is less


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Set the model to evaluation mode within the context, and restore each module's mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        model.train(modes[model])  # a model's own `train` may do more than set the mode
        for module, training in modes.items():
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Switch off the weights' gradients within the context."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@torch.no_grad()
def depends_on_others(model: nn.Module, images: Tensor) -> bool:
    """Return whether the logits of the first image change when it is alone, though they are the same when repeated."""
    if len(images) < 2:
        return False
    try:
        among, alone, again = model(images)[:1], model(images[:1]), model(images[:1])
    except ValueError:  # batch norm in training mode refuses a single image
        return True
    size = among.std().nan_to_num(0) + alone.std().nan_to_num(0)
    return torch.equal(alone, again) and bool((among - alone).abs().max() > OTHERS * size)


# Geometry of the two balls -------------------------------------------------------------------------------------------


def each_image(values: Tensor, images: Tensor) -> Tensor:
    """Reshape one value per image, N, to N×1×…×1, which broadcasts with images N×…."""
    return values.view(-1, *[1] * (images.ndim - 1))


def lengths(perturbation: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each perturbation N×…: shape N."""
    flat = perturbation.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def _lengths(vectors: Tensor) -> Tensor:
    """Return Euclidean norms N×1×…×1 of vectors N×…, clamped so that they can be divisors."""
    return each_image(lengths(vectors, "l2").clamp_min(1e-12), vectors)


def project(perturbation: Tensor, eps: float, norm: Norm) -> Tensor:
    """Project a perturbation N×… onto the ball of radius `eps`."""
    if norm == "linf":
        return perturbation.clamp(-eps, eps)
    return perturbation * (eps / _lengths(perturbation)).clamp_max(1)


def ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the step of steepest ascent of norm one: the gradient's sign (linf) or direction (l2).

    It is zero for a zero gradient. Entries that are NaN or infinite count as zero.
    """
    gradient = gradient.nan_to_num(0, 0, 0)
    return gradient.sign() if norm == "linf" else gradient / _lengths(gradient)


def within(
    images: Tensor, adversarial: Tensor, eps: float, norm: Norm, box: tuple[float, float] | None, box_first: bool = False
) -> Tensor:
    """Project into the ball and the box. Both orders end inside both, because each step moves toward the clean image."""
    if box_first and box is not None:
        return images + project(adversarial.clamp(*box) - images, eps, norm)
    adversarial = images + project(adversarial - images, eps, norm)
    return adversarial if box is None else adversarial.clamp(*box)


# Attacks -----------------------------------------------------------------------------------------------------------


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm,
    steps: int,
    step_size: float,
    loss: Loss = "ce",
    kappa: float = math.inf,
    targets: Tensor | None = None,
    random_start: bool = True,
    start_deviation: float | None = None,
    start_in_box: bool = False,
    restarts: int = 1,
    best: bool = False,
    box: tuple[float, float] | None = BOX,
) -> Tensor:
    """Run projected gradient descent (Madry et al. 2018) on images N×… in [0,1], with steps of norm `step_size`.

    - `targets` int64 N: targeted attack, which minimises the loss of the target class.
    - `random_start`: uniform in the cube of half-width `eps`, projected into the ball.
    - `start_deviation`: normal start of this deviation, not projected before the first step (TRADES and MART: 0.001).
    - `start_in_box`: L2 as in RAAT's code. The start is uniform in the box; steps are clipped to the box before projection.
    - `restarts`: number of runs; for each image, the strongest result is kept.
    - `kappa`: κ of the margin loss.
    - `best`: an image leaves the batch with the first iterate that fools the model. This is several times as fast and never
      weaker than the last iterate, but not paper-exact. It is ignored if logits depend on the other images of the batch.
    - `box` None: pixel values are unbounded.

    Raises InputError for settings that contradict each other, and for images outside the box.
    """
    if loss == "kl" and targets is not None:
        raise InputError("loss 'kl' has no target class; use ce, margin or dlr with targets")
    if kappa < math.inf and targets is not None:
        raise InputError(f"kappa = {kappa:g} bounds how far a wrong class leads; leave it out with targets")
    if start_in_box and box is None:
        raise InputError("start_in_box needs a box, such as (0, 1); box is None")
    if box == BOX and not images.is_cuda:  # on a GPU the check would synchronise; ImageSet has checked its images
        check_pixels(images)
    with torch.no_grad():
        clean = model(images).detach() if loss == "kl" else None
    best = best and not depends_on_others(model, images)
    aims = labels if targets is None else targets
    sign = 1.0 if targets is None else -1.0

    def fooled(logits: Tensor, members: Tensor) -> Tensor:
        if targets is None:
            return misclassified(logits, labels[members])
        return (logits.argmax(1) == aims[members]) & ~logits.isnan().any(1)

    def run() -> Tensor:
        adversarial = images.clone()
        into = partial(within, eps=eps, norm=norm, box=box, box_first=start_in_box)
        if random_start:
            noise = torch.empty_like(images)
            if start_deviation is not None:
                adversarial = images + noise.normal_(0, start_deviation)
            else:
                start = noise.uniform_(*box) if start_in_box and box else images + noise.uniform_(-eps, eps)
                adversarial = into(images, start)
        members: Tensor | slice = torch.arange(len(images), device=images.device) if best else slice(None)
        for _ in range(steps):
            current = adversarial[members].detach().requires_grad_(True)
            with torch.enable_grad():
                logits = model(current)
                reference = None if clean is None else clean[members]
                total = sign * attack_loss(logits, aims[members], loss, reference, kappa).sum()
                (gradient,) = torch.autograd.grad(total, current)
            if isinstance(members, Tensor):
                going = ~fooled(logits.detach(), members)
                members, current, gradient = members[going], current[going], gradient[going]
                if not len(members):
                    break
            # PAG, Algorithm 1: δ ← Proj_ε(δ + α ∇_δ L(f(x + δ), y)); here: ∇L as a step of norm one
            moved = into(images[members], current.detach() + step_size * ascent(gradient, norm))
            if isinstance(members, Tensor):
                adversarial[members] = moved
            else:
                adversarial = moved
        return adversarial

    kept = run()
    if restarts == 1:
        return kept

    everyone = torch.arange(len(images), device=images.device)

    def strength(candidates: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = model(candidates)
        return fooled(logits, everyone), sign * attack_loss(logits, aims, loss, clean, kappa)

    kept_fooled, kept_loss = strength(kept)
    for _ in range(restarts - 1):
        other = run()
        other_fooled, other_loss = strength(other)
        better = (other_fooled & ~kept_fooled) | ((other_fooled == kept_fooled) & (other_loss > kept_loss))
        kept[better], kept_fooled[better], kept_loss[better] = other[better], other_fooled[better], other_loss[better]
    return kept


def training_pgd(
    *,
    eps: float,
    norm: Norm,
    steps: int,
    loss: Loss = "ce",
    start_deviation: float | None = None,
    start_in_box: bool = False,
) -> Attack:
    """Return PGD for training as in RAAT and DAAT: a random start, and step sizes that sum to 2.5 ε."""
    size = 2.5 * eps / steps
    start = {"start_deviation": start_deviation, "start_in_box": start_in_box}
    return partial(pgd, eps=eps, norm=norm, steps=steps, step_size=size, loss=loss, **start)  # type: ignore[arg-type]


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm, loss: Loss = "ce") -> Tensor:
    """Make one full step along the gradient from the clean image (Goodfellow et al. 2015)."""
    return pgd(model, images, labels, eps=eps, norm=norm, steps=1, step_size=eps, loss=loss, random_start=False)
