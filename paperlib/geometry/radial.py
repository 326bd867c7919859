"""Radial and tangential directions (GFA), and attacks restricted to a cone around one of them."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from paperlib.attacks import Loss, Norm, ascent, attack_loss, each_image, margin, project
from paperlib.geometry import layer_inputs, weighted_layers
from paperlib.runs.files import InputError


def radial(model: nn.Module, images: Tensor) -> Tensor:
    """Return the unit direction N×… of ∇ₓ ½‖h‖², where h is the first layer's input: that of ±∇ₓL if ∇_h L ∥ h.

    It is the image's direction if the network does not normalise or has no linear or convolutional layer. For inputs mapped
    from [0,1] to [-1,1] it points away from grey.
    """
    names = weighted_layers(model, images[:1])[:1]
    if not names:
        return ascent(images, "l2")
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        with layer_inputs(model, names) as inputs:
            model(leaf)
        (direction,) = torch.autograd.grad(inputs[names[0]].square().sum() / 2, leaf)
    return ascent(direction, "l2")


def into_cone(perturbation: Tensor, axis: Tensor, around: Literal["radial", "tangential"], angle: float) -> Tensor:
    """Project perturbations N×… onto a cone, given one unit vector `axis` N×… for each image.

    "radial" limits the angle to the line along `axis` to `angle` degrees, "tangential" the angle to its orthogonal
    hyperplane.
    """
    flat, unit = perturbation.flatten(1), axis.flatten(1)
    radial = (flat * unit).sum(1, keepdim=True)
    # GFA, Abstract: δ = radial component + tangential component
    tangential = flat - radial * unit
    across = tangential.norm(dim=1, keepdim=True)
    # In the half-plane of (|radial|, across) the cone is a wedge; its edge is at the angle θ from the radial line.
    theta = math.radians(angle if around == "radial" else 90 - angle)
    along_edge = (radial.abs() * math.cos(theta) + across * math.sin(theta)).clamp_min(0)
    beyond = torch.atan2(across, radial.abs()) > theta if around == "radial" else torch.atan2(across, radial.abs()) < theta
    sign = torch.where(radial < 0, -1.0, 1.0)
    edge = math.cos(theta) * sign * unit + math.sin(theta) * tangential / across.clamp_min(1e-12)
    nearest = torch.where((across > 1e-12) | (theta == 0), along_edge * edge, 0.0)  # no tangential part: the cone's tip
    return torch.where(beyond, nearest, flat).view_as(perturbation)


def pgd_in_cone(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm = "l2",
    around: Literal["radial", "tangential"], angle: float, steps: int, step_size: float, loss: Loss = "margin",
) -> Tensor:  # fmt: skip
    """Run PGD in L2 with the perturbation within `angle` degrees of the `radial` line, or of its orthogonal complement.

    GFA splits a perturbation into a radial and a tangential part. "radial" with 0 moves only along the radial direction,
    "tangential" with 0 only orthogonally; 90 is no constraint. There are two random starts, one in each half-space; the
    stronger result is kept for each image. Points may leave [0,1], because clamping would change the angle. Raises
    InputError for another norm or an angle outside 0 … 90.
    """
    if norm != "l2":
        raise InputError(f"pgd_in_cone with norm = {norm!r}: angles are those of l2")
    if not 0 <= angle <= 90:
        raise InputError(f"angle = {angle:g} degrees; choose from 0 to 90")
    axis = radial(model, images)

    def allowed(gradient: Tensor) -> Tensor:
        """Return the component of the gradient that a cone of angle 0 allows; the projection would remove the rest."""
        along = each_image((gradient * axis).flatten(1).sum(1), images) * axis
        return gradient if angle > 0 else along if around == "radial" else gradient - along

    best, reached = images, torch.full((len(images),), -torch.inf, device=images.device)
    for side in (1, -1):
        noise = torch.randn_like(images)
        along = each_image((noise * axis).flatten(1).sum(1), images)
        change = eps * ascent(into_cone(noise + (side * along.abs() - along) * axis, axis, around, angle), norm)
        for _ in range(steps):
            current = (images + change).detach().requires_grad_(True)
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(attack_loss(model(current), labels, loss).sum(), current)
            moved = change + step_size * ascent(allowed(gradient), norm)
            change = project(into_cone(moved, axis, around, angle), eps, norm)
        with torch.no_grad():
            strength = margin(model(images + change), labels)
        better = strength > reached
        best = torch.where(each_image(better, images), images + change, best)
        reached = reached.maximum(strength)
    return best
