"""Accuracy under attack with intervals, and differences between methods."""

from paperlib.evaluation.accuracy import (
    CHUNK,
    MONOTONE,
    AttackError,
    by_image,
    combine,
    correct,
    distances_each,
    evaluate,
    evaluate_each,
    flags,
    fooled,
    measuring,
    same_images,
    sweep,
)  # fmt: skip
from paperlib.evaluation.comparison import (
    ANYWHERE,
    LEARNT,
    SHARES,
    Difference,
    against_eps,
    at_chance,
    difference,
    gaps,
    in_percent,
    limits,
    summary,
    wide,
)  # fmt: skip
