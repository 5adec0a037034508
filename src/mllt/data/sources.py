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


class PairedBatch(NamedTuple):
    """A `Batch` with an image beside each of its images, for methods that need one (see `order.Companions`).

    companion: a batch of as many images; draw: one number in [0, 1) for the whole global batch, the same on all devices
    (None where the batches are made elsewhere).
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    weight: Tensor
    companion: Batch
    draw: float | None = None


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
    """From loaded images and their random numbers to float32 `(B, 3, H, W)`.

    One that also has `readers(draws)` says how each picture file is to be read, which may depend on what is drawn for it
    (`images.Reader`), and gets what they made of them.

    One that takes uint8 tensors and works on the device where they lie, giving the same bits on each, says so by an attribute
    `any_device = True`; see `arrays.ArrayDataModule`.
    """

    def __call__(self, images: Any, draws: Draws) -> Tensor: ...


class ArraySource:
    """Images held in memory.

    Args:
        images: uint8 `(n, 3, H, W)`.
        labels: `(n,)` whole numbers.
        rows: which of the images, in which order; all by default.
        places: `(n,)`, where each lies in `images`, where not all do: -1 for those that do not. Labels and rows are of all n.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[int] | IntArray,
        rows: IntArray | None = None,
        places: IntArray | None = None,
    ) -> None:
        self.images, self.places = images, places
        every = np.arange(len(images if places is None else places), dtype=np.int64)
        self.rows = every if rows is None else every[np.asarray(rows, dtype=np.int64)]
        self._all_labels = np.asarray(labels, dtype=np.int64)
        if len(self._all_labels) != len(every):
            raise DataError(f"Expected one label per image, but got {len(every)} images and {len(self._all_labels)} labels.")
        if places is not None and (places[self.rows] < 0).any():
            raise DataError("Expected all images that are asked for to be held, but some are not.")
        self.labels = self._all_labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, indices: IntArray) -> Tensor:
        """uint8 `(B, 3, H, W)`."""
        return self.take(self.images, indices)

    def take(self, images: Tensor, indices: IntArray) -> Tensor:
        """The images at `indices`, from `images`, which are this source's own on whichever device."""
        rows = self.rows[indices] if self.places is None else self.places[self.rows[indices]]
        return images.index_select(0, to_device(torch.from_numpy(rows), images.device))

    def subset(self, indices: IntArray) -> ArraySource:
        return ArraySource(self.images, self._all_labels, self.rows[indices], self.places)

    def whole(self) -> ArraySource:
        """The source with all images that are held, in their order."""
        return ArraySource(self.images, self._all_labels)

    def name_of(self, index: int) -> str:
        return f"image {int(self.rows[index])}"


class ImageDataset(Dataset[Batch]):
    """A source behind a transform: `dataset[BatchRequest]` is a `Batch`, or a `PairedBatch` where companions are asked for.

    Args:
        source: the images.
        transform: `(loaded images, Draws) -> float32 (B, 3, H, W)`.
        seed: the run's seed, from which the augmentation follows.
        companion_transform: of companions; None: `transform`.
        device: where the batches are made and lie, by the process that asks for them (a GPU is not shared with others); the
            source must load there. None: on the CPU, by whichever process.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        seed: int,
        companion_transform: Transform | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.source, self.transform, self.seed, self.device = source, transform, seed, device
        self.companion_transform = transform if companion_transform is None else companion_transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, request: BatchRequest) -> Batch | PairedBatch:  # type: ignore[override]
        if not isinstance(request, BatchRequest):
            raise ArgumentError(
                f"Expected a `BatchRequest` of this loader's own sampler, but got {request!r} of another one. To train on a "
                "few batches only, leave `overfit_batches` at 0 (it replaces the sampler): set limit_train_batches=1 and the "
                "data module's shuffle=false, or debug=overfit on the command line."
            )
        batch = self._batch(request, self.transform)
        if request.companion is None:
            return batch
        return PairedBatch(*batch, self._companion(request.companion, request, batch), request.draw)

    def _batch(self, request: BatchRequest, transform: Transform) -> Batch:
        draws = Draws(self.seed, request.epoch, request.positions)
        readers = getattr(transform, "readers", None)
        load: Any = self.source.load
        images = transform(load(request.indices) if readers is None else load(request.indices, readers(draws)), draws)
        targets = torch.from_numpy(self.source.labels[request.indices])
        indices = torch.from_numpy(np.ascontiguousarray(request.indices))
        batch = Batch(images, targets, indices, torch.tensor(request.weight, dtype=torch.float32))
        return batch if self.device is None else Batch._make(to_device(part, self.device) for part in batch)

    def _companion(self, request: BatchRequest, own: BatchRequest, batch: Batch) -> Batch:
        """The companions; those that are in the batch already are not read and augmented a second time."""
        if self.companion_transform is not self.transform:
            return self._batch(request, self.companion_transform)
        place = {int(position): row for row, position in enumerate(own.positions)}
        missing = np.array([int(position) not in place for position in request.positions])
        if missing.all():
            return self._batch(request, self.transform)
        images, targets, indices = batch[:3]
        if missing.any():
            others = self._batch(
                request._replace(positions=request.positions[missing], indices=request.indices[missing]), self.transform
            )
            place.update({int(p): len(images) + row for row, p in enumerate(request.positions[missing])})
            images, targets, indices = (torch.cat(pair) for pair in zip(batch[:3], others[:3], strict=True))
        rows = to_device(torch.tensor([place[int(position)] for position in request.positions]), images.device)
        images, targets, indices = (part.index_select(0, rows) for part in (images, targets, indices))
        return Batch(images, targets, indices, batch.weight)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; a GPU that is still at work is not waited for, as it would be without pinned memory."""
    if tensor.device == device or device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def count_classes(labels: IntArray, num_classes: int) -> Tensor:
    """Images per class, int64 `(C,)`."""
    return torch.from_numpy(np.bincount(labels, minlength=num_classes).astype(np.int64))


def data_root(root: str | Path) -> Path:
    """`root` with `~` expanded."""
    return Path(root).expanduser()
