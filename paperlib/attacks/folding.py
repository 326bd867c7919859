"""A copy of a network that attacks run faster on: batch norm folded into the layers before it, channels last."""

import torch
from torch import Tensor, nn

from paperlib.models.batchnorm import folded


def quick(model: nn.Module, images: Tensor) -> nn.Module:
    """The copy of a network in evaluation mode; the network itself where nothing can be folded or `same` says no.

    `images` are some N×C×H×W in [0,1].
    """
    copy = folded(model)
    return model if copy is model else same(model, copy, images)


@torch.no_grad()
def same(model: nn.Module, copy: nn.Module, images: Tensor) -> nn.Module:
    """The folded copy, if its logits of the images are the network's but for rounding; else the network."""
    logits = model(images)
    close = (copy(images) - logits).abs().max() <= 1e-3 * logits.abs().max()
    return copy.to(memory_format=torch.channels_last) if close else model
