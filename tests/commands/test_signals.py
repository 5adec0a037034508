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

#: Long enough that a signal comes in between, short enough to be gone through.
LONG = (*SMALL[:1], "method=cross_entropy", "trainer.max_epochs=30", "schedule.warmup_epochs=1", "batch_size=107", "threads=1")


def start(tmp_path, run, *settings, **variables):
    return subprocess.Popen(
        [sys.executable, "-m", "mllt.train", *LONG, *settings, f"output_dir={run}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
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


def test_slurms_notice_puts_the_job_back_into_the_queue(tmp_path):
    """With a stand-in for `scontrol`, which is Slurm's own."""
    run, told = tmp_path / "run", tmp_path / "told"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "7"}
    process = start(
        tmp_path, run, "trainer.max_epochs=100000", "schedule=constant", PATH=f"{scontrol.parent}:{os.environ['PATH']}", **slurm
    )
    try:
        wait_for(run / "checkpoints" / "last.ckpt", process)
        process.send_signal(signal.SIGUSR1)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, err
    assert told.read_text() == "requeue 70_7\n"
    assert "Stopped by SIGUSR1 in epoch " in err


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
