"""`PCSoftmaxModule`: cross entropy by another name, reported after compensation."""

import torch
from torch.testing import assert_close

from mllt import CrossEntropyModule, PCSoftmaxModule


def test_it_trains_as_cross_entropy_does_bit_for_bit(small, loader, make_trainer):
    weights = []
    for cls in (CrossEntropyModule, PCSoftmaxModule):
        torch.manual_seed(0)
        module = cls(**small)
        make_trainer(2).fit(module, loader)
        weights.append(module.network.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_the_row_that_is_reported_is_the_other_one(small):
    assert (CrossEntropyModule.reported, PCSoftmaxModule.reported) == ("raw", "compensated")
    module = PCSoftmaxModule(**small)
    prior = torch.tensor(small["class_counts"]).double() / sum(small["class_counts"])
    assert_close(module.compensation.double(), -prior.log() - torch.tensor(3.0).double().log(), rtol=1e-6, atol=1e-6)
