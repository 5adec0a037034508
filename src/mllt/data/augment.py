"""Transforms of whole batches: random crop, flip, rotation, normalisation.

Each takes uint8 `(B, 3, H, W)` and the batch's `Draws`, and gives float32 `(B, 3, H, W)`. All images of a batch are
transformed at once; what happens to one of them depends on its own random numbers only, never on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mllt.data.order import Draws
from mllt.errors import ArgumentError, check_bool, check_integer, check_number

# The streams of `Draws` that each decision takes its numbers from; part of the format, add at the end only.
_TOP, _LEFT, _FLIP, _ANGLE = range(4)


class Normalize:
    """uint8 to float32: `(x / 255 - mean) / std` per channel.

    Args:
        mean, std: three numbers each, for red, green and blue in 0 .. 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = check_statistics(mean, std)
        scale = 1.0 / (255.0 * torch.tensor(self.std, dtype=torch.float64))
        shift = -torch.tensor(self.mean, dtype=torch.float64) / torch.tensor(self.std, dtype=torch.float64)
        self._scale = scale.float().view(1, 3, 1, 1)
        self._shift = shift.float().view(1, 3, 1, 1)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return images.float().mul_(self._scale).add_(self._shift)


class CropFlip:
    """Zero-pad, crop back to size, flip left-right with probability 1/2, rotate; then normalise.

    The plain augmentation of the CIFAR-LT literature: `RandomCrop(32, padding=4)` and `RandomHorizontalFlip()`; RIDE
    and SADE add `RandomRotation(15)` (nearest neighbour, black corners). As there, padding is black *before*
    normalisation.

    Args:
        normalize: applied last.
        padding: pixels on each side; 0 for no crop.
        flip: whether to flip.
        rotation: largest angle in degrees, 0 for none.
    """

    def __init__(self, normalize: Normalize, padding: int = 4, *, flip: bool = True, rotation: float = 0.0) -> None:
        self.normalize = normalize
        self.padding = check_integer("padding", padding, 0)
        self.flip = check_bool("flip", flip)
        self.rotation = check_number("rotation", rotation, 0, 180)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        images = self._crop_and_flip(images, draws)
        if self.rotation:
            images = rotate(images, (draws.uniform(_ANGLE) * 2 - 1) * self.rotation)
        return self.normalize(images, draws)

    def _crop_and_flip(self, images: Tensor, draws: Draws) -> Tensor:
        """One gather does both: which pixel of the padded image each pixel of the result takes."""
        batch, _, height, width = images.shape
        span = 2 * self.padding + 1
        rows = draws.integers(_TOP, span)[:, None] + np.arange(height)
        columns = draws.integers(_LEFT, span)[:, None] + np.arange(width)
        if self.flip:
            flipped = draws.uniform(_FLIP) < 0.5
            columns[flipped] = columns[flipped, ::-1]
        padded = F.pad(images, [self.padding] * 4)
        which = torch.arange(batch)[:, None, None]
        # Advanced indices around a slice put the channels last: (B, H, W, 3) -> (B, 3, H, W)
        picked = padded.permute(0, 2, 3, 1)[which, torch.from_numpy(rows)[:, :, None], torch.from_numpy(columns)[:, None, :]]
        return picked.permute(0, 3, 1, 2).contiguous()


def rotate(images: Tensor, degrees: np.ndarray) -> Tensor:
    """Rotate each image about its centre, counter-clockwise, nearest neighbour, black corners.

    Args:
        images: uint8 `(B, 3, H, W)`.
        degrees: `(B,)`.
    """
    angle = torch.from_numpy(np.deg2rad(degrees)).float()
    cos, sin = angle.cos(), angle.sin()
    aspect = images.shape[3] / images.shape[2]
    zero = torch.zeros_like(cos)
    theta = torch.stack(
        [torch.stack([cos, -sin / aspect, zero], dim=-1), torch.stack([sin * aspect, cos, zero], dim=-1)], dim=1
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(images.dtype)


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the three channels as lists of floats; the deviations positive."""
    if len(mean) != 3 or len(std) != 3:
        raise ArgumentError(f"Expected `mean` and `std` to hold 3 numbers each, but got {len(mean)} and {len(std)}.")
    return [check_number("mean", value) for value in mean], [check_number("std", value, above=0) for value in std]
