"""Slow, plain augmentation of one image at a time, by torchvision on PIL images and by loops."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F


def as_picture(image: Tensor) -> Image.Image:
    """uint8 (3, H, W) as the PIL image that torchvision's transforms take."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def every_crop(image: Tensor, padding: int, mean: list[float], std: list[float]) -> dict[tuple[int, int, bool], Tensor]:
    """All that RandomCrop(size, padding), RandomHorizontalFlip, ToTensor, Normalize can make of an image."""
    picture = F.pad(as_picture(image), padding)
    results = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = F.crop(picture, top, left, image.shape[1], image.shape[2])
            for flip in (False, True):
                final = F.to_tensor(F.hflip(crop) if flip else crop)
                results[top, left, flip] = F.normalize(final, mean, std)
    return results


def rotate(image: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotation counter-clockwise about the centre, nearest neighbour, black outside, in float64.

    Returns the image (3, H, W), and for each pixel (H, W) whether its source lies so near the border between two
    pixels that the last digits of the arithmetic decide.
    """
    height, width = image.shape[1:]
    result, close = np.zeros_like(image), np.zeros((height, width), dtype=bool)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for row in range(height):
        for column in range(width):
            right, up = column - (width - 1) / 2, (height - 1) / 2 - row
            # the pixel that lands here: this place turned back, clockwise
            source_column = (width - 1) / 2 + right * cos + up * sin
            source_row = (height - 1) / 2 - (up * cos - right * sin)
            close[row, column] = any(abs(x % 1 - 0.5) < 1e-3 for x in (source_column, source_row))
            nearest_row, nearest_column = round(source_row), round(source_column)
            if 0 <= nearest_row < height and 0 <= nearest_column < width:
                result[:, row, column] = image[:, nearest_row, nearest_column]
    return result, close
