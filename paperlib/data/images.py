"""Labelled image sets, their splits and class-balanced subsets."""

import unicodedata
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paperlib.runs.files import InputError

SLACK = 1e-4  # tolerance beyond [0,1], for images that were resized or have half precision


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: uint8 N×C×H×W, or floating point in [0,1]. The toy has points float32 N×2 in any range.

    For sets that do not fit in memory, `images` is a `streamed.Streamed`, which is indexed like a tensor. Labels of other
    integer types and arrays become int64. Raises InputError for other images and labels.
    """

    images: Tensor
    labels: Tensor  # int64 N
    classes: tuple[str, ...]
    depth: Tensor | None = None  # float32 N×H×W, distance along the camera's axis
    mask: Tensor | None = None  # bool N×H×W, True on the object

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise InputError(f"{len(self.images)} images but {len(self.labels)} labels")
        object.__setattr__(self, "labels", _indices(self.labels, len(self.classes)))
        if isinstance(self.images, Tensor) and self.images.ndim == 4 and self.images.dtype != torch.uint8:
            check_pixels(self.images)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "ImageSet":
        """Return the images at `index` as a set, without checking them again."""
        part = copy(self)
        images = self.images[index] if isinstance(self.images, Tensor) else self.images.part(index)  # still in files
        for name in ("labels", "depth", "mask"):
            own = getattr(self, name)
            object.__setattr__(part, name, None if own is None else own[index])
        object.__setattr__(part, "images", images)
        return part


def check_pixels(images: Tensor) -> None:
    """Raise InputError where pixels are not floating point in [0,1], the range that attacks search."""
    if not images.is_floating_point():
        raise InputError(f"images of type {images.dtype}: should be uint8, or floating point in [0,1]")
    low, high = (float(end) for end in images.aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= -SLACK and high <= 1 + SLACK):  # the negation also catches NaN
        how = "divide them by 255" if low >= 0 and 1.5 < high <= 255 else "bring them there, and normalise inside the model"
        raise InputError(f"images from {low:.4g} to {high:.4g}: should be in [0,1], where attacks search; {how}")


def _indices(given: Any, classes: int) -> Tensor:
    """Return the labels as int64 N. Raises InputError where they are no indices of `classes` classes."""
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
    """Training images, validation images that select checkpoints, and test images of a data set."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet


def as_float(images: Tensor) -> Tensor:
    """Return images as a tensor for models: uint8 becomes float32 in [0,1], floating point is kept, files are read."""
    if not isinstance(images, Tensor):
        images = images[:]
    return images if images.is_floating_point() else images.float() / 255


def chunk_size(images: Tensor, most: int) -> int:
    """Return how many of these images to process together: `most`, and fewer where they are larger than 96 px."""
    return max(1, min(most, most * 96**2 // (images.shape[-1] * images.shape[-2]))) if images.ndim == 4 else most


def shareable(images: Tensor, most: int) -> int:
    """Return how many of these images to process together where devices share them.

    A quarter of them, so that four devices have work, but at least 50, to keep a small network busy, and at most `most`.
    """
    return chunk_size(images, max(50, min(most, len(images) // 4)))


def hold_out(train: ImageSet, test: ImageSet, validation: int, seed: int) -> Splits:
    """Hold out `validation` images of the training set, equally many of each class, chosen by `seed` alone.

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
    """Join the images of two sets with the same classes."""

    def both(name: str) -> Tensor | None:
        parts = getattr(first, name), getattr(second, name)
        return None if any(part is None for part in parts) else torch.cat(parts)

    images, labels = torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels])
    return ImageSet(images, labels, first.classes, both("depth"), both("mask"))


def named(data: ImageSet, names: Sequence[str]) -> ImageSet:
    """Reorder the set's classes as in `names`, which may have more. Raises InputError where a name is not there once."""
    names = [unicodedata.normalize("NFC", name.strip()) for name in names if name.strip()]  # as class folders
    for name in (*data.classes, *names):
        if (times := names.count(name)) != 1:
            raise InputError(
                f"the list of {len(names)} classes has {name!r} {times} times; it should name each output of the model once"
            )
    order = torch.tensor([names.index(name) for name in data.classes])
    return replace(data, labels=order[data.labels], classes=tuple(names))


def balanced(data: ImageSet, seed: int) -> Tensor:
    """Return a random order N of the images by `seed`: its first n are class-balanced to within one, for every n."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    labels = data.labels[order]
    rank = torch.zeros(len(data), dtype=torch.long)  # the number of images of its class before each image
    for label in range(len(data.classes)):
        members = labels == label
        rank[members] = torch.arange(int(members.sum()))
    return order[torch.argsort(rank, stable=True)]


def subset(data: ImageSet, count: int, seed: int) -> ImageSet:
    """Return `count` images of `data` (or all), class-balanced to within one, chosen by `seed`.

    The subset of a smaller count is part of that of a larger one.
    """
    return data if count >= len(data) else data[places(data, count, seed)]


def places(data: ImageSet, count: int, seed: int) -> Tensor:
    """Return the indices in `data` of the images of `subset`, ascending."""
    return balanced(data, seed)[:count].sort().values
