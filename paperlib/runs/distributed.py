"""Several processes that run the same notebook, one for each device, and the collectives between them.

`paperlib run … -p devices=2` starts them (`launch.py`). All of them must call the functions below in the same order, so
what decides the order must be agreed on. A process that is alone sends nothing.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

STARTED = "PAPERLIB_DEVICES"  # environment variable: the number of processes
MEETING = "PAPERLIB_MEETING"  # environment variable: the file of their rendezvous
PATIENCE = timedelta(days=7)  # of a collective: `launch` notices a death, and the first process may work alone for hours
Value = TypeVar("Value")


def expected() -> int:
    """The number of processes that `launch` started together; 1 without it."""
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
    """The number of processes in the group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with those of the first process."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def everyones(value: Value) -> list[Value]:
    """The `value` of each process, in order of rank. Waits for all processes."""
    if world() == 1:
        return [value]
    said: list[Any] = [None] * world()
    dist.all_gather_object(said, value)
    return said


def agreed(value: Value) -> Value:
    """The `value` of the first process. Waits for all processes."""
    return everyones(value)[0]


def united(values: Iterable[Value]) -> list[Value]:
    """The values of all processes without repetitions, in order of rank. Waits for all processes."""
    return list(dict.fromkeys(one for said in everyones(list(values)) for one in said))


def shared(places: Sequence[int], work: Callable[[int], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The result of `work` at each place, on the CPU, in every process. The places are divided among the processes."""
    mine = [{name: found.detach().cpu() for name, found in work(place).items()} for place in places[rank() :: world()]]
    if world() > 1:  # a view would be sent with all that it is a view of
        mine = [{name: found.clone() for name, found in part.items()} for part in mine]
    by_rank = everyones(mine)
    return [by_rank[index % world()][index // world()] for index in range(len(places))]


def total(*counts: float) -> list[float]:
    """The sum of each count over all processes."""
    if world() == 1:
        return list(counts)
    sums = torch.tensor(counts, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def overall(values: Tensor, size: int) -> Tensor:
    """The mean of `values` over all processes, weighted by the `size` of each process's part of the batch."""
    if world() == 1:
        return values
    mine = values.detach().double().flatten()
    sums = torch.cat([mine * size, mine.new_full((1,), size)])
    dist.all_reduce(sums)
    return (sums[:-1] / sums[-1]).view(values.shape).to(values.dtype)


def part_mean(values: Tensor, count: int, size: int) -> Tensor:
    """This process's part of a mean over some images of a batch; zero where no process has any.

    `values` has `count` entries, for some of this process's `size` images. Losses are later averaged over processes,
    weighted by `size`. So weighted, the parts add up to the mean over the whole batch.
    """
    counts, sizes = total(count, size)
    return values.sum() * (sizes / size) / max(counts, 1)


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, differentiable to any order if all processes take part."""
    found: Tensor = tensor if world() == 1 else _Sum.apply(tensor)
    return found


class _Sum(torch.autograd.Function):
    """All-reduce whose backward pass is an all-reduce."""

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
    """The tensors of the first process, on the CPU, in every process."""
    return shared([0], lambda _: tensors)[0]
