"""What a training step costs, counted and not timed: the same on every machine."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from paperlib.methods import Batch, Method, Step
from paperlib.methods.baselines import Standard

# Shares of the training at which a step is counted, the middles of ten parts: attacks and terms come and go.
SHARES = tuple((part + 0.5) / 10 for part in range(10))


def relative(method: Method, model: nn.Module, batch: Batch) -> float:
    """Multiplications of a step of `method` over those of a plain step on the same batch, the mean over a training.

    Counted are convolutions and matrix products, of passes forward and backward, of the attack, and of second derivatives;
    elementwise work is not. 1 is plain training. A method that works on some images alone, those that are right say, is
    counted on this model's: give it the model's own answers as labels for the most that it can take. The model stands for
    the average of its weights too, where a method asks that. It is not changed.
    """
    steps = [Step(round(share * 1000), 1000, round(share * 100), averaged=model, epochs=100) for share in SHARES]
    total = sum(flops(method, model, batch, step) for step in steps)
    return total / len(SHARES) / flops(Standard(), model, batch, steps[0])


def flops(method: Method, model: nn.Module, batch: Batch, step: Step) -> int:
    """Floating-point operations of one step, loss and gradients."""
    probe, counter = copy.deepcopy(model).train(), _Counter()  # type: ignore[no-untyped-call]
    for layer in probe.modules():
        if isinstance(layer, nn.BatchNorm2d):  # one pass must not change what the next finds right
            layer.momentum = 0.0
    with torch.random.fork_rng(), counter:
        method.loss(probe, batch, step)["total"].backward()
    return counter.total


class _Counter(TorchDispatchMode):
    """Adds up what PyTorch's own formulas say of each operation.

    Its `FlopCounterMode` does the same, but hooks into the graph by module, which `autograd.grad` at a leaf refuses.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out
