"""The losses that attacks raise: of each image its own, to be made large."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.runs.files import InputError

Loss = Literal["ce", "mse", "mse_softmax", "kl", "margin", "dlr"]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j≠y} z_j − z_y, the loss of Carlini & Wagner (2017): positive where the image is misclassified. N from N×C."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    # Carlini & Wagner 2017, f₆ at t = y: max_{j≠y} z_j − z_y
    return other - own


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """‖z − e_y‖² / C of the raw outputs N×C against the one-hot label e_y, the mean over classes: N."""
    # GFA, Method Summary: L_MSE = ‖z − e_y‖² / C
    return (logits - F.one_hot(labels, logits.shape[1])).square().mean(1)


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """−(z_y − max_{j≠y} z_j) / (z_π1 − z_π3), which no scaling of the logits changes (Croce & Hein 2020, eq. 6).

    Raises InputError with fewer than three classes, where it is not defined.
    """
    if logits.shape[1] < 3:
        raise InputError(f"loss 'dlr' needs three classes or more, this model has {logits.shape[1]}; use ce or margin")
    top = logits.topk(3, dim=1).values
    # Croce & Hein 2020 (6): DLR = −(z_y − max_{j≠y} z_j) / (z_π1 − z_π3)
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
