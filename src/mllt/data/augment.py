"""Transforms of whole batches: random crop, flip, rotation, a square cut out, normalisation.

Each takes uint8 `(B, 3, H, W)` and the batch's `Draws`, and gives float32 `(B, 3, H, W)`, on the device where the images lie.
All images of a batch are transformed at once; what happens to one of them depends on its own random numbers only, never on its
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mllt.data.order import Draws
from mllt.data.sources import to_device
from mllt.errors import ArgumentError, check_bool, check_integer, check_number

# The streams of `Draws` that each decision takes its numbers from; part of the format, add at the end only.
_TOP, _LEFT, _FLIP, _ANGLE, _HOLE_TOP, _HOLE_LEFT = range(6)


class Normalize:
    """uint8 to float32: `(x / 255 - mean) / std` per channel.

    Args:
        mean, std: three numbers each, for red, green and blue in 0 .. 1.
    """

    any_device = True

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = check_statistics(mean, std)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        scale, shift = _scale_and_shift(tuple(self.mean), tuple(self.std), images.device)
        # Two passes, each rounded by itself: in one, a GPU would round but once
        return images.float().mul_(scale).add_(shift)


@lru_cache(maxsize=16)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    scale, shift = 1.0 / (255.0 * stds), -means / stds
    return scale.float().view(1, 3, 1, 1).to(device), shift.float().view(1, 3, 1, 1).to(device)


class CropFlip:
    """Zero-pad, crop back to size, flip left-right with probability 1/2, rotate; whatever else; then normalise.

    The plain augmentation of the CIFAR-LT literature: `RandomCrop(32, padding=4)` and `RandomHorizontalFlip()`; RIDE
    and SADE add `RandomRotation(15)` (nearest neighbour, black corners). As there, padding is black *before*
    normalisation.

    Args:
        normalize: applied last.
        padding: pixels on each side; 0 for no crop.
        flip: whether to flip.
        rotation: largest angle in degrees, 0 for none.
        then: what is done to the uint8 images next, in this order, such as `AutoAugment` and `Cutout`: each from uint8
            `(B, 3, H, W)` and the `Draws` to uint8 on the same device, the same bits on any.
    """

    any_device = True

    def __init__(
        self,
        normalize: Normalize,
        padding: int = 4,
        *,
        flip: bool = True,
        rotation: float = 0.0,
        then: Sequence[Callable[[Tensor, Draws], Tensor]] = (),
    ) -> None:
        self.normalize = normalize
        self.then = tuple(then)
        self.padding = check_integer("padding", padding, 0)
        self.flip = check_bool("flip", flip)
        self.rotation = check_number("rotation", rotation, 0, 180)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        place = torch.device("cpu") if self.rotation else images.device
        which = crops(*images.shape[2:], self.padding, place)[self._drawn(draws, place)]
        if self.rotation:
            which = rotate(which[:, None], (draws.uniform(_ANGLE) * 2 - 1) * self.rotation)
        images = pick(images, to_device(which.flatten(1), images.device))
        for transform in self.then:
            images = transform(images, draws)
        return self.normalize(images, draws)

    def _drawn(self, draws: Draws, device: torch.device) -> tuple[Tensor, ...]:
        """Which of the `crops` each image is given: mirrored or not, from the top, from the left; int64 `(B,)` each."""
        span = 2 * self.padding + 1
        top, left = draws.integers(_TOP, span), draws.integers(_LEFT, span)
        mirrored = (draws.uniform(_FLIP) < 0.5) & self.flip
        left = np.where(mirrored, span - 1 - left, left)  # mirrored after the crop, which is cropped from the other side before
        return to_device(torch.from_numpy(np.stack([mirrored, top, left])), device).unbind()


class Cutout:
    """Black out one square of each image, of which the middle is any of its pixels; what lies outside is lost.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017, arXiv:1708.04552: 16
    pixels on CIFAR-10, 8 on CIFAR-100, where the long-tailed literature (BALMS, PaCo, NCL) has 16, too. As in that, the square
    is black *before* normalisation.

    Args:
        pixels: of a side, at least 1.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = check_integer("pixels", pixels, 1)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[2:]
        first = np.stack([draws.integers(_HOLE_TOP, height), draws.integers(_HOLE_LEFT, width)]) - self.pixels // 2
        top, left = to_device(torch.from_numpy(first), images.device)[..., None]
        hole = self._within(height, top)[:, None, :, None] & self._within(width, left)[:, None, None]
        return images.masked_fill(hole, 0)

    def _within(self, size: int, first: Tensor) -> Tensor:
        """Which of 0 .. size - 1 the square covers, bool `(B, size)`, of where it begins, `(B, 1)`."""
        place = torch.arange(size, device=first.device)
        return (place >= first) & (place < first + self.pixels)


