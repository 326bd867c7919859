"""A step on one device or several: where random numbers come from, and the mean gradient of a batch in parts."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from paperlib.methods import Batch, Method, Step
from paperlib.runs import distributed


def computes_in_bf16(device: torch.device | str) -> bool:
    """Whether the device has instructions for bfloat16: a processor without them takes twenty times as long in it."""
    if torch.device(device).type != "cpu":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def draw_from(seed: int) -> None:
    """Seed the global generators; `torch.manual_seed` formats a stack trace each time where CUDA is not in use."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def mix(seed: int, epoch: int, index: int, rank: int = 0) -> int:
    """A seed of 63 bits for one process's step of one epoch: large odd factors keep the four apart."""
    mixed = seed * 0x9E3779B97F4A7C15 + (epoch + 1) * 0xBF58476D1CE4E5B9 + (index + 3) * 0x94D049BB133111EB
    return (mixed + rank * 0xD6E8FEB86659FD93) % 2**63


def over_devices(model: nn.Module, method: Method) -> nn.Module:
    """The method's loss as a module of batch and step, whose gradients are the mean over all processes.

    Batch norm's buffers stay each process's own until `distributed.broadcast` brings them together.
    """
    objective = _Objective(model, method)
    if distributed.world() == 1:
        return objective
    with warnings.catch_warnings():  # newer versions have another name for the same
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(objective, broadcast_buffers=False)


def backward(total: Tensor, size: int, whole: int) -> None:
    """Back from the mean loss of `size` images, this process's part of a batch of `whole`, to the batch's mean gradient."""
    (total * (size * distributed.world() / whole)).backward()


class _Objective(nn.Module):
    """A method's loss as the forward pass that DistributedDataParallel wraps; the method sees the network itself."""

    def __init__(self, model: nn.Module, method: Method) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        return self.method.loss(self.model, batch, step)
