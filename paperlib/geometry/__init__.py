"""Gradients and their alignment, directions around an image, attention and depth."""

from paperlib.geometry.gradients import (
    Output,
    alignment_defect,
    all_classes,
    class_gradients,
    cosine,
    decision_plane,
    distance_to_boundary,
    fragmentation,
    input_gradients,
    layer_inputs,
    layer_outputs,
    nonlinear_layers,
    scores,
    weighted_layers,
)  # fmt: skip
