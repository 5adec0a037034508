"""What all losses check."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mllt.errors import ArgumentError, name_some
from mllt.longtail import as_tensor, check_class_counts, compensation_offset


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
    return logits.to(exact_type(logits.dtype)), target.long()


def exact_type(dtype: torch.dtype) -> torch.dtype:
    """The type that a loss is computed in: float32 for half precision, else the logits' own."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def check_classes(target: Tensor, num_classes: int) -> None:
    """Raise `ArgumentError` for a target outside of 0 .. C-1, on the CPU.

    To look at targets on an accelerator would be to wait for it, in every step; there, what is out of range fails in the kernel
    that uses it.
    """
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    outside = (target < 0) | (target >= num_classes)
    if bool(outside.any()):
        wrong = target[outside].unique().tolist()
        raise ArgumentError(f"Expected every target in 0 .. {num_classes - 1}, but got {name_some(wrong)}.")


@torch.compiler.disable  # a compiler need not see it
def checked_counts(class_counts: Tensor, num_classes: int) -> Tensor:
    """Class counts `(C,)` as whole numbers on the CPU, where looking at them does not wait for an accelerator.

    A tensor is fetched and looked at once, and again when it was changed, not in every step.
    """
    return _derived(class_counts, ("counts", num_classes), lambda: _fetch_counts(class_counts, num_classes))


@torch.compiler.disable
def balancing_offset(class_counts: Tensor, num_classes: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What takes the training prior out of logits, `(C,)`: `compensation_offset`, kept where it is needed.

    Raises:
        ArgumentError: a class has no training image.
    """

    def make() -> Tensor:
        return compensation_offset(checked_counts(class_counts, num_classes)).to(device, dtype)

    return _derived(class_counts, ("offset", num_classes, device, dtype), make)


def check_seen(class_counts: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Class counts `(C,)`, on the CPU; every target must be of a class that has training images.

    On the CPU, since what losses make of counts may then ask for their values without waiting for an accelerator; only the
    result need be moved there. Targets on an accelerator are looked at only where a class has no training images: elsewhere,
    what is wrong with one fails in the kernel that uses it (see `check_classes`).

    Raises:
        ArgumentError: one is not: a loss that knows the prior would be infinite there.
    """
    counts = checked_counts(class_counts, num_classes)
    check_classes(target, num_classes)
    empty = counts == 0
    if bool(empty.any()):
        wrong = target[empty.to(target.device)[target]]
        if len(wrong):
            classes = name_some(wrong.unique().tolist())
            raise ArgumentError(
                f"Expected every target to be of a class with training images, but classes {classes} have a class count of 0. "
                "Count the classes on the images that you train on."
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


def _fetch_counts(class_counts: Any, num_classes: int) -> Tensor:
    counts = class_counts.cpu() if isinstance(class_counts, Tensor) else class_counts
    return check_class_counts(counts, num_classes).clone()  # one that is its own source would never be forgotten


# What follows from a tensor of class counts, for as long as there is that tensor: (its version, what by name)
_KNOWN: MutableMapping[Tensor, tuple[int, dict[Any, Tensor]]] = WeakTensorKeyDictionary()


def _derived(source: Any, name: Any, make: Callable[[], Tensor]) -> Tensor:
    """What `make` makes of a tensor, made once for it as it is; anything else, which may change unnoticed, is asked anew."""
    if not isinstance(source, Tensor) or source.is_inference():
        return make()
    version, made = _KNOWN.get(source, (-1, {}))
    if version != source._version:
        made = {}
        _KNOWN[source] = (source._version, made)
    if name not in made:
        with torch.inference_mode(False):  # what is made in evaluation must do in training, too
            made[name] = make()
    return made[name]
