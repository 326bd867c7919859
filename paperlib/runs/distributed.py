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

STARTED = "PAPERLIB_DEVICES"  # the variable that says how many processes were started
MEETING = "PAPERLIB_MEETING"  # and that which names the file through which they find each other
PATIENCE = timedelta(days=7)  # of a collective: who died is noticed otherwise, and some parts are one process's alone
Value = TypeVar("Value")


def expected() -> int:
    """How many processes `launch` started together, this one among them; 1 for a process that is alone."""
    return int(os.environ.get(STARTED, "1"))


def join() -> None:
    """Join the others that `launch` started; nothing where there are none, or where it is done.

    GPUs talk to each other only where this process sees one: see `cli`, which hides them from runs on the processor.
    """
    if expected() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        file, number = os.environ[MEETING], int(os.environ["LOCAL_RANK"])
        dist.init_process_group(backend, f"file://{file}", timeout=PATIENCE, rank=number, world_size=expected())


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Make them what they are in the first process."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def everyones(value: Value) -> list[Value]:
    """What each process says here, in order of rank."""
    if world() == 1:
        return [value]
    said: list[Any] = [None] * world()
    dist.all_gather_object(said, value)
    return said


def agreed(value: Value) -> Value:
    """What the first process says here, when all have come here."""
    return everyones(value)[0]


def united(values: Iterable[Value]) -> list[Value]:
    """All that any process says here, each once, in order of first mention."""
    return list(dict.fromkeys(one for said in everyones(list(values)) for one in said))


def shared(places: Sequence[int], work: Callable[[int], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What `work` finds at each place, each done by one of the processes: in order, on the CPU, in every process."""
    mine = [{name: found.detach().cpu() for name, found in work(place).items()} for place in places[rank() :: world()]]
    if world() > 1:  # a view would be sent with all that it is a view of
        mine = [{name: found.clone() for name, found in part.items()} for part in mine]
    by_rank = everyones(mine)
    return [by_rank[index % world()][index // world()] for index in range(len(places))]


def total(*counts: float) -> list[float]:
    """Each count's sum over all processes."""
    if world() == 1:
        return list(counts)
    sums = torch.tensor(counts, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def overall(values: Tensor, size: int) -> Tensor:
    """The mean of all processes' `values`, tensors of one shape, each weighed by the `size` of its part of the batch."""
    if world() == 1:
        return values
    mine = values.detach().double().flatten()
    sums = torch.cat([mine * size, mine.new_full((1,), size)])
    dist.all_reduce(sums)
    return (sums[:-1] / sums[-1]).view(values.shape).to(values.dtype)


def part_mean(values: Tensor, count: int, size: int) -> Tensor:
    """The mean over those images of a batch that have a value: here `count` of this process's `size`. Zero where none has.

    Processes weigh their losses by the sizes of their parts of the batch; so weighed, this is the whole batch's mean.
    """
    counts, sizes = total(count, size)
    return values.sum() * (sizes / size) / max(counts, 1)


def summed(tensor: Tensor) -> Tensor:
    """A tensor's sum over all processes, to be differentiated as often as you like if all of them take part in that."""
    return tensor if world() == 1 else _Sum.apply(tensor)  # type: ignore[no-any-return, no-untyped-call]


class _Sum(torch.autograd.Function):
    """Each process has the sum, so that the derivative of all their losses is the sum of what each finds."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        result = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.apply(gradient)  # type: ignore[no-any-return, no-untyped-call]


def handed_out(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first process's tensors, on the CPU, in every process."""
    return shared([0], lambda _: tensors)[0]
