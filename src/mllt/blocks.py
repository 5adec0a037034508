"""Large tensors a part at a time, so that what is made of a part stays in the processor's cache."""

from __future__ import annotations

import torch
from torch import Tensor

#: Elements that are worked on at once: what stays in a core's cache, or what keeps an accelerator busy.
PER_THREAD, ON_ACCELERATOR = 2**18, 2**23


def blocks_of_images(logits: Tensor) -> list[slice]:
    """The batch of logits `(N, B, C)` in parts of whole images, on an accelerator usually one.

    >>> blocks_of_images(torch.zeros(1, 3, PER_THREAD * torch.get_num_threads()))
    [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    experts, batch, classes = logits.shape
    elements = PER_THREAD * torch.get_num_threads() if logits.device.type == "cpu" else ON_ACCELERATOR
    images = max(1, elements // max(experts * classes, 1))
    return [slice(first, first + images) for first in range(0, batch, images)]
