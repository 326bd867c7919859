"""One image under one attack: perturbation, gradient, saliency map, and the loss and margin around the image."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.attacks import Loss, Norm, ascent, attack_loss, evaluating, margin, training_pgd
from paperlib.data import chunk_size
from paperlib.geometry.saliency import saliency

TOGETHER = 500  # most points around the image in one forward pass


@dataclass(frozen=True)
class CloseUp:
    """Measures of an image C×H×W and its adversarial image; in tensors of two, the clean image is first."""

    images: Tensor  # in [0,1]: 2×C×H×W
    gradient: Tensor  # ∇ₓL at the clean image: C×H×W
    logits: Tensor  # 2×classes
    looked: str  # "attention" or "Grad-CAM" (of the true class); "" if the network has no map
    saliency: Tensor | None  # at least 0: 2×h×w
    shares: Tensor  # factors on the perturbation δ, from 0 to 1: P
    margins: Tensor  # at x + share · δ, positive where misclassified: P
    axis: Tensor  # coordinates along either axis of the plane: R
    losses: Tensor  # L at x + axis[j] · δ + axis[i] · u, where u is random of length ε: R×R
    plane_margins: Tensor  # margins at the same points: R×R


def close_up(
    model: nn.Module, image: Tensor, label: int, *, eps: float, norm: Norm, loss: Loss, steps: int, seed: int = 0,
    points: int = 21, resolution: int = 11, reach: float = 1.5,
) -> CloseUp:  # fmt: skip
    """Attack an image C×H×W in [0,1] by PGD from a random start, and measure the loss and margin around it.

    The plane's second direction is random: a sign for each value (linf), or normal (l2). Points of the plane may leave
    [0,1]. The same seed gives the same result. The model's mode and the global random state are restored.
    """
    images, labels = image[None], torch.tensor([label], device=image.device)
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        adversarial = training_pgd(eps=eps, norm=norm, steps=steps, loss=loss)(model, images, labels)
        across = eps * ascent(torch.randn_like(images), norm)
        pair, change = torch.cat([images, adversarial]), adversarial - images
        shares = torch.linspace(0, 1, points, device=image.device, dtype=image.dtype)
        axis = torch.linspace(-reach, reach, resolution, device=image.device, dtype=image.dtype)
        b, a = torch.meshgrid(axis, axis, indexing="ij")
        plane = logits_at(model, images, [(change, a.flatten()), (across, b.flatten())])
        on_path = logits_at(model, images, [(change, shares)])
        with torch.no_grad():
            logits = model(pair)
        looked, map_ = saliency(model, pair, labels.expand(2)) or ("", None)
        everywhere = labels.expand(len(plane))
        return CloseUp(
            images=pair, gradient=loss_gradient(model, images, labels, loss)[0], logits=logits,
            looked=looked, saliency=map_, shares=shares, margins=margin(on_path, labels.expand(points)),
            axis=axis, losses=attack_loss(plane, everywhere, loss).view_as(a),
            plane_margins=margin(plane, everywhere).view_as(a),
        )  # fmt: skip


def loss_gradient(model: nn.Module, images: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """Return ∇ₓL of an attack's loss at images N×…, in their shape and detached. The model's mode is not changed."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        (found,) = torch.autograd.grad(attack_loss(model(leaf), labels, loss).sum(), leaf)
    return found


@torch.no_grad()
def logits_at(model: nn.Module, image: Tensor, ways: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return logits M×classes at M points: the image 1×… moved along each direction 1×… by its M distances."""
    together = chunk_size(image, TOGETHER)
    parts = zip(*(distances.split(together) for _, distances in ways), strict=True)
    moves = (
        sum(distances.view(-1, *[1] * (image.ndim - 1)) * way for (way, _), distances in zip(ways, part, strict=True))
        for part in parts
    )
    return torch.cat([model(image + move) for move in moves])
