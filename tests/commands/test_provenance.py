"""What a run tells of itself stays true when it goes on: its settings, its code, its stages; and what may not go on."""

from __future__ import annotations

import csv
import shutil

import pytest
import torch
from tests.commands.break_off import PowerCut
from tests.commands.conftest import read_json

import mllt.results

CRT = (
    "train",
    "method=crt",
    "method.head_epochs=2",
    "schedule=constant",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=3",
)
ONE = ("train", "method=cross_entropy", "trainer.limit_train_batches=3", "schedule.warmup_epochs=1")


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def commit(monkeypatch):
    """Sets the commit that the code is of."""
    return lambda name: monkeypatch.setattr(mllt.results, "git_commit", lambda: name)


def test_weights_keep_the_commit_they_were_trained_by(mllt_command, commit, tmp_path):
    run = f"output_dir={tmp_path / 'run'}"
    commit("a" * 40)
    assert mllt_command(*ONE, "trainer.max_epochs=1", run).status == 0
    commit("b" * 40)
    assert mllt_command(*ONE, "trainer.max_epochs=1", "resume=auto", run).status == 0  # tests again, trains nothing
    assert read_json(tmp_path / "run" / "results.json")["git_commit"] == "a" * 40
    commit("c" * 40)
    assert mllt_command(*ONE, "trainer.max_epochs=2", "schedule=constant", "resume=auto", run).status == 2
    assert mllt_command(*ONE, "trainer.max_epochs=2", "resume=auto", run).status == 0
    assert read_json(tmp_path / "run" / "results.json")["git_commit"] == f"{'a' * 40} + {'c' * 40}"


def test_a_run_of_several_stages_tells_the_commits_of_all(mllt_command, commit, tmp_path):
    commit("a" * 40)
    assert mllt_command(*CRT, f"output_dir={tmp_path / 'whole'}").status == 0
    assert read_json(tmp_path / "whole" / "results.json")["git_commit"] == "a" * 40
    shutil.copytree(tmp_path / "whole" / "stages", tmp_path / "part" / "stages")
    commit("b" * 40)
    assert mllt_command(*CRT, "resume=auto", f"output_dir={tmp_path / 'part'}").status == 0
    assert read_json(tmp_path / "part" / "results.json")["git_commit"] == f"{'a' * 40} + {'b' * 40}"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("optimizer.lr=0.001", "its lr is"),
        ("optimizer.weight_decay=0.3", "its weight_decay is"),
        ("seed=5", "made with seed=5, but it was made with seed=0"),
        ("batch_size=8", "made with batch_size=8, but it was made with batch_size=16"),
        ("trainer.max_epochs=3", "stage 'features' in"),
    ],
)
def test_a_run_goes_on_between_stages_with_the_settings_it_began_with_only(mllt_command, tmp_path, changed, said):
    run = tmp_path / "run"
    assert mllt_command(*CRT, f"output_dir={run}").status == 0
    if "max_epochs" not in changed:  # killed between the stages
        shutil.rmtree(run / "checkpoints")
    done = mllt_command(*CRT, changed, "resume=auto", f"output_dir={run}")
    assert done.status == 2
    assert said in done.err


@pytest.mark.parametrize("changed", ["seed=5", "batch_size=8"])
def test_a_run_goes_on_within_a_stage_with_its_seed_and_batch_size_only(mllt_command, tmp_path, changed):
    run = f"output_dir={tmp_path / 'run'}"
    assert mllt_command(*ONE, "trainer.max_epochs=1", run).status == 0
    done = mllt_command(*ONE, "trainer.max_epochs=2", "resume=auto", changed, run)
    assert done.status == 2
    assert changed.split("=")[0] in done.err


