"""The commands as a user types them, within this process: starting another one takes longer than most of the tests."""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

#: Seconds instead of minutes: two experts, two epochs of four batches.
SMALL = ("network.num_experts=2", "trainer.max_epochs=2", "trainer.limit_train_batches=4", "schedule.warmup_epochs=1")


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def mllt_command(monkeypatch, capfd, tmp_path):
    """`mllt_command("train", "seed=1", ...)` is `python -m mllt.train seed=1 ...` in an empty folder."""
    return command_runner(monkeypatch, capfd, tmp_path)


def command_runner(monkeypatch, capfd, folder):
    folder.joinpath("here").mkdir(exist_ok=True)

    def command(name, *arguments):
        monkeypatch.chdir(folder / "here")
        monkeypatch.setattr(sys, "argv", [f"mllt-{name}", *map(str, arguments)])
        # What a command tells the processes it starts must not reach the next test
        for variable in ("MLLT_RUN_STAMP", "MLLT_FULL_ERROR"):
            monkeypatch.delenv(variable, raising=False)
        capfd.readouterr()
        try:
            importlib.import_module(f"mllt.{name}").main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
            for variable in ("MLLT_RUN_STAMP", "MLLT_FULL_ERROR"):
                os.environ.pop(variable, None)
        return Done(status, *capfd.readouterr())

    return command


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a small finished run on digits; read it, do not change it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", ["mllt-train", *SMALL, "data.val_fraction=0.2", f"output_dir={folder / 'run'}"])
        monkeypatch.chdir(folder)
        importlib.import_module("mllt.train").main()
        GlobalHydra.instance().clear()
        for variable in ("MLLT_RUN_STAMP", "MLLT_FULL_ERROR"):
            os.environ.pop(variable, None)
    return folder / "run"


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))
