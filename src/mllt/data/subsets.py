"""Cutting a long tail out of a balanced set, as the CIFAR-LT literature does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mllt.data.order import IntArray
from mllt.errors import ArgumentError, check_seed


def long_tailed_indices(labels: IntArray, counts: Sequence[int], seed: int = 0) -> IntArray:
    """Which images of a set are kept so that class k keeps `counts[k]` of them.

    The selection of LDAM-DRW's code (Cao et al., NeurIPS 2019), which RIDE, MiSLAS and BBN share: one stream of
    NumPy's legacy generator (MT19937) shuffles the images of each class in turn, and the first ones are kept. With
    seed 0 these are the customary subsets image for image; every subset contains those of higher imbalance.

    Args:
        labels: `(n,)` labels 0 .. C-1 in the set's official order.
        counts: images to keep of each class, C numbers.
        seed: of the subset; 0 is the customary one.

    Returns:
        int64 `(sum(counts),)` positions in the official order, class by class.

    Raises:
        ArgumentError: a class has fewer images than it should keep.

    >>> long_tailed_indices(np.array([0, 1, 0, 1, 0]), [2, 1]).tolist()
    [4, 2, 1]
    """
    stream = np.random.RandomState(check_seed("subset_seed", seed))
    kept = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise ArgumentError(f"Expected class {label} to have at least {count} images to keep, but it has {len(members)}.")
        stream.shuffle(members)
        kept.append(members[:count])
    return np.concatenate(kept).astype(np.int64)
