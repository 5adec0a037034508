"""`owned_cross_entropy` and `complement_loss`, against a loop over numbers: values, gradients, extremes, mistakes."""

import pytest
import torch
from tests.reference import complementary_experts as reference
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.losses import COMPLEMENTS, complement_loss, expert_cross_entropy, owned_cross_entropy

COUNTS = [500, 60, 20, 7, 1]
OWNED = [[True] * 5, [False, False, True, True, True], [False, False, False, False, True]]
BATCHES = {
    "every expert": [0, 4, 2, 2, 1, 3, 0],
    "none of the third": [0, 3, 0, 3, 1, 0, 0],
    "frequent ones": [0, 1],
    "one": [4],
}


def random_logits(*shape, seed=0, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


LOSSES = {
    "cross entropy": (
        lambda z, y, owned: owned_cross_entropy(z, y, owned, torch.tensor(COUNTS)),
        lambda z, y, owned: reference.owned_cross_entropy(z, y, owned, COUNTS),
    )
}
for form in COMPLEMENTS:
    LOSSES[f"complement, {form}"] = (
        lambda z, y, owned, form=form: complement_loss(z, y, owned, form),
        lambda z, y, owned, form=form: reference.complement(z, y, owned, form),
    )

every_loss = pytest.mark.parametrize(("loss", "slow"), LOSSES.values(), ids=LOSSES.keys())


@every_loss
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
def test_the_value_is_that_of_the_loop(loss, slow, batch, dtype, tolerance):
    target = BATCHES[batch]
    logits = random_logits(3, len(target), 5, dtype=dtype)
    value = loss(logits, torch.tensor(target), torch.tensor(OWNED))
    assert (value.shape, value.dtype) == ((), dtype)
    assert value.item() == pytest.approx(slow(logits.tolist(), target, OWNED), rel=tolerance)


@every_loss
@pytest.mark.parametrize("batch", BATCHES)
def test_the_gradient_is_that_of_finite_differences_and_reaches_every_logit(loss, slow, batch):
    target, owned = torch.tensor(BATCHES[batch]), torch.tensor(OWNED)
    logits = random_logits(3, len(target), 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target, owned), (logits,))
    assert gradient(loss(logits, target, owned), logits) is not None  # zero perhaps, but there: devices wait for it


@every_loss
def test_experts_cost_the_sum_of_what_each_costs_alone(loss, slow):
    target, logits, owned = torch.tensor(BATCHES["every expert"]), random_logits(3, 7, 5), torch.tensor(OWNED)
    alone = [loss(logits[k], target, owned[k]) for k in range(3)]
    assert_close(loss(logits, target, owned), sum(alone), rtol=1e-12, atol=0)


def test_an_expert_of_all_classes_is_trained_by_plain_cross_entropy():
    target, logits = torch.tensor(BATCHES["every expert"]), random_logits(7, 5)
    everything = torch.ones(5, dtype=torch.bool)
    assert_close(owned_cross_entropy(logits, target, everything, torch.tensor(COUNTS)), expert_cross_entropy(logits, target))
    for form in COMPLEMENTS:
        assert complement_loss(logits, target, everything, form) == 0


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_shares_of_a_batch_average_to_the_loss_of_the_whole(cut):
    """By default; of `samples`, whether a batch holds an own image is asked of the share."""
    target, logits, owned = torch.tensor(BATCHES["every expert"]), random_logits(3, 7, 5), torch.tensor(OWNED)
    for loss, _ in (LOSSES["cross entropy"], LOSSES["complement, classes"]):
        parts = [(cut, loss(logits[:, :cut], target[:cut], owned)), (7 - cut, loss(logits[:, cut:], target[cut:], owned))]
        assert_close(sum(size * value for size, value in parts) / 7, loss(logits, target, owned))


def test_samples_push_nothing_where_the_batch_holds_no_image_of_the_experts_own():
    logits = random_logits(3, 2, 5).requires_grad_()
    value = complement_loss(logits, torch.tensor([0, 1]), torch.tensor(OWNED), "samples")
    assert value == 0
    assert not gradient(value, logits).any()
    assert complement_loss(logits, torch.tensor([0, 4]), torch.tensor(OWNED), "samples") > 0


