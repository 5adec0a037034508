"""The command that repeats a run, and the processor time of its training."""

from __future__ import annotations

import shlex

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from tests.commands.conftest import SMALL, read_json

from mllt.callbacks import RunProgress
from mllt.cli import _without_folder


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_the_command_of_a_job_of_a_sweep_repeats_it(mllt_command, tmp_path):
    odd = "name='a b,(c)'"
    done = mllt_command("train", "-m", *SMALL, odd, "optimizer.lr=0.05,0.01", f"output_dir={tmp_path / 'sweep'}")
    assert done.status == 0, done.err
    (first,) = (run.parent for run in (tmp_path / "sweep").rglob("results.json") if "lr=0.05" in run.parent.name)
    command = read_json(first / "results.json")["command"]
    python, dash, module, *arguments = shlex.split(command)
    assert (python, dash, module) == ("python", "-m", "mllt.train")
    assert arguments == [*SMALL, odd, "optimizer.lr=0.05", "seed=0"]
    done = mllt_command("train", *arguments, f"output_dir={tmp_path / 'again'}")
    assert done.status == 0, done.err
    one, other = weights(first), weights(tmp_path / "again")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    told = read_json(tmp_path / "again" / "results.json")
    assert told["command"] == command
    assert 0 < told["cpu_seconds"] < 1000


def test_of_own_settings_the_command_says_that_they_are_needed_and_not_where_they_lie(mllt_command, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "ours.yaml").write_text(
        "# @package _global_\ndefaults: [digits_lt, _self_]\nname: ours\n"
    )
    where = ("--config-dir", tmp_path / "mine", "experiment=ours", f"output_dir={tmp_path / 'run'}", "overwrite=true")
    done = mllt_command("train", *where, *SMALL, "seed=3")
    assert done.status == 0, done.err
    command = read_json(tmp_path / "run" / "results.json")["command"]
    assert command == shlex.join(["python", "-m", "mllt.train", "--config-dir", "FOLDER", "experiment=ours", *SMALL, "seed=3"])


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("optimizer.lr=0.1", "optimizer.lr=0.1"),
        ("network.name=timm/resnet18", "network.name=timm/resnet18"),
        ("method.teacher=runs/plain/last.ckpt", "method.teacher=runs/plain/last.ckpt"),
        ("method.teacher=/home/me/last.ckpt", "method.teacher=PATH/last.ckpt"),
        ("method.teacher='/home/me (1)/it\\'s.ckpt'", "method.teacher='PATH/it\\'s.ckpt'"),
        ("+data.list_dir='~/lists/'", "+data.list_dir=PATH/lists"),
        ("data.root=file:///home/me/x", "data.root=PATH/x"),
        ("evaluation.also=[train,/home/me/prior.txt]", "evaluation.also=PATHS"),
        ("+network.options={a: '/home/me'}", "+network.options=PATHS"),
        ("~logger", "~logger"),
    ],
)
def test_folders_of_the_machine_are_left_out_of_the_command(typed, kept):
    (override,) = OverridesParser.create().parse_overrides([typed])
    assert _without_folder(override) == kept
    if not kept.startswith("~"):
        OverridesParser.create().parse_overrides([kept])


def test_processor_time_that_is_not_the_whole_is_not_told(mllt_command, tmp_path):
    run = tmp_path / "run"
    done = mllt_command("train", *SMALL, "trainer.max_epochs=1", "data.num_workers=1", f"output_dir={run}")
    assert done.status == 0, done.err
    told = read_json(run / "results.json")
    assert told["cpu_seconds"] is None  # the images were made in another process
    assert told["train_seconds"] > 0


def test_processor_time_goes_on_after_a_break_and_is_unknown_after_one_that_did_not_keep_it():
    kept = RunProgress()
    kept.load_state_dict({"train_seconds": 9.0, "cpu_seconds": 7.0, "images": 3})
    assert kept.with_earlier([]) == (9.0, 7.0, 3)
    assert kept.state_dict() == {"train_seconds": 9.0, "cpu_seconds": 7.0, "images": 3}
    old = RunProgress()
    old.load_state_dict({"train_seconds": 9.0, "images": 3})
    assert old.with_earlier([]) == (9.0, None, 3)
    assert old.state_dict()["cpu_seconds"] is None


def test_processor_time_of_an_earlier_stage_is_added_or_makes_the_sum_unknown(tmp_path, trained):
    place = trained / "checkpoints" / "last.ckpt"
    state = torch.load(place, weights_only=True)
    progress = RunProgress()
    kept = state["callbacks"]["RunProgress"]
    assert progress.with_earlier([place]) == (kept["train_seconds"], kept["cpu_seconds"], kept["images"])
    assert progress.with_earlier([tmp_path / "given_by_path.ckpt"]) == (0.0, 0.0, 0)
    del kept["cpu_seconds"]
    torch.save(state, tmp_path / "old.ckpt")
    assert progress.with_earlier([place, tmp_path / "old.ckpt"])[1] is None
