"""`BalancedSoftmaxModule`: the prior is in the loss, and nothing of it is left for inference."""

import pytest
import torch
from tests.reference import published_losses as reference
from torch.testing import assert_close

from mllt import BalancedSoftmaxModule

COUNTS = [120, 24, 6]
TARGETS = torch.tensor([0, 2, 1, 0, 0])


@pytest.mark.parametrize("experts", [1, 3])
def test_the_objective_is_balanced_softmax_of_every_expert(small, experts):
    module = BalancedSoftmaxModule(**small, num_experts=experts)
    logits = torch.randn(experts, 5, 3)
    expected = sum(reference.balanced_softmax(expert, TARGETS.tolist(), COUNTS) for expert in logits.tolist())
    assert module.objective(logits, TARGETS)["balanced_softmax"].item() == pytest.approx(expected, rel=1e-5)


def test_raw_logits_predict_for_a_uniform_prior_and_are_compensated_for_any_other(small, problem):
    module = BalancedSoftmaxModule(**small).eval()
    with torch.no_grad():
        raw = module(problem[0])[0]
    assert_close(module.probabilities(problem[0]), raw.softmax(-1))
    module.set_test_prior("train")
    by_bayes = raw.double().softmax(-1) * torch.tensor(COUNTS)
    expected = (by_bayes / by_bayes.sum(-1, keepdim=True)).float()
    assert_close(module.probabilities(problem[0]), expected, rtol=1e-5, atol=1e-6)


def test_the_loss_pushes_the_rare_class_harder_than_cross_entropy_does(small):
    logits = torch.zeros(1, 5, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(BalancedSoftmaxModule(**small).objective(logits, TARGETS)["balanced_softmax"], logits)
    # p = pi at equal logits: the image of the rarest class (the second) pulls with 1 - pi
    assert -gradient[0, 1, 2] * 5 == pytest.approx(1 - 6 / 150, rel=1e-5)
