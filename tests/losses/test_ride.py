"""`ride_loss`: what users rely on beyond the formulas."""

import math

import pytest
import torch
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.losses import drw_weights, ldam_loss, ride_loss

COUNTS = torch.tensor([500, 60, 20, 7, 1])
TARGET = torch.tensor([0, 4, 1, 3, 2, 0])

early_and_late = pytest.mark.parametrize("reweight", [False, True])


def random_logits(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def margins_alone(logits, reweight):
    return ldam_loss(logits, TARGET, COUNTS, weight=drw_weights(COUNTS) if reweight else None)


@early_and_late
def test_without_diversity_it_is_the_margin_loss_of_the_mean_once_per_expert(reweight):
    logits = random_logits(3, 6, 5).requires_grad_()
    loss = ride_loss(logits, TARGET, COUNTS, diversity=0, reweight=reweight)
    expected = 3 * margins_alone(logits.mean(dim=0), reweight)
    assert_close(loss, expected)
    assert_close(gradient(loss, logits), gradient(expected, logits))


@early_and_late
def test_one_expert_has_nobody_to_differ_from(reweight):
    logits = random_logits(1, 6, 5)
    for diversity in (-0.45, 0, 0.45):
        assert_close(ride_loss(logits, TARGET, COUNTS, diversity, reweight=reweight), margins_alone(logits, reweight))


@early_and_late
def test_the_divergence_is_taken_as_often_as_diversity_says(reweight):
    logits = random_logits(3, 6, 5)
    plain = margins_alone(logits, reweight)
    once, twice, minus = (ride_loss(logits, TARGET, COUNTS, d, reweight=reweight) - plain for d in (1.0, 2.0, -1.0))
    assert once > 0
    assert_close(twice, 2 * once)
    assert_close(minus, -once)


@pytest.mark.parametrize(("diversity", "apart"), [(-0.45, True), (0.45, False)])
def test_negative_diversity_drives_the_experts_apart_and_positive_together(diversity, apart):
    logits = random_logits(3, 6, 5).requires_grad_()
    term = ride_loss(logits, TARGET, COUNTS, diversity) - margins_alone(logits, False)
    moved = logits - 0.1 * gradient(term, logits)
    spread = [z.log_softmax(dim=-1).var(dim=0).sum().item() for z in (logits, moved)]
    assert (spread[1] > spread[0]) == apart


def test_the_factor_of_reweighting_waits_for_it():
    logits = random_logits(3, 6, 5)
    early = [ride_loss(logits, TARGET, COUNTS, reweight_factor=eta) for eta in (0.0, 0.5)]
    late = [ride_loss(logits, TARGET, COUNTS, reweight_factor=eta, reweight=True) for eta in (0.0, 0.5)]
    assert early[0] == early[1]
    assert not torch.isclose(*late)


@early_and_late
def test_a_higher_temperature_does_not_make_the_term_vanish(reweight):
    logits = random_logits(3, 6, 5)
    plain = margins_alone(logits, reweight)
    terms = [ride_loss(logits, TARGET, COUNTS, 1.0, t, reweight=reweight) - plain for t in (50.0, 100.0)]
    assert terms[1].item() == pytest.approx(terms[0].item(), rel=0.05)  # without the factor T^2 it would be a quarter


@early_and_late
def test_the_order_of_experts_does_not_matter(reweight):
    logits = random_logits(3, 6, 5)
    turned = ride_loss(logits[[2, 0, 1]], TARGET, COUNTS, reweight=reweight)
    assert_close(turned, ride_loss(logits, TARGET, COUNTS, reweight=reweight))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diversity": math.nan}, "Expected `diversity` to be a number"),
        ({"diversity": "-0.45"}, "Expected `diversity`"),
        ({"diversity_temperature": 0}, "Expected `diversity_temperature` to be a number above 0"),
        ({"reweight_factor": -0.1}, "Expected `reweight_factor` to be a number of at least 0 and below 1"),
        ({"reweight_factor": 1.0}, "Expected `reweight_factor`"),
        ({"reweight": 1}, "Expected `reweight` to be true or false, but got 1"),
        ({"max_margin": -0.5}, "Expected `max_margin`"),
        ({"scale": 0.0}, "Expected `scale`"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        ride_loss(torch.zeros(2, 6, 5), TARGET, COUNTS, **settings)


def test_logits_of_one_network_are_refused():
    with pytest.raises(ArgumentError, match=r"Expected `logits` of shape \(experts, batch, classes\), but got \(6, 5\)"):
        ride_loss(torch.zeros(6, 5), TARGET, COUNTS)
