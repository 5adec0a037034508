"""Methods of several stages: one command, one folder, and a break anywhere changes nothing."""

from __future__ import annotations

import csv
import shutil

import torch
from tests.commands.conftest import SMALL, read_json

from mllt import load_checkpoint

CRT = ("train", "method=crt", "method.head_epochs=2", "schedule=constant", *SMALL[1:3])


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(one, other):
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def epochs_in(path):
    with path.open() as file:
        return [row["epoch"] for row in csv.DictReader(file)]


def test_each_stage_has_its_checkpoint_and_metrics_and_the_last_one_the_results(mllt_command, tmp_path):
    run = tmp_path / "run"
    done = mllt_command(*CRT, f"output_dir={run}")
    assert done.status == 0, done.err
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert files == {
        "config.yaml",
        "results.json",
        "metrics.csv",
        "checkpoints/last.ckpt",
        "stages/features/metrics.csv",
        "stages/features/checkpoints/last.ckpt",
    }
    assert "Stage 1 of 2: features" in done.out
    assert "Stage 2 of 2: head" in done.out
    assert done.out.count("training images in 10 classes") == 1
    assert read_json(run / "results.json")["stages"] == [{"name": "features", "epochs": 2}, {"name": "head", "epochs": 2}]
    assert epochs_in(run / "metrics.csv") == epochs_in(run / "stages" / "features" / "metrics.csv") == ["1", "2"]
    features, head = weights(run / "stages" / "features"), weights(run)
    assert all(torch.equal(features[name], head[name]) for name in features if name.startswith("network.experts"))
    assert load_checkpoint(run / "checkpoints" / "last.ckpt").stage == "head"


def test_a_run_that_broke_off_between_or_within_stages_ends_as_if_it_had_not(mllt_command, tmp_path):
    whole = tmp_path / "whole"
    assert mllt_command(*CRT, f"output_dir={whole}").status == 0

    between = tmp_path / "between"
    shutil.copytree(whole / "stages", between / "stages")
    done = mllt_command(*CRT, "resume=auto", f"output_dir={between}")
    assert done.status == 0, done.err
    assert "Stage 1 of 2" not in done.out
    assert same(whole, between)

    within = tmp_path / "within"
    assert mllt_command(*CRT, "trainer.max_epochs=1", f"output_dir={tmp_path / 'short'}").status == 0
    shutil.copytree(tmp_path / "short" / "stages", within / "stages")
    done = mllt_command(*CRT, "resume=auto", f"output_dir={within}")
    assert done.status == 0, done.err
    assert "Stage 1 of 2: features" in done.out
    assert same(whole / "stages" / "features", within / "stages" / "features")
    assert same(whole, within)
    assert read_json(whole / "results.json")["test"] == read_json(within / "results.json")["test"]


def test_the_first_stage_can_be_evaluated_on_its_own(mllt_command, tmp_path):
    run = tmp_path / "stages" / "run"  # a name that misleads
    assert mllt_command(*CRT, f"output_dir={run}").status == 0
    assert (run / "config.yaml").is_file()
    done = mllt_command("evaluate", f"checkpoint={run / 'stages' / 'features' / 'checkpoints' / 'last.ckpt'}")
    assert done.status == 0, done.err
    assert (run / "stages" / "features" / "evaluations" / "test-uniform.json").is_file()
    done = mllt_command("evaluate", f"checkpoint={run / 'checkpoints' / 'last.ckpt'}")
    assert done.status == 0, done.err
    assert read_json(run / "evaluations" / "test-uniform.json")["test"] == read_json(run / "results.json")["test"]


def test_auto_begins_where_nothing_is_yet(mllt_command, tmp_path):
    assert mllt_command(*CRT, "resume=auto", f"output_dir={tmp_path / 'one'}").status == 0
    assert mllt_command(*CRT, f"output_dir={tmp_path / 'two'}").status == 0
    assert same(tmp_path / "one", tmp_path / "two")


def test_a_finished_stage_can_be_given_by_path(mllt_command, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert mllt_command(*CRT, f"output_dir={whole}").status == 0
    features = whole / "stages" / "features" / "checkpoints" / "last.ckpt"
    done = mllt_command(*CRT, f"resume={features}", f"output_dir={again}")
    assert done.status == 0, done.err
    assert same(whole, again)


def test_a_folder_that_holds_a_first_stage_only_is_not_written_over(mllt_command, tmp_path):
    whole = tmp_path / "whole"
    assert mllt_command(*CRT, f"output_dir={whole}").status == 0
    shutil.copytree(whole / "stages", tmp_path / "part" / "stages")
    done = mllt_command(*CRT, f"output_dir={tmp_path / 'part'}")
    assert done.status == 2
    assert "resume=auto" in done.err
