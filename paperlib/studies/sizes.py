"""Checks, before anything is loaded, for more images than a data set has or than the memory holds."""

import os
from typing import Any

import torch

from paperlib import models
from paperlib.data import EXTENTS, scenes
from paperlib.runs.files import InputError

TRAINING = {  # training images by data set; for ImageNet-100 the most that a hundred classes can have
    "cifar10": 50_000,
    "cifar100": 50_000,
    "stl10": 5000,
    "tiny_imagenet": 100_000,
    "imagenet100": 130_000,
    "fashion_mnist": 60_000,
}
SCENES = 8000  # scenes that are rendered for training if no number is given
PIXELS = 4096  # largest side of an image; a larger number is probably a typing error
# Bytes per pixel of a scene: three for colour, four for depth, one for the mask; twice, because chunks are concatenated.
SCENE = 2 * (3 + 4 + 1)
WIDE = 256  # a network up to this width takes 3 GiB at most
WEIGHT = 3 * 4  # bytes per weight in training: weight, gradient and momentum in single precision


def check(settings: Any) -> None:
    """Raise InputError if settings ask for more images than their data set has, or for an impossible image size."""
    data, size = getattr(settings, "data", ""), getattr(settings, "image_size", None) or 0
    if size > PIXELS:
        raise InputError(f"image_size = {size}: should be at most {PIXELS} pixels")
    if size and data in TRAINING and data != "imagenet100":
        raise InputError(f"image_size = {size}: {data} has a size of its own; leave image_size out")
    train, validation, test = _images(settings)
    if data in TRAINING and train + validation > (most := TRAINING[data]):
        raise InputError(
            f"train_images = {train or None}, validation_images = {validation}: {data} has {most} training images, "
            f"and both are taken from these; train_images should be at most {max(0, most - validation)}"
        )
    if data in TRAINING and test > (most := EXTENTS[data][0]):
        raise InputError(f"test_images = {test}: {data} has {most}; should be at most as many, or null for all")
    if "kmeans" in getattr(settings, "sources", ()) and data in EXTENTS:
        most = (train or TRAINING.get(data, SCENES)) // EXTENTS[data][1]
        if settings.clusters > most:
            raise InputError(f"clusters = {settings.clusters}: should be at most {most}, the training images of a class")


def check_memory(settings: Any, memory: int | None = None) -> None:
    """Raise InputError if the settings' scenes or network exceed the memory in bytes (None: this machine's)."""
    memory = memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    there = f"this machine has {memory / 2**30:.0f} GiB"
    if getattr(settings, "data", "") in scenes.SETS:
        size = settings.image_size or scenes.SIZES[0]
        train, validation, test = _images(settings)
        asked = {"train_images": train, "test_images": test, "validation_images": validation}
        asked["depth_images"] = getattr(settings, "depth_images", 0)
        for name, count in asked.items():
            if count > (most := memory // (SCENE * size**2)):
                raise InputError(
                    f"{name} = {count}: scenes of {size} px need {SCENE * size**2 * count / 2**30:.0f} GiB while they are "
                    f"rendered, and {there}; should be at most {most}"
                )
    if (model := getattr(settings, "model", None)) and getattr(settings, "width", 0) > WIDE:
        with torch.device("meta"):  # builds the shapes without memory
            network = models.build(
                model, classes=10, channels=3, width=settings.width, seed=0, stem_stride=settings.stem_stride, size=224
            )
        if (need := WEIGHT * sum(weight.numel() for weight in network.parameters())) > memory:
            raise InputError(
                f"width = {settings.width}: {model} needs {need / 2**30:.0f} GiB to train its weights, and {there}; "
                "should be less"
            )


def _images(settings: Any) -> tuple[int, int, int]:
    """Return the requested numbers of training, validation and test images; 0 if a number is not given."""
    names = "train_images", "validation_images", "test_images"
    train, validation, test = (getattr(settings, name, None) or 0 for name in names)
    return train, validation, test
