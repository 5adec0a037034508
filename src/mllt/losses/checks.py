"""What all losses check."""

from __future__ import annotations

import torch
from torch import Tensor

from mllt.errors import ArgumentError, name_some
from mllt.longtail import as_tensor, check_class_counts


def check_logits(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(N, B, C)` or, of one expert, `(B, C)` and their targets `(B,)`.

    Returns:
        The logits as `(N, B, C)`, float32 for half precision; the targets as int64.

    Raises:
        ArgumentError: shapes or types do not fit.
    """
    logits, target = as_tensor("logits", logits), as_tensor("target", target)
    if logits.ndim not in (2, 3) or target.shape != logits.shape[-2:-1]:
        raise ArgumentError(
            "Expected `logits` of shape (experts, batch, classes) or (batch, classes) and `target` of shape (batch,), but got "
            f"{tuple(logits.shape)} and {tuple(target.shape)}."
        )
    if not logits.is_floating_point() or target.dtype.is_floating_point or target.dtype == torch.bool:
        raise ArgumentError(
            f"Expected floating `logits` and whole numbers in `target`, but got {logits.dtype} and {target.dtype}."
        )
    logits = logits.unsqueeze(0) if logits.ndim == 2 else logits
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits, target.long()


def check_seen(class_counts: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Class counts `(C,)`, on the CPU; every target must be of a class that has training images.

    On the CPU, since what losses make of counts may then ask for their values without waiting for an accelerator; only the
    result need be moved there.

    Raises:
        ArgumentError: one is not: a loss that knows the prior would be infinite there.
    """
    counts = check_class_counts(class_counts.cpu() if isinstance(class_counts, Tensor) else class_counts, num_classes)
    in_range = (target >= 0) & (target < num_classes)
    empty = (counts == 0).to(target.device)
    wrong = target[~in_range | empty[target.clamp(0, num_classes - 1)]]
    if len(wrong):  # asked once, for both: on an accelerator, every question waits for the device
        wrong = wrong.unique()
        outside = wrong[(wrong < 0) | (wrong >= num_classes)].tolist()
        if outside:
            raise ArgumentError(f"Expected every target in 0 .. {num_classes - 1}, but got {name_some(outside)}.")
        raise ArgumentError(
            f"Expected every target to be of a class with training images, but classes {name_some(wrong.tolist())} "
            "have a class count of 0. Count the classes on the images that you train on."
        )
    return counts


def check_weight(weight: Tensor, num_classes: int) -> Tensor:
    """Weights of the classes, floating `(C,)`: finite, none negative.

    Raises:
        ArgumentError: they are not.
    """
    weight = as_tensor("weight", weight)
    if weight.shape != (num_classes,) or not weight.is_floating_point():
        raise ArgumentError(
            f"Expected `weight` to be floating and of shape ({num_classes},), one per class, but got {tuple(weight.shape)} of "
            f"{weight.dtype}."
        )
    if not bool((weight.isfinite() & (weight >= 0)).all()):
        raise ArgumentError(f"Expected `weight` to be finite and not negative, but got {name_some(weight.tolist())}.")
    return weight
