"""Sweeps whose runs are jobs in other processes: side by side on this machine, or handed to a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from tests.commands.conftest import SMALL, read_json

from mllt.cli import CONFIG_MODULE
from mllt.methods.base import load_checkpoint

COMPLETE = {"config.yaml", "metrics.csv", "results.json", "checkpoints"}
HERE = ["joblib", "submitit_local"]


def command(*arguments: str, cwd: Path, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m mllt.train ...` in a process of its own: that of the tests must not be the parent of jobs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLLT_RUN", "MLLT_FULL", "HYDRA_"))}
    start = ["-c", f"{before}\nfrom mllt.train import main; main()"] if before else ["-m", "mllt.train"]
    whole = [sys.executable, *start, *arguments]
    return subprocess.run(whole, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=300)


def runs(sweep: Path) -> dict[int, Path]:
    """The folders of a sweep's runs, by seed."""
    return {read_json(path)["seed"]: path.parent for path in sweep.glob("*/results.json")}


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_runs_side_by_side_are_those_of_a_sweep_one_after_the_other(launcher, mllt_command, tmp_path):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    done = command(f"launcher={launcher}", "seed=0,1", *SMALL, f"output_dir={tmp_path / 'jobs'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mllt_command("train", "-m", "seed=0,1", *SMALL, f"output_dir={tmp_path / 'serial'}").status == 0
    jobs, serial = runs(tmp_path / "jobs"), runs(tmp_path / "serial")
    assert sorted(jobs) == sorted(serial) == [0, 1]
    for seed, run in jobs.items():
        assert {path.name for path in run.iterdir()} == COMPLETE
        assert run.name == serial[seed].name
        assert read_json(run / "results.json")["test"] == read_json(serial[seed] / "results.json")["test"]
        one, other = (load_checkpoint(folder / "checkpoints/last.ckpt").state_dict() for folder in (run, serial[seed]))
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", HERE)
def test_a_mistake_in_a_job_is_one_line_and_the_other_jobs_are_done(launcher, tmp_path):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    arguments = (f"launcher={launcher}", "optimizer.lr=0.01,-1", *SMALL, f"output_dir={tmp_path / 'sweep'}")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "Error: Expected `lr` to be a number above 0, but got -1."
    assert "optimizer.lr=-1" in done.stderr.strip().splitlines()[-2]
    assert "Traceback" not in done.stderr
    (left,) = [path for path in (tmp_path / "sweep").iterdir() if path.is_dir() and not path.name.startswith(".")]
    assert "optimizer.lr=0.01" in left.name
    assert {path.name for path in left.iterdir()} == COMPLETE


BROKEN = """
from mllt.methods import CrossEntropyModule

class Broken(CrossEntropyModule):
    method = "broken"

    def objective(self, logits, targets):
        return {"nothing": logits.sum() * (1 // len(self.method[6:]))}
"""


@pytest.mark.slow
def test_a_fault_in_a_job_comes_with_the_traceback_of_its_process(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "broken.py").write_text(BROKEN)
    arguments = ("method=own/class", "method._target_=broken.Broken", *SMALL, f"output_dir={tmp_path / 'sweep'}")
    done = command("launcher=joblib", *arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "In a job of the sweep:" in done.stderr
    assert "1 // len(self.method[6:])" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("ZeroDivisionError")


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "sweep"), ("slurm", "slurm"), ("submitit_local", "slurm")])
def test_a_launcher_that_is_not_installed_is_one_line_that_says_how_to_get_it(launcher, extra, tmp_path):
    hide = "import hydra_plugins; hydra_plugins.__path__ = []"
    done = command(f"launcher={launcher}", "seed=0,1", cwd=tmp_path, before=hide)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The launcher ")
    assert done.stderr.endswith(f"is not installed. Type pip install 'mllt[{extra}]' to have it.\n")
    assert done.stderr.count("\n") == 1


TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


@pytest.mark.slow
def test_several_devices_are_refused_where_a_job_cannot_start_their_processes(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = command("launcher=joblib", *TWO, *SMALL, f"output_dir={tmp_path / 'sweep'}", cwd=tmp_path)
    assert done.returncode == 2
    assert "one device per run with the launcher joblib" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_jobs_of_a_sweep_each_have_processes_of_their_own(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = command("launcher=submitit_local", "seed=0,1", *TWO, *SMALL, f"output_dir={tmp_path / 'sweep'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = runs(tmp_path / "sweep")
    assert sorted(found) == [0, 1]
    for run in found.values():
        assert {path.name for path in run.iterdir()} == COMPLETE
        assert read_json(run / "results.json")["device"].startswith("2 x cpu")


# Slurm's own commands, as far as a submission needs them: the one node of the "cluster" is this machine, and always free.
SLURM = {
    "sbatch": """
cp "$1" submitted.sh
export SLURM_JOB_ID=7 SLURM_JOB_NAME=train SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODELIST=here SLURM_JOB_NODELIST=here
SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 sh "$1" > job.log 2>&1 &
echo Submitted batch job 7
""",
    "srun": """
while ! [ -x "$1" ]; do shift; done
exec "$@"
""",
    "scontrol": "echo here",
    "sacct": "echo 'JobID|State|NodeList'; echo '7|RUNNING|here'",
}


@pytest.mark.slow
def test_slurm_is_asked_for_what_the_preset_says_and_the_job_trains(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "bin").mkdir()
    for name, script in SLURM.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    arguments = ("launcher=slurm", "hydra.launcher.partition=gpu", *SMALL, f"output_dir={tmp_path / 'sweep'}")
    done = command(*arguments, cwd=tmp_path, PATH=path)
    assert done.returncode == 0, done.stderr + (tmp_path / "job.log").read_text()
    asked = (tmp_path / "submitted.sh").read_text()
    for line in ("partition=gpu", "gpus-per-node=1", "cpus-per-task=9", "time=1440", "nodes=1"):
        assert f"#SBATCH --{line}\n" in asked
    (run,) = runs(tmp_path / "sweep").values()
    assert {path.name for path in run.iterdir()} == COMPLETE


def test_slurm_preset_goes_on_where_a_job_stopped_and_takes_settings():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        config = compose("train", overrides=["launcher=slurm", "hydra.launcher.partition=gpu"], return_hydra_config=True)
    assert config.resume == "auto"
    assert config.hydra.mode.name == "MULTIRUN"
    assert config.hydra.launcher.partition == "gpu"
    assert config.hydra.launcher.cpus_per_task > 8, "room for the workers of the data sets on disk"
