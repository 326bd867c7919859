"""Figures and tables in a venue's style, one colour and one name for each method."""

from paperlib.figures.closeup import close_up
from paperlib.figures.papers import (
    against,
    changes,
    correlations,
    decision_boundaries,
    depth_sheet,
    front,
    gaussian,
    landscapes,
    margins,
    planes,
    targeted,
    targets,
    tradeoff,
)  # fmt: skip
from paperlib.figures.plots import (
    accuracies,
    attack_bars,
    contact_sheet,
    distance_curves,
    epsilon_curves,
    grid,
    panels,
    per_seed,
    sweep_curve,
    training_curves,
)  # fmt: skip
from paperlib.figures.style import COLOURS, LINES, MARKERS, WIDTHS, arms, draw, new, save, stacked, style
