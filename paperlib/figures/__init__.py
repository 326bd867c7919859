"""Figures and tables in a venue's style, one colour and one name for each method."""

from paperlib.figures.closeup import close_up
from paperlib.figures.papers import (
    against,
    changes,
    correlations,
    decision_boundaries,
    depth_sheet,
    distance_curves,
    front,
    gaussian,
    landscapes,
    margins,
    planes,
    targeted,
    targets,
    tradeoff,
)  # fmt: skip
from paperlib.figures.plots import accuracies, beyond, contact_sheet, grid, panels, sweep_curve, training_curves
from paperlib.figures.style import COLOURS, MARKERS, WIDTHS, new, save, style
