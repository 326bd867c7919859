"""Random crops and flips as one indexing operation, through which gradients reach the un-augmented image."""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(images: Tensor, padding: int, fill: float | str, flip: bool) -> Tensor:
    """Pad images N×C×H×W by `padding` pixels, crop H×W at a random place, and mirror each with probability 1/2.

    The padding has the value `fill`, or mirrors the image where `fill` is "reflect". Each image and each call draws its own
    crop and flip from the global generator. Differentiable.
    """
    if not padding and not flip:
        return images
    count, _, height, width = images.shape
    device = images.device
    shifts = torch.randint(0, 2 * padding + 1, (2, count, 1), device=device)
    rows = shifts[0] + torch.arange(height, device=device)
    columns = shifts[1] + torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand(count, 1, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    border = {"mode": "reflect"} if fill == "reflect" else {"value": fill}
    padded = F.pad(images, (padding,) * 4, **border) if padding else images
    picked = padded[torch.arange(count, device=device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # the memory layout is channels-last at no cost
