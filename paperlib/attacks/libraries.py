"""Attacks from maintained libraries with the same signature: APGD, Square and the original AutoAttack; and transfer."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from paperlib.attacks.projected import Attack, Norm, evaluating
from paperlib.data.images import check_pixels
from paperlib.runs.files import InputError

LIBRARY_NORMS = {"linf": "Linf", "l2": "L2"}
LOGGER = logging.getLogger("auto-attack")  # the logger of pyautoattack, the repackage


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
    """Run Auto-PGD (Croce & Hein 2020) through pyautoattack. Returns the clean image if the attack fails."""
    from pyautoattack.autopgd_base import APGDAttack

    check_pixels(images)
    seed = int(torch.randint(2**31, ()))  # drawn from the caller's generator, because the library sets the global seed
    with torch.random.fork_rng():
        attack = APGDAttack(
            model, n_iter=steps, norm=LIBRARY_NORMS[norm], n_restarts=restarts, eps=eps, seed=seed, loss=loss,
            device=images.device,
        )  # fmt: skip
        found: Tensor = attack.perturb(images.clone(), labels.clone()).detach()
        return found


def square(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm, queries: int = 5000) -> Tensor:
    """Run Square (Andriushchenko et al. 2020), a random search without gradients, through pyautoattack.

    Its schedule is rescaled if `queries` is not AutoAttack's 5,000. Returns the clean image if the attack fails.
    """
    from pyautoattack.square import SquareAttack

    check_pixels(images)
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
        found: Tensor = attack.perturb(images.clone(), labels.clone()).detach()
        return found


def transfer(
    model: nn.Module, images: Tensor, labels: Tensor, *, source: nn.Module, attack: Attack, eps: float, norm: Norm
) -> Tensor:
    """Return adversarial images against `source`, an independently trained model; `model` is not used."""
    with evaluating(source):
        return attack(source, images, labels, eps=eps, norm=norm)


SHORT = {"targets": 3, "queries": 1000}  # target classes and queries of the short AutoAttack, instead of 9 and 5,000


Part = Literal["apgd-ce", "apgd-t", "fab-t", "square"]


def parts_of(classes: int, short: bool, only: Part | None) -> list[str]:
    """Return the parts of AutoAttack for this number of classes, in order.

    Raises InputError if `only` is a targeted part and there are fewer than four classes.
    """
    if classes < 4 and only in ("apgd-t", "fab-t"):
        raise InputError(f"{only} needs four classes or more, this model has {classes}; use apgd-ce or square")
    if only is not None:
        return [only]
    parts = ["apgd-ce", "fab", "square"] if classes < 4 else ["apgd-ce", "apgd-t", "fab-t", "square"]
    return [part for part in parts if not (short and part.startswith("fab"))]


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
    """Run the original AutoAttack, with the arguments and results of `autoattack.autoattack`.

    Uses the package `autoattack` if it can be imported, otherwise its repackage `pyautoattack`.
    """
    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    seed = int(torch.randint(2**31, ()))
    trace = sys.gettrace()  # the library's check for dynamic models removes the trace function of debuggers
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
    attacks = parts_of(classes, short, only)
    try:
        from autoattack import AutoAttack, checks

        adversary = AutoAttack(model, norm=norm, eps=eps, seed=seed, device=device, verbose=False)
        adversary.logger = _Relay()

        def run(x: Tensor, y: Tensor) -> Tensor:
            found: Tensor = adversary.run_standard_evaluation(x, y, bs=len(x))
            return found
    except ImportError:
        from pyautoattack import AutoAttack, checks

        adversary = AutoAttack(model, norm=norm, eps=eps, seed=seed, device=device)

        def run(x: Tensor, y: Tensor) -> Tensor:
            found: Tensor = adversary.run_standard_evaluation(x, y, batch_size=len(x))[0]
            return found

    checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # otherwise one dynamic model flags all later ones
    adversary.attacks_to_run = attacks
    if classes > 3:  # the standard nine target classes, or all other classes if fewer
        targets = min(SHORT["targets"] if short else 9, classes - 1)
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
    if short:
        adversary.square.n_queries, adversary.square.resc_schedule = SHORT["queries"], True
    return run


class _Relay:
    """Forward the original package's log to the logger that its repackage uses."""

    def log(self, message: str) -> None:
        level = logging.WARNING if message.startswith("Warning") else logging.DEBUG
        LOGGER.log(level, message.removeprefix("Warning: "))


@contextmanager
def masking_flags() -> Iterator[list[str]]:
    """Collect AutoAttack's warnings about possibly masked gradients, each once."""
    flags: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING and record.getMessage() not in flags:
                flags.append(record.getMessage())

    collector = Collector()
    propagate, LOGGER.propagate = LOGGER.propagate, False
    LOGGER.addHandler(collector)
    try:
        yield flags
    finally:
        LOGGER.removeHandler(collector)
        LOGGER.propagate = propagate
