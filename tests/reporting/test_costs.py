"""How the runs were made, and their accuracy against what it cost."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ElementTree

import pytest
from tests.reporting.conftest import read

from mllt.report import report
from mllt.reporting.costs import COLUMNS, commands, lines, planes
from mllt.reporting.figures import charts
from mllt.reporting.groups import experiments
from mllt.reporting.layout import lay_out
from mllt.reporting.runs import find_runs

CPU, GPU = "1 x cpu (2 threads)", "1 x NVIDIA H100"


def layout(folder):
    (experiment,) = experiments(find_runs([folder]).runs)
    return lay_out(experiment)


def cost(seconds, processor=None, device=CPU, **more):
    return {"train_seconds": seconds, "cpu_seconds": processor, "device": device, **more}


def chart(folder):
    return next((one for one in charts(layout(folder)) if one.key == "cost"), None)


def test_the_table_tells_seeds_epochs_times_device_and_commit(real, made, tmp_path):
    commit = "3fc4f2e6bc34a1d0"
    made(real["mutual0"], "a", results=cost(1000.0, 50.0, images_per_second=200.0, git_commit=commit))
    made(real["mutual1"], "b", results=cost(1002.0, 51.0, images_per_second=210.0, git_commit=commit))
    ((_, *texts),) = lines(layout(tmp_path / "runs").experiment)
    assert dict(zip(COLUMNS[1:], texts, strict=True)) == {
        "seeds": "0, 1",
        "epochs": "2",
        "seconds": "1,001 ± 1",
        "processor seconds": "50.5 ± 0.7",
        "images/s": "205 ± 7",
        "device": CPU,
        "code": "3fc4f2e",
    }
    written = report(tmp_path / "runs")
    for name in ("report.md", "report.html"):
        text = (written.folder / name).read_text()
        assert "1,001 ± 1" in text
        assert "3fc4f2e" in text


def test_processor_seconds_of_some_seeds_only_are_not_told_as_those_of_all(real, made, tmp_path):
    made(real["mutual0"], "a", results=cost(10.0, 5.0))
    made(real["mutual1"], "b", results=cost(10.0))
    ((_, *texts),) = lines(layout(tmp_path / "runs").experiment)
    assert texts[COLUMNS.index("processor seconds") - 1] == "n/a"


def test_stages_have_their_epochs_in_it(real):
    ((_, _, epochs, *_),) = lines(layout(real["crt0"]).experiment)
    assert epochs == "2 + 1"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a=1 seed=0", "a=1 seed=1", ["python -m mllt.train -m a=1 seed=0,1"]),
        ("seed=0 a=1", "a=1 seed=1", ["python -m mllt.train -m a=1 seed=0,1"]),
        ("'a=1 2' seed=0", "'a=1 2' seed=1", ["python -m mllt.train -m 'a=1 2' seed=0,1"]),
        ("a=1 seed=0", "a=2 seed=1", ["python -m mllt.train a=1 seed=0", "python -m mllt.train a=2 seed=1"]),
        ("a=1 seed=7", "a=1 seed=1", ["python -m mllt.train a=1 seed=7", "python -m mllt.train a=1 seed=1"]),
        ("a='1 seed=0", "a=1 seed=1", ["python -m mllt.train a='1 seed=0", "python -m mllt.train a=1 seed=1"]),
        ("a=1 seed=0", None, ["python -m mllt.train a=1 seed=0"]),
        (None, None, []),
    ],
)
def test_commands_that_differ_in_the_seed_alone_are_one(real, made, tmp_path, first, second, expected):
    for name, text in (("mutual0", first), ("mutual1", second)):
        made(real[name], name, results={"command": text and f"python -m mllt.train {text}"})
    (group,) = layout(tmp_path / "runs").experiment.finished
    assert commands(group) == expected
    written = report(tmp_path / "runs")
    markdown = (written.folder / "report.md").read_text()
    assert [line.strip() for line in markdown.splitlines() if line.startswith("    python")] == expected
    assert (written.folder / "report.html").read_text().count("<dd><code>") == len(expected)


def test_the_command_of_a_real_run_is_in_the_report(real):
    (group,) = layout(real["mutual0"]).experiment.finished
    words = shlex.split(*commands(group))
    assert words[:3] == ["python", "-m", "mllt.train"]
    assert {"method=mutual", "seed=0", "trainer.max_epochs=2"} <= set(words)
    assert not any(word.startswith("output_dir") for word in words)


@pytest.mark.parametrize(
    ("costs", "processor", "x"),
    [
        ([cost(10.0, 5.0), cost(20.0, 7.0)], True, [5.0, 7.0]),
        ([cost(10.0, 5.0), cost(20.0)], False, [10.0, 20.0]),
        ([cost(10.0, 5.0, GPU), cost(20.0, 7.0, GPU)], False, [10.0, 20.0]),
    ],
    ids=["on a processor", "not told by all", "on a GPU"],
)
def test_cost_is_processor_time_only_where_that_is_all_of_it(real, made, tmp_path, costs, processor, x):
    for name, told in zip(("crt0", "mutual0"), costs, strict=True):
        made(real[name], name, results=told)
    ((plane,), unplaced) = planes(layout(tmp_path / "runs"))
    assert (plane.processor, [point.cost for point in plane.points], unplaced) == (processor, x, [])
    assert ("processor time" in chart(tmp_path / "runs").caption) is processor


def test_points_are_means_over_seeds_with_the_experts_beside_the_ensemble(real, made, tmp_path):
    made(real["mutual0"], "a", results=cost(10.0))
    made(real["mutual1"], "b", results=cost(30.0))
    made(real["cross_entropy0"], "c", results=cost(5.0))
    found = layout(tmp_path / "runs")
    (plane,) = planes(found)[0]
    rows = {(row.name.partition(" (")[0], row.part): row.own[3].mean for row in found.rows}
    assert [(point.name, point.cost) for point in plane.points] == [
        ("Cross Entropy", 5.0),
        ("PC Softmax", 5.0),
        ("Mutual Learning", 20.0),
    ]
    single, _, ensemble = plane.points
    assert single.each is None
    assert (ensemble.accuracy, ensemble.each) == (rows["Mutual Learning", ""], rows["Mutual Learning", "each"])


def test_runs_on_other_devices_have_a_panel_of_their_own(real, made, tmp_path):
    made(real["crt0"], "a", results=cost(10.0, 5.0))
    made(real["mutual0"], "b", results=cost(10.0, 5.0, GPU))
    found = chart(tmp_path / "runs")
    assert [panel.title for panel in found.panels] == [CPU, GPU]
    assert "panels of their own" in found.caption
    assert "else time by the clock" in found.caption


def test_what_tells_no_cost_is_named_and_not_drawn(real, made, tmp_path):
    made(real["crt0"], "a", results=cost(None))
    assert chart(tmp_path / "runs") is None
    made(real["mutual0"], "b", results=cost(10.0))
    found = chart(tmp_path / "runs")
    assert "Not drawn, since their runs tell no cost: cRT." in found.caption
    assert "cRT" not in found.panels[0].svg


def test_a_teacher_that_was_given_by_path_is_told_to_be_missing_from_the_cost(real, made, tmp_path):
    made(real["crt0"], "a", {"method.features": "/runs/plain/checkpoints/last.ckpt"})
    assert "Without the cost of the checkpoints that were given to cRT." in chart(tmp_path / "runs").caption


@pytest.mark.parametrize(("high", "zero"), [(100.0, True), (500.0, False)], ids=["linear", "logarithmic"])
def test_costs_far_apart_stand_on_a_logarithmic_scale(real, made, tmp_path, high, zero):
    made(real["crt0"], "a", results=cost(10.0))
    made(real["mutual0"], "b", results=cost(high))
    svg = chart(tmp_path / "runs").panels[0].svg
    ticks = re.findall(r"text-anchor: middle[^>]*>([\d,.]+)</text>", svg)
    assert ("0" in ticks) is zero
    assert "time of training, seconds" in svg


def test_each_figure_is_a_file_of_its_own_that_shows_on_any_ground(real, made, tmp_path):
    made(real["mutual0"], "a", results=cost(10.0))
    first = report(tmp_path / "runs", tmp_path / "one", figures=True)
    second = report(tmp_path / "runs", tmp_path / "two", figures=True)
    files = {path.name: path.read_bytes() for path in (first.folder / "figures").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (second.folder / "figures").iterdir()}
    assert "digits-lt-imbalance-60-resnet-20-cost-1-x-cpu-2-threads.svg" in files
    assert len(files) == sum(len(one.panels) for one in charts(layout(tmp_path / "runs")))
    for content in files.values():
        text = content.decode()
        assert "var(" not in text
        assert re.search(r'<rect [^>]*rx="6" fill="#ffffff"/>', text)  # the ground
        ElementTree.fromstring(content)
    assert not (report(tmp_path / "runs", tmp_path / "three").folder / "figures").exists()


def test_the_epochs_of_a_real_run_are_timed(real):
    told = read(real["mutual0"])
    assert 0 < told["cpu_seconds"] < 1.5 * 64 * told["train_seconds"]
