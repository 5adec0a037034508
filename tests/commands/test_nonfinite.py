"""A loss or a gradient that is not finite: the run ends before it is saved, or leaves the step out as if it had not been."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.commands.conftest import read_json

from mllt.checkpoint import read_checkpoint

SHORT = (
    "network.num_experts=2",
    "trainer.max_epochs=2",
    "schedule.warmup_epochs=1",
    "checkpoints.every_steps=1",
    "batch_size=64",
)


def poison(*batches, gradient=False, rank="null"):
    settings = f"batches: {list(batches)}, gradient: {gradient}, rank: {rank}"
    return f"+callbacks.poison={{_target_: tests.commands.poison.Poison, {settings}}}"


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_the_run_ends_with_the_checkpoint_of_the_step_before_and_tells_the_images(gradient, mllt_command, tmp_path):
    run = tmp_path / "run"
    done = mllt_command("train", *SHORT, poison(9, gradient=gradient), f"output_dir={run}")
    assert done.status == 2
    assert "of step 9 (epoch 2, learning rate 0.02) is infinite or not a number" in done.err
    assert "trainer.on_nonfinite=skip" in done.err
    told = read_json(run / "nonfinite" / "step-00000009-rank-0.json")
    assert (told["step"], told["epoch"], told["learning_rate"]) == (9, 2, 0.02)
    assert len(told["images"]) == 53
    assert all(image["image"].startswith("image ") and 0 <= image["class"] < 10 for image in told["images"])
    assert [image["finite"] for image in told["images"]].count(False) == (0 if gradient else 1)
    assert math.isfinite(float(told["losses"][0])) == gradient
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 8
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert mllt_command("train", *SHORT, f"output_dir={run}").status == 0, "mended, it goes on"


@pytest.mark.parametrize("settings", [(), ("trainer.accumulate_grad_batches=2",), ("method=ssd", "network.num_experts=1")])
def test_a_step_that_is_left_out_changes_nothing(settings, mllt_command, tmp_path):
    """The step of the last batch of a run, so that what was before it can be compared with what is after."""
    skip = ("train", *SHORT, *settings, "trainer.on_nonfinite=skip", "trainer.max_epochs=1", "schedule=constant")
    steps = 6
    batches = range(2 * steps - 1, 2 * steps + 1) if "accumulate" in "".join(settings) else [steps]
    done = mllt_command(*skip, poison(*batches), f"output_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    folder = tmp_path / "run" / "stages" / "features" if "method=ssd" in settings else tmp_path / "run"
    after = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    before = read_checkpoint(folder / "checkpoints" / "previous.ckpt")
    assert (before["global_step"], after["global_step"]) == (steps - 1, steps)
    for name, value in before["state_dict"].items():
        assert torch.equal(value, after["state_dict"][name]), name
    for one, other in zip(*(list(part["optimizer_states"][0]["state"].values()) for part in (before, after)), strict=True):
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    assert "nan" not in (folder / "metrics.csv").read_text()


def on_two_processes(folder, *arguments):
    """The end of a run; one that waits for a process that has left fails by its time."""
    root = Path(__file__).parents[2]  # for the callbacks of these tests
    two = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "method=cross_entropy")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLLT_RUN", "MLLT_FULL"))}
    return subprocess.run(
        [sys.executable, "-m", "mllt.train", *SHORT, *two, *arguments, f"output_dir={folder / 'run'}"],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient that the other does not see"])
def test_what_one_of_two_processes_meets_ends_both(gradient, tmp_path):
    done = on_two_processes(tmp_path, poison(9, gradient=gradient, rank=1))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("of step 9 (epoch 2") == 1, "told once"
    assert "Traceback" not in done.stderr
    assert f"lies in {tmp_path / 'run' / 'nonfinite' / 'step-00000009-rank-1.json'}" in done.stderr
    told = read_json(tmp_path / "run" / "nonfinite" / "step-00000009-rank-1.json")
    assert [image["finite"] for image in told["images"]].count(False) == (0 if gradient else 1)
    assert (tmp_path / "run" / "nonfinite" / "step-00000009-rank-0.json").exists() != gradient
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 8
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient that the other does not see"])
def test_a_step_that_one_of_two_processes_cannot_take_is_left_out_by_both(gradient, tmp_path):
    skip = ("trainer.on_nonfinite=skip", "trainer.max_epochs=1", "schedule=constant")
    done = on_two_processes(tmp_path, *skip, poison(6, gradient=gradient, rank=1))
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "run" / "results.json")["steps_left_out"] == {"training": [6]}
    before, after = (read_checkpoint(tmp_path / "run" / "checkpoints" / f"{name}.ckpt") for name in ("previous", "last"))
    assert (before["global_step"], after["global_step"]) == (5, 6)
    for name, value in before["state_dict"].items():
        assert torch.equal(value, after["state_dict"][name]), name
    assert "nan" not in (tmp_path / "run" / "metrics.csv").read_text()


def test_what_was_left_out_is_told_and_bounded(mllt_command, tmp_path):
    skip = ("train", *SHORT, "trainer.on_nonfinite=skip", "trainer.max_nonfinite=2")
    done = mllt_command(*skip, poison(3, 8), f"output_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    assert read_json(tmp_path / "run" / "results.json")["steps_left_out"] == {"training": [3, 8]}
    done = mllt_command(*skip, poison(3, 8, 10), f"output_dir={tmp_path / 'more'}")
    assert done.status == 2
    assert "at most trainer.max_nonfinite=2 steps" in done.err
    assert "step 10 is one more" in done.err
    done = mllt_command(*skip, poison(10), f"output_dir={tmp_path / 'more'}")
    assert done.status == 2, "those before a break count, too"


@pytest.mark.parametrize("setting", ["trainer.on_nonfinite=ignore", "trainer.max_nonfinite=-1"])
def test_settings_that_mean_nothing_are_refused(setting, mllt_command, tmp_path):
    done = mllt_command("train", *SHORT, setting, f"output_dir={tmp_path / 'run'}")
    assert done.status == 2
    assert setting.split("=")[0] in done.err
