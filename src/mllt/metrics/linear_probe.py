r"""The linear probe: how well a linear classifier can tell the classes from features that stay as they are.

Multinomial logistic regression on standardised features, every class counting alike. With x the features of an image, y its
class, n_c the images of class c, and w_i = 1 / (C n_{y_i}), so that sum_i w_i = 1:

    x'_i = (x_i - m) / s,   m = sum_i w_i x_i,   s^2 = sum_i w_i (x_i - m)^2   (s = 1 where a feature never varies)
    L(W, b) = sum_i w_i (-log softmax(W x'_i + b)_{y_i}) + l2 / 2 |W|^2

which is strictly convex in W: what is found does not depend on where one begins. The biases are not penalised. In the terms of
scikit-learn it is `LogisticRegression(C=1 / (l2 n), class_weight="balanced")` on n standardised images.

The default of l2 was chosen on held-out training images of CIFAR100-LT, never on test ones, with the features of a ResNet-20
after four epochs: larger values were worse, a smaller one no better.

Linear probes of frozen features are due to Alain and Bengio, "Understanding intermediate layers using linear classifier
probes" (2016).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mllt.blocks import blocks_of_images
from mllt.errors import ArgumentError, check_integer, check_number, name_some
from mllt.metrics.shot_accuracy import check_labels, result_dtype

DEFAULT_L2 = 1e-4
MAX_ITERATIONS = 1000
TOLERANCE = 1e-3


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    Args:
        weight: W, `(C, D)`, of standardised features.
        bias: b, `(C,)`.
        mean, scale: m and s, `(D,)`.
        iterations: of L-BFGS.
        converged: whether the gradient became as small as was asked for.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    iterations: int
    converged: bool

    def predict(self, features: Tensor) -> Tensor:
        """The class of each row of features `(B, D)`, int64 `(B,)`; on the probe's device."""
        blocks = _blocks(features, len(self.weight))
        return torch.cat([self._predict(features[rows]) for rows in blocks] or [torch.zeros(0, dtype=torch.int64)])

    def _predict(self, features: Tensor) -> Tensor:
        standard = (features.to(self.weight) - self.mean) / self.scale
        return F.linear(standard, self.weight, self.bias).argmax(dim=1)


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: float = DEFAULT_L2,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = TOLERANCE,
) -> LinearProbe:
    """Fit a linear probe by L-BFGS on all images at once; logits are made for a part of them at a time.

    It works where the features lie, in float64 (float32 on MPS, which has none): in float32, differences of the loss drown in
    rounding before the gradient is small. It has converged when the largest component of the
    gradient is at most `tolerance` times what it was at W = 0, b = 0; else a warning says how far it came.

    Args:
        features: `(n, D)`, floating and finite.
        labels: integer `(n,)`, 0 .. C-1; every class has an image.
        num_classes: C.
        l2: weight of the penalty, at least 0.
        max_iterations: at least 1.
        tolerance: above 0.

    Raises:
        ArgumentError: a value is out of range, shapes do not fit, features are not finite, or a class has no image.

    >>> features = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> probe = fit_linear_probe(features, torch.tensor([0, 0, 0, 1]), 2)
    >>> probe.converged, probe.predict(torch.tensor([[-5.0], [5.0]])).tolist()
    (True, [0, 1])
    """
    check_number("l2", l2, 0)
    check_integer("max_iterations", max_iterations, 1)
    check_number("tolerance", tolerance, above=0)
    labels = check_features("features", features, "labels", labels, num_classes)
    weights = class_balanced_weights(labels, num_classes)
    features = features.to(weights.dtype)
    mean = weights @ features
    standard = features - mean
    scale = (weights @ standard.square()).sqrt()
    varies = scale > torch.finfo(scale.dtype).eps ** 0.5 * mean.abs()  # what rounding makes of a constant does not
    scale = torch.where(varies, scale, torch.ones_like(scale))
    objective = _Objective(standard.div_(scale), labels, weights, num_classes, l2)
    iterations, ratio = objective.minimise(max_iterations, tolerance)
    if ratio > tolerance:
        warnings.warn(
            f"The linear probe did not converge in {iterations:,} iterations: the largest component of its gradient is "
            f"{ratio:.2g} of what it was at the start, and {tolerance:g} was asked for. Its accuracy may be too low; "
            "raise l2, or max_iterations.",
            stacklevel=2,
        )
    weight, bias = (value.detach() for value in objective.parameters)
    return LinearProbe(weight, bias, mean, scale, iterations, ratio <= tolerance)


