"""Stages, and what of a method the base asks for: order and companions of the images, learning rates, details."""

import pytest
import torch
from torch import nn

from mllt import (
    CrossEntropyModule,
    CRTModule,
    DigitsLT,
    LongTailedModule,
    MutualLTModule,
    Stage,
    fit_stages,
    load_checkpoint,
)
from mllt.errors import ArgumentError, CheckpointError


class TwoStages(LongTailedModule):
    """A method for these tests: a second stage with another order, batch, rate, and a part of its own."""

    method = ""

    def stages(self):
        return [Stage("first"), Stage("second", 3, "balanced", "reversed", batch_size=64)]

    def on_stage(self):
        if self.stage == "second":
            self.extra = nn.Linear(3, 3)

    def lr_factor(self, name):
        return 0.25 if name.startswith("network.heads") else 1.0

    def losses(self, batch):
        terms = super().losses(batch)
        self.seen = (len(batch.targets), hasattr(batch, "companion"))
        return terms

    def objective(self, logits, targets):
        return {"loss": nn.functional.cross_entropy(logits[0], targets)}


@pytest.fixture
def data():
    return DigitsLT(batch_size=40)


@pytest.fixture
def module(data):
    return TwoStages(class_counts=data.class_counts, network="resnet20", shared="none", width=0.25, lr=0.5)


def test_a_data_module_follows_the_stage_that_trains(module, data, make_trainer):
    make_trainer(1).fit(module, datamodule=data)
    assert (data.sampling, data.companion, data.stage_batch_size, module.seen) == ("instance", None, None, (36, False))
    module.begin("second")
    make_trainer(1).fit(module, datamodule=data)
    assert (data.sampling, data.companion, data.stage_batch_size) == ("balanced", "reversed", 64)
    assert module.seen == (54, True)  # 321 images in 6 steps
    make_trainer(1).fit(MutualLTModule(class_counts=data.class_counts, network="resnet20"), datamodule=data)
    assert (data.sampling, data.companion, data.stage_batch_size) == ("instance", None, None)


def test_parameters_of_another_rate_are_a_group_of_their_own(module, data, make_trainer):
    trainer = make_trainer(1)
    trainer.fit(module, datamodule=data)
    groups = trainer.optimizers[0].param_groups
    assert sorted(group["initial_lr"] for group in groups) == [0.125, 0.5]
    (slow,) = (group for group in groups if group["initial_lr"] == 0.125)
    assert {id(p) for p in slow["params"]} == {id(p) for p in module.network.heads.parameters()}
    assert slow["lr"] == slow["initial_lr"] * (groups[0]["lr"] / groups[0]["initial_lr"]), "one schedule for all"


def test_one_rate_is_one_group(data, make_trainer):
    trainer = make_trainer(1)
    trainer.fit(CrossEntropyModule(class_counts=data.class_counts, network="resnet20"), datamodule=data)
    assert len(trainer.optimizers[0].param_groups) == 1


def test_weights_of_a_stage_come_with_the_parts_of_that_stage(module, data):
    module.begin("second")
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    assert "extra.weight" in weights
    again = TwoStages(**module.hparams)
    again.restore("second", weights)
    assert again.stage == "second"
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    assert "extra.weight" not in TwoStages(**module.hparams).state_dict()


def test_a_stage_that_the_method_does_not_have_is_refused(module):
    with pytest.raises(ArgumentError, match="first, second"):
        module.begin("third")
    with pytest.raises(ArgumentError, match="first, second"):
        module.restore("third", {})


def test_a_method_tells_no_details_and_reconstructs_nothing_unless_it_says_so(module):
    assert module.details() == {}
    assert module.reconstructed == ()
    for name, cls in LongTailedModule.registry.items():
        if cls.__module__.startswith("mllt.methods."):
            assert all(sentence.endswith(".") for sentence in cls.reconstructed), name


def test_another_network_is_evaluated_with_as_many_experts_as_it_has(module, data, make_trainer):
    module.use_network(module.make_network(num_experts=2, width=0.25))
    trainer = make_trainer(1)
    trainer.test(module, datamodule=data, verbose=False)
    assert len(module.test_results["experts"]) == module.num_experts == 2


def test_a_stage_is_compensated_from_the_prior_that_it_fits():
    counts = [120, 24, 6]
    module = CRTModule(class_counts=counts, network="resnet20")
    expected = -torch.tensor(counts).double().log()
    for stage, fits in (("features", "train"), ("head", "uniform")):
        module.begin(stage)
        assert module.fits == fits
        offset = module.compensation.double()
        wanted = expected if fits == "train" else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(offset - offset.mean(), wanted - wanted.mean(), rtol=1e-6, atol=1e-6)


