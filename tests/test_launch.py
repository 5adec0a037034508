"""Real processes that end in all sorts of ways: the run ends as a whole, says what went wrong once, and leaves none behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests import toy_processes

import mllt
from mllt import launch
from mllt.errors import ArgumentError


@pytest.fixture(autouse=True)
def _alone_and_impatient(monkeypatch):
    for name in (*launch._ENVIRONMENT, "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch, "AFTER_FAILURE", 3.0)


def job(how, folder, error=None, count=2):
    with launch.together(toy_processes.body, (how, str(folder)), toy_processes.tell):
        launch.start_others(count)
        if error is not None:
            wait_for(lambda: len(list(folder.iterdir())) == count - 1)
            raise error


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def running(pid):
    """Whether a process runs; one that has ended and waits for its parent to look does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def others(folder):
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def test_the_others_end_with_the_job_and_the_next_one_has_its_own(tmp_path):
    before = dict(os.environ)
    job("fine", tmp_path, count=3)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["1", "2"]
    assert dict(os.environ) == before
    job("fine", tmp_path)
    assert len(others(tmp_path)) == 3
    assert not any(map(running, others(tmp_path)))


LOST_ONE = RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")


@pytest.mark.parametrize(
    ("how", "count", "status", "said"),
    [
        ("fault", 2, 3, "Process 2 of 2 failed (exit status 3)\nTold: nobody thought of it"),
        ("killed", 2, 137, "Process 2 of 2 was ended by SIGKILL; the system does so when memory runs out."),
        ("one of two", 3, 3, "Process 3 of 3 failed (exit status 3)\nTold: nobody thought of it"),
    ],
)
def test_what_failed_first_is_told_and_not_that_it_cannot_be_reached(how, count, status, said, tmp_path):
    with pytest.raises(launch.ProcessLostError) as caught:
        job(how, tmp_path, LOST_ONE, count)
    assert str(caught.value) == said
    assert caught.value.status == status


def test_processes_out_of_reach_on_another_machine_are_an_error_that_says_so(tmp_path):
    with pytest.raises(launch.ProcessLostError, match=r"connection to the other processes was lost.*closed by peer"):
        job("fine", tmp_path, LOST_ONE)


def test_an_error_of_the_first_process_ends_those_that_wait_for_it(tmp_path, capfd):
    with pytest.raises(KeyError, match="mine"):
        job("stuck", tmp_path, KeyError("mine"), count=3)
    assert not any(map(running, others(tmp_path)))
    assert capfd.readouterr().err == ""


def test_a_mistake_that_all_processes_find_is_told_once(tmp_path, capfd):
    with pytest.raises(ArgumentError, match="rate"):
        job("mistake", tmp_path, ArgumentError("the rate must be above 0"), count=3)
    assert capfd.readouterr().err == ""


def test_another_error_elsewhere_is_told_beside_ones_own(tmp_path, capfd):
    with pytest.raises(KeyError):
        job("mistake", tmp_path, KeyError("mine"))
    assert capfd.readouterr().err == "Process 2 of 2 failed (exit status 3)\nTold: the rate must be above 0\n"


def test_a_failure_after_the_first_process_is_done_is_a_failure_of_the_run(tmp_path):
    with pytest.raises(launch.ProcessLostError, match="nobody thought of it"):
        job("fault", tmp_path)


def started(how, folder):
    source = str(Path(mllt.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, toy_processes.__file__, how, str(folder)],
        env={**os.environ, "PYTHONPATH": source},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (folder / "started").exists() and len(others(folder)) == 2)
    return process


def test_a_first_process_that_waits_for_a_dead_one_ends_and_says_why(tmp_path):
    process = started("killed", tmp_path)
    try:
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 137
    assert "Process 2 of 3 was ended by SIGKILL" in err
    assert not any(map(running, others(tmp_path)))


def test_the_others_end_when_the_first_process_is_killed(tmp_path):
    process = started("stuck", tmp_path)
    assert all(map(running, others(tmp_path)))
    process.send_signal(signal.SIGKILL)
    try:
        _, err = process.communicate(timeout=20)  # until all who could write have ended
        wait_for(lambda: not any(map(running, others(tmp_path))), seconds=5)
    finally:
        for pid in filter(running, others(tmp_path)):
            os.kill(pid, signal.SIGKILL)
    assert err.count("The first process of the run has gone") == 1


# ------------------------------------------------------------------------------------------------ launched by others


def test_processes_of_slurm_share_the_folder_of_their_job_and_step(monkeypatch):
    for name, value in {"NTASKS": "4", "PROCID": "2", "JOB_ID": "4711", "STEP_ID": "1", "JOB_NAME": "train"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert (launch.launched_by(), launch.launched_processes(), launch.is_first()) == ("srun", 4, False)
    assert launch.run_stamp() == "slurm-4711-1"
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # a shell on a node, in which Slurm starts nothing
    assert launch.launched_by() is None
    assert launch.run_stamp().startswith("20")


def test_processes_of_torchrun_agree_on_a_time_whoever_comes_first(monkeypatch):
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True)
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    stamps = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert launch.is_first() == (rank == "0")
        stamps.append(launch.run_stamp())
        time.sleep(0.01)
    assert stamps[0] == stamps[1]
    assert launch.launched_processes() == 2


def test_without_a_launcher_the_first_process_is_that_of_the_first_device_of_the_first_machine(monkeypatch):
    assert launch.is_first()
    for node, device, first in (("0", "0", True), ("0", "1", False), ("1", "0", False)):
        monkeypatch.setenv("NODE_RANK", node)
        monkeypatch.setenv("LOCAL_RANK", device)
        assert launch.is_first() is first
