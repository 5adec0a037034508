"""`recipe=published` as a user types it, with recipes of their own beside those that are shipped."""

from __future__ import annotations

import csv
import re

import pytest
import yaml
from omegaconf import OmegaConf
from tests.commands.conftest import SMALL, read_json

SHORT = ("trainer.limit_train_batches=2", "trainer.limit_test_batches=1")
ONE = ("network.num_experts=1", "trainer.max_epochs=2", *SHORT)


@pytest.fixture
def own(tmp_path):
    """A folder of one's own configurations: two recipes and a table of values for digits, and an experiment in a folder."""

    def write(path, content):
        file = tmp_path / "own" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("# @package _global_\n" + yaml.safe_dump(content, sort_keys=False))

    recipe = {
        "optimizer": {"lr": 0.03},
        "schedule": {"name": "multistep", "milestones": [0.5], "gamma": 0.1, "warmup_epochs": 0},
    }
    write("recipe/published/digits_lt/cross_entropy.yaml", {"recipe_source": "somebody/somewhere: digits.yaml", **recipe})
    write("recipe/published/digits_lt/own/class.yaml", {"recipe_source": "nobody", "optimizer": {"lr": 0.04}})
    write("recipe/published/mine/digits/lade.yaml", {"recipe_source": "a shelf", "optimizer": {"lr": 0.05}})
    write("recipe/tuning/digits_lt/lade.yaml", {"method": {"regularizer_weight": "${mllt.by_factor:{100: 0.1, 10: 0.01}}"}})
    write("experiment/mine/digits.yaml", {"defaults": ["/experiment/digits_lt", "_self_"], "name": "mine"})
    return tmp_path / "own"


def first_rate(run):
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return next(float(row[key]) for row in csv.DictReader(file) for key in row if key.startswith("lr") and row[key])


def test_a_sweep_over_both_recipes_trains_each_by_its_own(mllt_command, own, tmp_path):
    arguments = ("recipe=paper,published", "method=cross_entropy", *ONE, f"output_dir={tmp_path / 'sweep'}")
    done = mllt_command("train", f"--config-dir={own}", "-m", *arguments)
    assert done.status == 0, done.err
    runs = {read_json(path)["recipe"]: path.parent for path in (tmp_path / "sweep").glob("*/results.json")}
    assert sorted(runs) == ["paper", "published"]
    sources = {"paper": None, "published": "somebody/somewhere: digits.yaml"}
    for recipe, run in runs.items():
        results, config = read_json(run / "results.json"), OmegaConf.load(run / "config.yaml")
        assert results["recipe_source"] == config.recipe_source == sources[recipe]
        assert config.recipe == recipe
        assert f"recipe={recipe}" in run.name
    assert first_rate(runs["published"]) == pytest.approx(0.03)
    assert first_rate(runs["paper"]) == pytest.approx(0.02 / 5)  # the experiment's, in its first epoch of warm-up
    assert done.out.count("Recipe: published (somebody/somewhere: digits.yaml).") == 1
    assert "Recipe: paper" not in done.out


def test_what_is_typed_wins_over_the_recipe_also_a_schedule(mllt_command, own, tmp_path):
    arguments = ("method=cross_entropy", "recipe=published", "schedule=constant", "optimizer.lr=0.07", *ONE)
    done = mllt_command("train", f"--config-dir={own}", *arguments, f"output_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (config.schedule.name, config.optimizer.lr) == ("constant", 0.07)
    assert first_rate(tmp_path / "run") == pytest.approx(0.07 / 5), (
        "the whole schedule is the experiment's, as without a recipe"
    )
    done = mllt_command("train", *arguments[:1], *arguments[2:], f"output_dir={tmp_path / 'paper'}")
    assert done.status == 0, done.err
    assert OmegaConf.load(tmp_path / "paper" / "config.yaml").schedule == config.schedule


@pytest.mark.parametrize(
    ("arguments", "lr", "source"),
    [
        (["experiment=mine/digits", "method=lade"], 0.05, "a shelf"),
        (["method=own/class", "method._target_=mllt.methods.CrossEntropyModule"], 0.04, "nobody"),
    ],
)
def test_experiments_and_methods_in_folders_have_recipes(mllt_command, own, tmp_path, arguments, lr, source):
    done = mllt_command("train", f"--config-dir={own}", *arguments, "recipe=published", *ONE, f"output_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    assert read_json(tmp_path / "run" / "results.json")["recipe_source"] == source
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").optimizer.lr == lr


def test_a_value_of_another_imbalance_factor_is_told_before_training(mllt_command, own, tmp_path):
    arguments = ("method=lade", "data.imbalance_factor=20", *ONE, f"output_dir={tmp_path / 'run'}")
    done = mllt_command("train", f"--config-dir={own}", *arguments)
    assert done.status == 0, done.err
    said = "Note: method.regularizer_weight=0.01 is published for an imbalance factor of 10; for data.imbalance_factor=20"
    assert done.out.index(said) < done.out.index("top-1")
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").method.regularizer_weight == 0.01


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["method=mislas"],
            ["no published recipe of method=mislas for experiment=digits_lt", "experiment=cifar100_lt, imagenet_lt, inat2018."],
        ),
        (
            ["experiment=inat2018", "method=ssd"],
            ["of method=ssd for experiment=inat2018", "experiment=imagenet_lt_resnext50", "method=balanced_softmax, bbn, "],
        ),
        (["experiment=inat2018", "method=ace"], ["With recipe=published you may choose method=balanced_softmax, bbn, "]),
        (["method=ace"], ["Nothing is published of that method, nor for that experiment", "recipe=paper"]),
        (["recipe=publisched"], ["There is no recipe=publisched. Did you mean 'published'? Known: paper, published."]),
        (["optimizer.lr=true", "method=mutual"], ["`optimizer.lr` to be a number"]),
        (["optimizer.lrr=1"], ["Did you mean 'lr'?"]),
        (["recipee=paper"], ["Did you mean 'recipe'?"]),
        (["~recipe"], ["Expected a choice for `recipe`"]),
        (["~method"], ["Expected a choice for `method`"]),
    ],
    ids=str,
)
def test_one_line_says_which_recipes_there_are(mllt_command, tmp_path, arguments, said):
    recipe = [] if any(argument.startswith(("recipe", "~recipe")) for argument in arguments) else ["recipe=published"]
    done = mllt_command("train", *arguments, *recipe, f"output_dir={tmp_path / 'run'}")
    assert done.status == 2
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1, done.err
    for words in said:
        assert words in done.err
    assert not list(tmp_path.glob("run/*")), "what never began leaves nothing"


def test_help_lists_recipes_and_launchers_but_not_the_files_behind_them(mllt_command):
    done = mllt_command("train", "--help")
    assert "\nrecipe: paper, published\n" in done.out
    assert "\nlauncher: joblib, slurm, submitit_local\n" in done.out
    assert re.search(r"\nmethod: .*own/class", done.out)
    assert "tuning" not in done.out
    assert "published/" not in done.out


@pytest.mark.slow
def test_a_sweep_over_methods_names_the_one_without_a_recipe_and_trains_the_others(mllt_command, own, tmp_path):
    arguments = ("method=cross_entropy,lade", "recipe=published", *SMALL[1:], f"output_dir={tmp_path / 'sweep'}")
    done = mllt_command("train", f"--config-dir={own}", "-m", *arguments)
    assert done.status == 2
    assert "no published recipe of method=lade for experiment=digits_lt" in done.err.splitlines()[-1]
    assert [read_json(path)["method"] for path in (tmp_path / "sweep").glob("*/results.json")] == ["cross_entropy"]
