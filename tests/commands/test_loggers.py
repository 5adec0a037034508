"""Loggers, for real: files of Weights & Biases and of TensorBoard that their own readers read."""

from __future__ import annotations

import os

import pytest
from tests.commands.conftest import SMALL, read_json
from tests.reference.wandb_file import logged, read_records, settings


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """No key of wandb in the environment or the home folder, and nothing that would choose its mode."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_wandb_writes_offline_without_a_key_one_run_per_job_with_its_settings(mllt_command, no_key, tmp_path):
    pytest.importorskip("wandb")
    done = mllt_command("train", "-m", "logger=wandb", "seed=3,4", *SMALL, f"output_dir={tmp_path / 'sweep'}")
    assert done.status == 0, done.err
    runs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert len(runs) == 2
    names = set()
    for run, seed in zip(runs, (3, 4), strict=True):
        (path,) = run.glob("wandb/offline-run-*/run-*.wandb")
        records = read_records(path)
        config = settings(records)
        assert (config["seed"], config["optimizer"]["lr"], config["name"]) == (seed, 0.02, "digits_lt")
        assert {"train/loss", "test/compensated/all", "lr"} <= logged(records)
        names |= {record.run.run_id for record in records if record.run.run_id}
        assert read_json(run / "results.json")["seed"] == seed
        assert (run / "metrics.csv").is_file(), "the CSV file is always written"
    assert len(names) == 2


def test_tensorboard_gets_the_curves(mllt_command, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = mllt_command("train", "logger=tensorboard", *SMALL, f"output_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "test/compensated/all"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/loss")) == 2
    expected = read_json(tmp_path / "run" / "results.json")["test"]["ensemble"]["compensated"]["all"]
    assert events.Scalars("test/compensated/all")[0].value == pytest.approx(expected, abs=1e-4)


def test_an_unknown_mode_of_wandb_is_an_error_of_one_line(mllt_command, tmp_path):
    done = mllt_command("train", "logger=wandb", "logger.mode=ofline", *SMALL, f"output_dir={tmp_path / 'run'}")
    assert done.status == 2
    assert done.err.strip().endswith("Did you mean 'offline'?")
