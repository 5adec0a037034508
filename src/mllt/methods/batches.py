"""What a method takes from a data loader: our `Batch`es and `PairedBatch`es, or the tuples of anyone's loader."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mllt.data.sources import Batch, PairedBatch
from mllt.errors import ArgumentError


def as_batch(batch: Any, dtype: torch.dtype = torch.float32) -> Batch | PairedBatch:
    """A batch with images of the network's type and int64 targets.

    Args:
        batch: a `Batch` or `PairedBatch`; `(images, targets, ...)` of anyone's loader, which gets weight 1, and what comes
            behind the targets is left alone; or two of these, `[batch, companion]`, as a trainer makes of two loaders.
        dtype: floating-point type of the network.

    Raises:
        ArgumentError: anything else.

    >>> as_batch([torch.zeros(2, 3, 4, 4), torch.tensor([1, 0], dtype=torch.uint8), "what you like"]).targets
    tensor([1, 0])
    """
    if isinstance(batch, PairedBatch):
        return _typed(batch, dtype)._replace(companion=_typed(batch.companion, dtype))
    if isinstance(batch, list) and len(batch) == 2 and all(isinstance(part, (tuple, list)) for part in batch):
        own, companion = as_batch(batch[0], dtype), as_batch(batch[1], dtype)
        return PairedBatch(*own[:4], companion=companion)  # type: ignore[arg-type]
    pair = batch[:2] if isinstance(batch, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise ArgumentError(f"Expected a batch to be a pair of tensors (images, targets), but got {_describe(batch)}.")
    if isinstance(batch, Batch):
        return _typed(batch, dtype)
    images, targets = as_images(pair[0], dtype), as_targets(pair[1])
    return Batch(images, targets, torch.arange(len(targets), device=targets.device), torch.ones((), device=targets.device))


def _typed(batch: Any, dtype: torch.dtype) -> Any:
    return batch._replace(images=as_images(batch.images, dtype), targets=as_targets(batch.targets))


def companion_of(batch: Batch | PairedBatch, kind: str) -> Batch:
    """The companion of a batch.

    Args:
        batch: of `as_batch`.
        kind: what the method needs beside each image, in the words of `Stage.companion`; for the error.

    Raises:
        ArgumentError: there is none, or it is not of as many images.
    """
    if not isinstance(batch, PairedBatch):
        raise ArgumentError(
            f"Expected batches with a companion ({kind!r}) beside each image, but got batches without. Train with one of "
            "mllt's data modules, trainer.fit(model, datamodule=data), or on two loaders, trainer.fit(model, [loader, other])."
        )
    if batch.companion.images.shape != batch.images.shape:
        raise ArgumentError(
            f"Expected as many companions of the same size as images, but got {tuple(batch.images.shape)} and "
            f"{tuple(batch.companion.images.shape)}. Two loaders must give batches of one size to the end: let both have as "
            "many images and the same batch size, or drop_last=True."
        )
    return batch.companion


def as_images(batch: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """The images of a batch, with targets or without, in the network's type.

    Raises:
        ArgumentError: there are none, or their numbers are whole: pictures as they come from a file.
    """
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise ArgumentError(f"Expected a batch to be images or to begin with images, a tensor, but got {_describe(batch)}.")
    if not images.is_floating_point():
        raise ArgumentError(
            f"Expected images to be floating-point and normalised, but got {images.dtype}. Divide by 255, then subtract the "
            "mean and divide by the standard deviation that the network is trained with."
        )
    return images.to(dtype)


def as_targets(targets: Tensor) -> Tensor:
    """Class numbers of any integer type as int64.

    Raises:
        ArgumentError: they are not of shape (B,), or not whole.
    """
    if targets.ndim != 1 or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ArgumentError(
            "Expected targets to be class numbers, an integer tensor of shape (B,), but got shape "
            f"{tuple(targets.shape)} and type {targets.dtype}."
        )
    return targets.long()


def _describe(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        return f"{type(batch).__name__} of {', '.join(type(part).__name__ for part in batch) or 'nothing'}"
    return type(batch).__name__
