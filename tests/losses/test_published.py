"""What all published losses have in common, against a loop over numbers: values, gradients, extremes, mistakes."""

import pytest
import torch
from tests.reference import published_losses as reference
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.losses import (
    balanced_softmax_loss,
    drw_weights,
    label_aware_smoothing_loss,
    lade_regularizer,
    ldam_loss,
    ride_loss,
)

COUNTS = [500, 60, 20, 7, 1]
ONE_EMPTY = [500, 60, 0, 7, 1]
BATCHES = {"every class": [0, 4, 2, 2, 1, 3, 0], "classes missing": [0, 3, 0, 3, 1, 0, 0], "one image": [3]}
WITHOUT_THE_EMPTY = [0, 4, 1, 3, 0, 0, 4]


def random_logits(*shape, seed=0, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def summed(loss):
    """A reference of one expert's logits, for several."""
    return lambda experts, target, counts: sum(loss(logits, target, counts) for logits in experts)


LOSSES = {
    "balanced softmax": (balanced_softmax_loss, summed(reference.balanced_softmax)),
    "LDAM": (ldam_loss, summed(lambda z, y, n: reference.ldam(z, y, n, 0.5, 30.0))),
    "LDAM, other margins": (
        lambda z, y, n: ldam_loss(z, y, n, max_margin=0.2, scale=4.0),
        summed(lambda z, y, n: reference.ldam(z, y, n, 0.2, 4.0)),
    ),
    "LDAM-DRW": (
        lambda z, y, n: ldam_loss(z, y, n, weight=drw_weights(n, beta=0.99)),
        summed(lambda z, y, n: reference.ldam(z, y, n, 0.5, 30.0, reference.drw(n, 0.99))),
    ),
}
for amount in (0.0, 0.01, 0.5):
    LOSSES[f"LADE, lambda {amount}"] = (
        lambda z, y, n, amount=amount: lade_regularizer(z, y, n, amount),
        summed(lambda z, y, n, amount=amount: reference.lade(z, y, n, amount)),
    )
for form, power in (("concave", None), ("linear", None), ("convex", None), ("exp", 2.0)):
    LOSSES[f"smoothing, {form}"] = (
        lambda z, y, n, form=form, power=power: label_aware_smoothing_loss(z, y, n, 0.4, 0.1, form, power),
        summed(lambda z, y, n, form=form, power=power: reference.label_aware_smoothing(z, y, n, 0.4, 0.1, form, power)),
    )
ONE_BY_ONE = dict(LOSSES)  # those in which an expert does not know of the others
for factor in (-0.45, 0, 0.2):
    for late in (False, True):
        LOSSES[f"RIDE, diversity {factor}{', re-weighted' * late}"] = (
            lambda z, y, n, factor=factor, late=late: ride_loss(z, y, n, factor, 1.5, 0.3, late),
            lambda z, y, n, factor=factor, late=late: reference.ride(z, y, n, factor, 1.5, 0.3, late, 0.5, 30.0),
        )

every_loss = pytest.mark.parametrize(("loss", "slow"), LOSSES.values(), ids=LOSSES.keys())


@every_loss
@pytest.mark.parametrize("experts", [1, 2, 4])
@pytest.mark.parametrize("batch", BATCHES)
def test_the_value_is_that_of_the_loop(loss, slow, experts, batch):
    target = BATCHES[batch]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        logits = random_logits(experts, len(target), 5, seed=experts, dtype=dtype)
        value = loss(logits, torch.tensor(target), torch.tensor(COUNTS))
        assert value.shape == ()
        assert value.dtype == dtype
        assert value.item() == pytest.approx(slow(logits.tolist(), target, COUNTS), rel=tolerance, abs=tolerance)


@every_loss
@pytest.mark.parametrize("batch", ["every class", "classes missing"])
def test_the_gradient_is_that_of_finite_differences(loss, slow, batch):
    # also of RIDE, whose mean is a constant: where it stands, it minimises the divergence, so its gradient would be zero
    target = torch.tensor(BATCHES[batch])
    logits = random_logits(2, len(target), 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target, torch.tensor(COUNTS)), (logits,))


@pytest.mark.parametrize(("loss", "slow"), ONE_BY_ONE.values(), ids=ONE_BY_ONE.keys())
def test_several_experts_cost_the_sum_of_what_each_costs_alone(loss, slow):
    target, logits = torch.tensor(BATCHES["classes missing"]), random_logits(3, 7, 5)
    alone = [loss(expert, target, torch.tensor(COUNTS)) for expert in logits]
    assert_close(loss(logits, target, torch.tensor(COUNTS)), sum(alone), rtol=1e-12, atol=0)


@every_loss
@pytest.mark.parametrize("size", ["mixed", "all large", "all small"])
def test_huge_logits_stay_finite(loss, slow, size):
    target = torch.tensor(BATCHES["every class"])
    signs = {"mixed": random_logits(3, 7, 5).sign(), "all large": torch.ones(3, 7, 5), "all small": -torch.ones(3, 7, 5)}[size]
    logits = (1e4 * signs).float().requires_grad_()
    value = loss(logits, target, torch.tensor(COUNTS))
    assert value.isfinite()
    assert gradient(value, logits).isfinite().all()


