"""`CRTModule`: the second stage trains new heads, and nothing else."""

import pytest
import torch
from torch.testing import assert_close

from mllt import CRTModule
from mllt.errors import ArgumentError
from mllt.optim import parameter_groups


def trained(module, loader, make_trainer, stage, epochs):
    module.begin(stage)
    trainer = make_trainer(epochs)
    trainer.fit(module, loader)
    return trainer


def test_the_second_stage_starts_from_new_heads_and_leaves_the_rest_alone(small, loader, make_trainer):
    module = CRTModule(**small)
    trained(module, loader, make_trainer, "features", 2)
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    module.begin("head")
    assert not torch.equal(module.network.heads[0].weight, before["heads.0.weight"]), "drawn anew"
    trained(module, loader, make_trainer, "head", 2)
    for name, value in module.network.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("heads."), name  # batch statistics stay, too


def test_only_heads_are_handed_to_the_optimizer_of_the_second_stage(small):
    module = CRTModule(**small)
    everything = len(parameter_groups(module, 0.1)[0]["params"])
    module.begin("head")
    assert len(parameter_groups(module, 0.1)[0]["params"]) == 2  # weight and bias
    assert everything > 2


def test_the_second_stage_has_a_cosine_schedule_and_perhaps_a_rate_of_its_own(small):
    module = CRTModule(**small, lr=0.3, head_lr=0.01, schedule="multistep")
    assert (module.recipe()["lr"], module.recipe()["schedule"]) == (0.3, "multistep")
    module.begin("head")
    assert (module.recipe()["lr"], module.recipe()["schedule"], module.recipe()["warmup_epochs"]) == (0.01, "cosine", 0)
    stages = [(stage.name, stage.epochs, stage.sampling) for stage in CRTModule(**small, head_epochs=7).stages()]
    assert stages == [("features", None, "instance"), ("head", 7, "balanced")]


def test_features_are_those_of_evaluation_while_the_head_learns(small, problem):
    module = CRTModule(**small)
    module.begin("head")
    expected = module.eval()(problem[0][:8])
    assert_close(module.train()(problem[0][:8]), expected)


@pytest.mark.parametrize("changed", [{"head_epochs": 0}, {"head_lr": -1.0}], ids=str)
def test_settings_out_of_range_are_refused(small, changed):
    with pytest.raises(ArgumentError, match=f"`{next(iter(changed))}`"):
        CRTModule(**small, **changed)


def test_a_stage_that_there_is_not_is_refused(small):
    with pytest.raises(ArgumentError, match="`stage` to be one of features, head"):
        CRTModule(**small).begin("haed")
