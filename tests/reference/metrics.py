"""Slow, plain re-implementations of the metrics, image by image, in Python's float64 and exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

NAN = float("nan")


def predictors(logits: list[list[list[float]]], with_ensemble: bool) -> list[list[list[float]]]:
    """Experts' logits [N][B][C], and behind them the mean over experts."""
    if not with_ensemble:
        return logits
    experts, images, classes = len(logits), len(logits[0]), len(logits[0][0])
    mean = [[math.fsum(logits[n][b][c] for n in range(experts)) / experts for c in range(classes)] for b in range(images)]
    return [*logits, mean]


def first_largest(row: list[float]) -> int:
    best = 0
    for label, value in enumerate(row):
        if value > row[best]:
            best = label
    return best


def shot_accuracy(
    predicted: list[int],
    target: list[int],
    class_counts: list[int],
    many_above: int = 100,
    few_below: int = 20,
    inclusive: bool = False,
    average: str = "macro",
) -> dict[str, float]:
    """One predictor's accuracy in each group; NaN where a group has no test images."""

    def group(count: int) -> str:
        if count > many_above or (inclusive and count == many_above):
            return "many"
        if count < few_below or (inclusive and count == few_below):
            return "few"
        return "medium"

    right = [0] * len(class_counts)
    images = [0] * len(class_counts)
    for guess, label in zip(predicted, target, strict=True):
        images[label] += 1
        right[label] += guess == label

    result = {}
    for name in ("many", "medium", "few", "all"):
        members = [c for c, n in enumerate(class_counts) if (name == "all" or group(n) == name) and images[c] > 0]
        if not members:
            result[name] = NAN
        elif average == "macro":
            result[name] = float(sum(Fraction(right[c], images[c]) for c in members) / len(members))
        else:
            result[name] = float(Fraction(sum(right[c] for c in members), sum(images[c] for c in members)))
    return result


def calibration_error(logits: list[list[float]], target: list[int], num_bins: int = 15) -> float:
    """One predictor's expected calibration error, bins (lower, upper]."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(num_bins)]
    for row, label in zip(logits, target, strict=True):
        highest = max(row)
        confidence = 1 / math.fsum(math.exp(value - highest) for value in row)
        m = next(m for m in range(num_bins) if m == num_bins - 1 or confidence <= (m + 1) / num_bins)
        bins[m].append((confidence, first_largest(row) == label))
    total = len(target)
    gaps = []
    for members in bins:
        if members:
            accuracy = sum(right for _, right in members) / len(members)
            confidence = math.fsum(confidence for confidence, _ in members) / len(members)
            gaps.append(len(members) / total * abs(accuracy - confidence))
    return math.fsum(gaps) if total else NAN
