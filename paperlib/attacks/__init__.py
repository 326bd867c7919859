"""Attacks: functions `attack(model, images, labels, *, eps, norm, …)` that return adversarial images of the same shape."""

from paperlib.attacks.autoattack import autoattack
from paperlib.attacks.folding import quick
from paperlib.attacks.libraries import Part, apgd, masking_flags, square, transfer
from paperlib.attacks.losses import (
    Logarithm,
    Loss,
    are_probabilities,
    attack_loss,
    difference_of_logits_ratio,
    margin,
    misclassified,
    squared_error,
    targeted_ratio,
)
from paperlib.attacks.projected import (
    BOX,
    Attack,
    Norm,
    ascent,
    depends_on_others,
    each_image,
    evaluating,
    fgsm,
    frozen,
    lengths,
    pgd,
    project,
    training_pgd,
)  # fmt: skip