class _Objective:
    """L(W, b) of standardised features, and its minimum."""

    def __init__(self, features: Tensor, labels: Tensor, weights: Tensor, num_classes: int, l2: float) -> None:
        self.features, self.labels, self.weights, self.l2 = features, labels, weights, l2
        self.blocks = _blocks(features, num_classes)
        zeros = (features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes))
        self.parameters = tuple(value.requires_grad_() for value in zeros)

    def __call__(self) -> Tensor:
        """The loss; leaves its gradient at the parameters."""
        weight, bias = self.parameters
        weight.grad = bias.grad = None
        with torch.enable_grad():
            loss = self.l2 / 2 * weight.square().sum()
            loss.backward()
            total = loss.detach()
            for rows in self.blocks:
                logits = F.linear(self.features[rows], weight, bias)
                part = F.cross_entropy(logits, self.labels[rows], reduction="none") @ self.weights[rows]
                part.backward()
                total = total + part.detach()
        return total

    def minimise(self, max_iterations: int, tolerance: float) -> tuple[int, float]:
        """The iterations that were done, and the largest component of the gradient over that at the start."""
        self()
        start = self._slope()
        if not start:
            return 0, 0.0
        optimizer = torch.optim.LBFGS(
            self.parameters,
            max_iter=max_iterations,
            max_eval=2 * max_iterations,
            tolerance_grad=tolerance * start,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(self)
        self()
        return int(optimizer.state[self.parameters[0]]["n_iter"]), self._slope() / start

    def _slope(self) -> float:
        return max(float(value.grad.abs().max()) for value in self.parameters if value.grad is not None)


def class_balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """w_i = 1 / (C n_{y_i}), float64 `(n,)` (float32 on MPS): the weights of all classes are alike, and their sum is 1.

    >>> class_balanced_weights(torch.tensor([0, 0, 1]), 2).tolist()
    [0.25, 0.25, 0.5]
    """
    counts = torch.bincount(labels, minlength=num_classes)
    each = 1 / (num_classes * counts.to(result_dtype(labels.device)))
    return each[labels]


def check_features(name: str, features: Tensor, labels_name: str, labels: Tensor, num_classes: int) -> Tensor:
    """Labels as int64 on the features' device; `ArgumentError` unless both fit and every class has an image."""
    if features.ndim != 2 or not features.is_floating_point() or not features.numel():
        raise ArgumentError(
            f"Expected `{name}` to be a floating-point tensor of shape (n, D), but got shape {tuple(features.shape)} and type "
            f"{features.dtype}."
        )
    if not bool(features.isfinite().all()):
        raise ArgumentError(f"Expected `{name}` to be finite, but some are infinite or not a number.")
    labels = check_labels(labels_name, labels, num_classes)
    if len(labels) != len(features):
        raise ArgumentError(
            f"Expected a label for each row of `{name}`, but got {len(features)} rows and {len(labels)} `{labels_name}`."
        )
    empty = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise ArgumentError(f"Expected every class to have an image in `{labels_name}`, but none is of {name_some(empty)}.")
    return labels.to(features.device)


def _blocks(features: Tensor, num_classes: int) -> list[slice]:
    """Parts of the images whose logits fit the cache."""
    return blocks_of_images(features.new_empty(1).expand(1, len(features), num_classes))