# The same bits on every device: what is drawn, and where a rotation takes its pixels from, is found out on the CPU; left are
# gathers, a conversion that is exact (0 .. 255 are float32 numbers), one product and one sum, each in a kernel of its own,
# rounded as IEEE 754 has it.


def pick(images: Tensor, which: Tensor) -> Tensor:
    """Each pixel of the result is one of the image's, or black.

    Args:
        images: `(B, channels, H, W)`.
        which: int64 `(B, H * W)`, pixels counted along the rows from 1; 0 is black.
    """
    with_black = F.pad(images.flatten(2), [1, 0])
    return with_black.gather(2, which[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


@lru_cache(maxsize=16)
def crops(height: int, width: int, padding: int, device: torch.device) -> Tensor:
    """All crops of a padded image, in the numbers of `pick`: int64 `(2, 2p+1, 2p+1, H, W)`, a view of (2, H+2p, W+2p) of them.

    By whether it is of the image mirrored left-right, by what is left out at the top, and at the left.

    >>> crops(2, 2, 1, torch.device("cpu"))[0, 0, 0].tolist(), crops(2, 2, 1, torch.device("cpu"))[1, 1, 1].tolist()
    ([[0, 0], [0, 1]], [[2, 1], [4, 3]])
    """
    padded = F.pad(torch.arange(1, height * width + 1).view(height, width), [padding] * 4)
    return torch.stack([padded, padded.flip(1)]).to(device).unfold(1, height, 1).unfold(2, width, 1)


def rotate(images: Tensor, degrees: np.ndarray) -> Tensor:
    """Rotate each image about its centre, counter-clockwise, nearest neighbour, black corners.

    Args:
        images: `(B, channels, H, W)` on the CPU, of any whole numbers up to 2^24, which are exact in float32: of pixels, or
            those of `pick`.
        degrees: `(B,)`.
    """
    angle = torch.from_numpy(np.deg2rad(degrees)).float()[:, None]
    cos, sin, aspect = angle.cos(), angle.sin(), images.shape[3] / images.shape[2]
    across, down = _pixel_centres(images.shape[3]), _pixel_centres(images.shape[2])
    # What `F.affine_grid` computes by products of matrices, in a tenth of the time and alike for any number of images
    of_column = torch.stack([cos * across, sin * aspect * across], dim=-1)
    of_row = torch.stack([-sin / aspect * down, cos * down], dim=-1)
    grid = of_column[:, None] + of_row[:, :, None]
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(images.dtype)


def _pixel_centres(size: int) -> Tensor:
    """Where they lie between -1 and 1, the edges of the image."""
    return torch.linspace(-1, 1, size) * (size - 1) / size


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the three channels as lists of floats; the deviations positive."""
    if len(mean) != 3 or len(std) != 3:
        raise ArgumentError(f"Expected `mean` and `std` to hold 3 numbers each, but got {len(mean)} and {len(std)}.")
    return [check_number("mean", value) for value in mean], [check_number("std", value, above=0) for value in std]
