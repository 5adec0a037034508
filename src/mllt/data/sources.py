"""Where images come from: an array in memory, or files on disk.

A source knows its labels and loads images by index; it knows nothing of order, augmentation or devices. The data set
around it, `ImageDataset`, turns a sampler's `BatchRequest` into a `Batch` by way of a transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mllt.data.order import BatchRequest, Draws, IntArray
from mllt.errors import ArgumentError, DataError


class Batch(NamedTuple):
    """What a training or test step gets.

    images: float32 `(B, 3, H, W)`, normalised; targets: int64 `(B,)` in 0 .. C-1; indices: int64 `(B,)`, rows of the
    split; weight: float32 scalar, the factor for this share's mean loss (1 unless a batch does not divide evenly).
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    weight: Tensor


class ImageSource(Protocol):
    """Images with labels, loaded by index."""

    labels: IntArray

    def __len__(self) -> int: ...

    def load(self, indices: IntArray) -> Any:
        """The images at `indices`, in the form this source's transforms take."""
        ...

    def subset(self, indices: IntArray) -> ImageSource:
        """The same source with only these images, in this order."""
        ...

    def name_of(self, index: int) -> str:
        """How to tell a person which image this is: its path, or its number."""
        ...


class Transform(Protocol):
    """From loaded images and their random numbers to float32 `(B, 3, H, W)`."""

    def __call__(self, images: Any, draws: Draws) -> Tensor: ...


class ArraySource:
    """Images held in memory.

    Args:
        images: uint8 `(n, 3, H, W)`.
        labels: `(n,)` whole numbers.
        rows: which of the images, in which order; all by default.
    """

    def __init__(self, images: Tensor, labels: Sequence[int] | IntArray, rows: IntArray | None = None) -> None:
        self.images = images
        self.rows = np.arange(len(images), dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
        self._all_labels = np.asarray(labels, dtype=np.int64)
        if len(self._all_labels) != len(images):
            raise DataError(f"Expected one label per image, but got {len(images)} images and {len(self._all_labels)} labels.")
        self.labels = self._all_labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, indices: IntArray) -> Tensor:
        """uint8 `(B, 3, H, W)`."""
        return self.images[torch.from_numpy(self.rows[indices])]

    def subset(self, indices: IntArray) -> ArraySource:
        return ArraySource(self.images, self._all_labels, self.rows[indices])

    def name_of(self, index: int) -> str:
        return f"image {int(self.rows[index])}"


class ImageDataset(Dataset[Batch]):
    """A source behind a transform: `dataset[BatchRequest]` is a `Batch`.

    Args:
        source: the images.
        transform: `(loaded images, Draws) -> float32 (B, 3, H, W)`.
        seed: the run's seed, from which the augmentation follows.
    """

    def __init__(self, source: ImageSource, transform: Transform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, request: BatchRequest) -> Batch:
        if not isinstance(request, BatchRequest):
            raise ArgumentError(
                f"Expected a `BatchRequest` of this loader's own sampler, but got {request!r} of another one. To train on a "
                "few batches only, leave `overfit_batches` at 0 (it replaces the sampler): set limit_train_batches=1 and the "
                "data module's shuffle=false, or debug=overfit on the command line."
            )
        images = self.transform(self.source.load(request.indices), Draws(self.seed, request.epoch, request.positions))
        targets = torch.from_numpy(self.source.labels[request.indices])
        indices = torch.from_numpy(np.ascontiguousarray(request.indices))
        return Batch(images, targets, indices, torch.tensor(request.weight, dtype=torch.float32))


def count_classes(labels: IntArray, num_classes: int) -> Tensor:
    """Images per class, int64 `(C,)`."""
    return torch.from_numpy(np.bincount(labels, minlength=num_classes).astype(np.int64))


def data_root(root: str | Path) -> Path:
    """`root` with `~` expanded."""
    return Path(root).expanduser()
