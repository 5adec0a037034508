"""Copies of runs to publish."""

from __future__ import annotations

import json
import os

import pytest

from mllt.errors import ArgumentError, DataError
from mllt.report import report, show


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def runs(real, made, tmp_path):
    """Runs with settings and results that name folders of this machine, in folders of two depths."""
    for number in (0, 1):
        settings = {
            "method.teacher": str(tmp_path / "runs" / "plain" / "checkpoints" / "last.ckpt"),
            "data.root": "/home/me/data",
        }
        details = {"origin": "/home/me/runs/other/last.ckpt", "note": "a/b"}
        made(real[f"mutual{number}"], f"sweep/mutual{number}", settings, {"details": details})
    made(real["crt0"], "plain")
    (tmp_path / "runs" / "plain" / "probes").mkdir()
    (tmp_path / "runs" / "plain" / "probes" / "linear.json").write_text('{"checkpoint": "/home/me/x.ckpt", "all": 50.0}')
    return tmp_path / "runs"


def test_a_report_of_the_copies_is_that_of_the_runs_but_for_the_curves(real, made, tmp_path):
    for name in ("cross_entropy0", "mutual0", "mutual1", "crt0"):
        made(real[name], f"some/{name}", {"data.root": f"/home/me/{name}"})
    first = report(tmp_path / "runs", tmp_path / "a", publish=tmp_path / "copies")
    second = report(tmp_path / "copies", tmp_path / "b")
    assert first.problems == second.problems == []
    for name in ("report.md", "report.tex", "report.csv"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    assert "Training loss" not in (second.folder / "report.html").read_text()


def test_copies_are_settings_results_and_probes_without_folders_of_this_machine(runs, tmp_path):
    written = report(runs, tmp_path / "a", publish=tmp_path / "copies")
    found = contents(tmp_path / "copies")
    one = ("config.yaml", "results.json")
    assert set(found) == {
        *(f"plain/{name}" for name in (*one, "probes/linear.json")),
        *(f"sweep/mutual{number}/{name}" for number in (0, 1) for name in one),
    }
    for text in map(bytes.decode, found.values()):
        assert "/home/" not in text
        assert str(tmp_path) not in text
    assert b"teacher: ./plain/checkpoints/last.ckpt" in found["sweep/mutual0/config.yaml"]
    assert b"root: ./data" in found["sweep/mutual0/config.yaml"]
    assert json.loads(found["sweep/mutual0/results.json"])["details"] == {"origin": "./last.ckpt", "note": "a/b"}
    assert json.loads(found["plain/probes/linear.json"]) == {"checkpoint": "./x.ckpt", "all": 50.0}
    assert written.published == tmp_path / "copies"


def test_copies_again_change_nothing_and_others_are_not_overwritten(runs, tmp_path):
    report(runs, tmp_path / "a", publish=tmp_path / "copies")
    before = contents(tmp_path / "copies")
    report(runs, tmp_path / "a", publish=tmp_path / "copies")
    assert contents(tmp_path / "copies") == before
    (tmp_path / "copies" / "sweep" / "mutual1" / "results.json").write_text("{}")
    (tmp_path / "copies" / "plain" / "config.yaml").unlink()
    with pytest.raises(DataError, match=r"mutual1/results\.json differs from what would be written.*Nothing was written"):
        report(runs, tmp_path / "a", publish=tmp_path / "copies")
    assert not (tmp_path / "copies" / "plain" / "config.yaml").exists()
    (tmp_path / "copies" / "sweep" / "mutual1" / "results.json").unlink()
    os.mkdir(tmp_path / "copies" / "sweep" / "mutual1" / "results.json")
    with pytest.raises(DataError, match="differs"):
        report(runs, tmp_path / "a", publish=tmp_path / "copies")


def test_unfinished_runs_are_told_and_not_copied(real, made, runs, tmp_path, capsys):
    made(real["mutual0"], "open", finished=False)
    written = report(runs, tmp_path / "a", publish=tmp_path / "copies")
    assert not (tmp_path / "copies" / "open").exists()
    show(written)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Not published"))
    assert "no results yet" in line
    assert "open" in line


@pytest.mark.parametrize("place", [".", "plain", "plain/copies"])
def test_the_runs_own_folders_are_no_place_for_copies(runs, tmp_path, place):
    before = contents(runs)
    with pytest.raises(ArgumentError, match="beside the runs"):
        report(runs, tmp_path / "a", publish=runs / place)
    assert contents(runs) == before


def test_damaged_results_of_a_probe_are_told(runs, tmp_path):
    (runs / "plain" / "probes" / "linear.json").write_text("{")
    with pytest.raises(DataError, match=r"linear\.json, but they are damaged"):
        report(runs, tmp_path / "a", publish=tmp_path / "copies")
    assert not (tmp_path / "copies").exists()
