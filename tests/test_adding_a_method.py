"""docs/adding_a_method.md is true: its two files, under 40 lines, are a method, from a project outside of the package."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.commands.conftest import SMALL, command_runner, read_json

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, flags=re.S)
METHOD, SCRIPT = (block for language, block in BLOCKS if language == "python")
(SETTINGS,) = (block for language, block in BLOCKS if language == "yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of the user's own."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "settings" / "method").mkdir(parents=True)
    (folder / "settings" / "method" / "focal.yaml").write_text(SETTINGS)
    (folder / "focal.py").write_text(METHOD)
    return folder


def run(project, *arguments):
    """In a process of its own, as the user would."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLLT_RUN", "MLLT_FULL"))}
    return subprocess.run([sys.executable, *arguments], cwd=project, env=clean, capture_output=True, text=True, timeout=300)


@pytest.fixture
def command(project, monkeypatch, capfd, tmp_path):
    """The commands in this process, with the project on the import path, and no trace of it afterwards."""
    from mllt import LongTailedModule

    monkeypatch.syspath_prepend(project)
    importlib.invalidate_caches()
    yield command_runner(monkeypatch, capfd, tmp_path)
    LongTailedModule.registry.pop("focal", None)
    sys.modules.pop("focal", None)


def test_a_method_takes_under_40_lines():
    assert len(METHOD.splitlines()) + len(SETTINGS.splitlines()) < 40


def test_it_is_trained_and_evaluated_by_the_commands_of_the_page(project, command):
    done = run(project, "-m", "mllt.train", "--config-dir", "settings", "method=focal", *SMALL[1:], "output_dir=one")
    assert done.returncode == 0, done.stderr
    results = read_json(project / "one" / "results.json")
    assert (results["method"], results["num_experts"]) == ("focal", 1)
    checkpoint = f"checkpoint={project / 'one' / 'checkpoints' / 'last.ckpt'}"
    done = command("evaluate", checkpoint, "method_class=focal.FocalModule")
    assert done.status == 0, done.err
    assert read_json(project / "one" / "evaluations" / "test-uniform.json")["test"] == results["test"]


def test_it_is_swept_and_reported_beside_methods_of_ours(project, command):
    sweep = project / "sweep"
    settings = ("--config-dir", project / "settings", "-m", "method=focal,cross_entropy", "seed=0,1")
    done = command("train", *settings, *SMALL[1:], f"output_dir={sweep}")
    assert done.status == 0, done.err
    methods = sorted(read_json(path)["method"] for path in sweep.glob("*/results.json"))
    assert methods == ["cross_entropy", "cross_entropy", "focal", "focal"]
    done = command("report", sweep)
    assert done.status == 0, done.err
    assert re.search(r"focal .* 2 ", done.out), "a row of two seeds"


def test_a_mistyped_setting_of_it_is_answered_by_those_it_has(project, command):
    done = command("train", "--config-dir", project / "settings", "method=focal", "method.gama=1.0")
    assert done.status == 2
    assert "Did you mean 'gamma'" in done.err


def test_it_is_trained_without_a_command(project):
    (project / "script.py").write_text(SCRIPT)
    done = run(project, "script.py")
    assert done.returncode == 0, done.stderr


def test_its_loss_is_the_focal_loss():
    names = {"__name__": "focal"}
    exec(compile(METHOD, "focal.py", "exec"), names)  # it is our own page
    module = names["FocalModule"](class_counts=[30, 10, 2], network="resnet20", num_experts=2, gamma=1.5)
    logits, targets = torch.randn(2, 6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    expected = 0.0
    for expert in logits:
        for row, y in zip(expert, targets.tolist(), strict=True):
            p = F.softmax(row, dim=0)[y].item()
            expected += (1 - p) ** 1.5 * -torch.log(torch.tensor(p)).item() / len(targets)
    assert module.objective(logits, targets)["focal"].item() == pytest.approx(expected, rel=1e-4)


def test_every_file_and_hook_that_the_page_names_exists():
    for name in set(re.findall(r"`(methods/\w+\.py)`", PAGE)):
        assert (ROOT / "src" / "mllt" / name).is_file(), name
    from mllt import LongTailedModule
    from mllt.methods import teacher

    for hook in re.findall(r"^\| `(\w+)(?:\(.*?\))?`", PAGE, flags=re.M):
        assert hasattr(LongTailedModule, hook) or hasattr(teacher, hook) or hook == "Stage", hook
