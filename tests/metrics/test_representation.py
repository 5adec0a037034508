"""Nearest neighbours and the geometry of classes, against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.reference.representation import geometry, nearest_class

from mllt.errors import ArgumentError
from mllt.metrics import representation
from mllt.metrics.representation import feature_geometry, neighbour_classes

COUNTS = (40, 20, 8, 3)


def images(counts=COUNTS, seed=0, dims=3):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return rng.normal(size=(len(counts), dims))[labels] + rng.normal(size=(len(labels), dims)), labels


@pytest.mark.parametrize("neighbours", [1, 2, 5, 20, sum(COUNTS)])
@pytest.mark.parametrize("by_count", [False, True])
def test_neighbours_are_those_of_the_reference(neighbours, by_count, monkeypatch):
    monkeypatch.setattr(representation, "_MOST_COSINES", 7 * sum(COUNTS))  # several parts, the last one smaller
    (references, labels), (queries, _) = images(), images((10,) * 4, seed=1)
    counts = COUNTS if by_count else None
    found = neighbour_classes(*map(torch.from_numpy, (queries, references, labels)), 4, neighbours, counts)
    assert found.tolist() == [nearest_class(query, references, labels, neighbours, counts) for query in queries]


def test_equal_quotients_of_votes_are_equal_and_the_nearest_image_decides():
    angles = torch.tensor([0.1, 0.2, 0.3, 0.4])  # from the query; one vote of 10 images against three of 30
    references, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([1, 0, 0, 0])
    assert neighbour_classes(torch.tensor([[1.0, 0.0]]), references, labels, 2, 4, [30, 10]).tolist() == [1]
    assert neighbour_classes(torch.tensor([[1.0, 0.0]]), references, labels, 2, 4, [29, 10]).tolist() == [0]


def test_the_length_of_features_does_not_matter():
    (features, labels), (queries, _) = images(), images(seed=1)
    stretched = features * np.random.default_rng(0).uniform(0.1, 10, size=(len(features), 1))
    plain, longer = (
        neighbour_classes(*map(torch.from_numpy, (queries, each, labels)), 4, 5).tolist() for each in (features, stretched)
    )
    assert plain == longer
    told = [feature_geometry(*map(torch.from_numpy, (each, labels)), torch.tensor(COUNTS)) for each in (features, stretched)]
    assert told[0]["ratio"]["all"] == pytest.approx(told[1]["ratio"]["all"])


def test_geometry_is_that_of_the_reference():
    features, labels = images()
    features[5] = 0  # a feature of no direction
    counts = torch.tensor([500, 50, 10, 5])
    found = feature_geometry(torch.from_numpy(features).float(), torch.from_numpy(labels), counts)
    for name, group in {"many": [0], "medium": [1], "few": [2, 3], "all": [0, 1, 2, 3]}.items():
        spread, separation = geometry(features.astype(np.float32).astype(float), labels, group)
        assert found["spread"][name] == pytest.approx(spread, rel=1e-9)
        assert found["separation"][name] == pytest.approx(separation, rel=1e-9)
        assert found["ratio"][name] == pytest.approx(separation / math.sqrt(spread), rel=1e-9)


def test_groups_without_images_and_collapsed_classes_have_no_number():
    features, labels = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 1])
    found = feature_geometry(features, labels, torch.tensor([500, 500, 5]))
    assert found["spread"]["all"] == 0
    assert found["separation"]["many"] == pytest.approx(math.sqrt(2))
    numbers = (found["ratio"]["all"], found["spread"]["few"], found["separation"]["medium"])
    assert all(math.isnan(number) for number in numbers)
    assert math.isnan(feature_geometry(features[:2], labels[:2], torch.tensor([500, 5]))["separation"]["many"]), (
        "no other class"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"neighbours": 0}, "`neighbours` to be a whole number of at least 1"),
        ({"neighbours": 72}, "at most the 71 references, but got 72"),
        ({"queries": torch.zeros(2, 4, dtype=torch.float64)}, r"of shape \(B, 3\)"),
        ({"class_counts": [1, 2, 3]}, "4 numbers above 0"),
        ({"class_counts": [1, 2, 3, 0]}, "4 numbers above 0"),
        ({"references": torch.full((71, 3), math.inf)}, "to be finite"),
    ],
    ids=str,
)
def test_mistakes_are_told(change, said):
    references, labels = map(torch.from_numpy, images())
    with pytest.raises(ArgumentError, match=said):
        neighbour_classes(**{"queries": references, "references": references, "labels": labels, "num_classes": 4, **change})
