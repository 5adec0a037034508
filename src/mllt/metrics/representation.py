r"""How good features are: their nearest neighbours, and how far classes lie apart.

Both look at directions alone: every feature vector f is scaled to unit length, u = f / |f| (u = 0 for f = 0).

**Neighbours.** The k images of a reference set whose u has the largest cosine with that of an image each have a vote for their
class; the class with the most votes wins, and among equals the one whose image is nearest. Where classes have unequal numbers
of images n_c, votes may be divided by n_c, since otherwise the class prior decides: a class of 500 images has 100 times the
chances of one of 5 to be among the k.

**Geometry.** With m_c the mean of u over the images of class c, and a group G of classes that have images:

    spread(G)     = mean over c in G of  mean over images i of c of |u_i - m_c|^2                  in 0 .. 1
    separation(G) = mean over c in G of  min over all other classes c' of |m_c - m_c'|             in 0 .. 2
    ratio(G)      = separation(G) / sqrt(spread(G))

Classes are told apart the better, the larger the ratio: the distance to the nearest other class in units of a class's own
root-mean-square radius. Neural collapse (Papyan, Han, Donoho, 2020) has spread 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mllt.errors import ArgumentError, check_integer
from mllt.longtail import shot_groups
from mllt.metrics.linear_probe import check_features
from mllt.metrics.shot_accuracy import check_labels, result_dtype

#: Cosines that are held at once.
_MOST_COSINES = 2**24


def neighbour_classes(
    queries: Tensor,
    references: Tensor,
    labels: Tensor,
    num_classes: int,
    neighbours: int = 20,
    class_counts: Tensor | Sequence[int] | None = None,
) -> Tensor:
    """The class of each query by its nearest neighbours, int64 `(B,)`.

    Args:
        queries: features `(B, D)`.
        references: features `(n, D)`, on the same device.
        labels: of the references, integer `(n,)`, 0 .. C-1; every class has one.
        num_classes: C.
        neighbours: k, 1 .. n.
        class_counts: `(C,)` positive numbers that votes are divided by; None: all votes are alike.

    Raises:
        ArgumentError: a value is out of range, or shapes do not fit.

    >>> references, labels = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.5]]), torch.tensor([0, 0, 1])
    >>> query = torch.tensor([[1.0, 0.2]])
    >>> [neighbour_classes(query, references, labels, 2, 3, counts).item() for counts in (None, [20, 1])]
    [0, 1]
    """
    labels = check_features("references", references, "labels", labels, num_classes)
    check_integer("neighbours", neighbours, 1)
    if neighbours > len(references):
        raise ArgumentError(f"Expected `neighbours` to be at most the {len(references):,} references, but got {neighbours:,}.")
    if queries.ndim != 2 or queries.shape[1] != references.shape[1]:
        raise ArgumentError(
            f"Expected `queries` to be of shape (B, {references.shape[1]}), as `references`, but got {tuple(queries.shape)}."
        )
    divisor = _divisor(class_counts, num_classes, references.device)
    references = F.normalize(references, dim=1)
    step = max(1, _MOST_COSINES // len(references))
    found = []
    for block in F.normalize(queries, dim=1).split(step):
        nearest = labels[(block @ references.T).topk(neighbours, dim=1).indices]  # the nearest first
        votes = torch.zeros(len(block), num_classes, dtype=torch.int64, device=labels.device)
        votes.scatter_add_(1, nearest, torch.ones_like(nearest))
        # Each neighbour by the votes of its class: the first of the largest is the nearest of the winners
        best = (votes / divisor).gather(1, nearest).argmax(dim=1, keepdim=True)
        found.append(nearest.gather(1, best).squeeze(1))
    return torch.cat(found) if found else labels[:0]


def _divisor(class_counts: Tensor | Sequence[int] | None, num_classes: int, device: torch.device) -> Tensor:
    """What votes are divided by; in a type in which equal quotients are equal numbers, and others differ."""
    counts = torch.ones(num_classes) if class_counts is None else torch.as_tensor(class_counts)
    if counts.shape != (num_classes,) or not bool((counts > 0).all()):
        raise ArgumentError(f"Expected `class_counts` to be {num_classes} numbers above 0, one per class.")
    return counts.to(device, result_dtype(device))


def feature_geometry(
    features: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    many_above: int = 100,
    few_below: int = 20,
    *,
    inclusive: bool = False,
) -> dict[str, dict[str, float]]:
    """Spread, separation and their ratio of each shot group, by the formulas above.

    Args:
        features: `(n, D)`, floating and finite; computed with in float64, on the CPU.
        labels: integer `(n,)`, 0 .. C-1.
        class_counts: `(C,)`, *training* images of each class, which decide the group.
        many_above, few_below, inclusive: the shot-group rule, see `mllt.longtail.shot_groups`.

    Returns:
        `{"spread", "separation", "ratio"}`, each `{"many", "medium", "few", "all"}`. NaN for a group without images, for a
        separation where no other class has images, and for the ratio where the spread is 0.

    Raises:
        ArgumentError: shapes or types do not fit, or features are not finite.

    >>> features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    >>> feature_geometry(features, torch.tensor([0, 0, 1, 1]), torch.tensor([500, 5]))["separation"]
    {'many': 1.41..., 'medium': nan, 'few': 1.41..., 'all': 1.41...}
    """
    spread, separation = class_geometry(features, labels, len(class_counts))
    groups = shot_groups(class_counts.cpu(), many_above, few_below, inclusive=inclusive)
    groups["all"] = torch.ones_like(groups["many"])
    found: dict[str, dict[str, float]] = {"spread": {}, "separation": {}, "ratio": {}}
    for name, group in groups.items():
        there = group & ~spread.isnan()
        s, d = (float(values[there].mean()) for values in (spread, separation))
        found["spread"][name], found["separation"][name] = s, d
        found["ratio"][name] = d / math.sqrt(s) if s > 0 else math.nan
    return found


def class_geometry(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Of each class the mean squared distance to its mean, and the distance of its mean to the nearest other one.

    Returns:
        Two float64 `(C,)`; NaN for classes without images.
    """
    labels = check_labels("labels", labels.cpu(), num_classes)
    if features.ndim != 2 or len(features) != len(labels) or not bool(features.isfinite().all()):
        raise ArgumentError(f"Expected `features` to be finite, of shape ({len(labels)}, D), but they are not.")
    unit = F.normalize(features.cpu().double(), dim=1)
    count = torch.bincount(labels, minlength=num_classes).double()
    means = unit.new_zeros(num_classes, unit.shape[1]).index_add(0, labels, unit) / count.unsqueeze(1)
    distances = (unit - means[labels]).square().sum(dim=1)
    spread = unit.new_zeros(num_classes).index_add(0, labels, distances) / count
    there = count > 0
    between = torch.cdist(means[there], means[there]).fill_diagonal_(math.inf)
    separation = torch.full_like(spread, math.nan)
    if len(between) > 1:
        separation[there] = between.amin(dim=1)
    return spread, separation
