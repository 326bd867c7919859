"""Jacobian regularisation: a penalty on the change of the logits with the image (Hoffman, Roberts & Yaida 2019, "Robust
Learning with Jacobian Regularization", arXiv 1908.02729).

A fifth paper, the worked example of docs/adding-a-paper.md. Its text was not available, so none of its numbers is claimed.
The penalty is the squared Frobenius norm of ∂z/∂x on the augmented images, estimated by random projections.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from paperlib.attacks import Attack, autoattack, pgd
from paperlib.evaluation.settings import NormSettings, Plan, planned
from paperlib.methods import Batch, Method, Step, outputs
from paperlib.methods.baselines import GradientPenalty, Standard
from paperlib.runs.settings import Count, Positive, Radius


def squared_norm(logits: Tensor, images: Tensor, projections: int) -> Tensor:
    """Estimate ‖∂z/∂x‖_F² of each image without bias: shape N, from logits N×C computed from images N×…; differentiable.

    The estimate is C times the mean of ‖∂(v·z)/∂x‖² over `projections` directions v, uniform on the unit sphere.
    """
    count, classes = logits.shape
    total = logits.new_zeros(count)
    for _ in range(projections):
        directions = F.normalize(torch.randn_like(logits), dim=1)
        (gradient,) = torch.autograd.grad((directions * logits).sum(), images, create_graph=True)
        total = total + gradient.flatten(1).square().sum(1)
    # Hoffman et al. 2019, random projections: ‖J‖_F² = C E_v ‖∂(v·z)/∂x‖²
    return classes * total / projections


@dataclass(frozen=True)
class JacobianRegularisation:
    """Cross-entropy and a penalty on the Jacobian of all logits, independent of the label."""

    weight: float  # λ_JR
    projections: int = 1

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return L + λ_JR / 2 · ‖J‖_F², means over the images; terms "ce", "jacobian" and "total"."""
        images = batch.augment(batch.images).detach().requires_grad_(True)
        logits = outputs(model, images)
        ce = F.cross_entropy(logits, batch.labels)
        jacobian = squared_norm(logits, images, self.projections).mean()
        # Hoffman et al. 2019, joint loss: L + λ_JR / 2 · ‖J‖_F²
        return {"ce": ce, "jacobian": jacobian, "total": ce + self.weight / 2 * jacobian}


# The study -----------------------------------------------------------------------------------------------------------


class JacobianSettings(NormSettings):
    """The notebook's settings."""

    weight: Radius  # λ_JR
    projections: Count
    penalty: Radius  # λ of the gradient penalty, which penalises the loss's gradient instead of all logits'
    epsilons: Annotated[list[Positive], Field(min_length=1)]  # radii of the sweep, as factors of ε


STUDIES = {"jacobian_norm": JacobianSettings}


def methods(settings: JacobianSettings) -> dict[str, Method]:
    """Return plain training, the penalty on the loss's gradient, and the penalty on the Jacobian, by name."""
    return {
        "standard": Standard(),
        "gradient_penalty": GradientPenalty(settings.penalty),
        "jacobian": JacobianRegularisation(settings.weight, settings.projections),
    }


def attacks(settings: JacobianSettings) -> dict[str, Attack]:
    """Return PGD-20 on cross-entropy and on the margin, by name."""
    strong = partial(pgd, eps=settings.eps, norm=settings.norm, steps=20, step_size=settings.eps / 8)
    return {"pgd_20": strong, "pgd_margin": partial(strong, loss="margin")}


def strong_attacks(settings: JacobianSettings) -> dict[str, Attack]:
    """Return AutoAttack, by name."""
    return {"autoattack": partial(autoattack, eps=settings.eps, norm=settings.norm)}


def plan(settings: JacobianSettings) -> Plan:
    """Return the number of images for each measure and of seeds for each method."""
    images = planned(settings, ["clean", *attacks(settings)], {"autoattack": settings.autoattack_images})
    return Plan(images, dict.fromkeys(methods(settings), len(settings.seeds)), settings.data)


PLANS = {"jacobian_norm": plan}
