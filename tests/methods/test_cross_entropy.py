"""`CrossEntropyModule`: one network, plain cross entropy; compensated it is PC softmax."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mllt import CrossEntropyModule
from mllt.networks import build_network, count_parameters


def test_one_network_of_full_width_by_default():
    module = CrossEntropyModule(class_counts=[30, 10, 2])
    assert module.num_experts == 1
    assert count_parameters(module.network) == count_parameters(build_network("resnet32", 3, 1, width=1.0))


def test_the_objective_is_plain_cross_entropy_on_raw_logits(small):
    module = CrossEntropyModule(**small)
    logits, targets = torch.randn(1, 6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    terms = module.objective(logits, targets)
    assert set(terms) == {"cross_entropy"}
    assert_close(terms["cross_entropy"], F.cross_entropy(logits[0], targets))


def test_its_compensated_probabilities_are_pc_softmax(small, problem):
    module = CrossEntropyModule(**small).eval()
    with torch.no_grad():
        raw = module(problem[0])[0].double().softmax(dim=-1)
        by_bayes = raw / torch.tensor(small["class_counts"])  # divided by the training prior, and normalised
        assert_close(module.probabilities(problem[0]).double(), by_bayes / by_bayes.sum(-1, keepdim=True), rtol=1e-5, atol=1e-6)


def test_the_settings_of_mutual_learning_are_not_its_own(small):
    with pytest.raises(TypeError, match="mutual_weight"):
        CrossEntropyModule(**small, mutual_weight=1.0)
