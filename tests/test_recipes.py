"""Recipes against a table copied from the literature: what each method is trained with, on each data set, by either recipe."""

from __future__ import annotations

import functools
import importlib.resources
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mllt import cli
from mllt.build import build_module, import_class
from mllt.methods import LongTailedModule
from mllt.methods.identity import argument_names
from mllt.optim import learning_rate_factor
from mllt.recipes import borrowed_values

CONF = Path(str(importlib.resources.files("mllt.conf")))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


@functools.cache
def composed(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_module(cli.CONFIG_MODULE, version_base="1.3"):
        return compose("train", overrides=list(overrides))


def chosen(experiment: str, method: str, recipe: str = "paper", *more: str) -> DictConfig:
    return composed(f"experiment={experiment}", f"method={method}", f"recipe={recipe}", *more)


def files(folder: str) -> list[tuple[str, str]]:
    """What is there of `recipe/FOLDER/EXPERIMENT/METHOD.yaml`."""
    return sorted((path.parent.name, path.stem) for path in (CONF / "recipe" / folder).rglob("*.yaml"))


# ---------------------------------------------------------------------------------------------------------------
# The authors' recipes

# The factor on the learning rate from an epoch (counted from 0) on, until the next one that is named.
COSINE = {0: 1.0}
STEPS_160_180 = {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 4: 1.0}
LDAM = {**STEPS_160_180, 160: 1e-2, 180: 1e-4}
MISLAS = {**STEPS_160_180, 160: 0.1, 180: 0.01}
FROM_A_THIRD = {0: 5 / 15, 1: 7 / 15, 2: 9 / 15, 3: 11 / 15, 4: 13 / 15, 5: 1.0, 120: 1e-2, 160: 1e-4}
RIDE_LARGE = {**STEPS_160_180, 60: 0.1, 80: 0.01}
BBN_LARGE = {0: 1.0, 120: 0.1, 160: 0.01}

# lr, global batch, weight decay, epochs, schedule, Nesterov
CIFAR_LDAM = (0.1, 128, 2e-4, 200, LDAM, False)
CIFAR_LADE = (0.2, 256, 5e-4, 200, FROM_A_THIRD, False)
CIFAR_BBN = (0.1, 128, 2e-4, 200, FROM_A_THIRD, True)
CIFAR_TABLE_A1 = (0.1, 128, 5e-4, 200, MISLAS, False)
IMAGENET_TABLE_A1 = (0.025, 64, 5e-4, 180, COSINE, False)
IMAGENET_LADE = (0.05, 256, 5e-4, 180, COSINE, False)
IMAGENET_DECOUPLING = (0.2, 512, 5e-4, 90, COSINE, False)
IMAGENET_RIDE = (0.1, 256, 2e-4, 100, RIDE_LARGE, True)
INAT_DECOUPLING = (0.2, 512, 1e-4, 90, COSINE, False)
INAT_1E_4 = (0.1, 256, 1e-4, 200, COSINE, False)  # of LADE, MiSLAS, and Table A1 without its misprint
RX50 = "imagenet_lt_resnext50"
PUBLISHED: dict[tuple[str, str], tuple[Any, ...]] = {
    ("cifar100_lt", "cross_entropy"): CIFAR_LDAM,
    ("cifar10_lt", "cross_entropy"): CIFAR_LDAM,
    ("cifar100_lt", "ldam_drw"): CIFAR_LDAM,
    ("cifar10_lt", "ldam_drw"): CIFAR_LDAM,
    ("cifar100_lt", "lade"): CIFAR_LADE,
    ("cifar100_lt", "pc_softmax"): CIFAR_LADE,
    ("cifar100_lt", "balanced_softmax"): CIFAR_LADE,
    ("cifar100_lt", "bbn"): CIFAR_BBN,
    ("cifar10_lt", "bbn"): CIFAR_BBN,
    ("cifar100_lt", "dive"): CIFAR_BBN,
    ("cifar100_lt", "mislas"): (0.1, 128, 2e-4, 200, MISLAS, False),
    ("cifar100_lt", "ride"): (0.1, 128, 5e-4, 200, LDAM, True),
    ("cifar100_lt", "mutual"): CIFAR_TABLE_A1,
    ("imagenet_lt", "mislas"): (0.1, 256, 5e-4, 180, COSINE, False),
    ("imagenet_lt", "ride"): IMAGENET_RIDE,
    ("imagenet_lt", "mutual"): IMAGENET_TABLE_A1,
    (RX50, "cross_entropy"): IMAGENET_DECOUPLING,
    (RX50, "crt"): IMAGENET_DECOUPLING,
    (RX50, "lws"): IMAGENET_DECOUPLING,
    (RX50, "tau_norm"): IMAGENET_DECOUPLING,
    (RX50, "pc_softmax"): (0.2, 256, 5e-4, 90, COSINE, False),
    (RX50, "balanced_softmax"): IMAGENET_LADE,
    (RX50, "lade"): IMAGENET_LADE,
    (RX50, "ride"): IMAGENET_RIDE,
    (RX50, "ssd"): (0.1, 256, 5e-4, 135, COSINE, False),
    (RX50, "mutual"): IMAGENET_TABLE_A1,
    ("inat2018", "cross_entropy"): INAT_1E_4,
    ("inat2018", "pc_softmax"): INAT_1E_4,
    ("inat2018", "balanced_softmax"): INAT_1E_4,
    ("inat2018", "lade"): INAT_1E_4,
    ("inat2018", "mislas"): INAT_1E_4,
    ("inat2018", "mutual"): INAT_1E_4,
    ("inat2018", "crt"): INAT_DECOUPLING,
    ("inat2018", "lws"): INAT_DECOUPLING,
    ("inat2018", "tau_norm"): INAT_DECOUPLING,
    ("inat2018", "bbn"): (0.05, 128, 1e-4, 180, BBN_LARGE, True),
    ("inat2018", "ride"): (0.2, 512, 2e-4, 100, RIDE_LARGE, True),
    ("inat2018_as_printed", "mutual"): (0.1, 256, 1e-1, 200, COSINE, False),
}


def test_every_published_recipe_stands_in_the_table():
    assert set(files("published")) == set(PUBLISHED)


@pytest.mark.parametrize(("experiment", "method"), PUBLISHED)
def test_published_recipe_is_that_of_the_authors(experiment, method):
    lr, batch, weight_decay, epochs, factors, nesterov = PUBLISHED[experiment, method]
    config = chosen(experiment, method, "published")
    optimizer = config.optimizer
    assert (optimizer.lr, config.batch_size, optimizer.weight_decay) == (lr, batch, weight_decay)
    assert (config.trainer.max_epochs, optimizer.momentum, optimizer.nesterov) == (epochs, 0.9, nesterov)
    assert config.recipe == "published"
    assert len(config.recipe_source) > 5
    settings = OmegaConf.to_container(config.schedule, resolve=True)
    schedule = settings.pop("name")
    assert (schedule == "cosine") == (factors is COSINE)
    if schedule == "cosine":
        assert settings["warmup_epochs"] == 0
        return
    rates = [learning_rate_factor(epoch, epochs, schedule, **settings) for epoch in range(epochs)]
    begins = sorted(factors)
    assert rates == pytest.approx([factors[max(b for b in begins if b <= epoch)] for epoch in range(epochs)], rel=1e-6)


def test_ride_on_cifar_rotates_and_warms_up_longer_with_distillation():
    config = chosen("cifar100_lt", "ride", "published")
    assert (config.data.rotation, config.schedule.warmup_epochs) == (15, 5)
    assert chosen("cifar100_lt", "ride", "published", "method.distill=true").schedule.warmup_epochs == 20
    assert chosen("cifar100_lt", "ride").data.rotation == 0


def test_what_else_the_authors_did_otherwise_on_inaturalist():
    assert chosen("inat2018", "mislas", "published").data.color_jitter == 0.4
    assert chosen("inat2018", "ride", "published").data.color_jitter == 0
    assert chosen("inat2018", "bbn", "published").data.mean == [0.485, 0.456, 0.406]
    assert chosen("inat2018", "lade", "published").data.mean == [0.466, 0.471, 0.380]


def test_later_stages_have_their_published_settings():
    head = chosen(RX50, "crt", "published").method
    assert (head.head_epochs, head.head_lr) == (10, 0.2)
    assert chosen(RX50, "ride", "published").method.routing_batch_size == 512
    label = chosen(RX50, "ssd", "published").method
    assert (label.queue_size, label.label_epochs, label.label_lr, label.label_batch_size) == (115_712, 5, 0.2, 512)
    assert label.queue_size % chosen(RX50, "ssd", "published").batch_size == 0


# ---------------------------------------------------------------------------------------------------------------
# A method's own settings, with either recipe

LARGE_LADE, LARGE_MISLAS = (
    {"regularizer_weight": 0.05, "remine_lambda": 0.5},
    {"mixup_alpha": 0.2, "smooth_head": 0.3, "smooth_tail": 0.0, "head_lr_factor": 0.05},
)
IMAGENET_RIDE_SETTINGS = {"diversity": -0.2, "reweight_factor": 0.02, "routing_top_k": 50}
INAT_RIDE_SETTINGS = {"diversity": -0.2, "reweight_factor": 0.015, "routing_top_k": 50}
TUNING: dict[tuple[str, str], dict[str, Any]] = {
    ("cifar100_lt", "lade"): {"regularizer_weight": 0.1, "remine_lambda": 0.01},
    ("imagenet_lt", "lade"): LARGE_LADE,
    (RX50, "lade"): LARGE_LADE,
    ("inat2018", "lade"): LARGE_LADE,
    ("inat2018_as_printed", "lade"): LARGE_LADE,
    ("places_lt", "lade"): {"regularizer_weight": 0.005, "remine_lambda": 0.1},
    ("cifar100_lt", "ride"): {"diversity": -0.45, "reweight_factor": 0.05, "routing_top_k": 30},
    ("imagenet_lt", "ride"): IMAGENET_RIDE_SETTINGS,
    (RX50, "ride"): IMAGENET_RIDE_SETTINGS,
    ("inat2018", "ride"): INAT_RIDE_SETTINGS,
    ("inat2018_as_printed", "ride"): INAT_RIDE_SETTINGS,
    ("cifar100_lt", "mislas"): {"mixup_alpha": 1.0, "smooth_head": 0.4, "smooth_tail": 0.1, "head_lr_factor": 0.2},
    ("imagenet_lt", "mislas"): LARGE_MISLAS,
    (RX50, "mislas"): LARGE_MISLAS,
    ("inat2018", "mislas"): LARGE_MISLAS,
    ("inat2018_as_printed", "mislas"): LARGE_MISLAS,
    ("cifar100_lt", "dive"): {"temperature": 3.0, "power": 0.5, "distillation_weight": 0.5},
    ("digits_lt", "ride"): {"routing_epochs": 0},
}
TUNING |= {("cifar100_lt_strong", method): TUNING["cifar100_lt", method] for method in ("dive", "lade", "mislas", "ride")}


FOUR_EXPERTS = {("cifar10_lt", "ace"), ("cifar100_lt", "ace"), ("cifar100_lt_strong", "ace")}


def test_every_tuned_method_stands_in_the_table():
    assert set(files("tuning")) == set(TUNING) | FOUR_EXPERTS


@pytest.mark.parametrize("factor", [10, 50, 100])
@pytest.mark.parametrize(("experiment", "method"), sorted(FOUR_EXPERTS))
def test_on_cifar_ace_is_of_four_experts_whatever_the_imbalance(experiment, method, factor):
    config = chosen(experiment, method, "paper", f"data.imbalance_factor={factor}")
    data = instantiate(config.data, root=".")
    counts = torch.tensor(data.counts)
    module = build_module(config, SimpleNamespace(class_counts=counts, class_names=None, preprocessing=None))
    owned = module.owned.sum(dim=1).tolist()
    assert owned[0] == len(counts)
    assert all(more > fewer > 0 for more, fewer in itertools.pairwise(owned))
    assert len(owned) == 4


@pytest.mark.parametrize("recipe", ["paper", "published"])
@pytest.mark.parametrize(("experiment", "method"), TUNING)
def test_a_methods_own_settings_are_the_published_ones_with_both_recipes(experiment, method, recipe):
    section = chosen(experiment, method, recipe).method
    assert {name: section[name] for name in TUNING[experiment, method]} == TUNING[experiment, method]


@pytest.mark.parametrize(
    ("method", "factor", "expected"),
    [
        ("lade", 50, {"regularizer_weight": 0.01, "remine_lambda": 0.01}),
        ("lade", 10, {"regularizer_weight": 0.01, "remine_lambda": 0.01}),
        ("lade", 100.0, {"regularizer_weight": 0.1}),
        ("mislas", 50, {"smooth_head": 0.3, "smooth_tail": 0.0, "head_lr_factor": 0.1, "mixup_alpha": 1.0}),
        ("mislas", 10, {"smooth_head": 0.2, "smooth_tail": 0.0, "head_lr_factor": 0.1}),
    ],
)
def test_settings_follow_the_imbalance_factor(method, factor, expected):
    config = chosen("cifar100_lt", method, "paper", f"data.imbalance_factor={factor}")
    assert {name: config.method[name] for name in expected} == expected
    assert borrowed_values(config) == []


@pytest.mark.parametrize(
    ("method", "factor", "names", "value", "known"),
    [
        ("lade", 200, ["regularizer_weight"], 0.1, 100),
        ("lade", 20, ["regularizer_weight"], 0.01, 10),
        ("mislas", 200, ["smooth_head", "smooth_tail", "head_lr_factor"], 0.4, 100),
        ("dive", 50, ["temperature"], 3.0, 100),
    ],
)
def test_a_value_of_another_imbalance_factor_is_told(method, factor, names, value, known):
    config = chosen("cifar100_lt", method, "paper", f"data.imbalance_factor={factor}")
    said = borrowed_values(config)
    assert [line.partition("=")[0] for line in said] == [f"method.{name}" for name in names]
    assert said[0].startswith(f"method.{names[0]}={value} is published for an imbalance factor of {known}")
    assert f"data.imbalance_factor={factor}" in said[0]


def test_a_value_of_ones_own_is_not_borrowed():
    config = chosen("cifar100_lt", "lade", "paper", "data.imbalance_factor=200", "method.regularizer_weight=0.3")
    assert config.method.regularizer_weight == 0.3
    assert borrowed_values(config) == []


def test_data_without_an_imbalance_factor_borrow_the_usual_value_and_say_so():
    config = chosen("cifar100_lt", "lade", "paper", "data=folder_lt")
    assert config.method.regularizer_weight == 0.1
    assert "for these data nothing is" in borrowed_values(config)[0]


# ---------------------------------------------------------------------------------------------------------------
# All of them


def settings(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


#: What a recipe may change, and the two that tell it.
OF_A_RECIPE = ("batch_size", "reconstructed", "optimizer", "schedule", "trainer", "data", "method", "network")


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name != "folder_lt"])
def test_every_method_composes_with_every_experiment_and_recipe(experiment):
    for method in METHODS:
        paper, published = (settings(chosen(experiment, method, recipe)) for recipe in ("paper", "published"))
        alone = settings(composed(f"experiment={experiment}"))
        for config in (paper, published):
            assert set(config["method"]) - {"_target_"} <= set(
                argument_names(import_class("", config["method"]["_target_"], LongTailedModule))
            )
            for name in ("optimizer", "trainer", "data", "evaluation"):
                assert set(config[name]) == set(alone[name]), f"{experiment}, {method}: a setting of {name} that nobody reads"
            assert set(config) == set(alone)
        # The fair comparison: whatever the method, the paper's recipe is the experiment's
        for name in ("batch_size", "optimizer", "schedule", "trainer", "data"):
            assert paper[name] == alone[name], f"{experiment}, {method}"
        assert (paper["recipe"], paper["recipe_source"]) == ("paper", None)
        others = {name for name in paper if paper[name] != published[name]} - {"recipe", "recipe_source"}
        assert others <= set(OF_A_RECIPE)
        if (experiment, method) not in PUBLISHED:
            assert not others
            assert published["recipe_source"] is None


