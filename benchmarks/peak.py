"""How much arithmetic this machine does at best, measured: what shares of the peak are shares of."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from benchmarks.measure import once


@functools.cache
def float32_flops(threads: int) -> float:
    """Floating-point operations per second (a multiplication and an addition are two) of the fastest thing found: a large
    convolution, as ours are, or a product of large matrices. The best of many tries, since others use the machine, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        images, kernel = torch.randn(64, 256, 16, 16), torch.randn(256, 256, 3, 3)
        images, kernel = images.to(memory_format=torch.channels_last), kernel.to(memory_format=torch.channels_last)
        left, right = torch.randn(1536, 1536), torch.randn(1536, 1536)
        convolution = (
            2 * 64 * 256 * 256 * 9 * 16 * 16 / min(once(lambda: F.conv2d(images, kernel, padding=1)) for _ in range(12))
        )
        product = 2 * 1536**3 / min(once(lambda: left @ right) for _ in range(12))
        return max(convolution, product)
    finally:
        torch.set_num_threads(before)
