"""`expert_disagreement`, against the mean divergence from the mean, term by term in Python's float64."""

import math

import pytest
import torch

from mllt.errors import ArgumentError
from mllt.metrics import expert_disagreement


def by_hand(experts):
    """mean_k KL(p_k || mean_j p_j) / log N of one image, from `[N][C]`."""
    mean = [math.fsum(column) / len(experts) for column in zip(*experts, strict=True)]
    terms = [p * math.log(p / m) for row in experts for p, m in zip(row, mean, strict=True) if p > 0]
    return math.fsum(terms) / len(experts) / math.log(len(experts))


@pytest.mark.parametrize("experts", [2, 3, 7])
def test_it_is_the_mean_divergence_from_the_mean(experts):
    logits = 3 * torch.randn(experts, 50, 11, generator=torch.Generator().manual_seed(experts))
    probabilities = logits.double().softmax(dim=-1)
    found = expert_disagreement(probabilities)
    assert found.tolist() == pytest.approx([by_hand(probabilities[:, i].tolist()) for i in range(50)], rel=1e-9)
    assert expert_disagreement(probabilities.float()).tolist() == pytest.approx(found.tolist(), abs=1e-6)


def test_it_is_0_where_all_say_the_same_and_1_where_each_is_certain_of_another_class():
    alike = torch.rand(1, 20, 5).softmax(dim=-1).expand(4, -1, -1)
    found = expert_disagreement(alike)
    assert (found >= 0).all(), "rounding below 0"
    assert found.max() < 1e-6
    certain = torch.eye(4).unsqueeze(1)
    assert expert_disagreement(certain).tolist() == [1.0]


def test_one_expert_has_nobody_to_disagree_with():
    assert expert_disagreement(torch.rand(1, 3, 4)).tolist() == [0.0] * 3


@pytest.mark.parametrize("wrong", [torch.rand(3, 4), torch.ones(2, 3, 4, dtype=torch.int64)])
def test_another_shape_or_type_is_an_error(wrong):
    with pytest.raises(ArgumentError, match=r"\(experts, images, classes\), but got"):
        expert_disagreement(wrong)
