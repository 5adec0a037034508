"""`LADEModule`: balanced softmax plus the weighted regulariser."""

import pytest
import torch
from tests.reference import published_losses as reference

from mllt import LADEModule
from mllt.errors import ArgumentError

COUNTS = [120, 24, 6]
TARGETS = torch.tensor([0, 2, 1, 0, 0])


@pytest.mark.parametrize("settings", [{}, {"regularizer_weight": 0.05, "remine_lambda": 0.5}, {"num_experts": 2}], ids=str)
def test_the_objective_is_balanced_softmax_and_the_weighted_regulariser(small, settings):
    module = LADEModule(**small, **settings)
    logits = torch.randn(module.num_experts, 5, 3)
    terms = module.objective(logits, TARGETS)
    weight, remine = settings.get("regularizer_weight", 0.1), settings.get("remine_lambda", 0.01)
    base = sum(reference.balanced_softmax(expert, TARGETS.tolist(), COUNTS) for expert in logits.tolist())
    extra = sum(reference.lade(expert, TARGETS.tolist(), COUNTS, remine) for expert in logits.tolist())
    assert set(terms) == {"balanced_softmax", "regularizer"}
    assert terms["balanced_softmax"].item() == pytest.approx(base, rel=1e-5)
    assert terms["regularizer"].item() == pytest.approx(weight * extra, rel=1e-5, abs=1e-6)


def test_its_logits_fit_a_uniform_prior(small):
    assert LADEModule(**small).compensation.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["regularizer_weight", "remine_lambda"])
def test_negative_weights_are_refused(small, name):
    with pytest.raises(ArgumentError, match=f"`{name}` to be a number of at least 0"):
        LADEModule(**small, **{name: -0.1})
