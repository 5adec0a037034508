"""`DigitsLT`: a real long-tailed set that needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mllt.data.arrays import ArrayDataModule
from mllt.data.base import Figures, Splits
from mllt.data.order import SUBSET, IntArray, permutation
from mllt.data.sources import ArraySource
from mllt.data.subsets import long_tailed_indices
from mllt.errors import check_seed
from mllt.longtail import profile_counts

_TEST_PER_CLASS = 50
_MAX_COUNT = 120  # of the smallest class, 174 images, 124 are left for training


class DigitsLT(ArrayDataModule):
    """Handwritten digits with a tail: scikit-learn's 1,797 real 8x8 images, 10 classes, embedded in that package.

    50 images of each class, always the same, are the balanced test set; of the rest class k keeps up to 120 images
    by the profile. Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test set).

    Args:
        profile: "exponential" or "step".
        imbalance_factor: largest over smallest class, 1 .. 120.
        subset_seed: which training images are kept.
        padding: pixels of the random crop; digits are not flipped.
        rotation: largest angle in degrees of the random rotation.
        common: see `ArrayDataModule`.

    >>> data = DigitsLT(imbalance_factor=60)
    >>> data.setup()
    >>> data.class_counts.tolist()
    [120, 76, 48, 30, 19, 12, 7, 4, 3, 2]
    """

    image_size = 8
    mean = (0.3053,) * 3  # of all 1,797 images
    std = (0.3759,) * 3
    view_scale = (0.6, 1.0)  # a fifth of a digit is a stroke

    def __init__(
        self,
        profile: str = "exponential",
        imbalance_factor: float = 60,
        subset_seed: int = 0,
        padding: int = 1,
        rotation: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.counts = profile_counts(profile, 10, _MAX_COUNT, imbalance_factor)
        self._as_shipped = (profile, imbalance_factor) == ("exponential", 60)
        self.subset_seed = check_seed("subset_seed", subset_seed)
        self.augment_by(padding, flip=False, rotation=rotation)
        self.title = f"Digits-LT ({profile} profile)"

    def official_figures(self) -> Figures | None:
        return Figures(train=321, classes=10, largest=120, smallest=2, test=500) if self._as_shipped else None

    def load_splits(self) -> Splits:
        everything, pool, test = self._read()
        names = [str(digit) for digit in range(10)]
        return Splits(self._cut(everything, pool, self.counts), everything.subset(test), names)

    def balanced_source(self) -> ArraySource:
        """120 training images of each class."""
        everything, pool, _ = self._read()
        return self._cut(everything, pool, [_MAX_COUNT] * 10)

    def _cut(self, everything: ArraySource, pool: IntArray, counts: Sequence[int]) -> ArraySource:
        return everything.subset(pool[long_tailed_indices(everything.labels[pool], counts, self.subset_seed)])

    @staticmethod
    def _read() -> tuple[ArraySource, IntArray, IntArray]:
        """All images, and which of them are there to train with and to test with."""
        from sklearn.datasets import load_digits  # here, since it takes as long to import as all of mllt

        digits = load_digits()
        grey = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))
        images = grey.unsqueeze(1).repeat(1, 3, 1, 1)
        order = permutation(len(images), 0, SUBSET)  # one fixed split, whatever the run's seed
        labels = digits.target[order]
        in_test = np.zeros(len(order), dtype=bool)
        for label in range(10):
            in_test[np.flatnonzero(labels == label)[:_TEST_PER_CLASS]] = True
        return ArraySource(images, digits.target), order[~in_test], order[in_test]
