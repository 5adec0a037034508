"""The figures: what is drawn, and that it is drawn in the page's colours."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from tests.reporting.conftest import as_cifar, read

from mllt.report import report
from mllt.reporting import figures
from mllt.reporting.figures import charts, reliability_bins
from mllt.reporting.groups import experiments
from mllt.reporting.layout import lay_out
from mllt.reporting.runs import find_runs


def drawn(folder):
    (experiment,) = experiments(find_runs([folder]).runs)
    return {chart.key: chart for chart in charts(lay_out(experiment))}


def bins(*rows):
    """Reliability as `results.json` has it, of (count, accuracy, confidence) per bin."""
    names = ("count", "accuracy", "confidence")
    told = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    return {"raw": told, "compensated": told}


def with_bins(run, *rows):
    return {"test": {**read(run)["test"], "reliability": bins(*rows)}}


def test_every_figure_of_a_finished_experiment_is_drawn(real, made, tmp_path):
    for name in ("cross_entropy0", "mutual0", "mutual1", "crt0"):
        made(real[name], name, results=with_bins(real[name], (10, 50.0, 40.0), (0, None, None), (5, 100.0, 90.0)))
    found = drawn(tmp_path / "runs")
    panels = {key: [panel.title for panel in chart.panels] for key, chart in found.items()}
    groups = ["Cross Entropy", "cRT", "Mutual Learning"]
    assert panels == {
        "profile": ["Training images per class"],
        "bars": ["Many-shot classes", "Medium-shot classes", "Few-shot classes", "All classes"],
        "cost": [read(real["mutual0"])["device"]],
        "classes": groups,
        "reliability": groups,
        "loss": groups,
    }
    names = []
    for chart in found.values():
        for panel in chart.panels:
            root = ElementTree.fromstring(panel.svg)
            assert root.get("viewBox")
            assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 5
            assert not re.search(r"#0(\d)0(?:\1)0(?:\1)", panel.svg), "a stand-in for a colour was left"
            names += re.findall(r'\bid="([^"]+)"', panel.svg)
            assert set(re.findall(r"url\(#([^)]+)\)", panel.svg)) <= set(names)
            assert panel.description
    assert len(names) == len(set(names)), "names must be unique in the page"


def test_the_same_runs_give_the_same_drawing(real):
    first, second = drawn(real["mutual0"]), drawn(real["mutual0"])
    assert {key: [panel.svg for panel in chart.panels] for key, chart in first.items()} == {
        key: [panel.svg for panel in chart.panels] for key, chart in second.items()
    }


def test_results_without_bins_of_confidence_are_told(real, made, tmp_path):
    test = read(real["mutual0"])["test"]
    test.pop("reliability", None)
    made(real["mutual0"], "a", results={"test": test})
    chart = drawn(tmp_path / "runs")["reliability"]
    assert chart.panels == []
    assert "The results of Mutual Learning hold no bins of confidence" in chart.caption


def test_bins_of_all_seeds_are_added_up(real, made, tmp_path):
    made(real["mutual0"], "a", results=with_bins(real["mutual0"], (10, 50.0, 40.0), (0, None, None), (5, 100.0, 90.0)))
    made(real["mutual1"], "b", results=with_bins(real["mutual1"], (30, 70.0, 20.0), (0, None, None), (0, None, None)))
    (experiment,) = experiments(find_runs([tmp_path / "runs"]).runs)
    first, empty, last = reliability_bins(experiment.groups[0])
    images = [(0.5, 0.4)] * 10 + [(0.7, 0.2)] * 30  # one image after another
    assert first == pytest.approx((40, 100 * sum(a for a, _ in images) / 40, 100 * sum(c for _, c in images) / 40))
    assert empty[0] == 0
    assert math.isnan(empty[1])
    assert last == (5, 100.0, 90.0)


def test_many_classes_are_averaged_in_a_drawing_that_stays_small(real, made, tmp_path):
    settings, results = as_cifar(real["mutual0"])
    counts = sorted((5 + (7 * c) % 900 for c in range(8142)), reverse=True)
    per_class = {kind: [float(c % 101) for c in range(8142)] for kind in ("raw", "compensated")}
    results |= {"class_counts": counts, "class_names": None, "test": {**results["test"], "per_class": per_class}}
    made(real["mutual0"], "a", settings, results)
    found = drawn(tmp_path / "runs")
    assert "averaged, 8,142 in 120 steps" in found["classes"].caption
    assert len(found["classes"].panels[0].svg) < 100_000


def test_curves_name_the_stages_and_show_validation_where_there_is_one(real, made, tmp_path):
    found = drawn(real["crt0"])
    assert "head" in re.findall(r">([^<>]+)</text>", found["loss"].panels[0].svg)
    assert "a new stage begins" in found["loss"].caption
    assert "validation" not in found
    run = made(real["mutual0"], "a")
    (run / "metrics.csv").write_text("epoch,train/loss,val/compensated/all\n1,2.0,10.0\n2,1.0,30.0\n")
    chart = drawn(tmp_path / "runs")["validation"]
    assert "seed 0 from 10 to 30" in chart.panels[0].description
    assert "Each panel has a scale of its own" not in chart.caption


def test_what_a_method_tells_of_each_class_is_drawn(real, made, tmp_path):
    ramp = [float(c) for c in range(10)]
    details = {"virtual_examples": ramp, "mean": 1.0, "examples_at": {"1": ramp, "2": ramp}}
    made(real["mutual0"], "a", results={"details": details})
    found = drawn(tmp_path / "runs")
    assert [panel.title for panel in found["finding-1"].panels] == ["Mutual Learning, 1", "Mutual Learning, 2"]
    chart = found["finding-0"]
    assert chart.title == "Virtual examples per class"
    assert [panel.title for panel in chart.panels] == ["Mutual Learning"]
    assert "from 0 to 9" in chart.panels[0].description


def test_figures_of_experiments_whose_titles_look_alike_do_not_mix(real, made, tmp_path):
    ours = {"data._target_": "mllt.data.ImageFolderLT"}
    made(real["mutual0"], "a", ours | {"data.root": "/a/鳥"}, results={"class_counts": [500] * 10})
    made(real["mutual0"], "b", ours | {"data.root": "/a/花"})
    page = (report(tmp_path / "runs").folder / "report.html").read_text()
    sections = re.findall(r"<section id=.*?</section>", page, flags=re.S)
    told = [set(re.findall(r"([\d,]+) images in 10 classes", section)) for section in sections]
    assert told == [{"321"}, {"5,000"}]  # 花 before 鳥
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["a$_b$", "鳥"])
def test_names_of_methods_are_neither_formulas_nor_bound_to_the_drawings_font(real, made, tmp_path, name):
    made(real["mutual0"], "a", results={"method": name})
    assert any(name in panel.svg for panel in drawn(tmp_path / "runs")["bars"].panels)


@pytest.mark.filterwarnings("error")
def test_long_names_leave_the_bars_their_room(real, made, tmp_path):
    name = "A method whose name is as long as the sentence that explains what it does to whom and why it should"
    made(real["mutual0"], "a", results={"method": name})
    panel = drawn(tmp_path / "runs")["bars"].panels[-1]
    assert "A method whose name is as" in panel.svg
    assert name not in panel.svg
    assert name in panel.description


def test_of_very_many_groups_the_first_are_drawn_and_the_captions_say_so(real, made, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "MOST_PANELS", 2)
    for number in range(3):
        made(real["mutual0"], str(number), {"optimizer.lr": 0.1 + number})
    found = drawn(tmp_path / "runs")
    assert len(found["classes"].panels) == len(found["loss"].panels) == 2
    assert "Of 3 rows the first 2 are drawn" in found["classes"].caption
    assert "lr 2.1" in found["bars"].panels[0].svg


def test_names_of_stages_that_follow_each_other_closely_stand_apart(real, made, tmp_path):
    run = made(real["crt0"], "a", results={"stages": [{"name": n, "epochs": 1} for n in ("features", "labels", "last")]})
    for name, epochs in (("features", 90), ("labels", 2)):
        folder = run / "stages" / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = "".join(f"{epoch},1.0\n" for epoch in range(1, epochs + 1))
        (folder / "metrics.csv").write_text(f"epoch,train/loss\n{rows}")
    (run / "metrics.csv").write_text("epoch,train/loss\n" + "".join(f"{epoch},1.0\n" for epoch in range(1, 91)))
    svg = drawn(tmp_path / "runs")["loss"].panels[0].svg
    ends = dict(re.findall(r"text-anchor: (\w+)[^>]*>(\w+)<", svg))
    assert svg.count(">labels<") == svg.count(">last<") == 1
    assert "end" in ends


def test_an_experiment_without_a_finished_run_has_no_figures(real, made, tmp_path):
    made(real["mutual0"], "a", finished=False)
    assert drawn(tmp_path / "runs") == {}
