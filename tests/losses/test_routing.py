"""`routing_loss`: when one more expert is worth asking."""

import pytest
import torch
from tests.reference import published_losses as reference
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.losses import routing_loss

TARGET = torch.tensor([0, 4, 1, 3, 2, 0, 1, 2])


def problem(experts=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(experts, 8, 5, generator=generator, dtype=torch.float64)
    logits[-1].scatter_(1, TARGET[:, None], 6.0)  # the last one knows
    return torch.randn(experts - 1, 8, generator=generator, dtype=torch.float64).to(dtype), logits.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("experts", [2, 3, 6])
def test_it_agrees_with_a_loop_over_images_and_decisions(experts, dtype, tolerance):
    asks, logits = problem(experts, dtype)
    expected = reference.routing(asks.tolist(), logits.tolist(), TARGET.tolist(), 100.0)
    loss = routing_loss(asks, logits, TARGET)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(expected, rel=tolerance)


def test_gradients_reach_the_router_and_not_the_experts():
    asks, logits = problem()
    asks.requires_grad_(), logits.requires_grad_()
    routing_loss(asks, logits, TARGET, positive_weight=3.0).backward()
    assert logits.grad is None
    assert torch.autograd.gradcheck(lambda a: routing_loss(a, logits, TARGET, 3.0), asks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_has_a_deterministic_form_on_a_gpu():
    asks, logits = problem(dtype=torch.float32)
    before = routing_loss(asks, logits, TARGET)
    torch.use_deterministic_algorithms(True)
    try:
        after = routing_loss(asks.cuda(), logits.cuda(), TARGET.cuda())
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(after.cpu(), before)


def test_it_is_stable_where_the_router_is_certain_and_0_for_no_image():
    asks, logits = problem(dtype=torch.float32)
    assert routing_loss(1e4 * asks, 1e4 * logits, TARGET).isfinite()
    assert routing_loss(asks[:, :0], logits[:, :0], TARGET[:0]) == 0


def test_nobody_is_asked_where_nobody_knows_better():
    wrong = torch.nn.functional.one_hot((TARGET + 1) % 5, 5).double().repeat(3, 1, 1)
    asks = torch.zeros(2, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(routing_loss(asks, wrong, TARGET), asks)
    assert_close(gradient, torch.full_like(asks, 0.5 / asks.numel()))


@pytest.mark.parametrize(
    ("asks", "logits"), [((1, 8), (3, 8, 5)), ((2, 7), (3, 8, 5)), ((0, 8), (1, 8, 5)), ((2, 8), (8, 5))], ids=str
)
def test_shapes_that_do_not_fit_are_refused(asks, logits):
    with pytest.raises(ArgumentError, match=r"experts - 1, batch"):
        routing_loss(torch.zeros(asks), torch.zeros(logits), TARGET)


def test_a_weight_of_0_is_refused():
    with pytest.raises(ArgumentError, match="`positive_weight`"):
        routing_loss(*problem(), TARGET, positive_weight=0)
