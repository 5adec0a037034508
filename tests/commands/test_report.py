"""`python -m mllt.report`."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.commands.conftest import SMALL, read_json

from mllt.errors import ArgumentError, DataError
from mllt.report import _beside, report


@pytest.fixture
def runs(trained, tmp_path):
    """A folder with a copy of the trained run."""
    shutil.copytree(trained, tmp_path / "here" / "runs" / "mutual" / "a", ignore=shutil.ignore_patterns("*.ckpt"))
    return tmp_path / "here" / "runs"


def test_it_prints_the_table_and_writes_four_files_beside_the_runs(mllt_command, runs):
    done = mllt_command("report", "runs")
    assert done.status == 0, done.err
    told = read_json(runs / "mutual" / "a" / "results.json")["test"]["ensemble"]["compensated"]
    (line,) = (line for line in done.out.splitlines() if line.strip().startswith("Mutual Learning  "))
    assert told["many"] is None  # with a part held out for validation, no class has more than 100 images
    assert line.split()[2:7] == ["n/a", *(f"{told[name]:.1f}" for name in ("medium", "few", "all")), "1"]
    assert "Written to runs/mutual/report: report.html" in done.out
    folder = runs / "mutual" / "report"
    assert sorted(path.name for path in folder.iterdir()) == ["report.csv", "report.html", "report.md", "report.tex"]
    (row,) = (row for row in csv.DictReader((folder / "report.csv").open()) if row["part"] == "")
    assert float(row["all_mean"]) == told["all"]
    assert f"{told['all']:.1f}" in (folder / "report.md").read_text()
    assert f"{told['all']:.1f}" in (folder / "report.tex").read_text()
    assert "Mutual Learning" in (folder / "report.html").read_text()


def test_a_second_report_reads_the_same_runs_and_none_of_the_first_report(mllt_command, runs):
    first = mllt_command("report", "runs")
    second = mllt_command("report", "runs")
    assert second.status == 0
    assert second.out == first.out


def test_output_names_another_folder(mllt_command, runs, tmp_path):
    done = mllt_command("report", runs / "*" / "a", "--output", tmp_path / "new" / "place")
    assert done.status == 0, done.err
    assert (tmp_path / "new" / "place" / "report.html").is_file()
    assert not (runs / "mutual" / "report").exists()


def test_unfinished_runs_are_shown_and_are_no_failure(mllt_command, runs):
    (runs / "mutual" / "a" / "results.json").unlink()
    done = mllt_command("report", "runs")
    assert done.status == 0, done.err
    assert "incomplete" in done.out
    assert "seed 0 is incomplete, no results yet" in done.out


def test_a_sweep_of_the_train_command_is_read_as_it_is(mllt_command, tmp_path):
    sweep = mllt_command("train", "-m", *SMALL, "seed=0,1", f"output_dir={tmp_path / 'sweep'}")
    assert sweep.status == 0, sweep.err
    done = mllt_command("report", tmp_path / "sweep")
    assert done.status == 0, done.err
    (line,) = (line for line in done.out.splitlines() if line.strip().startswith("Mutual Learning  "))
    assert line.count("±") == 4
    assert (tmp_path / "sweep" / "report" / "report.html").is_file()


def test_the_stars_files_of_a_sweep_are_passed_over(mllt_command, runs):
    (runs / "mutual" / "multirun.yaml").write_text("{}")
    first = mllt_command("report", *sorted((runs / "mutual").iterdir()))
    assert first.status == 0, first.err
    again = mllt_command("report", *sorted((runs / "mutual").iterdir()))  # the report is among them now
    assert again.out == first.out
    assert "Not read" not in again.out


def test_runs_that_only_the_root_holds_are_reported_in_the_current_folder(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _beside([runs / "a", Path("/elsewhere/b")]) == tmp_path / "report"
    assert _beside([runs / "a", runs / "b"]) == runs / "report"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no nowhere"),
        (["empty"], "none of empty holds one"),
        (["runs", "output=there"], "--output there"),
        (["runs", "--output", "runs/mutual/a/results.json"], "Cannot write the report"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(mllt_command, runs, arguments, said):
    (runs.parent / "empty").mkdir()
    done = mllt_command("report", *arguments)
    assert done.status == 2
    assert said in done.err
    assert done.err.startswith("Error: ")
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


def test_no_folder_at_all_is_told_with_the_usage(mllt_command):
    done = mllt_command("report")
    assert done.status == 2
    assert "RUNS" in done.err


def test_the_whole_traceback_comes_on_demand(mllt_command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ArgumentError):
        mllt_command("report", "nowhere")


def test_help_does_not_wait_for_torch():
    heavy = ("torch", "lightning", "matplotlib", "hydra", "rich")
    code = f"import sys, mllt.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_from_python_it_returns_the_tables(runs):
    written = report([runs / "mutual" / "a"])
    (layout,) = written.layouts
    told = read_json(runs / "mutual" / "a" / "results.json")["test"]["ensemble"]["compensated"]["all"]
    assert layout.rows[-1].own[3].mean == told
    assert written.folder == runs / "mutual" / "report"
    assert written.problems == []
    with pytest.raises(DataError, match="Cannot write"):
        report(runs, runs / "mutual" / "a" / "results.json")
