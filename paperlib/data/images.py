"""What an image set is, and how a validation part is held out."""

import unicodedata
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paperlib.runs.files import InputError

SLACK = 1e-4  # beyond [0,1], for images that were resized or are of half precision


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: uint8 N×C×H×W, or floating point in [0,1]. The toy's points are float32 N×2, of any size.

    Sets that do not fit in memory have a `streamed.Streamed` in `images`, which reads like such a tensor. Labels of other
    integer types and arrays become int64. Raises InputError for other images and labels.
    """

    images: Tensor
    labels: Tensor  # int64 N
    classes: tuple[str, ...]
    depth: Tensor | None = None  # float32 N×H×W, distance along the camera's axis
    mask: Tensor | None = None  # bool N×H×W, where the object is

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise InputError(f"{len(self.images)} images but {len(self.labels)} labels")
        object.__setattr__(self, "labels", _indices(self.labels, len(self.classes)))
        if isinstance(self.images, Tensor) and self.images.ndim == 4 and self.images.dtype != torch.uint8:
            check_pixels(self.images)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "ImageSet":
        """The images at `index`, still as a set; what was checked is not checked again."""
        part = copy(self)
        images = self.images[index] if isinstance(self.images, Tensor) else self.images.part(index)  # still in its files
        for name in ("labels", "depth", "mask"):
            own = getattr(self, name)
            object.__setattr__(part, name, None if own is None else own[index])
        object.__setattr__(part, "images", images)
        return part


def check_pixels(images: Tensor) -> None:
    """Raise InputError where pixels are not floating point in [0,1], the range that attacks keep to."""
    if not images.is_floating_point():
        raise InputError(f"images of type {images.dtype}: should be uint8, or floating point in [0,1]")
    low, high = (float(end) for end in images.aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= -SLACK and high <= 1 + SLACK):  # so that NaN is refused
        how = "divide them by 255" if low >= 0 and 1.5 < high <= 255 else "bring them there, and normalise inside the model"
        raise InputError(f"images from {low:.4g} to {high:.4g}: should be in [0,1], where attacks search; {how}")


def _indices(given: Any, classes: int) -> Tensor:
    """The labels as int64 N. Raises InputError where they are no indices of `classes` classes."""
    labels: Tensor = torch.as_tensor(given)
    if labels.ndim != 1:
        shape = "×".join(map(str, labels.shape))
        raise InputError(
            f"labels of shape {shape}: should be one class index an image; of one-hot labels, labels.argmax(1)"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"labels of type {labels.dtype}: should be whole numbers, the indices of the classes")
    labels = labels.long()
    for odd in (labels.min(), labels.max()) if len(labels) else ():
        if not 0 <= odd < classes:
            raise InputError(f"label {odd}: should be an index of the {classes} classes, from 0 to {classes - 1}")
    return labels


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set: to train on, to select checkpoints on, to report on."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet


def as_float(images: Tensor) -> Tensor:
    """Images as the models take them: uint8 becomes float32 in [0,1]; floating point stays as it is; files are read."""
    if not isinstance(images, Tensor):
        images = images[:]
    return images if images.is_floating_point() else images.float() / 255


def chunk_size(images: Tensor, most: int) -> int:
    """How many of these images are processed together: `most`, and fewer where they are larger than 96 px."""
    return max(1, min(most, most * 96**2 // (images.shape[-1] * images.shape[-2]))) if images.ndim == 4 else most


def shareable(images: Tensor, most: int) -> int:
    """How many of these images are processed together where devices share them.

    A quarter, so that four have something to do, but 50 at least, which keep a small network busy, and `most` at most.
    """
    return chunk_size(images, max(50, min(most, len(images) // 4)))


def hold_out(train: ImageSet, test: ImageSet, validation: int, seed: int) -> Splits:
    """Hold `validation` images of the training set out, the same number per class, chosen by `seed` alone.

    Raises InputError when a class has too few images for that.
    """
    per_class = validation // len(train.classes)
    if validation and not per_class:
        raise InputError(f"validation_images = {validation}: there are {len(train.classes)} classes, so as many at least")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)
    held = torch.zeros(len(train), dtype=torch.bool)
    for label, name in enumerate(train.classes):
        members = order[train.labels[order] == label]
        if len(members) <= per_class:
            raise InputError(
                f"validation: {validation} images hold out {per_class} per class, but class {name!r} has only "
                f"{len(members)}; at most {len(train.classes) * (len(members) - 1)} here"
            )
        held[members[:per_class]] = True
    return Splits(train[~held], train[held], test)


def joined(first: ImageSet, second: ImageSet) -> ImageSet:
    """The images of two sets of the same classes as one."""

    def both(name: str) -> Tensor | None:
        parts = getattr(first, name), getattr(second, name)
        return None if any(part is None for part in parts) else torch.cat(parts)

    images, labels = torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels])
    return ImageSet(images, labels, first.classes, both("depth"), both("mask"))


def named(data: ImageSet, names: Sequence[str]) -> ImageSet:
    """The set with its classes in the order of `names`, which may be more. Raises InputError where one is not there."""
    names = [unicodedata.normalize("NFC", name.strip()) for name in names if name.strip()]  # as folders' names are read
    for name in (*data.classes, *names):
        if (times := names.count(name)) != 1:
            raise InputError(
                f"the list of {len(names)} classes has {name!r} {times} times; it should name each output of the model once"
            )
    order = torch.tensor([names.index(name) for name in data.classes])
    return replace(data, labels=order[data.labels], classes=tuple(names))


def balanced(data: ImageSet, seed: int) -> Tensor:
    """An order of the images by `seed`, every beginning of which has equally many of each class, to within one: N."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    labels = data.labels[order]
    rank = torch.zeros(len(data), dtype=torch.long)  # how many of its class stand before each image
    for label in range(len(data.classes)):
        members = labels == label
        rank[members] = torch.arange(int(members.sum()))
    return order[torch.argsort(rank, stable=True)]


def subset(data: ImageSet, count: int, seed: int) -> ImageSet:
    """`count` images of `data`, equally many of each class (to within one), chosen by `seed`; all where it is fewer.

    The subset of a smaller count is part of that of a larger one.
    """
    return data if count >= len(data) else data[places(data, count, seed)]


def places(data: ImageSet, count: int, seed: int) -> Tensor:
    """Where the images of `subset` stand in `data`: their indices, ascending."""
    return balanced(data, seed)[:count].sort().values
