"""What the devices of a run decide together, between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

_CONTROL: dict[int, Any] = {}


def largest_of_all(trainer: L.Trainer, numbers: Sequence[int]) -> list[int]:
    """Each number's largest value over all processes; all of them must ask, at the same place.

    The processes talk beside the devices, so that these need not be waited for.
    """
    if trainer.world_size == 1:
        return list(numbers)
    together = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(together, op=dist.ReduceOp.MAX, group=_control_group())
    return together.tolist()


def _control_group() -> Any:
    """Of all processes, on the processor: one for each time that torch.distributed is set up."""
    everyone: Any = dist.group.WORLD
    if id(everyone) not in _CONTROL:
        _CONTROL.clear()
        _CONTROL[id(everyone)] = everyone if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    return _CONTROL[id(everyone)]
