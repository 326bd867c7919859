"""Minimum-norm attacks and the one-pixel attack: thin wrappers of foolbox and SciPy.

They have the signature of `attacks`. `eps` is infinite by default; a larger perturbation counts as a failure. A failed
attack returns the clean image. Every result of foolbox is checked again, because some of its attacks return a black image
on failure, which foolbox counts as a success if black is misclassified. The foolbox attacks raise InputError for images
outside [0,1]. If the outputs are probabilities, they attack the logarithm and log a warning.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import differential_evolution
from torch import Tensor, nn

from paperlib.attacks import Attack, Logarithm, Norm, are_probabilities, each_image, frozen, lengths, margin, misclassified
from paperlib.attacks.libraries import LOGGER
from paperlib.data.images import check_pixels
from paperlib.runs.files import InputError

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # foolbox looks for a git binary when it is imported


SHARPNESS = 10.0  # norm of the margin's gradient for DDN; gave the smallest distances of 1 to 100 on three networks here


def distances(model: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor, norm: Norm) -> Tensor:
    """Return the distance from each image to its adversarial image, shape N: 0 if misclassified clean, ∞ on failure."""
    with torch.no_grad():
        wrong, fooled = (model(points).argmax(1) != labels for points in (images, adversarial))
    found = lengths(adversarial - images, norm).where(fooled, torch.inf)
    return found.masked_fill(wrong, 0)


# Foolbox -------------------------------------------------------------------------------------------------------------


def _nearest(
    attack: Any, model: nn.Module, images: Tensor, labels: Tensor, eps: float, norm: Norm, sharpness: float | None = None
) -> Tensor:
    """Return the result of a foolbox attack, or the clean image. Foolbox's report of success is unreliable.

    `sharpness` rescales the outputs: see `_Scaled`.
    """
    import foolbox

    check_pixels(images)
    model = _logits(model, images)
    if sharpness is not None:
        model = _Scaled(model, images, labels, sharpness)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    with torch.enable_grad(), frozen(model):
        found = attack(wrapped, images, labels, epsilons=None)[1].detach()
    found = found.nan_to_num(0).clamp(0, 1)
    with torch.no_grad():
        fooled = misclassified(model(found), labels)
    black = found.flatten(1).abs().amax(1) == 0  # foolbox returns a black image on failure
    good = fooled & ~black & (lengths(found - images, norm) <= eps)
    return torch.where(each_image(good, images), found, images)


def _logits(model: nn.Module, images: Tensor) -> nn.Module:
    """Return the model, or the logarithm of its probabilities, on which DeepFool and DDN would search much too far."""
    with torch.no_grad():
        if not are_probabilities(model(images)).all():
            return model
    LOGGER.warning("the outputs are probabilities and not logits: their logarithm is attacked")
    return Logarithm(model)


class _Scaled(nn.Module):
    """A model rescaled so that the margin's gradient has norm `length` at the median image, as the attacks assume."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, length: float) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        leaf = images.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(margin(model(leaf), labels).sum(), leaf)
        size = float(gradient.flatten(1).norm(dim=1).median())
        self.scale = size / length if 0 < size < math.inf else 1.0

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x) / self.scale
        return found


def deepfool(
    model: nn.Module, images: Tensor, labels: Tensor, *, norm: Norm, eps: float = math.inf, steps: int = 50
) -> Tensor:
    """Run DeepFool (Moosavi-Dezfooli et al. 2016): repeated steps to the nearest boundary of the linearised model.

    It overstates the distance on robust models; `ddn` finds shorter distances.
    """
    from foolbox.attacks import L2DeepFoolAttack, LinfDeepFoolAttack

    kind = {"linf": LinfDeepFoolAttack, "l2": L2DeepFoolAttack}[norm]
    return _nearest(kind(steps=steps, overshoot=0.02), model, images, labels, eps, norm)


def carlini_wagner(
    model: nn.Module, images: Tensor, labels: Tensor, *, norm: Norm = "l2", eps: float = math.inf, steps: int = 100,
    searches: int = 9,
) -> Tensor:  # fmt: skip
    """Run C&W-L2 (Carlini & Wagner 2017) with `searches` binary-search steps over the constant, `steps` of Adam each.

    The outputs are rescaled first, so that the search does not depend on their scale. Raises InputError for another norm.
    """
    from foolbox.attacks import L2CarliniWagnerAttack

    _only_l2("carlini_wagner", norm)
    attack = L2CarliniWagnerAttack(
        binary_search_steps=searches, steps=steps, stepsize=0.01, initial_const=1.0, abort_early=False
    )
    return _nearest(attack, model, images, labels, eps, norm, sharpness=1.0)


