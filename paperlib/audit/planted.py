"""Defences that only hide the gradient, planted on a model to see whether an audit sees them.

Each takes a classifier of images N×C×H×W in [0,1] and returns one with (nearly) the same answers, whose gradients mislead.
They are of the kinds that Athalye, Carlini & Wagner (2018) found in published defences.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Planted(nn.Module):
    """A model behind a change of its input, and before one of its logits."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x if self.before is None else self.before(x))
        return logits if self.after is None else self.after(logits, x)


def scaled_logits(model: nn.Module, factor: float = 1000.0) -> nn.Module:
    """Logits times `factor`: the cross-entropy of single precision has no gradient left (Carlini & Wagner 2017)."""
    return Planted(model, after=lambda logits, x: factor * logits)


def quantised_input(model: nn.Module, levels: int = 8) -> nn.Module:
    """Pixels rounded to `levels` values, whose derivative is zero everywhere."""
    return Planted(model, before=lambda x: (x * (levels - 1)).round() / (levels - 1))


def shattered_gradient(model: nn.Module, height: float = 0.01, frequency: float = 2000.0) -> nn.Module:
    """A fast wave of small `height` on every pixel: the image hardly changes, its gradient turns every few thousandths."""
    return Planted(model, before=lambda x: x + height * torch.sin(frequency * x))


def random_input(model: nn.Module, deviation: float = 0.05) -> nn.Module:
    """Normal noise on the input, drawn anew at each call."""
    return Planted(model, before=lambda x: x + deviation * torch.randn_like(x))


def blurred_copy(model: nn.Module) -> nn.Module:
    """A 3×3 median of each pixel's neighbourhood in place of the image, outside of the graph: no gradient at all."""

    def median(x: Tensor) -> Tensor:
        padded = F.pad(x.detach(), (1, 1, 1, 1), mode="replicate")
        return padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(-1).values

    return Planted(model, before=median)


def decoy_gradient(model: nn.Module, size: float = 1e-3) -> nn.Module:
    """Logits of a detached image, and a faint random linear map of the image, which alone has a gradient."""
    maps: dict[tuple[int, int], Tensor] = {}

    def added(logits: Tensor, x: Tensor) -> Tensor:
        shape = logits.shape[1], x[0].numel()
        if shape not in maps:
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            maps[shape] = drawn / shape[1] ** 0.5
        return logits + size * x.flatten(1) @ maps[shape].to(x.device).T

    return Planted(model, before=Tensor.detach, after=added)


DEFECTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "scaled logits": scaled_logits,
    "quantised input": quantised_input,
    "shattered gradient": shattered_gradient,
    "randomised input": random_input,
    "non-differentiable preprocessing": blurred_copy,
    "detached gradient": decoy_gradient,
}
