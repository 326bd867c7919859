"""CIFAR-10, CIFAR-100, STL-10 and Fashion-MNIST through torchvision, downloaded when missing.

CIFAR comes as pickles, the only ones that this package reads: torchvision unpickles a file only with the published MD5.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from paperlib.data.images import ImageSet
from paperlib.runs.files import InputError, root

NAMES = ("cifar10", "cifar100", "stl10", "fashion_mnist")


def load(name: str) -> tuple[ImageSet, ImageSet]:
    """Load the training and the test set `name` of NAMES, uint8 N×C×H×W, from data/<name>; download it when missing.

    Raises InputError naming file, folder and address when that fails.
    """
    folder = root() / "data" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # one process downloads, others wait
            train, test = (_read(name, folder, training) for training in (True, False))
    # urllib's errors are OSErrors; torchvision raises RuntimeError, and others for an incomplete file.
    except (OSError, RuntimeError, ValueError, LookupError, AssertionError) as error:
        address, file = _source(name)
        raise InputError(
            f"data {name!r} is not in {folder}, or damaged there, and cannot be downloaded ({error}). Put {file} there "
            f"and remove what was unpacked of it; it comes from {address}. Or use images of your own: data=folder:PATH"
        ) from error
    return train, test


def _source(name: str) -> tuple[str, str]:
    """Return the address and the file's name of a set."""
    from torchvision import datasets

    if name == "fashion_mnist":
        return datasets.FashionMNIST.mirrors[0], "FashionMNIST/raw/*.gz"
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[name]
    return kind.url, kind.filename


def _read(name: str, folder: Path, training: bool) -> ImageSet:
    from torchvision import datasets  # imported late: it takes as long as the rest of paperlib

    if name == "stl10":
        stl = datasets.STL10(folder, "train" if training else "test", download=True)
        return ImageSet(torch.from_numpy(stl.data), torch.from_numpy(stl.labels).long(), tuple(stl.classes))
    if name == "fashion_mnist" and not (folder / "FashionMNIST").exists():  # unpacked there, a part would count as whole
        shutil.rmtree(fresh := folder / ".extracting", ignore_errors=True)
        datasets.FashionMNIST(fresh, download=True)
        os.replace(fresh / "FashionMNIST", folder / "FashionMNIST")
    kinds = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "fashion_mnist": datasets.FashionMNIST}
    data = kinds[name](folder, training, download=True)
    pixels = torch.as_tensor(np.asarray(data.data))
    images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.as_tensor(data.targets, dtype=torch.long), tuple(data.classes))
