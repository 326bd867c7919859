"""A copy of a network on which attacks run faster: batch norm folded into the layers before it, channels last."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from paperlib.models.batchnorm import folded


@torch.no_grad()
def quick(model: nn.Module, images: Tensor, around: Callable[[nn.Module], nn.Module] | None = None) -> nn.Module:
    """Return a folded copy of a network in evaluation mode, or the network itself if nothing can be folded.

    `images` N×C×H×W in [0,1] test the copy: if its logits differ by more than rounding, the network itself is returned.
    `around` wraps a network in a model that returns logits; then the wrapped copy or the wrapped network is returned.
    """
    given = around(model) if around else model
    if (inner := folded(model)) is model:
        return given
    copy = around(inner) if around else inner
    logits = given(images)
    close = (copy(images) - logits).abs().max() <= 1e-3 * logits.abs().max()
    return copy.to(memory_format=torch.channels_last) if close else given
