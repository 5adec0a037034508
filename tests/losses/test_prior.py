"""`balanced_softmax_loss` and `lade_regularizer`: what users rely on beyond the formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.losses import balanced_softmax_loss, lade_regularizer

COUNTS = torch.tensor([500, 60, 20, 7, 1])
ONE_EMPTY = torch.tensor([500, 60, 0, 7, 1])
SEEN = [0, 1, 3, 4]
TARGET = torch.tensor([0, 4, 1, 3, 0, 0])


def random_logits(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def test_balanced_softmax_with_equal_counts_is_cross_entropy():
    logits = random_logits(6, 5)
    assert_close(balanced_softmax_loss(logits, TARGET, torch.full((5,), 7)), F.cross_entropy(logits, TARGET))


def test_balanced_softmax_of_compensated_logits_is_cross_entropy_of_the_raw_ones():
    logits = random_logits(6, 5)
    compensated = logits - COUNTS.double().log()
    assert_close(balanced_softmax_loss(compensated, TARGET, COUNTS), F.cross_entropy(logits, TARGET))


def test_balanced_softmax_is_blind_to_the_size_of_the_data_set():
    logits = random_logits(6, 5)
    assert_close(balanced_softmax_loss(logits, TARGET, 9 * COUNTS), balanced_softmax_loss(logits, TARGET, COUNTS))


def test_balanced_softmax_leaves_a_class_without_images_out():
    logits = random_logits(6, 5).requires_grad_()
    loss = balanced_softmax_loss(logits, TARGET, ONE_EMPTY)
    new_label = torch.tensor([0, 1, -1, 2, 3])
    assert_close(loss, balanced_softmax_loss(logits[:, SEEN], new_label[TARGET], ONE_EMPTY[SEEN]))
    assert (gradient(loss, logits)[:, 2] == 0).all()


def test_lades_regulariser_does_not_look_at_a_class_without_images():
    logits = random_logits(6, 5).requires_grad_()
    loss = lade_regularizer(logits, TARGET, ONE_EMPTY)
    slope = gradient(loss, logits)
    assert (slope[:, 2] == 0).all()
    assert slope[:, SEEN].all()


KINDS = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 0])  # of ten images, which of three kinds each is
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 0, 1])
LABEL_COUNTS = torch.tensor([40, 40, 20])  # the batch is a fair sample of the training set


def density_ratio():
    """log p(kind | class) / p(kind), kinds by classes, counted; each class occurs with each kind but two pairs."""
    joint = torch.zeros(3, 3, dtype=torch.float64)
    for kind, label in zip(KINDS, LABELS, strict=True):
        joint[kind, label] += 1 / len(KINDS)
    return (joint / joint.sum(dim=0) / joint.sum(dim=1, keepdim=True)).clamp(min=1e-12).log()


@pytest.mark.parametrize("remine_lambda", [0.0, 0.01, 0.5])
def test_lades_regulariser_is_least_at_the_class_conditional_density_ratio(remine_lambda):
    # its second term is a mean of exp(z) / (C pi): with the constant log C pi in z that is 1, and lambda costs nothing
    best = density_ratio() + (3 * LABEL_COUNTS.double() / LABEL_COUNTS.sum()).log()
    best.requires_grad_()
    least = lade_regularizer(best[KINDS], LABELS, LABEL_COUNTS, remine_lambda)
    assert_close(gradient(least, best), torch.zeros(3, 3, dtype=torch.float64), rtol=0, atol=1e-9)
    for seed in range(20):
        moved = best + 0.3 * random_logits(3, 3, seed=seed)
        assert lade_regularizer(moved[KINDS], LABELS, LABEL_COUNTS, remine_lambda) > least


def test_only_lambda_stops_lades_regulariser_from_drifting():
    logits = random_logits(6, 5)
    free, held = ([lade_regularizer(logits + c, TARGET, COUNTS, a).item() for c in (0, 9)] for a in (0.0, 0.5))
    present = (COUNTS.double() / COUNTS.sum())[SEEN].sum().item()  # a class that the batch misses has no first term
    assert free[1] - free[0] == pytest.approx(9 * (1 - present), rel=1e-6)
    assert held[1] - held[0] > 1


def test_an_absent_class_still_pays_for_its_logits():
    logits = torch.zeros(4, 2, dtype=torch.float64).requires_grad_()
    loss = lade_regularizer(logits, torch.zeros(4, dtype=torch.int64), torch.tensor([3, 1]), 0.5)
    ratio = math.log(4 / 2)  # exp(0) / (C pi) of class 1
    assert_close(gradient(loss, logits)[:, 1], torch.full((4,), 0.25 * 0.25 * (1 + 2 * 0.5 * ratio), dtype=torch.float64))


@pytest.mark.parametrize("remine_lambda", [-0.1, math.nan, math.inf, "0.1", True])
def test_a_lambda_out_of_range_is_refused(remine_lambda):
    with pytest.raises(ArgumentError, match="Expected `remine_lambda` to be a number of at least 0"):
        lade_regularizer(torch.zeros(6, 5), TARGET, COUNTS, remine_lambda)
