"""A copy of a network that attacks run faster on: batch norm folded into the layers before it, channels last."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from paperlib.models.batchnorm import folded


@torch.no_grad()
def quick(model: nn.Module, images: Tensor, around: Callable[[nn.Module], nn.Module] | None = None) -> nn.Module:
    """The copy of a network in evaluation mode, or the network itself where nothing can be folded.

    `images` are some N×C×H×W in [0,1]: where the copy's logits of them are not the network's but for rounding, it is the
    network itself, too. `around` makes a model of logits of either, which is returned then.
    """
    given = around(model) if around else model
    if (inner := folded(model)) is model:
        return given
    copy = around(inner) if around else inner
    logits = given(images)
    close = (copy(images) - logits).abs().max() <= 1e-3 * logits.abs().max()
    return copy.to(memory_format=torch.channels_last) if close else given
