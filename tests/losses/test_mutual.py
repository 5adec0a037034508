"""`mutual_distillation_loss` against a loop over ordered pairs, and what users rely on."""

import math

import pytest
import torch
from tests.reference import losses as reference
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.losses import MUTUAL_TARGETS, expert_cross_entropy, mutual_distillation_loss

COUNTS = [500, 60, 20, 7, 1]
LOG_PRIOR = torch.tensor([math.log(count / sum(COUNTS)) for count in COUNTS], dtype=torch.float64)

every_target = pytest.mark.parametrize("target", MUTUAL_TARGETS)
raw_and_balanced = pytest.mark.parametrize("counts", [None, COUNTS], ids=["raw", "balanced"])


def random_logits(*shape, seed=0, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def as_tensor(counts):
    return None if counts is None else torch.tensor(counts)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("experts", [2, 3, 4])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@every_target
@raw_and_balanced
@pytest.mark.parametrize("detach", [True, False])
def test_the_value_is_that_of_the_loop_over_pairs(experts, temperature, target, counts, detach):
    logits = random_logits(experts, 6, 5, dtype=torch.float32)
    loss = mutual_distillation_loss(logits, temperature, target=target, class_counts=as_tensor(counts), detach=detach)
    expected = reference.mutual_distillation(logits.tolist(), temperature, target, counts)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("experts", [2, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@every_target
@raw_and_balanced
@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_is_that_of_the_loop_over_pairs(experts, temperature, target, counts, detach):
    logits = random_logits(experts, 4, 5).requires_grad_()
    loss = mutual_distillation_loss(logits, temperature, target=target, class_counts=as_tensor(counts), detach=detach)
    log_prior = None if counts is None else LOG_PRIOR
    slow = reference.mutual_distillation_pairs(logits, temperature, target, log_prior, detach=detach)
    assert_close(loss, slow, rtol=1e-10, atol=1e-12)
    assert_close(gradient(loss, logits), gradient(slow, logits), rtol=1e-9, atol=1e-12)


@every_target
@raw_and_balanced
def test_without_detach_the_gradient_is_that_of_finite_differences(target, counts):
    logits = random_logits(3, 2, 5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: mutual_distillation_loss(z, 2.0, target=target, class_counts=as_tensor(counts), detach=False), (logits,)
    )


def test_detached_peers_change_the_gradient_but_not_the_value():
    logits = random_logits(3, 4, 5).requires_grad_()
    detached, joint = (mutual_distillation_loss(logits, detach=detach) for detach in (True, False))
    assert_close(detached, joint)
    assert not torch.allclose(gradient(detached, logits), gradient(joint, logits), rtol=0.01)


def test_a_detached_ensemble_changes_nothing():
    # softmax of the mean of logits is the distribution at which its divergence from the experts is least
    logits = random_logits(3, 4, 5).requires_grad_()
    detached, joint = (mutual_distillation_loss(logits, 2.0, target="mean", detach=detach) for detach in (True, False))
    assert_close(gradient(detached, logits), gradient(joint, logits))


@every_target
def test_a_step_along_the_gradient_brings_the_experts_together(target):
    logits = random_logits(3, 4, 5).requires_grad_()
    before = mutual_distillation_loss(logits, target=target)
    moved = logits - 0.1 * gradient(before, logits)
    assert mutual_distillation_loss(moved, target=target) < before


@every_target
def test_one_expert_has_nobody_to_learn_from(target):
    logits = random_logits(1, 4, 5).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3])
    loss = mutual_distillation_loss(logits, target=target)
    assert loss.item() == 0
    assert loss.dtype == torch.float64
    total = gradient(expert_cross_entropy(logits, labels) + loss, logits)
    assert torch.equal(total, gradient(expert_cross_entropy(logits, labels), logits))


@every_target
@raw_and_balanced
@pytest.mark.parametrize("detach", [True, False])
def test_experts_that_agree_are_left_alone(target, counts, detach):
    logits = random_logits(1, 4, 5).repeat(3, 1, 1).requires_grad_()
    loss = mutual_distillation_loss(logits, target=target, class_counts=as_tensor(counts), detach=detach)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert_close(gradient(loss, logits), torch.zeros(3, 4, 5, dtype=torch.float64), rtol=0, atol=1e-12)


@every_target
def test_the_loss_is_never_negative(target):
    for seed in range(50):
        assert (
            mutual_distillation_loss(random_logits(3, 2, 4, seed=seed, scale=10.0 ** (seed % 5 - 2)), target=target) >= -1e-12
        )


@every_target
@raw_and_balanced
def test_a_constant_added_to_an_experts_logits_changes_nothing(target, counts):
    logits = random_logits(3, 4, 5)
    shifted = logits + random_logits(3, 4, 1, seed=1, scale=100.0)
    losses = [mutual_distillation_loss(z, 2.0, target=target, class_counts=as_tensor(counts)) for z in (logits, shifted)]
    assert_close(*losses)


@every_target
def test_the_order_of_experts_and_images_does_not_matter(target):
    logits = random_logits(3, 4, 5)
    turned = logits[[2, 0, 1]][:, [3, 1, 0, 2]]
    assert_close(mutual_distillation_loss(turned, target=target), mutual_distillation_loss(logits, target=target))


@every_target
def test_the_batch_is_averaged(target):
    logits = random_logits(3, 4, 5)
    assert_close(
        mutual_distillation_loss(logits.repeat(1, 3, 1), target=target), mutual_distillation_loss(logits, target=target)
    )


@every_target
def test_equal_class_counts_balance_nothing(target):
    logits = random_logits(3, 4, 5)
    balanced = mutual_distillation_loss(logits, target=target, class_counts=torch.full((5,), 7))
    assert_close(balanced, mutual_distillation_loss(logits, target=target))


@every_target
def test_a_higher_temperature_does_not_make_the_gradient_vanish(target):
    logits = random_logits(3, 4, 5).requires_grad_()
    sizes = [gradient(mutual_distillation_loss(logits, t, target=target), logits).norm().item() for t in (50.0, 100.0)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)  # without the factor T^2 it would be a quarter


@every_target
@raw_and_balanced
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_huge_logits_stay_finite(target, counts, detach, temperature):
    logits = random_logits(3, 8, 5, scale=1e4, dtype=torch.float32).requires_grad_()
    loss = mutual_distillation_loss(logits, temperature, target=target, class_counts=as_tensor(counts), detach=detach)
    assert loss.isfinite()
    assert gradient(loss, logits).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_target
@raw_and_balanced
def test_half_precision_is_computed_in_float32(dtype, target, counts):
    halves = random_logits(3, 8, 5, dtype=dtype)
    loss = mutual_distillation_loss(halves, target=target, class_counts=as_tensor(counts))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, mutual_distillation_loss(halves.float(), target=target, class_counts=as_tensor(counts)))


