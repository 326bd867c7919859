"""Alignment measures: gradients with respect to the input, and how they lie."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Output = Literal["log_softmax", "logit"]


def cosine(first: Tensor, second: Tensor, eps: float = 1e-8) -> Tensor:
    """Cosine of the angle between vectors along all but the leading `first.ndim − …` axis: N from N×….

    PAG, Equation 2: ⟨v, u⟩ / max(‖v‖·‖u‖, ε), so zero where either vector is zero.
    """
    v, u = first.flatten(1), second.flatten(1)
    return (v * u).sum(1) / (v.norm(dim=1) * u.norm(dim=1)).clamp_min(eps)


def scores(logits: Tensor, of: Output) -> Tensor:
    """What is differentiated, N×C: the log-probabilities (PAG's code) or the logits themselves (its Equation 1)."""
    return logits.float().log_softmax(1) if of == "log_softmax" else logits.float()


def class_gradients(scores: Tensor, images: Tensor, classes: Sequence[int], *, create_graph: bool = False) -> list[Tensor]:
    """∇ₓ f(x)_t for each class t of `classes`, each shaped like `images`, from the `scores` N×C of one forward pass.

    `create_graph` makes them differentiable with respect to the weights. One vector-Jacobian product a class over the
    shared graph: `benchmarks/` compares it with one forward pass a class and with batched products.
    """
    last = len(classes) - 1
    return [
        torch.autograd.grad(
            scores[:, label].sum(), images, create_graph=create_graph, retain_graph=create_graph or position < last
        )[0]
        for position, label in enumerate(classes)
    ]


def input_gradients(model: nn.Module, images: Tensor, classes: Sequence[int], of: Output) -> list[Tensor]:
    """∇ₓ f(x)_t for each class, detached; the model is used in the mode it is in."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        return class_gradients(scores(model(leaf), of), leaf, classes)


def distance_to_boundary(model: nn.Module, points: Tensor, direction: Tensor, reach: float, step: float) -> Tensor:
    """How far each point N×… can move along ±`direction` (a unit vector) until the prediction changes, N.

    The nearer of the two ways, to within `step`; `reach` where nothing changes within it.
    """
    with torch.no_grad():
        before = model(points).argmax(1)
        nearest = torch.full((len(points),), reach)
        distances = torch.arange(step, reach, step)
        for sign in (1.0, -1.0):
            moves = sign * distances[:, None, None] * direction
            after = model((points + moves).flatten(0, 1)).argmax(1).view(len(distances), len(points))
            changed = after != before
            first = torch.where(changed.any(0), distances[changed.int().argmax(0)], reach)
            nearest = torch.minimum(nearest, first)
    return nearest
