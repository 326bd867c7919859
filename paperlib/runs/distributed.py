"""Collectives between the processes that run the same notebook, one for each device.

`paperlib run … -p devices=2` starts them (`launch.py`). All processes must call the functions below in the same order, so
branches around a call must depend on values from `agreed`. A single process communicates with no other.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

STARTED = "PAPERLIB_DEVICES"  # environment variable: the number of processes
MEETING = "PAPERLIB_MEETING"  # environment variable: the file of the rendezvous
# Timeout of a collective: the first process may work alone for hours, and `launch` notices a dead process earlier.
PATIENCE = timedelta(days=7)
Value = TypeVar("Value")


def expected() -> int:
    """Return the number of processes that `launch` started together; 1 without `launch`."""
    return int(os.environ.get(STARTED, "1"))


def join() -> None:
    """Join the process group that `launch` started. Does nothing for a single process, or when called again.

    NCCL is used only where this process sees a GPU; `cli` hides GPUs from runs on the CPU.
    """
    if expected() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        file, number = os.environ[MEETING], int(os.environ["LOCAL_RANK"])
        dist.init_process_group(backend, f"file://{file}", timeout=PATIENCE, rank=number, world_size=expected())


def world() -> int:
    """Return the number of processes in the group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors, in place, with those of the first process."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def everyones(value: Value) -> list[Value]:
    """Return the `value` of each process, in order of rank. Waits for all processes."""
    if world() == 1:
        return [value]
    said: list[Any] = [None] * world()
    dist.all_gather_object(said, value)
    return said


def agreed(value: Value) -> Value:
    """Return the `value` of the first process. Waits for all processes."""
    return everyones(value)[0]


def united(values: Iterable[Value]) -> list[Value]:
    """Return the distinct values of all processes, in order of rank. Waits for all processes."""
    return list(dict.fromkeys(one for said in everyones(list(values)) for one in said))


def shared(places: Sequence[int], work: Callable[[int], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Divide the places among the processes, and return the result of `work` at each, on the CPU, in every process."""
    mine = [{name: found.detach().cpu() for name, found in work(place).items()} for place in places[rank() :: world()]]
    if world() > 1:  # a view would be sent with its whole storage
        mine = [{name: found.clone() for name, found in part.items()} for part in mine]
    by_rank = everyones(mine)
    return [by_rank[index % world()][index // world()] for index in range(len(places))]


def total(*counts: float) -> list[float]:
    """Return the sum of each count over all processes."""
    if world() == 1:
        return list(counts)
    sums = torch.tensor(counts, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def overall(values: Tensor, size: int) -> Tensor:
    """Return the mean of `values` over all processes, weighted by the `size` of each process's part of the batch."""
    if world() == 1:
        return values
    mine = values.detach().double().flatten()
    sums = torch.cat([mine * size, mine.new_full((1,), size)])
    dist.all_reduce(sums)
    return (sums[:-1] / sums[-1]).view(values.shape).to(values.dtype)


def part_mean(values: Tensor, count: int, size: int) -> Tensor:
    """Return this process's part of a mean over some images of a batch; zero if no process has any of them.

    `values` has `count` entries, for some of this process's `size` images. The later average over processes, weighted by
    `size`, of these parts is the mean over the whole batch.
    """
    counts, sizes = total(count, size)
    return values.sum() * (sizes / size) / max(counts, 1)


def summed(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes. Differentiable to any order if all processes take part."""
    found: Tensor = tensor if world() == 1 else _Sum.apply(tensor)
    return found


class _Sum(torch.autograd.Function):
    """All-reduce whose backward pass is also an all-reduce."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        result = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        found: Tensor = _Sum.apply(gradient)
        return found


def handed_out(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the first process, on the CPU, in every process."""
    return shared([0], lambda _: tensors)[0]
