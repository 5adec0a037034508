"""Slow, plain NumPy re-implementations of the measures of features, image by image."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np


def unit(vector: np.ndarray) -> np.ndarray:
    length = math.sqrt(float((vector**2).sum()))
    return vector / length if length else vector


def nearest_class(query, references, labels, neighbours, class_counts=None) -> int:
    """By votes; among equals the class whose image is nearest."""
    cosines = references @ unit(query) / np.linalg.norm(references, axis=1)
    nearest = sorted(range(len(references)), key=lambda i: -cosines[i])[:neighbours]
    votes = Counter(int(labels[i]) for i in nearest)
    score = {c: n / (1 if class_counts is None else class_counts[c]) for c, n in votes.items()}
    return next(int(labels[i]) for i in nearest if score[int(labels[i])] == max(score.values()))


def geometry(features, labels, group) -> tuple[float, float]:
    """Spread and separation of a group of classes."""
    members = {int(c): [unit(f) for f, y in zip(features, labels, strict=True) if y == c] for c in np.unique(labels)}
    means = {c: sum(rows) / len(rows) for c, rows in members.items()}
    spreads, separations = [], []
    for c in group:
        if c in members:
            spreads.append(np.mean([((row - means[c]) ** 2).sum() for row in members[c]]))
            separations.append(min(math.dist(means[c], means[other]) for other in means if other != c))
    return float(np.mean(spreads)), float(np.mean(separations))
