"""Random seeds of a training step, and the mean gradient of a batch that is split among processes."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from paperlib.methods import Batch, Method, Step
from paperlib.runs import distributed


def computes_in_bf16(device: torch.device | str) -> bool:
    """Return whether the device has bfloat16 instructions; without them a CPU is twenty times slower in bfloat16."""
    if torch.device(device).type != "cpu":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def draw_from(seed: int) -> None:
    """Seed the global generators. Without CUDA, `torch.manual_seed` is slow: it formats a stack trace at each call."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def mix(seed: int, epoch: int, index: int, rank: int = 0) -> int:
    """Return a 63-bit seed for a run seed, epoch, step and process rank; large odd factors keep the seeds distinct."""
    mixed = seed * 0x9E3779B97F4A7C15 + (epoch + 1) * 0xBF58476D1CE4E5B9 + (index + 3) * 0x94D049BB133111EB
    return (mixed + rank * 0xD6E8FEB86659FD93) % 2**63


def over_devices(model: nn.Module, method: Method) -> nn.Module:
    """Wrap the method's loss as a module of batch and step. Its gradients are averaged over all processes.

    Each process keeps its own batch-norm buffers until `distributed.broadcast` overwrites them.
    """
    objective = _Objective(model, method)
    if distributed.world() == 1:
        return objective
    with warnings.catch_warnings():  # newer PyTorch versions rename an argument
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(objective, broadcast_buffers=False)


def backward(total: Tensor, size: int, whole: int) -> None:
    """Backpropagate this process's mean loss over `size` of the batch's `whole` images, for the batch's mean gradient."""
    (total * (size * distributed.world() / whole)).backward()


class _Objective(nn.Module):
    """A method's loss as the forward pass of a module, so that DistributedDataParallel can wrap it."""

    def __init__(self, model: nn.Module, method: Method) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        return self.method.loss(self.model, batch, step)
