"""The papers, one file each. A method is a dataclass of the paper's constants with one call, `loss`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from paperlib.data import ImageSet


@dataclass(frozen=True)
class Batch:
    """What a training step sees: on several devices each its own part."""

    images: Tensor  # N×… in [0,1], not augmented
    labels: Tensor  # int64 N
    augment: Callable[[Tensor], Tensor]  # a random crop and flip of images like these, drawn anew at each call
    depth: Tensor | None = None  # float32 N×H×W, where the data have it: distance along the camera's axis


@dataclass(frozen=True)
class Step:
    """Where in the training this step is."""

    index: int  # from 0
    total: int
    epoch: int  # from 0
    averaged: nn.Module | None = None  # the moving average of the weights, where the settings keep one
    epochs: int = 1  # of the whole training


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """The model's logits N×C in single precision at least, whatever autocast makes of them: losses need it."""
    logits: Tensor = model(images)
    return logits if logits.dtype == torch.float64 else logits.float()


class Method(Protocol):
    """What `training.fit` minimises."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The named terms of the loss, scalars, and their weighted sum under "total", a mean over the images given.

        Whatever else is to be recorded over training, say a share of the batch, may stand beside them. For several
        devices: a mean over some of the images goes through `distributed.part_mean`, what is drawn once for the whole
        batch through `distributed.agreed`, and each process passes through the network in training mode as often as the
        others, whatever its images are.
        """
        ...


@runtime_checkable
class Measured(Protocol):
    """A method that has something to say about the validation images after each epoch."""

    def measure(self, model: nn.Module, data: ImageSet) -> dict[str, float]:
        """Numbers for the training history, by name, of the model in evaluation mode."""
        ...
