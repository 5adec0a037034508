"""docs/results.md says what the published runs say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks import results_page
from tests.commands.conftest import trained  # noqa: F401

from mllt.report import report
from mllt.reporting.runs import find_runs

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs/results"
PAGE = results_page.PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_reports_of_the_published_runs_make_of_it():
    """If not: python -m benchmarks.results_page"""
    assert results_page.filled(PAGE, RESULTS) == PAGE


def test_every_published_run_stands_on_the_page_and_tells_nothing_of_the_machine():
    shown = re.findall(r"<!-- report (\S+) -->", PAGE)
    runs = find_runs([RESULTS]).runs
    assert {run.folder.root.relative_to(RESULTS).parts[0] for run in runs} == set(shown)
    for path in RESULTS.rglob("*"):
        if path.suffix in (".json", ".yaml"):
            assert not re.search(r'["\s](/|~/|file:)\w', path.read_text(encoding="utf-8")), path


def test_every_figure_and_page_that_the_page_names_is_there():
    named = [target for target in re.findall(r"\]\(([^)#]+)", PAGE) if "://" not in target]
    assert named
    assert [target for target in named if not (results_page.PAGE.parent / target).exists()] == []


def test_tables_and_figures_are_filled_in_and_what_is_written_by_hand_stays(trained, tmp_path):  # noqa: F811
    results = tmp_path / "results"
    report([trained], tmp_path / "report", publish=results / "digits")
    (layout,) = report([results / "digits"], tmp_path / "again").layouts
    name = f"digits/{layout.experiment.slug}-bars-all-classes.svg"
    text = f"# Mine\n\n<!-- report digits -->\nold\n<!-- end -->\n\n![all](results/figures/{name})\n"
    page = results_page.filled(text, results, results / "figures")
    assert page.startswith("# Mine\n\n<!-- report digits -->\n")
    assert page.endswith(f"<!-- end -->\n\n![all](results/figures/{name})\n")
    accuracy = json.loads((trained / "results.json").read_text())["test"]["ensemble"]["compensated"]["all"]
    assert f"| {accuracy:.1f} |" in page
    assert "\nold\n" not in page
    assert [path.name for path in (results / "figures").rglob("*.svg")] == [Path(name).name]
    assert results_page.filled(page, results) == page


def test_a_block_of_runs_that_are_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*nowhere"):
        results_page.filled("<!-- report nowhere -->\n<!-- end -->", tmp_path)
