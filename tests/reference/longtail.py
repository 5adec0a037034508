"""Slow, plain re-implementations of what follows from class counts: exact profiles, priors and compensation by loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext

import numpy as np


def exact_count(place: int, num_classes: int, max_count: int, imbalance_factor: float) -> Decimal:
    """max_count * imbalance_factor ** (-place / (num_classes - 1)) to fifty digits, before it is cut off."""
    with localcontext() as context:
        context.prec = 50
        exponent = Decimal(place) / Decimal(max(num_classes - 1, 1))
        return Decimal(max_count) / (Decimal(imbalance_factor) ** exponent)


def customary_subset(labels: Sequence[int], counts: Sequence[int], seed: int) -> list[int]:
    """The subset as the literature's code makes it: NumPy's one global generator shuffles class after class."""
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        kept: list[int] = []
        for label, count in enumerate(counts):
            members = np.array([place for place, other in enumerate(labels) if other == label])
            np.random.shuffle(members)
            kept.extend(int(place) for place in members[:count])
    finally:
        np.random.set_state(state)
    return kept


def compensate(
    logits: Sequence[Sequence[float]], class_counts: Sequence[int], test_prior: Sequence[float]
) -> list[list[float]]:
    """z - log(n_c / N) + log(test prior), number by number."""
    total = math.fsum(class_counts)
    return [
        [
            z - math.log(n / total) + (math.log(prior) if prior > 0 else -math.inf)
            for z, n, prior in zip(row, class_counts, test_prior, strict=True)
        ]
        for row in logits
    ]


def tail(class_counts: Sequence[int], factor: float, backward: bool) -> list[float]:
    """A long-tailed prior: the most frequent class first (last, when backward), falling by `factor` over all."""
    ranking = sorted(range(len(class_counts)), key=lambda label: (-class_counts[label], label))
    if backward:
        ranking.reverse()
    weights = [0.0] * len(class_counts)
    for rank, label in enumerate(ranking):
        weights[label] = math.exp(-math.log(factor) * rank / max(len(class_counts) - 1, 1))
    return [weight / math.fsum(weights) for weight in weights]
