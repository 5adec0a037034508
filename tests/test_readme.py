"""What the README tells a newcomer is true: its code runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from mllt.cli import CONFIG_MODULE

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/adding_a_method.md",
    *(f"docs/{name}.md" for name in ("devices", "performance", "shards", "reliability")),
)
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)


def commands():
    """Every `python -m mllt.X ...` of the README, as (X, arguments)."""
    for language, block in BLOCKS:
        for line in block.splitlines() if not language else []:
            found = re.search(r"python -m mllt\.(\w+)(.*)", line)
            if found and found.group(1) != "report":  # which has no settings: tests/commands/test_report.py
                yield found.group(1), tuple(shlex.split(found.group(2), comments=True))


def test_the_code_of_the_readme_runs_and_its_model_comes_back(tmp_path, monkeypatch, capsys):
    (code,) = (block for language, block in BLOCKS if language == "python")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)  # it is our own page
    assert names["probabilities"].shape == (8, 10)
    assert names["probabilities"].sum(-1).tolist() == pytest.approx([1.0] * 8, abs=1e-5)
    assert names["again"].hparams == names["model"].hparams
    images = names["images"][:8]
    assert names["again"](images).tolist() == names["model"].eval()(images).tolist()


def test_using_the_module_takes_ten_lines():
    (code,) = (block for language, block in BLOCKS if language == "python")
    model = code[code.index("model = ") :]
    assert len([line for line in model.splitlines() if line.strip() and not line.startswith("#")]) <= 10


@pytest.mark.parametrize(("name", "arguments"), sorted(set(commands())), ids=str)
def test_every_command_of_the_readme_composes(name, arguments):
    overrides = [argument for argument in arguments if argument not in ("-m", "--help")]
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        if "-m" in arguments:  # the values of a sweep, each by its first
            overrides = [override.split(",")[0] for override in overrides]
        assert compose(name, overrides=overrides)


def test_the_readme_opens_with_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make demo\b.*\nmake test\b", text, flags=re.M).start() < 1500


@pytest.mark.parametrize("page", PAGES)
def test_links_between_the_pages_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_architecture_names_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in (ROOT / "src" / "mllt").rglob("*.py"):
        if path.name != "__init__.py":
            assert f"`{path.name}`" in text or path.parent.name == "losses", f"{path.name} has no place in docs/architecture.md"


def test_every_experiment_stands_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert f"`{path.stem}`" in text
