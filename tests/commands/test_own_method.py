"""A method of one's own, from outside the package, by the commands."""

from __future__ import annotations

import importlib
import sys

import pytest
from tests.commands.conftest import SMALL, read_json

METHOD = """
from mllt import LongTailedModule
from mllt.losses import expert_cross_entropy


class Scaled(LongTailedModule):
    method = "scaled"

    def __init__(self, *, strength=1.0, **common):
        super().__init__(**common)
        self.remember(strength=strength)

    def objective(self, logits, targets):
        return {"cross_entropy": self.hparams["strength"] * expert_cross_entropy(logits, targets)}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module of the user's on the import path, and no trace of it afterwards."""
    from mllt import LongTailedModule

    (tmp_path / "my_methods.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "my_methods.Scaled"
    LongTailedModule.registry.pop("scaled", None)
    sys.modules.pop("my_methods", None)


def forget():
    """As in a new process, which has imported nothing of the user's."""
    from mllt import LongTailedModule

    LongTailedModule.registry.pop("scaled", None)
    sys.modules.pop("my_methods", None)


def test_it_trains_and_is_evaluated_and_predicts(mllt_command, package, tmp_path):
    run = tmp_path / "run"
    own = ("method=own/class", f"method._target_={package}", "+method.strength=0.5")
    done = mllt_command("train", *own, *SMALL, f"output_dir={run}")
    assert done.status == 0, done.err
    results = read_json(run / "results.json")
    assert (results["method"], results["num_experts"]) == ("scaled", 2)
    forget()
    checkpoint = f"checkpoint={run / 'checkpoints' / 'last.ckpt'}"
    unknown = mllt_command("evaluate", checkpoint)
    assert unknown.status == 2
    assert "'scaled'" in unknown.err
    assert "method_class=" in unknown.err
    known = mllt_command("evaluate", checkpoint, f"method_class={package}")
    assert known.status == 0, known.err
    assert read_json(run / "evaluations" / "test-uniform.json")["test"] == results["test"]


def test_an_argument_that_it_does_not_have_is_named(mllt_command, package, tmp_path):
    own = ("method=own/class", f"method._target_={package}", "+method.strenght=0.5")
    done = mllt_command("train", *own, *SMALL, f"output_dir={tmp_path / 'run'}")
    assert done.status == 2
    assert "'strenght'" in done.err
