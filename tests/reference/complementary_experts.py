"""ACE's losses and its ensemble, one number after another in Python's float64."""

from __future__ import annotations

import math

from tests.reference.published_losses import cross_entropy


def owned_cross_entropy(logits, targets, owned, counts):
    """Sum over experts of the cross entropy on their own images, over the number of them that a batch holds on average."""
    total = 0.0
    for rows, classes in zip(logits, owned, strict=True):
        images = sum(n for n, own in zip(counts, classes, strict=True) if own)
        expected = len(targets) * images / sum(counts)
        total += sum(cross_entropy(row, y) for row, y in zip(rows, targets, strict=True) if classes[y]) / expected
    return total


def complement(logits, targets, owned, form):
    """Sum over experts of the squared logits that should be 0, over the number of images and classes."""
    total = 0.0
    for rows, classes in zip(logits, owned, strict=True):
        seen = any(classes[y] for y in targets)
        for row, y in zip(rows, targets, strict=True):
            for z, own in zip(row, classes, strict=True):
                if (form == "classes" and not own) or (form == "samples" and seen and not classes[y]):
                    total += z * z
    return total / (len(targets) * len(owned[0]))


def frobenius(matrix):
    """The length of a matrix."""
    return math.sqrt(sum(w * w for row in matrix for w in row))


def ensemble(logits, owned, lengths):
    """Logits of the ensemble, image by image: the average over a class's owners of |W_1| / |W_k| z_k."""
    result = []
    for image in range(len(logits[0])):
        row = []
        for c in range(len(owned[0])):
            experts = [k for k in range(len(owned)) if owned[k][c]]
            row.append(sum(lengths[0] / lengths[k] * logits[k][image][c] for k in experts) / len(experts))
        result.append(row)
    return result
