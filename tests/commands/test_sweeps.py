"""Hydra multirun: many runs by one command."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from tests.commands.conftest import SMALL, read_json

COMPLETE = {"config.yaml", "metrics.csv", "results.json", "checkpoints"}


def folders(root):
    return sorted(path for path in root.iterdir() if path.is_dir())


def test_two_numbers_of_experts_and_two_seeds_give_four_complete_runs(mllt_command, tmp_path):
    arguments = ("experiment=digits_lt", "network.num_experts=1,2", "seed=0,1")
    done = mllt_command("train", "-m", *arguments, *SMALL[1:], f"output_dir={tmp_path / 'sweep'}")
    assert done.status == 0, done.err
    runs = folders(tmp_path / "sweep")
    assert len(runs) == 4
    seen = set()
    for run in runs:
        assert {path.name for path in run.iterdir()} == COMPLETE
        results, config = read_json(run / "results.json"), OmegaConf.load(run / "config.yaml")
        assert len(results["test"]["experts"]) == results["num_experts"] == config.network.num_experts
        assert results["seed"] == config.seed
        assert f"seed={results['seed']}" in run.name, "a folder's name says what is special about it"
        assert f"network.num_experts={results['num_experts']}" in run.name
        seen.add((results["num_experts"], results["seed"]))
    assert seen == {(n, seed) for n in (1, 2) for seed in (0, 1)}
    tests = [str(read_json(run / "results.json")["test"]) for run in runs]
    assert len(set(tests)) == 4, "no two of them are the same run"


def test_a_job_of_a_sweep_is_the_run_of_its_own(mllt_command, tmp_path):
    """Nothing is carried over from the jobs before it."""
    assert mllt_command("train", "-m", "seed=0,1", *SMALL, f"output_dir={tmp_path / 'sweep'}").status == 0
    assert mllt_command("train", "seed=1", *SMALL, f"output_dir={tmp_path / 'alone'}").status == 0
    second = folders(tmp_path / "sweep")[1]
    assert read_json(second / "results.json")["test"] == read_json(tmp_path / "alone" / "results.json")["test"]


def test_a_named_sweep_needs_no_m(mllt_command, tmp_path):
    done = mllt_command("train", "sweep=seeds", *SMALL, f"output_dir={tmp_path / 'sweep'}")
    assert done.status == 0, done.err
    assert [read_json(run / "results.json")["seed"] for run in folders(tmp_path / "sweep")] == [0, 1, 2]


def test_without_a_folder_a_sweep_makes_one_named_by_experiment_and_time(mllt_command, tmp_path):
    assert mllt_command("train", "-m", "seed=0,1", *SMALL).status == 0
    (sweep,) = (tmp_path / "here" / "sweeps" / "digits_lt").iterdir()
    assert len(folders(sweep)) == 2


def test_a_mistake_in_a_sweep_is_told_with_its_job(mllt_command, tmp_path):
    done = mllt_command("train", "-m", "optimizer.lr=0.01,-1", *SMALL, f"output_dir={tmp_path / 'sweep'}")
    assert done.status == 2
    assert "Expected `lr` to be a number above 0, but got -1" in done.err
    assert "optimizer.lr=-1" in done.out + done.err
    assert "Traceback" not in done.err
    first = folders(tmp_path / "sweep")[0]
    assert (first / "results.json").is_file(), "what was done before it stays"


@pytest.mark.slow
def test_the_sweep_over_experts_gives_twelve_runs(mllt_command, tmp_path):
    done = mllt_command("train", "sweep=experts", *SMALL[1:], f"output_dir={tmp_path / 'sweep'}")
    assert done.status == 0, done.err
    results = [read_json(run / "results.json") for run in folders(tmp_path / "sweep")]
    assert {(row["num_experts"], row["seed"]) for row in results} == {(n, s) for n in (1, 2, 3, 4) for s in (0, 1, 2)}
