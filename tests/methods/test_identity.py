"""Methods of one's own, what they must remember, and what must not change when a run goes on."""

import lightning as L
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader

from mllt import DigitsLT, LongTailedModule, MutualLTModule, load_checkpoint
from mllt.errors import ArgumentError, CheckpointError
from mllt.losses import expert_cross_entropy


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Methods that a test makes are forgotten after it."""
    monkeypatch.setattr(LongTailedModule, "registry", dict(LongTailedModule.registry))


@pytest.fixture
def save(loader, make_trainer, tmp_path):
    """Train for an epoch and save."""

    def train_and_save(module):
        trainer = make_trainer()
        trainer.fit(module, loader)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return train_and_save


def smoothed(name="smoothed", remembers=True, **attributes):
    """A method of one's own with an argument of its own."""

    class Smoothed(LongTailedModule):
        method = name

        def __init__(self, smoothing=0.1, **common):
            super().__init__(**common)
            if remembers:
                self.remember(smoothing=smoothing)

        def objective(self, logits, targets):
            return {"smoothed": expert_cross_entropy((1 - self.hparams["smoothing"]) * logits, targets)}

    return Smoothed


# ------------------------------------------------------------------------------------------------ remembering


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), torch.tensor(0.25)], ids=["float", "numpy", "tensor"])
def test_an_argument_that_is_remembered_survives_the_checkpoint(small, save, value):
    cls = smoothed()
    path = save(cls(smoothing=value, **small))
    assert load_checkpoint(path).hparams["smoothing"] == 0.25
    assert cls.load_from_checkpoint(path, smoothing=0.5).hparams["smoothing"] == 0.5


def test_an_argument_that_is_not_remembered_is_told_before_training(small, loader, make_trainer, tmp_path):
    module = smoothed(remembers=False)(smoothing=0.25, **small)
    for attempt in (lambda: make_trainer().fit(module, loader), lambda: module.on_save_checkpoint({})):
        with pytest.raises(ArgumentError, match=r"'smoothing' would be missing .* Call self\.remember\(smoothing=smoothing\)"):
            attempt()


def test_lightnings_save_hyperparameters_will_do_too(small, save):
    class Mine(MutualLTModule):
        method = "mine"

        def __init__(self, colours=(1, 2), **common):
            super().__init__(**common)
            self.save_hyperparameters()

    path = save(Mine(colours=(3, 4), **small))
    assert load_checkpoint(path).hparams["colours"] == [3, 4]


def test_what_no_checkpoint_can_hold_cannot_be_remembered(small):
    with pytest.raises(ArgumentError, match="what a checkpoint can hold"):
        smoothed()(smoothing=torch.nn.ReLU(), **small)


@pytest.mark.parametrize(
    ("given", "plain"),
    [({"num_experts": np.int64(2)}, 2), ({"lr": np.float32(0.5)}, 0.5), ({"width": np.float32(0.25)}, 0.25)],
    ids=str,
)
def test_numbers_of_numpy_are_kept_as_pythons(small, given, plain):
    (name,) = given
    value = MutualLTModule(**{**small, **given}).hparams[name]
    assert (value, type(value)) == (plain, type(plain))


# ----------------------------------------------------------------------------------------------- names of classes


class Silent(MutualLTModule):
    """A variant with an objective but no name of its own."""

    def objective(self, logits, targets):
        return {"nothing": 0 * logits.sum()}


class Quieter(Silent):
    """A variant of the variant."""


def test_a_variant_without_a_name_is_not_loaded_as_its_parent(small, save):
    path = save(Silent(**small))
    for load in (load_checkpoint, MutualLTModule.load_from_checkpoint):
        with pytest.raises(
            CheckpointError, match=r"it is of Silent, .*Use Silent, such as Silent\.load_from_checkpoint"
        ) as caught:
            load(path)
        assert str(path) in str(caught.value)
    assert type(Silent.load_from_checkpoint(path)) is Silent
    assert type(Quieter.load_from_checkpoint(path)) is Quieter


def test_a_variant_may_be_loaded_from_its_parents_checkpoint(small, save):
    assert type(Silent.load_from_checkpoint(save(MutualLTModule(**small)))) is Silent


def test_a_run_does_not_go_on_as_its_variants_parent(small, save, loader, make_trainer):
    path = save(Silent(**small))
    with pytest.raises(CheckpointError, match="it is of Silent"):
        make_trainer(2).fit(MutualLTModule(**small), loader, ckpt_path=path, weights_only=True)
    make_trainer(2).fit(Quieter(**small), loader, ckpt_path=path, weights_only=True)


class Nameless(LongTailedModule):
    def objective(self, logits, targets):
        return {"cross_entropy": expert_cross_entropy(logits, targets)}


def test_a_method_without_any_name_is_loaded_by_its_class(small, save):
    path = save(Nameless(**small))
    assert type(Nameless.load_from_checkpoint(path)) is Nameless
    with pytest.raises(CheckpointError, match=r"it is of 'Nameless'.*use Nameless\.load_from_checkpoint"):
        load_checkpoint(path)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ArgumentError, match=r"There is a method 'mutual' already, mllt\.methods\.mutual\.MutualLTModule"):
        smoothed(name="mutual")
    assert LongTailedModule.registry["mutual"] is MutualLTModule


def test_a_class_may_be_defined_again():
    smoothed()
    again = smoothed()
    assert LongTailedModule.registry["smoothed"] is again


