"""Defences that hide the gradient, planted on trained classifiers of images N×C×H×W in [0,1], each with a way around it.

Each function of DEFENCES takes a network and a second network. It returns the defended network and a stand-in for it, whose
gradient the adaptive attack follows (BPDA), averaged over several draws if the stand-in is random. The defences are of the
kinds that Athalye, Carlini & Wagner (2018) and Tramèr et al. (2020) found in published defences.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.io import decode_jpeg, encode_jpeg

Before, After = Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]
Pair = tuple[nn.Module, nn.Module]


class Planted(nn.Module):
    """A model with a function before its input and a function after its logits."""

    def __init__(self, model: nn.Module, before: Before | None = None, after: After | None = None) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x if self.before is None else self.before(x))
        return logits if self.after is None else self.after(logits, x)


class Backward(torch.autograd.Function):
    """The first value forward, and backward the changed gradient of the second: it contains no `detach` to bypass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, other: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, ctx.change(gradients[0]), None


def backward(value: Tensor, other: Tensor, change: Callable[[Tensor], Tensor] = lambda gradient: gradient) -> Tensor:
    answer: Tensor = Backward.apply(value, other, change)
    return answer


def without(function: Before) -> Before:
    """Return the function without a gradient, in a form that a bypass of `detach` does not find."""

    def through(x: Tensor) -> Tensor:
        with torch.no_grad():
            return function(x)

    return through


def straight(function: Before) -> Before:
    """Return the function with the identity's gradient."""
    return lambda x: backward(without(function)(x), x)


# Changes of the image ------------------------------------------------------------------------------------------------


def rounded(levels: int) -> Before:
    return lambda x: (x * (levels - 1)).round() / (levels - 1)


def thermometer(levels: int) -> Before:
    return lambda x: torch.stack([(x > (one + 0.5) / levels).to(x) for one in range(levels)]).mean(0)


