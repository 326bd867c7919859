"""The papers' methods, one file each. A method is a dataclass of the paper's constants with one function, `loss`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from paperlib.data import ImageSet


@dataclass(frozen=True)
class Batch:
    """The images of one training step; on several devices, this device's part of them."""

    images: Tensor  # N×… in [0,1], not augmented
    labels: Tensor  # int64 N
    augment: Callable[[Tensor], Tensor]  # random crop and flip of such images, drawn anew at each call
    depth: Tensor | None = None  # float32 N×H×W, distance along the camera's axis; None if the data have no depth


@dataclass(frozen=True)
class Step:
    """The position of this step in the training."""

    index: int  # from 0
    total: int
    epoch: int  # from 0
    averaged: nn.Module | None = None  # model with the moving average of the weights; None if no average is kept
    epochs: int = 1  # number of epochs of the whole training


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's logits N×C in single precision or better, also under autocast, for use in losses."""
    logits: Tensor = model(images)
    return logits if logits.dtype == torch.float64 else logits.float()


class Method(Protocol):
    """The interface that `training.fit` minimises."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return the loss's terms by name, scalars, and their weighted sum as "total", a mean over the given images.

        Other scalars to record over training, such as a share of the batch, may be added. Rules for several devices:
        Take a mean over some of the images with `distributed.part_mean`. Pass what is drawn once for the whole batch
        through `distributed.agreed`. Make equally many forward passes in training mode on every device.
        """
        ...


@runtime_checkable
class Measured(Protocol):
    """A method that also measures something on the validation images after each epoch."""

    def measure(self, model: nn.Module, data: ImageSet) -> dict[str, float]:
        """Return numbers for the training history, by name, of the model in evaluation mode."""
        ...
