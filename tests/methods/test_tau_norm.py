"""`TauNormModule`: plain training, and class weights of more equal lengths at inference."""

import pytest
import torch
from torch.testing import assert_close

from mllt import CrossEntropyModule, TauNormModule
from mllt.errors import ArgumentError


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_each_class_weight_is_divided_by_its_length_to_the_power_of_tau(small, problem, tau):
    module = TauNormModule(**small, tau=tau).eval()
    with torch.no_grad():
        features = module.network.features(problem[0][:4])[0].double()
        found = module(problem[0][:4])[0].double()
    weight = module.network.heads[0].weight.detach().double()
    for image in range(4):
        for label in range(3):
            length = sum(float(w) ** 2 for w in weight[label]) ** 0.5
            expected = sum(float(f) * float(w) for f, w in zip(features[image], weight[label], strict=True)) / length**tau
            assert found[image, label].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_it_trains_as_cross_entropy_does_bit_for_bit(small, loader, make_trainer):
    weights = []
    for cls in (CrossEntropyModule, TauNormModule):
        torch.manual_seed(0)
        module = cls(**small)
        make_trainer(1).fit(module, loader)
        weights.append(module.network.heads[0].weight)
    assert_close(weights[0], weights[1], rtol=0, atol=0)


@pytest.mark.parametrize(("changed", "message"), [({"tau": 1.5}, "`tau`"), ({"head": "cosine"}, "linear heads")])
def test_settings_that_do_not_fit_are_refused(small, changed, message):
    with pytest.raises(ArgumentError, match=message):
        TauNormModule(**small, **changed)
