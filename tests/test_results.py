"""What a run's results tell of the code they were made by."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mllt.results


def git(folder, *arguments):
    settings = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *settings, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """A repository with a copy of the file that asks, where ours lies."""
    source = tmp_path / "src" / "mllt" / "results.py"
    source.parent.mkdir(parents=True)
    source.write_bytes(Path(mllt.results.__file__).read_bytes())
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text("seed: 0\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def commit_of(path):
    """What the copy of the file at this path tells."""
    spec = importlib.util.spec_from_file_location("copied_results", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look themselves up there
    try:
        spec.loader.exec_module(module)
        return module.git_commit()
    finally:
        del sys.modules[spec.name]


def test_changed_code_is_told_from_the_commits_and_from_other_changes(repository):
    code = repository / "src" / "mllt" / "results.py"
    clean = commit_of(code)
    assert re.fullmatch(r"[0-9a-f]{40}", clean)
    (repository / "notes.txt").write_text("not code")
    assert commit_of(code) == clean
    seen = {clean}
    for path, text in (("conf/train.yaml", "seed: 1\n"), ("conf/train.yaml", "seed: 2\n"), ("src/mllt/new.py", "x = 1\n")):
        (repository / path).write_text(text)
        changed = commit_of(code)
        assert re.fullmatch(rf"{clean}-dirty-[0-9a-f]{{8}}", changed)
        assert changed not in seen
        assert commit_of(code) == changed
        seen.add(changed)


def test_somebody_elses_repository_tells_nothing(repository):
    (repository / "src" / "mllt").rename(repository / "vendored")
    assert commit_of(repository / "vendored" / "results.py") is None
