"""`ldam_loss` and `drw_weights`: what users rely on beyond the formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.reference import published_losses as reference
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.losses import drw_weights, ldam_loss

COUNTS = torch.tensor([625, 81, 16, 16, 1])
TARGET = torch.tensor([0, 4, 1, 3, 2, 0])


def random_logits(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_without_margin_it_is_cross_entropy():
    logits, weight = random_logits(6, 5), torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)
    assert_close(ldam_loss(logits, TARGET, COUNTS, max_margin=0), F.cross_entropy(logits, TARGET))
    weighted = ldam_loss(logits, TARGET, COUNTS, max_margin=0, weight=weight)
    assert_close(weighted, F.cross_entropy(logits, TARGET, weight=weight))


@pytest.mark.parametrize(("label", "margin"), [(4, 0.5), (3, 0.25), (2, 0.25), (1, 0.5 / 3), (0, 0.1)])
def test_the_rarest_class_gives_up_the_whole_margin_and_others_by_their_fourth_root(label, margin):
    logits, target = random_logits(1, 5), torch.tensor([label])
    moved = logits.clone()
    moved[0, label] -= 30 * margin
    assert_close(ldam_loss(logits, target, COUNTS), F.cross_entropy(moved, target))


def test_a_class_without_images_does_not_set_the_margins():
    logits, target = random_logits(1, 5), torch.tensor([3])
    moved = logits.clone()
    moved[0, 3] -= 30 * 0.5  # of 16 images, the rarest
    assert_close(ldam_loss(logits, target, torch.tensor([625, 81, 16, 16, 0])), F.cross_entropy(moved, target))


def test_only_the_ratio_of_weights_matters():
    logits, weight = random_logits(2, 6, 5), torch.tensor([1.0, 2, 3, 4, 5])
    assert_close(ldam_loss(logits, TARGET, COUNTS, weight=7 * weight), ldam_loss(logits, TARGET, COUNTS, weight=weight))
    assert_close(ldam_loss(logits, TARGET, COUNTS, weight=torch.ones(5)), ldam_loss(logits, TARGET, COUNTS))
    assert_close(ldam_loss(logits, TARGET, COUNTS, weight=weight.tolist()), ldam_loss(logits, TARGET, COUNTS, weight=weight))


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize("counts", [[625, 81, 16, 1], [625, 0, 16, 1], [3, 3, 3]])
def test_drw_weights_are_those_of_the_loop_and_sum_to_the_number_of_classes(beta, counts):
    weights = drw_weights(counts, beta)
    assert weights.dtype == torch.float64
    assert weights.tolist() == pytest.approx(reference.drw(counts, beta), rel=1e-12)
    assert weights.sum().item() == pytest.approx(len(counts))


def test_drw_weights_run_from_equal_to_inverse_frequency():
    assert_close(drw_weights(COUNTS, 0.0), torch.ones(5, dtype=torch.float64))
    inverse = 1 / COUNTS.double()
    assert_close(drw_weights(COUNTS, 1 - 1e-9), 5 * inverse / inverse.sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_margin": -0.1}, "Expected `max_margin` to be a number of at least 0"),
        ({"max_margin": math.nan}, "Expected `max_margin`"),
        ({"scale": 0}, "Expected `scale` to be a number above 0"),
        ({"scale": "30"}, "Expected `scale`"),
        ({"weight": torch.ones(4)}, r"Expected `weight` .* shape \(5,\), one per class, but got \(4,\)"),
        ({"weight": torch.ones(5, 1)}, "Expected `weight`"),
        ({"weight": torch.ones(5).long()}, "Expected `weight` to be floating"),
        ({"weight": [1.0, 1.0, -1.0, 1.0, 1.0]}, "Expected `weight` to be finite and not negative"),
        ({"weight": [1.0, 1.0, math.nan, 1.0, 1.0]}, "Expected `weight` to be finite"),
        ({"weight": "heavy"}, "Expected `weight` to be numbers"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        ldam_loss(torch.zeros(6, 5), TARGET, COUNTS, **settings)


@pytest.mark.parametrize("beta", [-0.1, 1, 1.5, math.nan, "0.9"])
def test_a_beta_out_of_range_is_refused(beta):
    with pytest.raises(ArgumentError, match="Expected `beta` to be a number of at least 0 and below 1"):
        drw_weights(COUNTS, beta)