def test_the_complement_leaves_own_classes_alone():
    logits, owned = random_logits(3, 7, 5).requires_grad_(), torch.tensor(OWNED)
    moved = gradient(complement_loss(logits, torch.tensor(BATCHES["every expert"]), owned), logits)
    for k in range(3):
        assert not moved[k][:, owned[k]].any()
        assert_close(moved[k][:, ~owned[k]], 2 / 35 * logits[k][:, ~owned[k]].detach())


@every_loss
def test_huge_logits_stay_finite_also_in_half_precision(loss, slow):
    target = torch.tensor(BATCHES["every expert"])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = (1e4 * random_logits(3, 7, 5).sign()).to(dtype).requires_grad_()
        value = loss(logits, target, torch.tensor(OWNED))
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert gradient(value, logits).isfinite().all()
        assert value == loss(logits.float(), target, torch.tensor(OWNED))


@every_loss
def test_an_empty_batch_costs_nothing_and_can_be_stepped_through(loss, slow):
    logits = torch.zeros(3, 0, 5, requires_grad=True)
    value = loss(logits, torch.zeros(0, dtype=torch.int64), torch.tensor(OWNED))
    assert value == 0
    assert gradient(value, logits).shape == (3, 0, 5)


@every_loss
def test_lists_will_do_and_inputs_are_left_as_they_were(loss, slow):
    target, logits, owned = torch.tensor(BATCHES["every expert"]), random_logits(3, 7, 5), torch.tensor(OWNED)
    before = [target.clone(), logits.clone(), owned.clone()]
    value = loss(logits, target, owned)
    assert all(torch.equal(new, old) for new, old in zip([target, logits, owned], before, strict=True))
    assert_close(loss(logits.float().tolist(), BATCHES["every expert"], OWNED), value.float())


@every_loss
@pytest.mark.parametrize(
    ("logits", "target", "owned", "message"),
    [
        (torch.zeros(5), [0], OWNED, r"Expected `logits` of shape .* but got \(5,\)"),
        (torch.zeros(3, 2, 5), [0], OWNED, r"`target` of shape \(batch,\), but got \(3, 2, 5\) and \(1,\)"),
        (torch.zeros(3, 1, 5), [5], OWNED, r"Expected every target in 0 \.\. 4, but got 5"),
        (torch.zeros(3, 1, 5), [-100], OWNED, r"Expected every target in 0 \.\. 4, but got -100"),
        (torch.zeros(2, 1, 5), [0], OWNED, r"`owned` to be true or false and of shape \(2, 5\).* but got \(3, 5\)"),
        (torch.zeros(3, 1, 5), [0], [[1] * 5] * 3, r"`owned` to be true or false .* but got \(3, 5\) of torch.int64"),
        (torch.zeros(3, 1, 5), [0], [True] * 5, r"but got \(1, 5\)"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(loss, slow, logits, target, owned, message):
    with pytest.raises(ArgumentError, match=message):
        loss(logits, torch.tensor(target), owned)


def test_an_expert_without_images_and_an_image_of_a_class_without_any_are_refused():
    logits, owned = torch.zeros(2, 1, 3), torch.tensor([[True, True, True], [False, False, True]])
    with pytest.raises(ArgumentError, match=r"Expected every expert to own a class with training images.* \[1\] do not"):
        owned_cross_entropy(logits, torch.tensor([0]), owned, torch.tensor([5, 2, 0]))
    with pytest.raises(ArgumentError, match="classes 2 have a class count of 0"):
        owned_cross_entropy(logits, torch.tensor([2]), owned, torch.tensor([5, 2, 0]))


def test_an_unknown_complement_is_refused():
    with pytest.raises(ArgumentError, match=r"`complement` to be one of classes, samples, but got 'class'\."):
        complement_loss(torch.zeros(1, 5), torch.tensor([0]), torch.ones(5, dtype=torch.bool), "class")
