"""Measures of alignment: input gradients, responses of layers to a perturbation, and decision boundaries."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import torch
from contourpy import contour_generator
from scipy import ndimage
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from paperlib.attacks import evaluating
from paperlib.runs.files import InputError

Output = Literal["log_softmax", "logit"]


def cosine(first: Tensor, second: Tensor, eps: float = 1e-8) -> Tensor:
    """Return the cosine between the vectors N×… of each image: shape N.

    The cosine is ⟨v, u⟩ / max(‖v‖·‖u‖, ε), as in PAG, Equation (2); it is zero if either vector is zero.
    """
    v, u = first.flatten(1), second.flatten(1)
    found: Tensor = (v * u).sum(1) / (v.norm(dim=1) * u.norm(dim=1)).clamp_min(eps)
    return found


def scores(logits: Tensor, of: Output) -> Tensor:
    """Return log-probabilities (PAG's code) or logits (its Equation 1), N×C, in single precision or better."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.log_softmax(1) if of == "log_softmax" else logits


def all_classes(images: Tensor, count: int) -> Tensor:
    """Return all `count` classes for each of N images: int64 N×count."""
    return torch.arange(count, device=images.device).expand(len(images), count)


def class_gradients(scores: Tensor, images: Tensor, classes: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return ∇ₓ f(x)_t of images N×… for each image's classes t, int64 N×K, from `scores` N×C of one forward pass: N×K×….

    `create_graph` makes them differentiable with respect to the weights. Each column of `classes` costs one vector-Jacobian
    product on the shared graph. `benchmarks/` compares this with one forward pass per class and with batched products.
    """
    last = classes.shape[1] - 1
    columns = [
        torch.autograd.grad(column.sum(), images, create_graph=create_graph, retain_graph=create_graph or place < last)[0]
        for place, column in enumerate(scores.gather(1, classes).unbind(1))
    ]
    return torch.stack(columns, 1)


def input_gradients(model: nn.Module, images: Tensor, classes: Tensor, of: Output) -> Tensor:
    """Return ∇ₓ f(x)_t of images N×… for each image's classes t, int64 N×K: N×K×…, detached. The mode is not changed."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        return class_gradients(scores(model(leaf), of), leaf, classes)


def distance_to_boundary(model: nn.Module, points: Tensor, direction: Tensor, reach: float, step: float) -> Tensor:
    """Return the distance from each point N×… along ±`direction` (a unit vector) to the first change of prediction: N.

    The distance is the smaller of both signs, to within `step`; `reach` if the prediction does not change before.
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


# Response of layers (RAAT, Definition 1) -----------------------------------------------------------------------------


def _submodules(model: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """Return all submodules by name. Raises InputError if a name in `layers` is not among them."""
    known = dict(model.named_modules())
    if unknown := [name for name in layers if name not in known]:
        raise InputError(f"no layer {unknown[0]!r} in the model; there are {', '.join(filter(None, known))}")
    return known


@contextmanager
def _hooked(handles: Sequence[RemovableHandle], layers: Sequence[str], found: Mapping[str, Tensor]) -> Iterator[None]:
    """Remove the hooks at the end of the context. Raises InputError if `found` lacks one of the layers then."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if missed := [name for name in layers if name not in found]:
        raise InputError(f"layer {missed[0]!r} took no part in the forward pass")


@contextmanager
def layer_outputs(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named submodules, by name, in forward passes within the context.

    Raises InputError if there is no submodule of a name, or if no forward pass reached it.
    """
    known = _submodules(model, layers)
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.update({name: output})

    with _hooked([known[name].register_forward_hook(keep(name)) for name in layers], layers, found):
        yield found


@contextmanager
def layer_inputs(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the inputs of the named submodules, by name, in forward passes within the context.

    A submodule gets a copy of its input, so its in-place operations do not change the collected input. Raises InputError if
    there is no submodule of a name, if no forward pass reached it, or if another module overwrote an input in place.
    """
    known = _submodules(model, layers)
    found: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def keep(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            found[name], versions[name] = inputs[0], inputs[0]._version
            return (inputs[0].clone(), *inputs[1:])

        return hook

    with _hooked([known[name].register_forward_pre_hook(keep(name)) for name in layers], layers, found):
        yield found
    if spoilt := [name for name in layers if found[name]._version != versions[name]]:
        raise InputError(f"the input of layer {spoilt[0]!r} is overwritten in place by another; use inplace=False there")


def weighted_layers(model: nn.Module, images: Tensor) -> list[str]:
    """Return the names of the linear and convolutional submodules, in the order of a forward pass of images N×…."""
    order: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: order.append(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


def nonlinear_layers(model: nn.Module) -> list[str]:
    """Return the names of the top-level submodules to compare outputs of: activations, blocks and the linear head."""
    return [name for name, child in model.named_children() if isinstance(child, (nn.ReLU, nn.Sequential, nn.Linear))]


@torch.no_grad()
def alignment_defect(
    model: nn.Module, images: Tensor, adversarial: Tensor, layers: Sequence[str], rates: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return each layer's defect of Robust Alignment (RAAT, Definition 1) from images N×… to x + Δ, and its scale: two L×N.

    The defect is the mean over the rates μ of ‖h(x + μΔ) − h(x) − μ (h(x + Δ) − h(x))‖, zero for a linear response. The
    scale is ‖h(x + Δ) − h(x)‖.
    """
    clean, full = (_outputs(model, points, layers) for points in (images, adversarial))
    moved = [(h_full - h).flatten(1) for h, h_full in zip(clean, full, strict=True)]
    total = torch.zeros(len(layers), len(images), device=images.device, dtype=images.dtype)
    for rate in rates:
        between = _outputs(model, images + rate * (adversarial - images), layers)
        for row, (h, h_rate) in enumerate(zip(clean, between, strict=True)):
            # RAAT, Definition 1: h(x + μΔ) − h(x) = μ (h(x′) − h(x)); here: the norm of the difference
            total[row] += ((h_rate - h).flatten(1) - rate * moved[row]).norm(dim=1)
    return total / len(rates), torch.stack([change.norm(dim=1) for change in moved])


def _outputs(model: nn.Module, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
    """Return the layers' outputs for these images, in the order of `layers`."""
    with layer_outputs(model, layers) as found:
        model(images)
    return [found[name] for name in layers]


# Decision regions in the plane ---------------------------------------------------------------------------------------


@torch.no_grad()
def decision_plane(model: nn.Module, resolution: int) -> np.ndarray:
    """Return z_1 − z_0 of a classifier of 2-D points on a grid over [0,1]², rows along x₂; positive means class 1."""
    axis = torch.linspace(0, 1, resolution, device=next(model.parameters()).device)
    x2, x1 = torch.meshgrid(axis, axis, indexing="ij")
    logits = model(torch.stack([x1, x2], -1).view(-1, 2))
    found: np.ndarray = (logits[:, 1] - logits[:, 0]).view(resolution, resolution).cpu().numpy()
    return found


def fragmentation(plane: np.ndarray) -> tuple[int, float]:
    """Return the number of connected regions of one sign on a square plane over [0,1]², and their boundary's length."""
    regions = sum(int(ndimage.label(side)[1]) for side in (plane > 0, plane <= 0))
    axis = np.linspace(0, 1, len(plane))
    lines = cast(list[np.ndarray], contour_generator(axis, axis, plane).lines(0.0))
    return regions, float(sum(np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in lines))