def median(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(-1).values


def blurred(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def jpeg(quality: int) -> Before:
    def through(x: Tensor) -> Tensor:
        bytes_ = (255 * x.detach().clamp(0, 1)).round().to(torch.uint8).cpu()
        return torch.stack([decode_jpeg(encode_jpeg(one, quality)) for one in bytes_]).to(x) / 255

    return through


def resized(x: Tensor) -> Tensor:
    """Resize images to a random size and pad them at a random place."""
    size = x.shape[-1]
    small = int(torch.randint(size * 3 // 4, size, ()))
    left, top = (int(torch.randint(size - small + 1, ())) for _ in range(2))
    scaled = F.interpolate(x, (small, small), mode="bilinear", antialias=True)
    return F.pad(scaled, (left, size - small - left, top, size - small - top), value=0.5)


def shifted(x: Tensor) -> Tensor:
    moves = tuple(int(torch.randint(-4, 5, ())) for _ in range(2))
    return torch.roll(x, moves, (2, 3))


def deflected(x: Tensor) -> Tensor:
    """Replace a fifth of the pixels by a neighbour (Prakash et al. 2018)."""
    place = torch.rand_like(x[:, :1]) < 0.2
    return torch.where(place, torch.roll(x, (int(torch.randint(-2, 3, ())), int(torch.randint(-2, 3, ()))), (2, 3)), x)


def noisy(deviation: float) -> Before:
    return lambda x: x + deviation * torch.randn_like(x)


def hashed_noise(deviation: float) -> Before:
    """Return a function that adds noise seeded by a hash of the image."""

    def through(x: Tensor) -> Tensor:
        drawn = []
        for one in x.detach().cpu():
            seed = int.from_bytes(hashlib.sha256(one.numpy().tobytes()).digest()[:7], "big")
            drawn.append(torch.randn(one.shape, generator=torch.Generator().manual_seed(seed)))
        return x + deviation * torch.stack(drawn).to(x)

    return through


def wave(height: float, frequency: float) -> Before:
    return lambda x: x + height * torch.sin(frequency * x)


# Defended networks, and their stand-ins ------------------------------------------------------------------------------


def preprocessed(before: Before, differentiable: Before | None = None) -> Callable[..., Pair]:
    """Return a defence that changes the image; its stand-in has no change or a differentiable one."""
    return lambda model, other: (Planted(model, before), Planted(model, differentiable))


def answered(after: After) -> Callable[..., Pair]:
    """Return a defence that changes the logits but not the prediction; the stand-in is the network."""
    return lambda model, other: (Planted(model, after=after), model)


def changed_gradient(change: Callable[[Tensor], Tensor]) -> Callable[..., Pair]:
    """Return a defence that changes the image's gradient in the backward pass."""
    return lambda model, other: (Planted(model, lambda x: backward(x.detach(), x, change)), model)


def foreign(model: nn.Module, other: nn.Module) -> Pair:
    """Return a network with the gradient of another network in the backward pass."""
    return Planted(model, after=lambda logits, x: backward(logits.detach(), other(x))), model


def foreign_linear(model: nn.Module, other: nn.Module) -> Pair:
    """Return a network with logits of the detached image plus a faint random linear map, the only source of a gradient."""

    def added(logits: Tensor, x: Tensor) -> Tensor:
        drawn = torch.randn(logits.shape[1], x[0].numel(), generator=torch.Generator().manual_seed(0))
        return logits + 1e-3 * x.flatten(1) @ (drawn / x[0].numel() ** 0.5).to(x).T

    return Planted(model, Tensor.detach, added), model


class Detached(nn.Module):
    """A sequential network in which only one of eight channels after the first convolution passes a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = model

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers.children()):
            x = layer(x)
            if number == 3:  # normalisation, convolution, batch norm, ReLU
                kept = x.shape[1] // 8
                x = torch.cat([x[:, :kept], without(torch.clone)(x[:, kept:])], 1)
        return x


def channels_detached(model: nn.Module, other: nn.Module) -> Pair:
    return Detached(model), model


def colours_detached(model: nn.Module, other: nn.Module) -> Pair:
    """Return a network in which two of the three colours pass no gradient."""
    return Planted(model, lambda x: torch.cat([x[:, :1], without(torch.clone)(x[:, 1:])], 1)), model


class Several(nn.Module):
    """The mean of two networks, or at each call one of them at random."""

    def __init__(self, model: nn.Module, other: nn.Module, mean: bool) -> None:
        super().__init__()
        self.models, self.mean = nn.ModuleList([model, other]), mean

    def forward(self, x: Tensor) -> Tensor:
        if self.mean:
            return torch.stack([one(x).log_softmax(1) for one in self.models]).mean(0)
        answer: Tensor = self.models[int(torch.randint(2, ()))](x).log_softmax(1)
        return answer


def picked(model: nn.Module, other: nn.Module) -> Pair:
    return Several(model, other, mean=False), Several(model, other, mean=True)


class Copies(nn.Module):
    """The mean of the logits or votes on noisy copies of the image."""

    def __init__(self, model: nn.Module, deviation: float, count: int, votes: bool = False) -> None:
        super().__init__()
        self.model, self.deviation, self.count, self.votes = model, deviation, count, votes

    def forward(self, x: Tensor) -> Tensor:
        logits = [self.model(x + self.deviation * torch.randn_like(x)) for _ in range(self.count)]
        if self.votes:
            return torch.stack([F.one_hot(one.argmax(1), one.shape[1]).to(one) for one in logits]).mean(0)
        return torch.stack(logits).mean(0)


def vote(model: nn.Module, other: nn.Module) -> Pair:
    return Copies(model, 0.03, 15, votes=True), Copies(model, 0.03, 5)


def mean_of_copies(model: nn.Module, other: nn.Module) -> Pair:
    return Copies(model, 0.03, 5), Copies(model, 0.03, 5)


class Dropped(nn.Module):
    """A sequential network with dropout after its first convolution, also at test time."""

    def __init__(self, model: nn.Module, share: float) -> None:
        super().__init__()
        self.layers, self.share = model, share

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers.children()):
            x = layer(x)
            if number == 3:
                x = F.dropout(x, self.share, training=True)
        return x


def dropped(model: nn.Module, other: nn.Module) -> Pair:
    return Dropped(model, 0.3), Dropped(model, 0.3)


def one_hot(logits: Tensor, x: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits)


def plateau(logits: Tensor, x: Tensor) -> Tensor:
    """Saturate the margin, so that there is hardly a gradient away from the boundary."""
    return torch.tanh(5 * (logits - logits.amax(1, keepdim=True))) + 1e-6 * logits


def mask(gradient: Tensor) -> Tensor:
    """Keep the gradient of a tenth of the pixels."""
    kept = torch.rand(gradient.shape[1:], generator=torch.Generator().manual_seed(0)) < 0.1
    return gradient * kept.to(gradient)


def with_noise(gradient: Tensor) -> Tensor:
    deviation = gradient.flatten(1).std(1).view(-1, 1, 1, 1)
    return gradient + 5 * deviation * torch.randn_like(gradient)


DEFENCES: dict[str, Callable[[nn.Module, nn.Module], Pair]] = {
    # without a gradient
    "rounded to 8 levels": preprocessed(without(rounded(8))),
    "rounded to 16 levels in PyTorch": preprocessed(rounded(16)),
    "JPEG": preprocessed(without(jpeg(60))),
    "median": preprocessed(without(median), median),
    "blur": preprocessed(without(blurred), blurred),
    "thermometer": preprocessed(thermometer(12)),
    "rounded logits": answered(lambda logits, x: without(lambda z: (z * 4).round() / 4 + 1e-3 * z)(logits)),
    "one-hot answers": answered(one_hot),
    "vote of noisy copies": vote,
    # another gradient
    "straight through 8 levels": preprocessed(straight(rounded(8)), noisy(0.07)),
    "straight through 5 levels": preprocessed(straight(rounded(5)), noisy(0.1)),
    "straight through JPEG": preprocessed(straight(jpeg(40)), noisy(0.02)),
    "straight through a median": preprocessed(straight(median), median),
    "another network's": foreign,
    "a random linear map's": foreign_linear,
    "two colours detached": colours_detached,
    "most channels detached": channels_detached,
    "wrong sign": changed_gradient(torch.neg),
    "noise on it": changed_gradient(with_noise),
    "a tenth of the pixels": changed_gradient(mask),
    "shifted by 2 pixels": changed_gradient(lambda gradient: torch.roll(gradient, (2, 2), (2, 3))),
    # too rough or too small a gradient
    "fine wave": preprocessed(wave(0.01, 2000.0)),
    "coarse wave": preprocessed(wave(0.02, 700.0)),
    "noise by a hash": preprocessed(hashed_noise(0.04), noisy(0.04)),
    "logits times 1000": answered(lambda logits, x: 1000 * logits),
    "distilled at 50": answered(lambda logits, x: 50 * logits),
    "probabilities": answered(lambda logits, x: (20 * logits).softmax(1)),
    "plateau of the margin": answered(plateau),
    # at random
    "noise": preprocessed(noisy(0.05), noisy(0.05)),
    "resize and pad": preprocessed(resized, resized),
    "shift": preprocessed(shifted, shifted),
    "pixel deflection": preprocessed(deflected, deflected),
    "dropout": dropped,
    "mean of noisy copies": mean_of_copies,
    "networks at random": picked,
    "noise on 8 levels": preprocessed(lambda x: without(rounded(8))(x + 0.03 * torch.randn_like(x)), noisy(0.05)),
}  # fmt: skip
