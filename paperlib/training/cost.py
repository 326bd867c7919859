"""The cost of a training step in floating-point operations. It is counted, not timed, so it is the same everywhere."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from paperlib.methods import Batch, Method, Step
from paperlib.methods.baselines import Standard

# A step is counted in the middle of each tenth of the training, since attacks and loss terms may change during it.
SHARES = tuple((part + 0.5) / 10 for part in range(10))


def relative(method: Method, model: nn.Module, batch: Batch) -> float:
    """Return the cost of a step of `method` divided by that of a standard training step, averaged over the training.

    Convolutions and matrix products are counted: forward and backward passes, the attack, and second derivatives.
    Elementwise operations are not. Some methods work on correctly classified images alone. For their maximal cost, pass
    the model's predictions as labels. `model` also stands in for the weight average, and is not changed.
    """
    steps = [Step(round(share * 1000), 1000, round(share * 100), averaged=model, epochs=100) for share in SHARES]
    total = sum(flops(method, model, batch, step) for step in steps)
    return total / len(SHARES) / flops(Standard(), model, batch, steps[0])


def flops(method: Method, model: nn.Module, batch: Batch, step: Step) -> int:
    """Return the floating-point operations of one step: loss and gradients."""
    probe, counter = copy.deepcopy(model).train(), _Counter()  # type: ignore[no-untyped-call]
    for layer in probe.modules():
        if isinstance(layer, nn.BatchNorm2d):  # a pass must not change the predictions of the next one
            layer.momentum = 0.0
    with torch.random.fork_rng(), counter:
        method.loss(probe, batch, step)["total"].backward()
    return counter.total


class _Counter(TorchDispatchMode):
    """Sum of the operations by PyTorch's own formulas.

    PyTorch's `FlopCounterMode` adds module hooks to the graph, and then `autograd.grad` at a leaf fails.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out
