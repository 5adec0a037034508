"""What a method takes from a data loader: our `Batch`es, or the tuples of anyone's loader."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mllt.data.sources import Batch
from mllt.errors import ArgumentError


def as_batch(batch: Any, dtype: torch.dtype = torch.float32) -> Batch:
    """A batch with images of the network's type and int64 targets.

    Args:
        batch: a `Batch`, or `(images, targets, ...)` of anyone's loader, which gets weight 1; what comes behind the
            targets is left alone.
        dtype: floating-point type of the network.

    Raises:
        ArgumentError: anything else.

    >>> as_batch([torch.zeros(2, 3, 4, 4), torch.tensor([1, 0], dtype=torch.uint8), "what you like"]).targets
    tensor([1, 0])
    """
    pair = batch[:2] if isinstance(batch, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise ArgumentError(f"Expected a batch to be a pair of tensors (images, targets), but got {_describe(batch)}.")
    images, targets = as_images(pair[0], dtype), as_targets(pair[1])
    if isinstance(batch, Batch):
        return batch._replace(images=images, targets=targets)
    return Batch(images, targets, torch.arange(len(targets), device=targets.device), torch.ones((), device=targets.device))


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
