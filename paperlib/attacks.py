"""The inner maximisers that training and evaluation share, and thin calls to attack libraries.

Every attack is a function `attack(model, images, labels, *, eps, norm, …)` that returns adversarial images of the same
shape; `functools.partial` fixes its settings. The model is used in the mode it is in: `evaluation` and the training
methods choose it. Random numbers come from PyTorch's global generator, which the caller seeds.
"""

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.files import InputError

Norm = Literal["linf", "l2"]
Loss = Literal["ce", "mse", "mse_softmax", "kl", "margin", "dlr"]
Attack = partial[Tensor]  # of an attack function: only model, images and labels are open
BOX = (0.0, 1.0)  # where images live


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode, and back in each module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training


# Losses: each image's own, to be made large ---------------------------------------------------------------------


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j≠y} z_j − z_y, the loss of Carlini & Wagner (2017): positive where the image is misclassified. N from N×C."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return other - own


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """‖z − e_y‖² / C of the raw outputs N×C against the one-hot label e_y, the mean over classes: N."""
    return (logits - F.one_hot(labels, logits.shape[1])).square().mean(1)


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """−(z_y − max_{j≠y} z_j) / (z_π1 − z_π3), which no scaling of the logits changes (Croce & Hein 2020, eq. 6).

    Raises InputError with fewer than three classes, where it is not defined.
    """
    if logits.shape[1] < 3:
        raise InputError(f"loss 'dlr' needs three classes or more, this model has {logits.shape[1]}; use ce or margin")
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def attack_loss(logits: Tensor, labels: Tensor, loss: Loss, clean: Tensor | None = None, kappa: float = math.inf) -> Tensor:
    """The named loss of each image, N from logits N×C; `clean` are the logits that kl departs from.

    "mse" is what models trained on squared errors were trained with. Attacks that follow it overstate their robustness.

    `kappa` is Carlini & Wagner's confidence κ: a margin beyond it counts no further.
    """
    if loss == "ce":
        return F.cross_entropy(logits, labels, reduction="none")
    if loss in ("mse", "mse_softmax"):
        return squared_error(logits if loss == "mse" else logits.softmax(1), labels)
    if loss == "kl":
        assert clean is not None
        return F.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    return margin(logits, labels).clamp_max(kappa) if loss == "margin" else difference_of_logits_ratio(logits, labels)


# Geometry of the two balls --------------------------------------------------------------------------------------


def each_image(values: Tensor, images: Tensor) -> Tensor:
    """One value for each image, N, shaped to meet images N×…: N×1×…×1."""
    return values.view(-1, *[1] * (images.ndim - 1))


def lengths(perturbation: Tensor, norm: Norm) -> Tensor:
    """The size of each perturbation N×… in the norm: N."""
    flat = perturbation.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def _lengths(vectors: Tensor) -> Tensor:
    """Euclidean norms N×1×…×1 that divide N×…, never zero."""
    return each_image(lengths(vectors, "l2").clamp_min(1e-12), vectors)


def project(perturbation: Tensor, eps: float, norm: Norm) -> Tensor:
    """The nearest perturbation within the ball of radius `eps`."""
    if norm == "linf":
        return perturbation.clamp(-eps, eps)
    return perturbation * (eps / _lengths(perturbation)).clamp_max(1)


def ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of size one that raises the loss most: its sign (linf) or its direction (l2); zero where it is zero.

    What is not a number counts as zero, so a broken gradient leaves an image where it is.
    """
    gradient = gradient.nan_to_num(0, 0, 0)
    return gradient.sign() if norm == "linf" else gradient / _lengths(gradient)


def _into(
    images: Tensor, adversarial: Tensor, eps: float, norm: Norm, box: tuple[float, float] | None, box_first: bool = False
) -> Tensor:
    """Into the ball and the box. Either order ends in both: each moves every image toward its clean one."""
    if box_first and box is not None:
        return images + project(adversarial.clamp(*box) - images, eps, norm)
    adversarial = images + project(adversarial - images, eps, norm)
    return adversarial if box is None else adversarial.clamp(*box)


# Attacks of our own ---------------------------------------------------------------------------------------------


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
    """Projected gradient descent (Madry et al. 2018) on images N×… in [0,1], with steps of one length in its norm.

    `targets` N turns it into a targeted attack, which lowers the loss of the target class. The random start is uniform
    in the cube of half-width `eps`, projected into the ball. With `start_deviation` it is normal of that deviation instead,
    and not projected before the first step (TRADES and MART: 0.001). `start_in_box` is L2 as in RAAT's code: the start is
    uniform in the box, and each step is clipped to the box before it is projected into the ball. Each restart keeps, image
    by image, the strongest result so far. `kappa` is that of the margin loss. `best` is no longer paper-exact: an image
    leaves the batch with the first iterate that fools the model, which is never weaker than the last iterate and several
    times as fast. `box` None leaves points unbounded.
    """
    if loss == "kl" and targets is not None:
        raise InputError("loss 'kl' has no target class; use ce, margin or dlr with targets")
    if kappa < math.inf and targets is not None:
        raise InputError(f"kappa = {kappa:g} bounds how far a wrong class leads; leave it out with targets")
    if start_in_box and box is None:
        raise InputError("start_in_box needs a box, such as (0, 1); box is None")
    with torch.no_grad():
        clean = model(images).detach() if loss == "kl" else None
    aims = labels if targets is None else targets
    sign = 1.0 if targets is None else -1.0

    def fooled(logits: Tensor, members: Tensor) -> Tensor:
        predictions = logits.argmax(1)
        return predictions != labels[members] if targets is None else predictions == aims[members]

    def run() -> Tensor:
        adversarial = images.clone()
        into = partial(_into, eps=eps, norm=norm, box=box, box_first=start_in_box)
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
    """PGD as RAAT and DAAT train against it: a random start, and steps that add up to 2.5 ε."""
    size = 2.5 * eps / steps
    start = {"start_deviation": start_deviation, "start_in_box": start_in_box}
    return partial(pgd, eps=eps, norm=norm, steps=steps, step_size=size, loss=loss, **start)  # type: ignore[arg-type]


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm, loss: Loss = "ce") -> Tensor:
    """One full step along the gradient from the clean image (Goodfellow et al. 2015)."""
    return pgd(model, images, labels, eps=eps, norm=norm, steps=1, step_size=eps, loss=loss, random_start=False)


# Attacks of libraries -------------------------------------------------------------------------------------------

LIBRARY_NORMS = {"linf": "Linf", "l2": "L2"}


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm,
    loss: Literal["ce", "dlr"] = "ce",
    steps: int = 100,
    restarts: int = 1,
) -> Tensor:
    """Auto-PGD (Croce & Hein 2020) through pyautoattack; returns the clean image where it does not succeed."""
    from pyautoattack.autopgd_base import APGDAttack

    seed = int(torch.randint(2**31, ()))  # drawn from the caller's generator; the library sets the global seed itself
    with torch.random.fork_rng():
        attack = APGDAttack(
            model, n_iter=steps, norm=LIBRARY_NORMS[norm], n_restarts=restarts, eps=eps, seed=seed, loss=loss,
            device=images.device,
        )  # fmt: skip
        return attack.perturb(images.clone(), labels.clone()).detach()


def square(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm, queries: int = 5000) -> Tensor:
    """Square (Andriushchenko et al. 2020) through pyautoattack: random search without gradients.

    With fewer queries than AutoAttack's 5,000 its schedule is shortened to them. The clean image where it fails.
    """
    from pyautoattack.square import SquareAttack

    seed = int(torch.randint(2**31, ()))
    with torch.random.fork_rng():
        attack = SquareAttack(
            model,
            norm=LIBRARY_NORMS[norm],
            n_queries=queries,
            eps=eps,
            seed=seed,
            device=images.device,
            resc_schedule=queries != 5000,
        )
        return attack.perturb(images.clone(), labels.clone()).detach()


def transfer(
    model: nn.Module, images: Tensor, labels: Tensor, *, source: nn.Module, attack: Attack, eps: float, norm: Norm
) -> Tensor:
    """What `attack` finds against `source`, an independently trained model; `model` itself is not asked."""
    with evaluating(source):
        return attack(source, images, labels, eps=eps, norm=norm)


SHORT = {"targets": 3, "queries": 1000}  # of shortened AutoAttack, in place of 9 and 5,000


Part = Literal["apgd-ce", "apgd-t", "fab-t", "square"]


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm,
    short: bool = False,
    only: Part | None = None,
) -> Tensor:
    """AutoAttack "standard" (Croce & Hein 2020): APGD-CE, targeted APGD-DLR, targeted FAB, Square.

    `only` runs one of the four parts; the targeted ones need four classes. `short` leaves FAB out, aims at three classes
    and asks Square for 1,000 queries: a check, no number to report.

    Runs the `autoattack` package where it can be imported, else its repackage `pyautoattack`. With fewer than four
    classes the targeted losses are not defined, and untargeted APGD-CE, FAB and Square take their place. The warnings
    about masked gradients are collected by `masking_flags`.
    """
    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    seed = int(torch.randint(2**31, ()))
    trace = sys.gettrace()  # the library's check for dynamic models ends by switching every debugger off
    with torch.random.fork_rng():
        try:
            run = _autoattack(model, eps, LIBRARY_NORMS[norm], seed, images.device, classes, short, only)
            return run(images.clone(), labels.clone()).detach()
        finally:
            sys.settrace(trace)


def _autoattack(
    model: nn.Module,
    eps: float,
    norm: str,
    seed: int,
    device: torch.device,
    classes: int,
    short: bool,
    only: Part | None,
) -> Callable[[Tensor, Tensor], Tensor]:
    few = classes < 4
    if few and only in ("apgd-t", "fab-t"):
        raise InputError(f"{only} needs four classes or more, this model has {classes}; use apgd-ce or square")
    attacks = ["apgd-ce", "fab", "square"] if few else ["apgd-ce", "apgd-t", "fab-t", "square"]
    if short:
        attacks = [attack for attack in attacks if not attack.startswith("fab")]
    if only is not None:
        attacks = [only]
    try:
        from autoattack import AutoAttack, checks

        adversary = AutoAttack(model, norm=norm, eps=eps, seed=seed, device=device, verbose=False)
        adversary.logger = _Relay()

        def run(x: Tensor, y: Tensor) -> Tensor:
            return adversary.run_standard_evaluation(x, y, bs=len(x))
    except ImportError:
        from pyautoattack import AutoAttack, checks

        adversary = AutoAttack(model, norm=norm, eps=eps, seed=seed, device=device)

        def run(x: Tensor, y: Tensor) -> Tensor:
            return adversary.run_standard_evaluation(x, y, batch_size=len(x))[0]

    checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # one dynamic model would flag every later one
    adversary.attacks_to_run = attacks
    if not few:  # the standard nine target classes, or as many as there are
        targets = min(SHORT["targets"] if short else 9, classes - 1)
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
    if short:
        adversary.square.n_queries, adversary.square.resc_schedule = SHORT["queries"], True
    return run


class _Relay:
    """Hands what the original package logs on to the logger that its repackage uses."""

    def log(self, message: str) -> None:
        level = logging.WARNING if message.startswith("Warning") else logging.DEBUG
        logging.getLogger("auto-attack").log(level, message.removeprefix("Warning: "))


@contextmanager
def masking_flags() -> Iterator[list[str]]:
    """Collects, once each, the warnings that AutoAttack gives about a model whose gradients look masked."""
    flags: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING and record.getMessage() not in flags:
                flags.append(record.getMessage())

    logger, collector = logging.getLogger("auto-attack"), Collector()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield flags
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagate
