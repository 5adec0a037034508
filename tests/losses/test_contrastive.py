"""`guided_contrastive_loss`: two views against a queue, less what is of the same class."""

import pytest
import torch
import torch.nn.functional as F
from tests.reference import published_losses as reference
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.losses import guided_contrastive_loss

TARGET, QUEUE_TARGET = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 0, 1, 3, 3, 1, 0])


def vectors(count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def problem(dtype=torch.float64):
    return vectors(4, 0, dtype), vectors(4, 1, dtype), TARGET, vectors(7, 2, dtype), QUEUE_TARGET


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_it_agrees_with_a_loop_over_images_and_queue(temperature, dtype, tolerance):
    query, key, target, queue, labels = problem(dtype)
    expected = reference.guided_contrast(
        query.tolist(), key.tolist(), target.tolist(), queue.tolist(), labels.tolist(), temperature
    )
    loss = guided_contrastive_loss(query, key, target, queue, labels, temperature)
    assert loss.item() == pytest.approx(expected, rel=tolerance)


def test_gradients_are_those_of_the_formula_and_only_reach_the_query():
    query, key, target, queue, labels = problem()
    for tensor in (query, key, queue):
        tensor.requires_grad_()
    guided_contrastive_loss(query, key, target, queue, labels).backward()
    assert key.grad is None
    assert queue.grad is None
    assert torch.autograd.gradcheck(lambda q: guided_contrastive_loss(q, key, target, queue, labels), query)


def test_what_the_queue_holds_of_the_same_class_changes_nothing():
    query, key, target, queue, labels = problem()
    only = target == 1
    changed = queue.clone()
    changed[labels == 1] = query[1]
    losses = [guided_contrastive_loss(query[only], key[only], target[only], q, labels) for q in (queue, changed)]
    assert_close(*losses)
    others = [guided_contrastive_loss(query[~only], key[~only], target[~only], q, labels) for q in (queue, changed)]
    assert not torch.isclose(*others)


def test_a_queue_of_one_class_only_leaves_nothing_to_learn_for_it_and_it_is_stable():
    query, key, _, queue, _ = problem(torch.float32)
    same = torch.zeros(4, dtype=torch.int64)
    assert guided_contrastive_loss(query, key, same, queue, torch.zeros(7, dtype=torch.int64)) == 0
    assert guided_contrastive_loss(1e2 * query, 1e2 * key, TARGET, 1e2 * queue, QUEUE_TARGET, 1.0).isfinite()  # up to 1e4
    assert guided_contrastive_loss(query[:0], key[:0], TARGET[:0], queue, QUEUE_TARGET) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_image_of_the_only_class_in_the_queue_gives_no_gradient_and_does_not_disturb_others(dtype):
    query, key, _, queue, _ = problem(dtype)
    target, labels = torch.tensor([0, 1, 0, 1]), torch.zeros(7, dtype=torch.int64)
    query.requires_grad_()
    guided_contrastive_loss(query, key, target, queue, labels).backward()
    assert query.grad.isfinite().all()
    assert (query.grad[target == 0] == 0).all()
    alone = query[target == 1].detach().requires_grad_()
    (guided_contrastive_loss(alone, key[target == 1], target[target == 1], queue, labels) / 2).backward()
    assert_close(query.grad[target == 1], alone.grad)


@pytest.mark.parametrize("part", range(5))
def test_shapes_that_do_not_fit_are_refused(part):
    arguments = list(problem())
    arguments[part] = arguments[part][:-1]
    with pytest.raises(ArgumentError, match=r"`queue` \(length, size\)"):
        guided_contrastive_loss(*arguments)


def test_a_temperature_of_0_is_refused():
    with pytest.raises(ArgumentError, match="`temperature`"):
        guided_contrastive_loss(*problem(), temperature=0)
