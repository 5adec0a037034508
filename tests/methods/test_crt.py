"""`CRTModule`: the second stage trains new heads, and nothing else."""

import pytest
import torch
from torch.testing import assert_close

from mllt import ACEModule, BBNModule, CrossEntropyModule, CRTModule, load_checkpoint
from mllt.errors import ArgumentError, CheckpointError
from mllt.optim import parameter_groups


def trained(module, loader, make_trainer, stage, epochs):
    if module.begun != stage:
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


# ------------------------------------------------------------------------------------- features from elsewhere


@pytest.fixture
def features(small, loader, make_trainer, tmp_path):
    """A module of another method, and its checkpoint."""

    def make(cls=CrossEntropyModule, **settings):
        module, trainer = cls(**{**small, **settings}), make_trainer(1)
        trainer.fit(module, [loader, loader] if cls is BBNModule else loader)
        trainer.save_checkpoint(tmp_path / "features.ckpt")
        return module, tmp_path / "features.ckpt"

    return make


def test_features_by_path_take_the_place_of_the_first_stage(small, features, problem, loader, make_trainer, tmp_path):
    other, path = features()
    module = CRTModule(**small, features=path)
    assert [stage.name for stage in module.stages()] == [module.stage] == ["head"]
    trainer = make_trainer(2)
    trainer.fit(module, loader)  # without begin(): a first stage needs none
    theirs = other.network.state_dict()
    for name, value in module.network.state_dict().items():
        assert torch.equal(value, theirs[name]) != name.startswith("heads."), name
    trainer.save_checkpoint(tmp_path / "head.ckpt")
    path.unlink()
    again = load_checkpoint(tmp_path / "head.ckpt")
    assert torch.equal(again.probabilities(problem[0]), module.probabilities(problem[0]))
    make_trainer(3).fit(again, loader, ckpt_path=tmp_path / "head.ckpt", weights_only=True)


def test_experts_of_another_method_may_be_the_features(small, features, problem):
    other, path = features(ACEModule, num_experts=3)
    module = CRTModule(**small, num_experts=3, features=path).eval()
    assert torch.equal(module.network.features(problem[0][:4]), other.eval().network.features(problem[0][:4]))


@pytest.mark.parametrize(
    ("cls", "theirs", "message"),
    [
        (CrossEntropyModule, {"width": 0.5}, "features.ckpt is not: its width is 0.5, and here it is 0.25"),
        (CrossEntropyModule, {"head": "cosine"}, "its head is 'cosine', and here it is 'linear'"),
        (CrossEntropyModule, {"network": "resnet32", "num_experts": 2}, "its network is 'resnet32', .* its num_experts is 2"),
        (BBNModule, {}, "a network of 'bbn' has other parts"),
        (CrossEntropyModule, {"class_counts": [120, 24, 7]}, "`features` to be trained on the same images per class"),
    ],
)
def test_features_of_another_network_or_of_other_data_are_refused(small, features, cls, theirs, message):
    _, path = features(cls, **theirs)
    with pytest.raises(ArgumentError, match=message):
        CRTModule(**small, features=path)


def test_cosine_heads_of_another_scale_are_refused(small, features):
    _, path = features(head="cosine", scale=10.0)
    with pytest.raises(ArgumentError, match=r"its scale is 10.0, and here it is None"):
        CRTModule(**small, head="cosine", features=path)
    CRTModule(**small, head="cosine", scale=10.0, features=path)


@pytest.mark.parametrize(
    ("source", "error"), [("nowhere.ckpt", CheckpointError), (3, ArgumentError), ({"a": 1}, ArgumentError)], ids=str
)
def test_features_that_are_no_checkpoint_are_refused(small, source, error):
    with pytest.raises(error, match="checkpoint"):
        CRTModule(**small, features=source)
