"""What the papers' methods are measured against."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.attacks import Attack, evaluating
from paperlib.methods import Batch, Step


@dataclass(frozen=True)
class Standard:
    """Plain training: the cross-entropy on augmented images ("vanilla")."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """CE(f(aug(x)), y)."""
        total = F.cross_entropy(model(batch.augment(batch.images)).float(), batch.labels)
        return {"total": total}


@dataclass(frozen=True)
class AdversarialTraining:
    """PGD-AT (Madry et al. 2018; PAG, Equation 5): the cross-entropy on adversarial images alone.

    Batch norm uses its running statistics while the attack runs and those of the adversarial batch in the step.
    """

    attack: Attack

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """max_δ CE(f(aug(x) + δ), y), the maximum approximated by the attack."""
        images = batch.augment(batch.images)
        with evaluating(model):
            adversarial = self.attack(model, images, batch.labels)
        return {"total": F.cross_entropy(model(adversarial).float(), batch.labels)}
