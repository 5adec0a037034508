"""The linear probe, against scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mllt import blocks
from mllt.errors import ArgumentError
from mllt.metrics.linear_probe import fit_linear_probe


def clouds(counts=(80, 40, 20, 6), dims=5, spread=1.5, seed=0):
    """Overlapping classes of unequal size; features of unequal scale and offset, one of which never varies."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    features = rng.normal(size=(len(counts), dims))[labels] + spread * rng.normal(size=(len(labels), dims))
    features = features * np.array([1, 10, 0.1, 3, 0])[:dims] + 7
    order = rng.permutation(len(labels))
    return torch.from_numpy(features[order]), torch.from_numpy(labels[order])


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_it_is_scikit_learns_logistic_regression_with_balanced_classes(l2):
    features, labels = clouds()
    weights = 1 / np.bincount(labels)[labels]
    standard = StandardScaler().fit_transform(features.numpy(), sample_weight=weights)
    theirs = LogisticRegression(C=1 / (l2 * len(labels)), class_weight="balanced", tol=1e-10, max_iter=10_000)
    theirs.fit(standard, labels)
    ours = fit_linear_probe(features, labels, 4, l2, tolerance=1e-6)
    assert ours.converged
    assert ours.scale[-1] == 1, "a feature that never varies is left alone"
    assert ours.weight.numpy() == pytest.approx(theirs.coef_, abs=1e-4)
    difference = ours.bias.numpy() - theirs.intercept_
    assert difference - difference.mean() == pytest.approx(np.zeros(4), abs=1e-4), "biases are free up to a common number"
    others, _ = clouds(seed=1)
    scaler = StandardScaler().fit(features.numpy(), sample_weight=weights)
    assert ours.predict(others).tolist() == theirs.predict(scaler.transform(others.numpy())).tolist()


def test_the_default_tolerance_answers_as_a_strict_one_does():
    features, labels = clouds(counts=(300, 100, 30, 10))
    loose, strict = fit_linear_probe(features, labels, 4), fit_linear_probe(features, labels, 4, tolerance=1e-6)
    assert strict.iterations > loose.iterations
    assert (loose.predict(features) != strict.predict(features)).float().mean() < 0.01


def test_every_class_counts_alike():
    features, labels = clouds()
    of_last = labels == 3
    often = torch.cat([features, features[of_last].repeat(9, 1)]), torch.cat([labels, labels[of_last].repeat(9)])
    once, tenfold = fit_linear_probe(features, labels, 4, tolerance=1e-6), fit_linear_probe(*often, 4, tolerance=1e-6)
    torch.testing.assert_close(once.weight, tenfold.weight, atol=1e-5, rtol=1e-5)


def test_parts_of_the_images_and_repetition_change_no_answer(monkeypatch):
    features, labels = clouds(counts=(300, 100, 30, 10))
    whole, again = (fit_linear_probe(features, labels, 4) for _ in range(2))
    assert torch.equal(whole.weight, again.weight)
    monkeypatch.setattr(blocks, "PER_THREAD", 64)
    parts = fit_linear_probe(features, labels, 4, tolerance=1e-6)
    torch.testing.assert_close(parts.weight, fit_linear_probe(features, labels, 4, tolerance=1e-6).weight)
    assert parts.predict(features).shape == labels.shape
    strict = fit_linear_probe(features.float(), labels, 4, tolerance=1e-6)
    assert strict.converged, "features in float32, too"


def test_a_fit_that_is_broken_off_says_so():
    features, labels = clouds()
    with pytest.warns(UserWarning, match="did not converge in 2 iterations.*0.001 was asked for"):
        fitted = fit_linear_probe(features, labels, 4, 1e-6, max_iterations=2)
    assert not fitted.converged


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"l2": -1}, "`l2` to be a number of at least 0"),
        ({"max_iterations": 0}, "`max_iterations` to be a whole number of at least 1"),
        ({"tolerance": 0}, "`tolerance` to be a number above 0"),
        ({"num_classes": 5}, "every class to have an image in `labels`, but none is of 4"),
        ({"num_classes": 3}, "class numbers from 0 to 2, but got 3"),
        ({"features": torch.full((146, 5), float("nan"))}, "to be finite"),
        ({"features": torch.zeros(146, 5, dtype=torch.int64)}, "floating-point tensor of shape"),
        ({"features": torch.zeros(3, 5)}, "a label for each row"),
    ],
    ids=str,
)
def test_mistakes_are_told(change, said):
    features, labels = clouds()
    with pytest.raises(ArgumentError, match=said.replace("(", r"\(")):
        fit_linear_probe(**{"features": features, "labels": labels, "num_classes": 4, **change})
