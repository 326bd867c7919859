"""Attacks: functions `attack(model, images, labels, *, eps, norm, …)` that return adversarial images of the same shape."""

from paperlib.attacks.libraries import Part, apgd, autoattack, masking_flags, square, transfer
from paperlib.attacks.losses import Loss, attack_loss, difference_of_logits_ratio, margin, squared_error
from paperlib.attacks.projected import (
    BOX,
    Attack,
    Norm,
    ascent,
    each_image,
    evaluating,
    fgsm,
    lengths,
    pgd,
    project,
    training_pgd,
)  # fmt: skip