@every_target
def test_an_empty_batch_costs_nothing(target):
    loss = mutual_distillation_loss(torch.zeros(3, 0, 5), target=target)
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("logits", "settings", "message"),
    [
        (torch.zeros(4, 5), {}, r"Expected `logits` .* \(experts, batch, classes\), but got \(4, 5\)"),
        (torch.zeros(2, 4, 5).long(), {}, r"Expected `logits` to be floating .*torch.int64"),
        (torch.zeros(2, 4, 5), {"temperature": 0}, r"Expected `temperature` .* above 0, but got 0"),
        (torch.zeros(2, 4, 5), {"temperature": -1.0}, r"Expected `temperature`"),
        (torch.zeros(2, 4, 5), {"temperature": math.nan}, r"Expected `temperature`"),
        (torch.zeros(2, 4, 5), {"temperature": "1"}, r"Expected `temperature`"),
        (torch.zeros(2, 4, 5), {"target": "peer"}, r"Expected `target` .* but got 'peer'. Did you mean 'peers'\?"),
        (torch.zeros(2, 4, 5), {"detach": 1}, r"Expected `detach` to be true or false, but got 1"),
        (torch.zeros(2, 4, 5), {"class_counts": torch.tensor([3, 2])}, r"Expected `class_counts` to hold 5 .* but got 2"),
        (torch.zeros(2, 4, 2), {"class_counts": torch.tensor([3, 0])}, r"at least one training image"),
        (torch.zeros(1, 4, 5), {"temperature": 0}, r"Expected `temperature`"),  # one expert is no excuse
    ],
)
def test_bad_arguments_are_refused(logits, settings, message):
    with pytest.raises(ArgumentError, match=message):
        mutual_distillation_loss(logits, **settings)
