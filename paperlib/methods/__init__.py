"""The papers, one file each. A method is a dataclass of the paper's constants with one call, `loss`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """What a training step sees."""

    images: Tensor  # N×… in [0,1], not augmented
    labels: Tensor  # int64 N
    augment: Callable[[Tensor], Tensor]  # a random crop and flip of images like these, drawn anew at each call


@dataclass(frozen=True)
class Step:
    """Where in the training this step is."""

    index: int  # from 0
    total: int
    epoch: int  # from 0


class Method(Protocol):
    """What `training.fit` minimises."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The named terms of the loss, scalars, and their weighted sum under "total"."""
        ...
