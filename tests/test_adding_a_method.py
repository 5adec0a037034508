"""docs/adding_a_method.md is true: its two files, under 40 lines, are a method, from a project outside of the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.commands.conftest import SMALL, read_json

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
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLLT_RUN", "MLLT_FULL"))}
    return subprocess.run([sys.executable, *arguments], cwd=project, env=clean, capture_output=True, text=True, timeout=300)


def test_a_method_takes_under_40_lines():
    assert len(METHOD.splitlines()) + len(SETTINGS.splitlines()) < 40


def test_it_is_trained_swept_evaluated_and_reported_by_the_commands_of_the_page(project):
    settings = ("--config-dir", "settings")
    done = run(project, "-m", "mllt.train", *settings, "method=focal", *SMALL[1:], "output_dir=one")
    assert done.returncode == 0, done.stderr
    results = read_json(project / "one" / "results.json")
    assert (results["method"], results["num_experts"]) == ("focal", 1)
    done = run(
        project, "-m", "mllt.train", *settings, "-m", "method=focal,cross_entropy", "seed=0,1", *SMALL[1:], "output_dir=sweep"
    )
    assert done.returncode == 0, done.stderr
    methods = sorted(read_json(path)["method"] for path in (project / "sweep").glob("*/results.json"))
    assert methods == ["cross_entropy", "cross_entropy", "focal", "focal"]
    checkpoint = "checkpoint=one/checkpoints/last.ckpt"
    done = run(project, "-m", "mllt.evaluate", checkpoint, "method_class=focal.FocalModule")
    assert done.returncode == 0, done.stderr
    assert read_json(project / "one" / "evaluations" / "test-uniform.json")["test"] == results["test"]
    done = run(project, "-m", "mllt.report", "sweep", "--output", "report")
    assert done.returncode == 0, done.stderr
    assert "focal" in done.stdout


def test_a_mistyped_setting_of_it_is_answered_by_those_it_has(project):
    done = run(project, "-m", "mllt.train", "--config-dir", "settings", "method=focal", "method.gama=1.0")
    assert done.returncode == 2
    assert "gamma" in done.stderr


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