def elastic_net(
    model: nn.Module, images: Tensor, labels: Tensor, *, norm: Norm = "l2", eps: float = math.inf, steps: int = 100,
    searches: int = 9, regularization: float = 0.01,
) -> Tensor:  # fmt: skip
    """Run EAD with the elastic-net rule (Chen et al. 2018): minimise ‖δ‖₂² + β ‖δ‖₁ with β = `regularization`.

    The outputs are rescaled first, so that the search does not depend on their scale. Raises InputError for another norm.
    """
    from foolbox.attacks import EADAttack

    _only_l2("elastic_net", norm)
    attack = EADAttack(
        binary_search_steps=searches, steps=steps, initial_stepsize=0.01, initial_const=1.0,
        regularization=regularization, decision_rule="EN", abort_early=False,
    )  # fmt: skip
    return _nearest(attack, model, images, labels, eps, norm, sharpness=1.0)


def ddn(
    model: nn.Module, images: Tensor, labels: Tensor, *, norm: Norm = "l2", eps: float = math.inf, steps: int = 200
) -> Tensor:
    """Run the decoupled direction and norm attack (Rony et al. 2019) in L2, which is stronger than DeepFool.

    The outputs are scaled up first, more than for the other attacks. The cross-entropy of small outputs, as after training
    on squared errors, hardly depends on which class is nearest. FMN is not used, because foolbox 3.3.4's L2 form never
    projects. Raises InputError for another norm.
    """
    from foolbox.attacks import DDNAttack

    _only_l2("ddn", norm)
    return _nearest(DDNAttack(steps=steps), model, images, labels, eps, norm, SHARPNESS)


def l2_attacks(steps: int) -> dict[str, Attack]:
    """Return DeepFool, EAD, C&W and DDN in L2, by name; the last three take `steps` steps."""
    return {
        "deepfool": partial(deepfool, norm="l2"),
        "ead": partial(elastic_net, norm="l2", steps=steps),
        "cw": partial(carlini_wagner, norm="l2", steps=steps),
        "ddn": partial(ddn, norm="l2", steps=steps),
    }


def _only_l2(name: str, norm: Norm) -> None:
    if norm != "l2":
        raise InputError(f"{name} with norm = {norm!r}: it is an L2 attack; deepfool has both norms")


# One pixel -----------------------------------------------------------------------------------------------------------


def one_pixel(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float = 1.0, norm: Norm = "linf", pixels: int = 1,
    population: int = 400, generations: int = 75,
) -> Tensor:  # fmt: skip
    """Run the one-pixel attack (Su et al. 2019) on images N×C×H×W: SciPy's differential evolution lowers p(y).

    `population` candidates, each with `pixels` positions and colours, evolve over `generations` until one fools the model.
    PyTorch's global generator seeds the search. Raises InputError unless `eps` is 1 in L∞, since pixels take any colour.
    """
    if (norm, eps) != ("linf", 1.0):
        raise InputError(f"one_pixel with norm = {norm!r}, eps = {eps:g}: its pixels take any colour, so linf and 1")
    results = [
        _evolved(model, image, label, pixels, population, generations) for image, label in zip(images, labels, strict=True)
    ]
    return torch.stack(results)


def pixel_attacks(generations: int) -> dict[str, Attack]:
    """Return the one-pixel attack by name, for `evaluation.evaluate_each`."""
    return {"one_pixel": partial(one_pixel, eps=1.0, norm="linf", generations=generations)}


def _evolved(model: nn.Module, image: Tensor, label: Tensor, pixels: int, population: int, generations: int) -> Tensor:
    channels, height, width = image.shape
    genes = 2 + channels
    best = image

    def apply(candidates: np.ndarray) -> Tensor:
        """Change the image by each of S candidates, given as (pixels · genes)×S. Returns S×C×H×W."""
        values = torch.as_tensor(candidates.T, dtype=image.dtype, device=image.device).view(-1, pixels, genes)
        changed = image.repeat(len(values), 1, 1, 1)
        rows = values[..., 0].long().clamp(0, height - 1)
        columns = values[..., 1].long().clamp(0, width - 1)
        members = torch.arange(len(values), device=image.device)
        for pixel in range(pixels):
            changed[members, :, rows[:, pixel], columns[:, pixel]] = values[:, pixel, 2:]
        return changed

    def confidence(candidates: np.ndarray) -> np.ndarray:
        nonlocal best
        changed = apply(candidates)
        with torch.no_grad():
            logits = torch.cat([model(part) for part in changed.split(500)])
        fooled = (logits.argmax(1) != label).nonzero()
        if len(fooled) and best is image:
            best = changed[fooled[0, 0]]
        return logits.softmax(1)[:, label].double().cpu().numpy()

    with torch.no_grad():
        if int(model(image[None]).argmax()) != int(label):
            return image  # already misclassified
    stop: Callable[..., bool] = lambda *_, **__: best is not image  # noqa: E731
    differential_evolution(
        confidence, [(0, height), (0, width), *[(0, 1)] * channels] * pixels, vectorized=True, updating="deferred",
        maxiter=generations, popsize=max(1, population // (genes * pixels)), strategy="rand1bin", recombination=1.0,
        mutation=0.5, init="latinhypercube", polish=False, tol=0, atol=-1, callback=stop,
        seed=int(torch.randint(2**31, ())),
    )  # fmt: skip
    return best