@pytest.mark.parametrize(("experiment", "method"), sorted(PUBLISHED.keys() | TUNING.keys()))
def test_recipe_builds_its_method(experiment, method):
    data = SimpleNamespace(class_counts=torch.tensor([101, 20, 5]), class_names=["a", "b", "c"], preprocessing=None)
    config = chosen(experiment, method, "published", "network=resnet20")  # on a small network, to be quick
    module = build_module(config, data)
    assert (module.method, module.hparams["lr"]) == (method, config.optimizer.lr)
    assert module.recipe()["warmup_start"] == config.schedule.warmup_start


def test_the_command_line_wins_over_both_kinds_of_files():
    more = ("optimizer.lr=0.3", "schedule.gamma=0.5", "method.regularizer_weight=0.7", "batch_size=32", "trainer.max_epochs=7")
    config = chosen("cifar100_lt", "lade", "published", *more)
    assert (config.optimizer.lr, config.schedule.gamma, config.method.regularizer_weight) == (0.3, 0.5, 0.7)
    assert (config.batch_size, config.trainer.max_epochs) == (32, 7)


def test_a_debug_run_stays_short_with_a_published_recipe():
    assert (
        chosen("cifar100_lt", "lade", "published", "debug=fast").trainer.max_epochs == composed("debug=fast").trainer.max_epochs
    )
