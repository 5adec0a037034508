"""`expert_cross_entropy` against a loop, and against each expert alone."""

import pytest
import torch
import torch.nn.functional as F
from tests.reference import losses as reference
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.losses import expert_cross_entropy, mutual_distillation_loss


def random_logits(*shape, seed=0, dtype=torch.float64):
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


TARGET = torch.tensor([0, 4, 2, 2, 1, 0])


@pytest.mark.parametrize("experts", [1, 2, 3, 4])
def test_the_value_is_that_of_the_loop(experts):
    logits = random_logits(experts, 6, 5, dtype=torch.float32)
    expected = reference.cross_entropy(logits.tolist(), TARGET.tolist())
    assert expert_cross_entropy(logits, TARGET).item() == pytest.approx(expected, rel=1e-5)


def test_every_expert_gets_the_gradient_it_would_have_alone():
    logits = random_logits(3, 6, 5).requires_grad_()
    (together,) = torch.autograd.grad(expert_cross_entropy(logits, TARGET), logits)
    for k in range(3):
        alone = logits[k].detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(alone, TARGET), alone)
        assert_close(together[k], gradient)


def test_the_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(lambda z: expert_cross_entropy(z, TARGET), (random_logits(2, 6, 5).requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    halves = random_logits(3, 6, 5, dtype=dtype)
    loss = expert_cross_entropy(halves, TARGET)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expert_cross_entropy(halves.float(), TARGET))


def test_huge_logits_stay_finite():
    logits = (1e4 * random_logits(3, 6, 5, dtype=torch.float32)).requires_grad_()
    loss = expert_cross_entropy(logits, TARGET)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_an_empty_batch_costs_nothing_and_can_be_stepped_through():
    logits = torch.zeros(3, 0, 5, requires_grad=True)
    loss = expert_cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad.shape == (3, 0, 5)


@pytest.mark.parametrize(("shape", "length"), [((6, 5), 5), ((3, 6, 5), 5), ((6, 3, 5), 6), ((3, 6, 5, 1), 6)])
def test_shapes_that_do_not_fit_are_refused(shape, length):
    with pytest.raises(ArgumentError, match=r"Expected `logits` of shape \(experts, batch, classes\) .*, but got"):
        expert_cross_entropy(torch.zeros(shape), torch.zeros(length, dtype=torch.int64))


def test_lists_and_small_integers_will_do():
    logits = [[[0.0, 1.0], [2.0, 0.0]]]
    expected = expert_cross_entropy(torch.tensor(logits), torch.tensor([1, 0]))
    assert expert_cross_entropy(logits, [1, 0]) == expected
    assert expert_cross_entropy(torch.tensor(logits), torch.tensor([1, 0], dtype=torch.uint8)) == expected
    assert mutual_distillation_loss([*logits, *logits]) == 0


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        ("logits", [0], "Expected `logits` to be numbers"),
        (torch.zeros(1, 1, 2), [None], "Expected `target` to be numbers"),
        (torch.zeros(1, 1, 2), [0.0], "whole numbers in `target`"),
        (torch.zeros(1, 1, 2, dtype=torch.int64), [0], "floating `logits`"),
    ],
)
def test_what_is_no_logits_or_classes_is_refused(logits, target, message):
    with pytest.raises(ArgumentError, match=message):
        expert_cross_entropy(logits, target)


@pytest.mark.parametrize("target", [-100, -1, 5])
def test_a_target_that_is_no_class_is_an_error_and_not_left_out(target):
    with pytest.raises((IndexError, ArgumentError)):
        expert_cross_entropy(torch.zeros(1, 2, 5), torch.tensor([0, target]))