@pytest.mark.parametrize(("loss", "slow"), ONE_BY_ONE.values(), ids=ONE_BY_ONE.keys())
def test_huge_logits_cost_what_they_should(loss, slow):
    target, logits = BATCHES["every class"], random_logits(2, 7, 5, scale=1e4)
    value = loss(logits, torch.tensor(target), torch.tensor(COUNTS))
    assert value.item() == pytest.approx(slow(logits.tolist(), target, COUNTS), rel=1e-9)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, slow, dtype):
    target = torch.tensor(BATCHES["every class"])
    halves = random_logits(3, 7, 5, dtype=dtype).requires_grad_()
    value = loss(halves, target, torch.tensor(COUNTS))
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(halves.float(), target, torch.tensor(COUNTS)))
    assert gradient(value, halves).dtype == dtype


@every_loss
def test_a_class_without_images_spoils_nothing(loss, slow):
    logits = random_logits(3, 7, 5).requires_grad_()
    value = loss(logits, torch.tensor(WITHOUT_THE_EMPTY), torch.tensor(ONE_EMPTY))
    assert value.item() == pytest.approx(slow(logits.tolist(), WITHOUT_THE_EMPTY, ONE_EMPTY), rel=1e-9)
    assert gradient(value, logits).isfinite().all()


@every_loss
def test_a_target_of_a_class_without_images_is_refused(loss, slow):
    with pytest.raises(ArgumentError, match="every target to be of a class with training images, but classes 2 have a class"):
        loss(torch.zeros(2, 7, 5), torch.tensor(BATCHES["every class"]), torch.tensor(ONE_EMPTY))


@every_loss
def test_an_empty_batch_costs_nothing_and_can_be_stepped_through(loss, slow):
    logits = torch.zeros(3, 0, 5, requires_grad=True)
    value = loss(logits, torch.zeros(0, dtype=torch.int64), torch.tensor(COUNTS))
    assert value.item() == 0
    assert gradient(value, logits).shape == (3, 0, 5)


@every_loss
def test_lists_and_small_integers_will_do(loss, slow):
    target, logits = BATCHES["every class"], random_logits(2, 7, 5, dtype=torch.float32)
    expected = loss(logits, torch.tensor(target), torch.tensor(COUNTS))
    assert loss(logits, torch.tensor(target, dtype=torch.uint8), torch.tensor(COUNTS, dtype=torch.int16)) == expected
    assert_close(loss(logits.tolist(), target, COUNTS), expected)


@every_loss
def test_the_order_of_images_does_not_matter(loss, slow):
    target, logits = torch.tensor(BATCHES["every class"]), random_logits(2, 7, 5)
    turned = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert_close(loss(logits[:, turned], target[turned], COUNTS), loss(logits, target, COUNTS))


@every_loss
def test_inputs_are_left_as_they_were(loss, slow):
    target, logits, counts = torch.tensor(BATCHES["every class"]), random_logits(2, 7, 5), torch.tensor(COUNTS)
    before = [target.clone(), logits.clone(), counts.clone()]
    loss(logits, target, counts)
    assert all(torch.equal(new, old) for new, old in zip([target, logits, counts], before, strict=True))


@every_loss
@pytest.mark.parametrize(
    ("logits", "target", "counts", "message"),
    [
        (torch.zeros(5), [0], COUNTS, r"Expected `logits` of shape .* but got \(5,\)"),
        (torch.zeros(1, 2, 2, 5), [0, 1], COUNTS, r"Expected `logits` of shape"),
        (torch.zeros(2, 7, 5), [0, 1], COUNTS, r"`target` of shape \(batch,\), but got \(2, 7, 5\) and \(2,\)"),
        (torch.zeros(2, 1, 5), [[0]], COUNTS, r"`target` of shape"),
        (torch.zeros(2, 1, 5), [0.0], COUNTS, "whole numbers in `target`"),
        (torch.zeros(2, 1, 5).long(), [0], COUNTS, "Expected floating `logits`"),
        (torch.zeros(2, 2, 5), [0, 5], COUNTS, r"Expected every target in 0 \.\. 4, but got 5"),
        (torch.zeros(2, 2, 5), [-1, 0], COUNTS, r"Expected every target in 0 \.\. 4, but got -1"),
        (torch.zeros(2, 2, 5), [-100, 0], COUNTS, r"Expected every target in 0 \.\. 4, but got -100"),
        (torch.zeros(2, 1, 4), [0], COUNTS, "Expected `class_counts` to hold 4 numbers"),
        (torch.zeros(2, 1, 5), [0], [3, 2, 1, 1, -1], "Expected `class_counts` to be whole numbers, none negative"),
        (torch.zeros(2, 1, 5), [0], "many", "Expected `class_counts` to be"),
    ],
)
def test_what_does_not_fit_is_refused(loss, slow, logits, target, counts, message):
    with pytest.raises(ArgumentError, match=message):
        loss(logits, torch.tensor(target), counts)
