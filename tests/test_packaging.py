"""What is shipped: the wheel, the ranges and pins, the Makefile, .ci/run."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mllt.version import __version__

ROOT = Path(__file__).resolve().parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
COMMANDS = ("mllt-train", "mllt-evaluate", "mllt-pack", "mllt-predict", "mllt-probe", "mllt-report", "mllt-check")


def lines(text: str) -> list[str]:
    """Lines that say something, without comments."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def requirements(*extras: str) -> list[Requirement]:
    """What mllt asks for, and what its extras do."""
    texts = lines(SETUP["options"]["install_requires"])
    for extra in extras:
        texts += lines(SETUP["options.extras_require"][extra])
    return [Requirement(text) for text in texts]


def run(command, *, cwd, timeout=300, **environment) -> subprocess.CompletedProcess:
    """Run with our own import path and make's flags out of the way; the output is in the error if it fails."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, **environment},
        timeout=timeout,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


# ---------------------------------------------------------------------------------------------------------------
# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that no build/ stays behind in the checkout."""
    pytest.importorskip("build")
    copy = tmp_path_factory.mktemp("tree")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    built = run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."], cwd=copy)
    assert built.returncode == 0, built.stdout
    (path,) = (copy / "dist").iterdir()
    return path


def test_the_wheel_holds_every_module_and_every_setting(wheel):
    expected = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "mllt").rglob("*.py")}
    expected |= {f"mllt/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    expected |= {"mllt/conf/__init__.py", "mllt/py.typed", "mllt/reporting/published.csv", "mllt/reporting/style.css"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert sorted(expected - names) == [], "not in the wheel: is the package in the `packages` list of setup.cfg?"
    strangers = {name for name in names - expected if ".dist-info/" not in name}
    assert sorted(strangers) == []


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"mllt-{__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        assert any(name.startswith(info) and name.endswith("LICENSE") for name in archive.namelist())
    assert f"\nVersion: {__version__}\n" in metadata
    assert "Apache-2.0" in metadata
    for command in COMMANDS:
        assert f"{command} = mllt.{command.removeprefix('mllt-')}:main" in scripts


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin folder of a fresh environment that holds the wheel, and borrows all it needs from the running one.

    A folder named in a .pth file is searched, but the .pth files in it are not read: an editable install of mllt in the
    running environment is not seen. wandb is made to look absent, since nothing may need it before it is asked for.
    """
    fresh = tmp_path_factory.mktemp("fresh") / "venv"
    made = run([sys.executable, "-m", "venv", "--without-pip", fresh], cwd=fresh.parent)
    assert made.returncode == 0, made.stdout
    python = fresh / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    got = run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], cwd=fresh.parent)
    assert got.returncode == 0, got.stdout
    site = Path(sysconfig.get_path("purelib", vars={"base": str(fresh), "platbase": str(fresh)}))
    assert (site / "mllt").is_dir()
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("\n".join([*borrowed, "import sys; sys.modules['wandb'] = None", ""]))
    return python.parent


def test_the_wheel_and_not_the_checkout_is_imported(installed, tmp_path):
    code = "import mllt, mllt.conf; print(mllt.__file__); print(mllt.conf.__file__)"
    found = run([installed / "python", "-c", code], cwd=tmp_path)
    assert found.returncode == 0, found.stdout
    assert all(Path(line).is_relative_to(installed.parent) for line in found.stdout.split()), found.stdout


def test_the_installed_package_trains_from_any_folder(installed, tmp_path):
    command = [installed / "python", "-m", "mllt.train", "trainer.max_epochs=1", f"output_dir={tmp_path / 'run'}"]
    trained = run(command, cwd=tmp_path)
    assert trained.returncode == 0, trained.stdout
    assert (tmp_path / "run" / "results.json").is_file(), trained.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_installed_commands_explain_themselves(installed, command, tmp_path):
    told = run([installed / command, "--help"], cwd=tmp_path)
    assert told.returncode == 0, told.stdout
    assert len(told.stdout.splitlines()) > 3, told.stdout


# ---------------------------------------------------------------------------------------------------------------
# Ranges and pins


@pytest.mark.parametrize(
    ("python", "stack"),
    [
        ("3.12", {"torch": "2.11.0+cu130", "torchvision": "0.26.0+cu130"}),
        ("3.11", {"torch": "2.15.0+cu132", "torchvision": "0.29.2+cu132"}),
    ],
)
def test_the_ranges_admit_the_stacks_we_know(python, stack):
    assert SpecifierSet(SETUP["options"]["python_requires"]).contains(python)
    ranges = {requirement.name: requirement.specifier for requirement in requirements()}
    for name, version in stack.items():
        assert ranges[name].contains(version)


def pins(python: str) -> dict[str, Requirement]:
    """The pins that hold for a Python, by canonical name."""
    found: dict[str, Requirement] = {}
    for line in lines((ROOT / "constraints.txt").read_text()):
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({**default_environment(), "python_version": python}):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice for Python {python}"
            found[name] = pin
    return found


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_pins_lie_in_the_ranges_and_leave_nothing_of_ours_out(python):
    pinned = pins(python)
    for name, pin in pinned.items():
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), f"{name} is not pinned to one version"
    for requirement in requirements("timm", "tensorboard", "shards", "slurm", "sweep", "dev"):
        name = canonicalize_name(requirement.name)
        if name not in ("mllt", "setuptools"):  # setuptools follows from torch
            (version,) = (spec.version for spec in pinned[name].specifier)
            assert requirement.specifier.contains(version), f"{name} {version} is not in {requirement.specifier}"
    assert not any(name.startswith("nvidia-") or name == "triton" for name in pinned)  # these follow from torch
    assert str(pinned["torch"].specifier) != "==2.13.0"  # has no torchvision to go with it on some indexes


def test_the_same_version_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


# ---------------------------------------------------------------------------------------------------------------
# The Makefile, with a stand-in for Python that writes down what it is told to do

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in
"-c "*) [ -z "$TOO_OLD" ] ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*"pip install"*) [ -z "$NO_NETWORK" ] ;;
esac
"""


class Project:
    """A copy of what make needs, in a folder with a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a project"
        self.folder.mkdir()
        for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder)
        self.python = folder / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        self.calls = folder / "calls"

    def make(self, goal: str, **environment: str) -> subprocess.CompletedProcess:
        return run(["make", goal, f"PYTHON={self.python}"], cwd=self.folder, CALLS=str(self.calls), **environment)

    def installs(self) -> list[str]:
        return [call for call in self.calls.read_text().splitlines() if "pip install" in call]


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@needs_make
@pytest.mark.parametrize(("goal", "target"), [("demo", "-e ."), ("test", "-e .[dev]")])
def test_make_installs_once_and_again_when_the_requirements_change(project, goal, target):
    for _ in range(2):
        made = project.make(goal)
        assert made.returncode == 0, made.stdout
        assert len(project.installs()) == 1
    assert project.installs()[0].endswith(f"-c constraints.txt {target}")
    for count, name in enumerate(("setup.cfg", "constraints.txt", "pyproject.toml"), start=2):
        stamp = max(path.stat().st_mtime for path in (project.folder / ".venv").iterdir())
        os.utime(project.folder / name, (stamp + 0.1, stamp + 0.1))
        assert project.make(goal).returncode == 0
        assert len(project.installs()) == count
        for path in (project.folder / ".venv").iterdir():  # as if the install had taken its time
            os.utime(path, (stamp + 1, stamp + 1))


@needs_make
def test_make_demo_after_make_test_installs_nothing(project):
    assert project.make("test").returncode == 0
    assert project.make("demo").returncode == 0
    assert len(project.installs()) == 1


@needs_make
@pytest.mark.parametrize("goal", ["demo", "test"])
def test_an_interrupted_install_is_done_again(project, goal):
    assert project.make(goal, NO_NETWORK="1").returncode != 0
    assert project.make(goal).returncode == 0
    assert len(project.installs()) == 2


@needs_make
def test_an_old_or_absent_python_is_told_in_words(project):
    made = project.make("demo", TOO_OLD="1")
    assert made.returncode != 0
    assert "needs Python 3.10 or newer" in made.stdout
    project.python.unlink()
    assert "needs Python 3.10 or newer" in project.make("demo").stdout
    assert not (project.folder / ".venv").exists()


# ---------------------------------------------------------------------------------------------------------------
# .ci/run, with a stand-in for make


def test_ci_lints_tests_and_finds_the_data_beside_the_checkout(tmp_path):
    script = tmp_path / "checkout" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", script)
    stand_in = tmp_path / "bin" / "make"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "$1 $PWD data=$MLLT_DATA"\n[ "$1" != "$FAIL" ]\n')
    stand_in.chmod(0o755)
    shutil.copy(stand_in, stand_in.with_name("chromium"))  # or it would install one
    path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"
    here = tmp_path / "checkout"

    def ci(**environment):
        return run(["bash", script], cwd="/", PATH=path, **environment)

    assert ci(MLLT_DATA="").stdout.splitlines() == [f"lint {here} data=", f"test {here} data="]
    data = tmp_path / "shared" / "data"
    data.mkdir(parents=True)
    assert ci(MLLT_DATA="").stdout.splitlines() == [f"lint {here} data={data}", f"test {here} data={data}"]
    assert ci(MLLT_DATA="/mine").stdout.splitlines() == [f"lint {here} data=/mine", f"test {here} data=/mine"]
    failed = ci(MLLT_DATA="", FAIL="lint")
    assert failed.returncode != 0
    assert "test" not in failed.stdout.replace(str(tmp_path), "")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