@pytest.mark.parametrize(("module", "taken"), [("__main__", False), ("elsewhere", True)])
def test_a_script_that_is_imported_too_defines_its_class_twice(module, taken):
    def define(where):
        return type("Twice", (Nameless,), {"method": "twice", "__module__": where, "__qualname__": "Twice"})

    define("script")
    if taken:
        with pytest.raises(ArgumentError, match=r"There is a method 'twice' already, script\.Twice"):
            define(module)
    else:
        again = define(module)
        assert LongTailedModule.registry["twice"] is again


# ----------------------------------------------------------------------------------------------------- loading


def test_lightnings_own_arguments_of_loading_are_taken(small, save):
    path = save(MutualLTModule(**small))
    whole = MutualLTModule.load_from_checkpoint(path, weights_only=True, hparams_file=None, strict=None)
    assert_close(whole.state_dict(), load_checkpoint(path, "cpu", weights_only=True).state_dict())


@pytest.mark.parametrize("arguments", [{"weights_only": False}, {"hparams_file": "hparams.yaml"}], ids=str)
def test_loading_never_runs_code_nor_reads_other_files(small, save, arguments):
    with pytest.raises(ArgumentError, match=f"{next(iter(arguments))}={next(iter(arguments.values()))!r}".replace(".", r"\.")):
        load_checkpoint(save(MutualLTModule(**small)), **arguments)


@pytest.mark.parametrize(
    ("mistyped", "meant"), [("test_pror", "test_prior"), ("mutual_wieght", "mutual_weight"), ("num_expert", "num_experts")]
)
def test_a_mistyped_override_is_the_callers_fault(small, save, mistyped, meant):
    with pytest.raises(ArgumentError, match=f"MutualLTModule has no argument '{mistyped}'. Did you mean '{meant}'"):
        load_checkpoint(save(MutualLTModule(**small)), **{mistyped: 1})


# ----------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    "changed",
    [
        {"lr": 0.05},
        {"momentum": 0.8},
        {"nesterov": True},
        {"weight_decay": 0.0},
        {"decay_norm_and_bias": False},
        {"schedule": "cosine"},
        {"milestones": [0.5]},
        {"gamma": 0.2},
        {"warmup_epochs": 1},
        {"warmup_start": 0.5},
        {"ema_decay": 0.9},
        {"temperature": 2.0},
        {"mutual_weight": 0.5, "lr": 0.05},
        {"head": "cosine"},
        {"head": "cosine", "scale": 20.0},
    ],
    ids=str,
)
def test_a_run_does_not_go_on_with_other_settings(small, save, loader, make_trainer, changed):
    module = MutualLTModule(**{**small, **({"head": "cosine"} if "scale" in changed else {})})
    path = save(module)
    with pytest.raises(CheckpointError) as caught:
        make_trainer(2).fit(MutualLTModule(**{**small, **changed}), loader, ckpt_path=path, weights_only=True)
    message = str(caught.value)
    for name, value in changed.items():
        if module.hparams[name] != value:
            assert f"its {name} is {module.hparams[name]!r}, and here it is {value!r}" in message
            assert f"{name}={module.hparams[name]!r}" in message  # what to type


def test_a_run_goes_on_with_another_evaluation(small, save, loader, make_trainer):
    evaluation = {
        "test_prior": "train",
        "test_prior_factor": 10,
        "many_above": 50,
        "few_below": 10,
        "ensemble": "probabilities",
    }
    path = save(MutualLTModule(**small))
    module = MutualLTModule(**small, **evaluation, shot_edges_inclusive=True)
    make_trainer(2).fit(module, loader, ckpt_path=path, weights_only=True)
    assert module.hparams["ensemble"] == "probabilities"


def test_weights_can_be_tested_under_another_recipe(small, save, loader, make_trainer):
    path = save(MutualLTModule(**small))
    make_trainer().test(MutualLTModule(**small, lr=0.05), loader, ckpt_path=path, weights_only=True, verbose=False)
    with pytest.raises(CheckpointError, match="its num_experts is 3, and here it is 2"):
        make_trainer().test(MutualLTModule(**small, num_experts=2), loader, ckpt_path=path, weights_only=True)


# -------------------------------------------------------------------------------------------- module and its data


@pytest.mark.parametrize("counts", [[50] * 10, [120, 24, 6]], ids=["numbers", "classes"])
def test_class_counts_must_be_those_of_the_data(small, make_trainer, counts):
    data = DigitsLT(batch_size=32)
    with pytest.raises(ArgumentError) as caught:
        make_trainer().fit(MutualLTModule(**{**small, "class_counts": counts}), datamodule=data)
    message = str(caught.value)
    assert f"{len(counts)} classes, {', '.join(map(str, counts))}" in message
    assert f"10 classes, {', '.join(map(str, data.class_counts.tolist()))}" in message
    assert "class_counts=data.class_counts" in message


@pytest.mark.parametrize("told", [{}, {"class_counts": None}, {"class_counts": np.array([120, 24, 6])}], ids=str)
def test_a_data_module_of_ones_own_may_tell_its_counts(small, loader, make_trainer, told):
    class Mine(L.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return loader

    data = Mine()
    vars(data).update(told)
    trainer = make_trainer()
    trainer.fit(MutualLTModule(**small), datamodule=data)
    assert trainer.global_step == len(loader)
