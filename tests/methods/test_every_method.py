"""What holds for every method of the library; a new one is found by its name."""

from pathlib import Path

import pytest
import torch

import mllt
from mllt import LongTailedModule, load_checkpoint

CONF = Path(__file__).resolve().parents[2] / "conf" / "method"
OURS = sorted(name for name, cls in LongTailedModule.registry.items() if cls.__module__.startswith("mllt.methods."))


def test_each_has_a_file_settings_and_a_test_of_its_name():
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == OURS
    for name in OURS:
        assert LongTailedModule.registry[name].__module__ == f"mllt.methods.{name}"
        assert Path(__file__).with_name(f"test_{name}.py").is_file()
        assert getattr(mllt, LongTailedModule.registry[name].__name__) is LongTailedModule.registry[name]


@pytest.mark.parametrize("name", OURS)
def test_it_learns_and_its_checkpoint_comes_back_by_one_call(name, small, problem, loader, make_trainer, tmp_path):
    module = LongTailedModule.registry[name](**small)
    trainer = make_trainer(15)
    trainer.fit(module, [loader, loader] if module.stages()[0].companion else loader)
    assert trainer.callback_metrics["train/loss"].isfinite()
    images, targets = problem
    right = module.probabilities(images).argmax(-1) == targets
    by_class = [right[targets == label].float().mean().item() for label in range(3)]
    assert sum(by_class) / 3 > 0.6, by_class  # guessing gives a third
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = load_checkpoint(tmp_path / "model.ckpt")
    assert type(again) is type(module)
    assert torch.equal(again.probabilities(images), module.probabilities(images))


@pytest.mark.parametrize("name", OURS)
def test_it_says_which_prior_it_fits_and_which_row_it_reports(name, small):
    module = LongTailedModule.registry[name](**small)
    assert module.fitted_prior in ("train", "uniform")
    assert module.reported in ("raw", "compensated")
    module.set_test_prior("train" if module.fitted_prior == "train" else "uniform")
    assert module.compensation.abs().max() < 1e-6, "nothing to compensate for the prior that it fits"
