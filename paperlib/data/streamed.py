"""Images that stay in their files until they are wanted, for sets that do not fit in memory."""

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

WORKERS = os.cpu_count() or 1  # threads: decoding a JPEG leaves the interpreter's lock alone


@dataclass(frozen=True)
class Streamed:
    """Files that read like a tensor uint8 N×3×size×size: what is indexed is decoded, by several threads.

    `expect` begins to decode what will be indexed next, while the device computes.
    """

    folder: Path
    files: Sequence[str]  # paths within the folder
    size: int
    device: torch.device | str = "cpu"
    tree: str = ""  # a digest of what all the files were when they were listed
    _ahead: dict[tuple[int, ...], list[Future[np.ndarray]]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, folder: Path, listing: Listing, size: int) -> tuple[Self, Tensor]:
        """The images that a listing names, and their labels int64 N."""
        tree = hashlib.sha256(repr((size, listing)).encode()).hexdigest()
        return cls(folder, [row[1] for row in listing], size, tree=tree), torch.tensor([row[0] for row in listing])

    @property
    def fingerprint(self) -> str:
        """Changes with any of the files, their order and the size."""
        return hashlib.sha256(repr((self.tree, list(self.files))).encode()).hexdigest()

    @property
    def shape(self) -> torch.Size:
        """As a tensor's."""
        return torch.Size((len(self.files), 3, self.size, self.size))

    @property
    def ndim(self) -> int:
        """As a tensor's."""
        return 4

    def __len__(self) -> int:
        return len(self.files)

    def to(self, device: torch.device | str) -> Self:
        """The same files, decoded to a device."""
        return replace(self, device=device, _ahead={})

    def part(self, index: Tensor | slice) -> Self:
        """A part of them, still in their files."""
        return replace(self, files=[self.files[place] for place in self._places(index)], _ahead={})

    def expect(self, index: Tensor | slice) -> None:
        """Begin to decode the images at `index`."""
        places = self._places(index)
        self._ahead[places] = [self._pool.submit(self._read, self.files[place]) for place in places]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Images uint8 M×3×size×size, on the device. Raises InputError naming a file that is no whole image."""
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
