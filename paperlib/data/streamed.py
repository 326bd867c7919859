"""Images that are decoded from their files when needed, for sets that do not fit in memory."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from paperlib.data.folder import Listing, read_image

WORKERS = os.cpu_count() or 1  # threads suffice: decoding a JPEG releases the interpreter's lock


@dataclass(frozen=True)
class Streamed:
    """Image files that are indexed like a tensor uint8 N×3×size×size, and decoded by several threads.

    `expect` starts decoding the images that will be indexed next, while the device computes.
    """

    folder: Path
    files: Sequence[str]  # paths within the folder
    size: int
    device: torch.device | str = "cpu"
    tree: str = ""  # digest of the listing: sizes and times of all files
    _ahead: dict[tuple[int, ...], list[Future[np.ndarray]]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, folder: Path, listing: Listing, size: int) -> tuple[Self, Tensor]:
        """Return the images of a listing, and their labels int64 N."""
        tree = hashlib.sha256(repr((size, listing)).encode()).hexdigest()
        return cls(folder, [row[1] for row in listing], size, tree=tree), torch.tensor([row[0] for row in listing])

    @property
    def fingerprint(self) -> str:
        """Digest that changes with any of the files, their order and the size."""
        return hashlib.sha256(repr((self.tree, list(self.files))).encode()).hexdigest()

    @property
    def shape(self) -> torch.Size:
        """Shape N×3×size×size."""
        return torch.Size((len(self.files), 3, self.size, self.size))

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return 4

    def __len__(self) -> int:
        return len(self.files)

    def to(self, device: torch.device | str) -> Self:
        """Return the same files, with a device for the decoded images."""
        return replace(self, device=device, _ahead={})

    def part(self, index: Tensor | slice) -> Self:
        """Return the images at `index`, not decoded."""
        return replace(self, files=[self.files[place] for place in self._places(index)], _ahead={})

    def expect(self, index: Tensor | slice) -> None:
        """Start decoding the images at `index`."""
        places = self._places(index)
        self._ahead[places] = [self._pool.submit(self._read, self.files[place]) for place in places]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return images uint8 M×3×size×size on the device. Raises InputError naming a file that is no complete image."""
        places = self._places(index)
        if places not in self._ahead:
            self.expect(index)
        return torch.from_numpy(np.stack([one.result() for one in self._ahead.pop(places)])).to(self.device)

    def _places(self, index: Tensor | slice) -> tuple[int, ...]:
        if isinstance(index, slice):
            return tuple(range(*index.indices(len(self.files))))
        return tuple((index.nonzero().flatten() if index.dtype == torch.bool else index).tolist())

    def _read(self, file: str) -> np.ndarray:
        return read_image(self.folder / file, self.size).transpose(2, 0, 1)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(WORKERS, "decoding")