def test_a_trainer_begins_the_first_stage_by_itself_and_no_other(data, make_trainer):
    module = CRTModule(class_counts=data.class_counts, network="resnet20", shared="none", width=0.25)
    make_trainer(1, limit_train_batches=1).fit(module, datamodule=data)
    assert (module.stage, module.fits) == ("features", "train")
    module.begin("head")
    make_trainer(1, limit_train_batches=1).fit(module, datamodule=data)
    assert (module.stage, module.fits) == ("head", "uniform")


def test_all_stages_are_trained_by_one_call(data, make_trainer):
    module, epochs = CRTModule(class_counts=data.class_counts, network="resnet20", shared="none", width=0.25, head_epochs=2), []

    def trainer(stage):
        epochs.append((stage.name, stage.epochs))
        return make_trainer(stage.epochs or 1, limit_train_batches=1)

    fit_stages(module, trainer, datamodule=data)
    assert epochs == [("features", None), ("head", 2)]
    assert module.stage == "head"
    with pytest.raises(ArgumentError, match="a stage after 'head' to train, but there is none"):
        fit_stages(module, trainer, datamodule=data)


def test_stages_that_are_trained_are_passed_over(data, make_trainer):
    module, names = CRTModule(class_counts=data.class_counts, network="resnet20", shared="none", width=0.25), []
    make_trainer(1, limit_train_batches=1).fit(module, datamodule=data)
    fit_stages(module, lambda stage: (names.append(stage.name), make_trainer(1, limit_train_batches=1))[1], datamodule=data)
    assert names == ["head"]


def test_a_test_of_a_stage_before_the_last_says_so(data, make_trainer):
    module = CRTModule(class_counts=data.class_counts, network="resnet20", shared="none", width=0.25)
    with pytest.warns(UserWarning, match="stages features, head, and this model is of 'features'. mllt.fit_stages"):
        make_trainer().test(module, datamodule=data, verbose=False)


@pytest.mark.parametrize("stage", ["features", "head"])
@pytest.mark.filterwarnings("ignore:crt has the stages")
def test_a_checkpoint_given_to_the_test_brings_its_stage(data, make_trainer, tmp_path, stage):
    settings = {"class_counts": data.class_counts, "network": "resnet20", "shared": "none", "width": 0.25}
    module = CRTModule(**settings)
    module.begin(stage)
    trainer = make_trainer(2)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    results = []
    for model, arguments in (
        (load_checkpoint(tmp_path / "model.ckpt"), {}),
        (CRTModule(**settings), {"ckpt_path": tmp_path / "model.ckpt", "weights_only": True}),
    ):
        make_trainer().test(model, datamodule=data, verbose=False, **arguments)
        results.append((model.stage, model.test_results))
    assert results[0] == results[1]
    other = CRTModule(**settings)
    other.begin("head")
    if stage == "features":
        with pytest.raises(CheckpointError, match="of stage 'head', but it is of stage 'features'"):
            make_trainer().test(other, datamodule=data, ckpt_path=tmp_path / "model.ckpt", weights_only=True)


def test_a_stage_that_has_begun_does_not_begin_again(module):
    module.begin("second")
    for stage in ("second", "first"):
        with pytest.raises(ArgumentError, match=f"a stage after 'second', which has begun, but got '{stage}'"):
            module.begin(stage)


def test_a_loaded_model_trains_on_in_training_mode(data, make_trainer, tmp_path):
    module = CrossEntropyModule(class_counts=data.class_counts, network="resnet20", shared="none", width=0.25)
    trainer = make_trainer(1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = load_checkpoint(tmp_path / "model.ckpt")
    statistics = again.network.experts[0].stem[1].running_mean.clone()
    make_trainer(1).fit(again, datamodule=data)
    assert again.training
    assert not torch.equal(again.network.experts[0].stem[1].running_mean, statistics)


def test_a_term_called_loss_does_not_take_the_place_of_the_whole(data, make_trainer):
    class Doubled(TwoStages):
        def objective(self, logits, targets):
            loss = nn.functional.cross_entropy(logits[0], targets)
            return {"loss": loss, "extra": 10 * loss}

    module = Doubled(class_counts=data.class_counts, network="resnet20", shared="none", width=0.25)
    trainer = make_trainer(1, limit_train_batches=1)
    trainer.fit(module, datamodule=data)
    logged = trainer.callback_metrics
    assert logged["train/loss"].item() == pytest.approx(1.1 * logged["train/extra"].item(), rel=1e-5)