def test_a_run_with_dropout_goes_on_bit_for_bit(mllt_command, tmp_path):
    pytest.importorskip("timm")
    vit = "{img_size: 8, patch_size: 2, depth: 1, embed_dim: 24, num_heads: 2, proj_drop_rate: 0.3, drop_rate: 0.5}"
    network = (
        "network=timm",
        "network.name=timm/vit_tiny_patch16_224",
        f"network.network_options={vit}",
        "network.num_experts=1",
    )
    recipe = (
        *ONE,
        *network,
        "schedule=constant",
        "schedule.warmup_epochs=0",
        "checkpoints.every_steps=1",
        "trainer.max_epochs=3",
    )
    assert mllt_command(*recipe, f"output_dir={tmp_path / 'whole'}").status == 0
    cut = "+callbacks.cut={_target_: tests.commands.break_off.BreakOff, stage: training, epochs: 1, batches: 2}"
    with pytest.raises(PowerCut):
        mllt_command(*recipe, cut, f"output_dir={tmp_path / 'parts'}")
    done = mllt_command(*recipe, f"output_dir={tmp_path / 'parts'}")
    assert done.status == 0, done.err
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    losses = []
    with (tmp_path / "whole" / "metrics.csv").open() as file:
        losses = [row["train/loss"] for row in csv.DictReader(file)]
    assert len(set(losses)) == 3


def test_results_tell_the_training_time_of_all_stages(mllt_command, tmp_path):
    done = mllt_command(*CRT, f"output_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    results = read_json(tmp_path / "run" / "results.json")
    assert "seed 0, 2 + 2 epochs" in done.out
    told = [
        torch.load(tmp_path.joinpath("run", *place, "checkpoints", "last.ckpt"), weights_only=True)["callbacks"]["RunProgress"]
        for place in (("stages", "features"), ())
    ]
    assert results["train_seconds"] == pytest.approx(sum(state["train_seconds"] for state in told))
    assert results["cpu_seconds"] == pytest.approx(sum(state["cpu_seconds"] for state in told))
    images = sum(state["images"] for state in told)
    assert images == 2 * 2 * 45  # three steps of 15 in each epoch
    assert results["images_per_second"] == pytest.approx(images / results["train_seconds"])


def test_the_digest_tells_one_choice_of_images_from_another(mllt_command, tmp_path):
    digests = {}
    for name, changed in {
        "plain": (),
        "other seed": ("seed=1",),
        "held out": ("data.val_fraction=0.2",),
        "other subset": ("data.subset_seed=1",),
        "other tail": ("data.imbalance_factor=20",),
    }.items():
        run = tmp_path / name
        assert mllt_command(*ONE, "trainer.max_epochs=1", *changed, f"output_dir={run}").status == 0
        digests[name] = read_json(run / "results.json")["data_digest"]
    assert digests["plain"] == digests["other seed"] == digests["held out"], "the seed's part is the seed's"
    assert len({digests[name] for name in ("plain", "other subset", "other tail")}) == 3


def test_a_sweep_that_grows_finds_the_runs_that_are_there(mllt_command, tmp_path):
    sweep = (*ONE[2:], "trainer.max_epochs=1", "resume=auto", f"output_dir={tmp_path / 'sweep'}")
    assert mllt_command("train", "-m", "method=cross_entropy,balanced_softmax", "seed=0", *sweep).status == 0
    before = {path.parts[-3]: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*/checkpoints/last.ckpt")}
    methods = "method=cross_entropy,ldam_drw,balanced_softmax"
    assert mllt_command("train", "-m", methods, "seed=0,1", *sweep).status == 0
    after = {path.parts[-3]: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*/checkpoints/last.ckpt")}
    assert len(before) == 2
    assert len(after) == 6
    assert {name: after[name] for name in before} == before, "nothing was trained again"


def test_every_job_that_fails_is_told(mllt_command, tmp_path):
    sweep = ("-m", *ONE[1:], "trainer.max_epochs=1", "optimizer.lr=-1,-2", f"output_dir={tmp_path / 'sweep'}")
    done = mllt_command("train", *sweep)
    assert done.status == 2
    assert "Job 0 of the sweep failed: Expected `lr` to be a number above 0, but got -1." in done.err
    assert "Job 1 of the sweep failed: Expected `lr` to be a number above 0, but got -2." in done.err
