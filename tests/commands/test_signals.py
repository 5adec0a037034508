"""A run that is asked to end finishes its step, saves, tells how to go on, and ends with the status of the signal."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from benchmarks.crash import differences
from tests.commands.conftest import SMALL

from mllt.checkpoint import read_checkpoint
from mllt.resume import epochs_done

#: Long enough that a signal comes in between, short enough to be gone through.
LONG = (*SMALL[:1], "method=cross_entropy", "trainer.max_epochs=30", "schedule.warmup_epochs=1", "batch_size=107", "threads=1")


def start(tmp_path, run, *settings):
    return subprocess.Popen(
        [sys.executable, "-m", "mllt.train", *LONG, *settings, f"output_dir={run}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"no {path} in two minutes"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "number",  # SIGTERM within this process: test_wherever...
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_a_signal_ends_the_run_with_its_status_and_the_same_command_goes_on(number, tmp_path):
    run = tmp_path / "run"
    # A checkpoint after 50 of the 107 steps of the first epoch; the signal comes after that
    process = start(tmp_path, run, "trainer.max_epochs=1000", "schedule=constant", "batch_size=3", "checkpoints.every_steps=50")
    try:
        wait_for(run / "checkpoints" / "last.ckpt", process)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"Stopped by {number.name} in epoch 1")
    assert 50 < read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] < 100, "what came after it is saved, too"
    assert f"saved in {run / 'checkpoints' / 'last.ckpt'}. Go on by the same command with output_dir={run}" in last
    assert not (run / "run.lock").exists()


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    undisturbed = start(tmp_path, whole)
    stopped = start(tmp_path, parts)
    wait_for(parts / "checkpoints" / "last.ckpt", stopped)
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 143, err
    again = start(tmp_path, parts)
    for process in (undisturbed, again):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert differences(whole, parts) == []


def signals(place, epochs=0, times=1, name="SIGTERM"):
    settings = f"place: {place}, epochs: {epochs}, times: {times}, name: {name}"
    return f"+callbacks.signals={{_target_: tests.commands.break_off.Signals, {settings}}}"


def test_wherever_signals_come_the_same_command_goes_on_to_the_same_bits(mllt_command, tmp_path):
    short = (
        "method=cross_entropy",
        "network.num_experts=1",
        "trainer.max_epochs=3",
        "schedule.warmup_epochs=1",
        "batch_size=64",
    )
    command = ("train", *short, "data.val_fraction=0.2", "optimizer.ema_decay=0.9")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert mllt_command(*command, f"output_dir={whole}").status == 0
    for place, epochs, times, told, done in (
        ("last step", 0, 2, "SIGTERM before what was begun is saved", 0),  # a second one stops at once
        ("validation", 0, 1, "SIGTERM in epoch 2", 1),
        ("last step", 1, 1, "SIGTERM in epoch 3", 2),
        ("validation", 2, 2, "SIGTERM before what was begun is saved", 2),
        ("validation", 2, 1, "SIGTERM after the last epoch", 3),
        ("test", 0, 1, "SIGTERM in the test", 3),
    ):
        stopped = mllt_command(*command, signals(place, epochs, times), f"output_dir={parts}")
        assert stopped.status == 143, (place, stopped.err)
        assert f"Stopped by {told}" in stopped.err
        assert ("finishing the epoch first" in stopped.err) == ((place, times) == ("last step", 1))
        last = parts / "checkpoints" / "last.ckpt"
        assert (epochs_done(read_checkpoint(last), last) if last.exists() else 0) == done
        assert not (parts / "results.json").exists()
    assert mllt_command(*command, f"output_dir={parts}").status == 0
    assert differences(whole, parts) == []


@pytest.fixture
def scontrol(tmp_path):
    """A stand-in for Slurm's own: the environment of a job in which it is found, and where it writes what it is told."""
    told, program = tmp_path / "told", tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    array = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "7"}
    return {"PATH": f"{program.parent}:{os.environ['PATH']}", **array}, told


@pytest.mark.parametrize("named", [True, False], ids=["output_dir is named", "no output_dir"])
def test_slurms_notice_requeues_a_job_that_will_find_its_folder_again(named, scontrol, mllt_command, tmp_path, monkeypatch):
    slurm, told = scontrol
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    output = [f"output_dir={tmp_path / 'run'}"] if named else []
    done = mllt_command("train", *LONG, signals("step", name="SIGUSR1"), *output)
    assert done.status == 143, done.err
    assert "Stopped by SIGUSR1 in epoch 1, saved in " in done.err
    assert "Go on by the same command with output_dir=" in done.err
    assert (told.read_text() if told.exists() else None) == ("requeue 70_7\n" if named else None)


def test_a_second_run_in_the_folder_of_one_that_is_at_work_is_refused(mllt_command, tmp_path):
    run = tmp_path / "run"
    process = start(tmp_path, run, "trainer.max_epochs=100000", "schedule=constant")
    try:
        wait_for(run / "checkpoints" / "last.ckpt", process)
        before = (run / "config.yaml").read_bytes()
        done = mllt_command("train", *LONG, "seed=1", f"output_dir={run}")
        assert done.status == 2
        assert f"process {process.pid} on" in done.err
        assert f"kill {process.pid}" in done.err
        assert (run / "config.yaml").read_bytes() == before
    finally:
        process.kill()
        process.wait()
    done = mllt_command("train", *LONG, "trainer.max_epochs=100000", "schedule=constant", "seed=1", f"output_dir={run}")
    assert done.status == 2, "the lock is gone with its process, and the settings are looked at again"
    assert "made with seed=1" in done.err
    assert "overwrite=true" in done.err
