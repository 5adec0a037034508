"""CIFAR100-LT for benchmarks: the real one where MLLT_DATA tells its folder, else noise of the same shape and profile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllt.data import CIFAR100LT
from mllt.data.base import Splits
from mllt.data.sources import ArraySource
from mllt.longtail import exponential_profile


class Noise(CIFAR100LT):
    """As many images and classes as CIFAR100-LT, of random pixels."""

    title = "noise of the shape of CIFAR100-LT"

    def prepare_data(self) -> None:
        pass

    def load_splits(self) -> Splits:
        draw = torch.Generator().manual_seed(0)
        labels = np.repeat(np.arange(100), exponential_profile(100, 500, 100))
        images = torch.randint(0, 256, (len(labels), 3, 32, 32), dtype=torch.uint8, generator=draw)
        test = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8, generator=draw)
        names = [str(label) for label in range(100)]
        return Splits(ArraySource(images, labels), ArraySource(test, np.arange(10_000) % 100), names)


def cifar100_lt(**arguments: Any) -> CIFAR100LT:
    """The data module, set up."""
    root = Path(os.environ.get("MLLT_DATA", "data"))
    found = (root / "cifar-100-python").is_dir()
    data = CIFAR100LT(root=root, **arguments) if found else Noise(root=root, **arguments)
    data.setup()
    return data


def pixels_and_labels(source: Any) -> tuple[np.ndarray, list[int]]:
    """The images of a source as the plain code wants them: `(n, H, W, 3)`, and labels as a list."""
    images = source.images[torch.from_numpy(source.rows)]
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()), source.labels.tolist()
