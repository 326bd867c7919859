"""The losses that attacks maximise, one value per image."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.runs.files import InputError

Loss = Literal["ce", "mse", "mse_softmax", "kl", "margin", "dlr"]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max_{j≠y} z_j − z_y, shape N, from logits N×C (Carlini & Wagner 2017). It is positive if misclassified."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    # Carlini & Wagner 2017, f₆ at t = y: max_{j≠y} z_j − z_y
    return other - own


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ‖z − e_y‖² / C, shape N, from raw outputs N×C and the one-hot label e_y."""
    # GFA, Method Summary: L_MSE, without formula; here: ‖z − e_y‖² / C
    return (logits - F.one_hot(labels, logits.shape[1])).square().mean(1)


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −(z_y − max_{j≠y} z_j) / (z_π1 − z_π3), shape N, from logits N×C (Croce & Hein 2020, Equation 6).

    The ratio is invariant to scaling of the logits. Raises InputError for fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise InputError(f"loss 'dlr' needs three classes or more, this model has {logits.shape[1]}; use ce or margin")
    top = logits.topk(3, dim=1).values
    # Croce & Hein 2020 (6): DLR = −(z_y − max_{j≠y} z_j) / (z_π1 − z_π3)
    return margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def targeted_ratio(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return −(z_y − z_t) / (z_π1 − (z_π3 + z_π4) / 2), shape N, from logits N×C (Croce & Hein 2020, Equation 7).

    t is the target class. Raises InputError for fewer than four classes.
    """
    if logits.shape[1] < 4:
        raise InputError(f"the targeted ratio needs four classes or more, this model has {logits.shape[1]}")
    top = logits.topk(4, dim=1).values
    lead = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    # Croce & Hein 2020 (7): Targeted-DLR = −(z_y − z_t) / (z_π1 − (z_π3 + z_π4) / 2)
    return lead / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(1e-12)


def attack_loss(logits: Tensor, labels: Tensor, loss: Loss, clean: Tensor | None = None, kappa: float = math.inf) -> Tensor:
    """Return the named loss of each image, shape N, from logits N×C; "kl" is the divergence from the logits `clean`.

    "mse" is the training loss of models trained on squared errors; attacks that maximise it overstate their robustness.
    `kappa` is Carlini & Wagner's confidence κ, an upper bound of the margin.
    """
    if loss == "ce":
        return F.cross_entropy(logits, labels, reduction="none")
    if loss in ("mse", "mse_softmax"):
        return squared_error(logits if loss == "mse" else logits.softmax(1), labels)
    if loss == "kl":
        assert clean is not None
        return F.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    return margin(logits, labels).clamp_max(kappa) if loss == "margin" else difference_of_logits_ratio(logits, labels)


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Return which rows of N×C predict another class than their label: bool N. A row with a NaN predicts nothing: False."""
    return (logits.argmax(1) != labels) & ~logits.isnan().any(1)


def are_probabilities(outputs: Tensor) -> Tensor:
    """Return which rows of N×C are distributions (entries in [0,1], sum 1) and so hardly logits: bool N."""
    inside = (outputs >= -1e-5).all(1) & (outputs <= 1 + 1e-5).all(1)
    return inside & ((outputs.sum(1) - 1).abs() < 1e-3)


class Logarithm(nn.Module):
    """A model that returns the logarithm of another model's probabilities, N×C: logits with the same predictions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = self.model(x)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
