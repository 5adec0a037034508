"""Methods of several stages: one command, one folder, and a break anywhere changes nothing."""

from __future__ import annotations

import csv
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tests.commands.conftest import SMALL, command_runner, read_json

from mllt import load_checkpoint

SHORT = ("schedule=constant", *SMALL[1:3])
CRT = ("train", "method=crt", "method.head_epochs=2", *SHORT)
LWS = ("train", "method=lws", "method.head_epochs=2", *SHORT)
MISLAS = ("train", "method=mislas", "method.head_epochs=2", *SHORT)
DIVE = ("train", "method=dive", *SHORT)
CROSS_ENTROPY = ("train", "method=cross_entropy", *SHORT)


class BreakOff(Callback):
    """Control-C in the second epoch of a stage."""

    def __init__(self, stage):
        self.stage = stage

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.stage == self.stage and trainer.current_epoch == 1 and batch_idx == 2:
            raise KeyboardInterrupt


def break_off(stage):
    """What makes a command break off there."""
    return (f"+callbacks.break_off._target_={BreakOff.__module__}.BreakOff", f"+callbacks.break_off.stage={stage}")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of a finished run of a command; read it, do not change it."""
    runs = {}

    def folder_of(command):
        if command not in runs:
            folder = tmp_path_factory.mktemp("whole")
            with pytest.MonkeyPatch.context() as monkeypatch:
                assert command_runner(monkeypatch, Mute(), folder)(*command, f"output_dir={folder / 'run'}").status == 0
            runs[command] = folder / "run"
        return runs[command]

    return folder_of


class Mute:
    """In place of `capfd`, which is there for one test only."""

    def readouterr(self):
        return "", ""


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
        *(f"checkpoints/{name}" for name in ("last.ckpt", "previous.ckpt", "model.ckpt", "model.ckpt.sha256")),
        "stages/features/metrics.csv",
        *(f"stages/features/checkpoints/{name}" for name in ("last.ckpt", "previous.ckpt")),
    }
    assert "Stage 1 of 2: features" in done.out
    assert "Stage 2 of 2: head" in done.out
    assert done.out.count("training images in 10 classes") == 1
    assert read_json(run / "results.json")["stages"] == [{"name": "features", "epochs": 2}, {"name": "head", "epochs": 2}]
    assert epochs_in(run / "metrics.csv") == epochs_in(run / "stages" / "features" / "metrics.csv") == ["1", "2"]
    features, head = weights(run / "stages" / "features"), weights(run)
    assert all(torch.equal(features[name], head[name]) for name in features if name.startswith("network.experts"))
    assert load_checkpoint(run / "checkpoints" / "last.ckpt").stage == "head"


@pytest.mark.parametrize("command", [CRT, MISLAS, DIVE], ids=lambda command: command[1])
def test_a_run_that_broke_off_between_stages_ends_as_if_it_had_not(mllt_command, whole_run, tmp_path, command):
    whole, between = whole_run(command), tmp_path / "between"
    shutil.copytree(whole / "stages", between / "stages")
    done = mllt_command(*command, "resume=auto", f"output_dir={between}")
    assert done.status == 0, done.err
    assert "Stage 1 of 2" not in done.out
    assert same(whole, between)


@pytest.mark.parametrize(
    ("command", "stage"),
    [(CRT, "features"), (CRT, "head"), (MISLAS, "features"), (MISLAS, "head"), (DIVE, "teacher"), (DIVE, "student")],
    ids=lambda value: value[1] if isinstance(value, tuple) else value,
)
def test_a_run_that_broke_off_within_a_stage_ends_as_if_it_had_not(mllt_command, whole_run, tmp_path, command, stage):
    whole, run = whole_run(command), tmp_path / "run"
    assert mllt_command(*command, *break_off(stage), f"output_dir={run}").status == 130
    assert not (run / "results.json").exists()
    done = mllt_command(*command, "resume=auto", f"output_dir={run}")
    assert done.status == 0, done.err
    assert ("Stage 1 of 2" in done.out) == (stage in ("features", "teacher"))
    for part in ("stages/features", "stages/teacher", "."):
        assert not (whole / part).exists() or same(whole / part, run / part)
    results, expected = (read_json(folder / "results.json") for folder in (run, whole))
    assert results["test"] == expected["test"]
    assert results["details"] == expected["details"]


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


@pytest.mark.parametrize("command", [CRT, LWS, MISLAS], ids=lambda command: command[1])
def test_another_methods_checkpoint_can_be_the_first_stage(mllt_command, whole_run, tmp_path, command):
    features, run = whole_run(CROSS_ENTROPY) / "checkpoints" / "last.ckpt", tmp_path / "run"
    done = mllt_command(*command, f"method.features={features}", f"output_dir={run}")
    assert done.status == 0, done.err
    assert not (run / "stages").exists()
    assert [stage["name"] for stage in read_json(run / "results.json")["stages"]] == ["head"]
    taken, given = weights(run), torch.load(features, weights_only=True)["state_dict"]
    assert all(torch.equal(taken[name], value) for name, value in given.items() if name.endswith("conv1.weight"))
    assert load_checkpoint(run / "checkpoints" / "last.ckpt").stage == "head"


@pytest.mark.parametrize("command", [LWS, MISLAS], ids=lambda command: command[1])
def test_a_first_stage_by_path_gives_the_same_as_one_within_the_run(mllt_command, whole_run, tmp_path, command):
    features = whole_run(command) / "stages" / "features" / "checkpoints" / "last.ckpt"
    assert mllt_command(*command, f"method.features={features}", f"output_dir={tmp_path / 'run'}").status == 0
    assert same(whole_run(command), tmp_path / "run")


@pytest.mark.parametrize(
    ("command", "setting", "stage"), [(LWS, "features", "head"), (DIVE, "teacher", "student")], ids=["features", "teacher"]
)
def test_a_run_goes_on_without_the_file_that_it_began_with(mllt_command, whole_run, tmp_path, command, setting, stage):
    """Given as a relative path, too."""
    here, run = tmp_path / "here", tmp_path / "run"
    given = (*command, f"method.{setting}=other.ckpt")
    missing = mllt_command(*given, f"output_dir={run}")
    assert missing.status == 2
    assert missing.err.count("\n") == 1
    assert "there is none at other.ckpt" in missing.err
    shutil.copy(whole_run(CROSS_ENTROPY) / "checkpoints" / "last.ckpt", here / "other.ckpt")
    assert mllt_command(*given, f"output_dir={tmp_path / 'whole'}").status == 0
    assert f"{setting}: {here / 'other.ckpt'}" in (tmp_path / "whole" / "config.yaml").read_text()
    assert mllt_command(*given, *break_off(stage), f"output_dir={run}").status == 130
    (here / "other.ckpt").unlink()
    done = mllt_command(*given, "resume=auto", f"output_dir={run}")
    assert done.status == 0, done.err
    assert same(tmp_path / "whole", run)
    assert read_json(run / "results.json")["details"] == read_json(tmp_path / "whole" / "results.json")["details"]


def test_a_run_does_not_go_on_with_another_teacher(mllt_command, whole_run, tmp_path):
    run = tmp_path / "run"
    one, two = (whole_run(command) / "checkpoints" / "last.ckpt" for command in (CROSS_ENTROPY, CRT))
    assert mllt_command(*DIVE, f"method.teacher={one}", *break_off("student"), f"output_dir={run}").status == 130
    done = mllt_command(*DIVE, f"method.teacher={two}", "resume=auto", f"output_dir={run}")
    assert done.status == 2
    assert "the same teacher to go on from" in done.err


def test_a_folder_that_holds_a_first_stage_only_is_not_written_over(mllt_command, tmp_path):
    whole = tmp_path / "whole"
    assert mllt_command(*CRT, f"output_dir={whole}").status == 0
    shutil.copytree(whole / "stages", tmp_path / "part" / "stages")
    done = mllt_command(*CRT, "resume=null", f"output_dir={tmp_path / 'part'}")
    assert done.status == 2
    assert "resume=auto" in done.err
