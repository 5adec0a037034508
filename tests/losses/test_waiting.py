"""Losses do not wait for an accelerator: they ask for no value of what lies on it.

"meta" stands for one here: a tensor there has a shape but no values, and whoever asks for one gets an error.
"""

import pytest
import torch
from torch.testing import assert_close

from mllt import losses
from mllt.errors import ArgumentError
from mllt.losses.checks import balancing_offset, checked_counts

COUNTS = torch.tensor([500, 60, 20, 7, 1])
OWNED = torch.tensor([[True] * 5, [False, True, True, True, True], [False, False, True, True, True]])
LOSSES = {
    "mutual distillation": lambda z, y: losses.mutual_distillation_loss(z, class_counts=COUNTS),
    "mutual learning": lambda z, y: sum(losses.mutual_learning_terms(z, y)),
    "mutual learning at another temperature": lambda z, y: sum(losses.mutual_learning_terms(z, y, 2.0, detach=False)),
    "mutual learning from the mean": lambda z, y: sum(losses.mutual_learning_terms(z, y, target="mean", class_counts=COUNTS)),
    "in chunks": lambda z, y: sum(losses.chunked_mutual_learning_terms(z, [z.new_zeros(9, 5)] * 3, None, y, chunk=4)),
    "cross entropy": losses.expert_cross_entropy,
    "balanced softmax": lambda z, y: losses.balanced_softmax_loss(z, y, COUNTS),
    "LADE": lambda z, y: losses.lade_regularizer(z, y, COUNTS),
    "LDAM": lambda z, y: losses.ldam_loss(z, y, COUNTS),
    "RIDE": lambda z, y: losses.ride_loss(z, y, COUNTS),
    "label-aware smoothing": lambda z, y: losses.label_aware_smoothing_loss(z, y, COUNTS, 0.4, 0.1),
    "owned classes": lambda z, y: losses.owned_cross_entropy(z, y, OWNED, COUNTS),
    "complement": lambda z, y: losses.complement_loss(z, y, OWNED),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_asks_for_no_value(name):
    logits = torch.zeros(3, 6, 5, device="meta", requires_grad=True)
    loss = LOSSES[name](logits, torch.zeros(6, dtype=torch.int64, device="meta"))
    loss.backward()
    assert loss.shape == ()
    assert logits.grad.shape == logits.shape


def test_class_counts_are_looked_at_once_and_again_when_they_change():
    counts = COUNTS.clone()
    first = checked_counts(counts, 5)
    assert checked_counts(counts, 5) is first
    offset = balancing_offset(counts, 5, torch.device("cpu"), torch.float32)
    assert balancing_offset(counts, 5, torch.device("cpu"), torch.float32) is offset
    assert balancing_offset(counts, 5, torch.device("cpu"), torch.float64).dtype == torch.float64
    counts[0] = 3
    assert checked_counts(counts, 5).tolist() == [3, 60, 20, 7, 1]
    assert not torch.equal(balancing_offset(counts, 5, torch.device("cpu"), torch.float32), offset)
    counts[1] = -1
    with pytest.raises(ArgumentError, match="none negative"):
        checked_counts(counts, 5)
    with pytest.raises(ArgumentError, match="to hold 4 numbers"):
        checked_counts(COUNTS, 4)


def test_what_is_known_of_class_counts_is_forgotten_with_them():
    import gc
    import weakref

    counts = COUNTS.clone()
    known = weakref.ref(checked_counts(counts, 5))
    del counts
    gc.collect()
    assert known() is None


def test_what_is_made_in_inference_mode_does_for_training():
    counts, logits = COUNTS.clone(), torch.randn(3, 6, 5, dtype=torch.float64)
    with torch.inference_mode():
        before = losses.mutual_distillation_loss(logits, class_counts=counts)
    logits.requires_grad_()
    after = losses.mutual_distillation_loss(logits, class_counts=counts, detach=False)
    after.backward()
    assert_close(after, before.clone())


def test_a_target_without_training_images_is_refused_also_at_the_second_look():
    counts = torch.tensor([3, 0, 2])
    for _ in range(2):
        with pytest.raises(ArgumentError, match="classes 1 have a class count of 0"):
            losses.balanced_softmax_loss(torch.zeros(2, 3), torch.tensor([0, 1]), counts)
