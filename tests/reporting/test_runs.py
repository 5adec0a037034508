"""Finding runs, and telling how far the unfinished ones came."""

from __future__ import annotations

import functools
import json
import shutil

import pytest
import yaml

from mllt.errors import ArgumentError
from mllt.report import report
from mllt.reporting.runs import find_runs


def roots(found):
    return {run.folder.root for run in found.runs}


def test_runs_are_found_at_any_depth_and_as_themselves_and_by_pattern(real, made, tmp_path):
    one = made(real["mutual0"], "mutual/2026/a")
    two = made(real["mutual1"], "mutual/b")
    other = made(real["crt0"], "crt/deep/er/c")
    assert roots(find_runs([tmp_path / "runs"])) == {one, two, other}
    assert roots(find_runs([one])) == {one}
    assert roots(find_runs([tmp_path / "runs" / "m*"])) == {one, two}
    assert roots(find_runs([tmp_path / "runs" / "*" / "b", other])) == {two, other}
    assert roots(find_runs(str(other))) == {other}


def test_a_run_that_is_reached_twice_counts_once(real, made, tmp_path):
    one = made(real["mutual0"], "a")
    (tmp_path / "runs" / "link").symlink_to(one, target_is_directory=True)
    (tmp_path / "runs" / "circle").symlink_to(tmp_path, target_is_directory=True)
    found = find_runs([tmp_path / "runs", one, tmp_path / "runs" / "*"])
    assert [run.folder.root for run in found.runs] == [one]


def test_what_lies_in_a_run_is_no_run_and_neither_are_other_programs_settings(real, made, tmp_path):
    run = made(real["crt0"], "a")
    for place in ("evaluations", "wandb/offline-run-1/files"):
        (run / place).mkdir(parents=True)
    (run / "evaluations" / "test-uniform.json").write_text("{}")
    shutil.copy(run / "config.yaml", run / "wandb/offline-run-1/files/config.yaml")
    strange = tmp_path / "runs" / "docker"
    strange.mkdir()
    (strange / "config.yaml").write_text("services:\n  web: 1\n")
    found = find_runs([tmp_path / "runs"])
    assert roots(found) == {run}
    assert found.problems == []


def test_runs_below_a_run_are_found_but_not_in_what_a_run_leaves(real, made, tmp_path):
    above = made(real["mutual0"], "a")
    below = [made(real["mutual1"], "a/seed1"), made(real["mutual1"], "a/more/deep")]
    for place in ("stages", "checkpoints", "evaluations", "report", "wandb", "tensorboard"):
        made(real["mutual1"], f"a/{place}/b")
    assert roots(find_runs([tmp_path / "runs"])) == {above, *below}


def test_what_a_shells_star_brings_beside_the_runs_is_passed_over(real, made, tmp_path):
    run = made(real["mutual0"], "a")
    (tmp_path / "runs" / "multirun.yaml").write_text("{}")
    report(tmp_path / "runs")
    star = sorted((tmp_path / "runs").iterdir())
    assert [path.name for path in star] == ["a", "multirun.yaml", "report"]
    found = find_runs(star)
    assert roots(found) == {run}
    assert found.problems == []
    with pytest.raises(ArgumentError, match=r"config.yaml is a file"):
        find_runs([run, run / "config.yaml"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["nowhere"], ["there is no", "nowhere"]),
        (["no*thing"], ["there is no", "no*thing"]),
        (["output=here"], ["--output here"]),
        (["a/config.yaml"], ["is a file"]),
        (["empty"], ["none of", "holds one", "config.yaml"]),
        ([], ["none of"]),
    ],
)
def test_a_path_that_leads_to_no_run_is_an_error(real, made, tmp_path, monkeypatch, names, said):
    made(real["mutual0"], "a")
    monkeypatch.chdir(tmp_path / "runs")
    (tmp_path / "runs" / "empty").mkdir()
    with pytest.raises(ArgumentError) as error:
        find_runs(names)
    for text in said:
        assert text in str(error.value)


def test_a_folder_without_runs_beside_one_with_some_is_told(real, made, tmp_path):
    run = made(real["mutual0"], "a")
    (tmp_path / "empty").mkdir()
    found = find_runs([run, tmp_path / "empty"])
    assert roots(found) == {run}
    assert found.problems == [f"No run lies in {tmp_path / 'empty'}."]


def test_damaged_folders_are_told_by_name_and_not_passed_over(real, made, tmp_path):
    good = made(real["mutual0"], "good")
    for name, content in (("torn", "data: ["), ("list", "- 1"), ("less", "data: {}\nmethod: {}\n")):
        (made(real["mutual0"], name) / "config.yaml").write_text(content)
    (made(real["mutual0"], "without") / "config.yaml").unlink()
    found = find_runs([tmp_path / "runs"])
    assert roots(found) == {good}
    told = "\n".join(found.problems)
    for name in ("torn", "list", "less"):
        assert f"{name}: its config.yaml cannot be read: " in told
    assert "without: it has results.json but no config.yaml; the run is left out." in told
    assert "has no network, seed, trainer" in told
    assert "Errno" not in told


def put(run, name, value):
    """Set what stands at a dotted name of results.json, or of config.yaml where the name starts with ":"."""
    path = run / ("config.yaml" if name.startswith(":") else "results.json")
    whole = yaml.safe_load(path.read_text())
    *above, leaf = name.removeprefix(":").split(".")
    place = functools.reduce(lambda found, key: found[int(key) if key.isdigit() else key], above, whole)
    place[leaf] = value
    path.write_text(json.dumps(whole))


BAD_RESULTS = [
    ("stages", [{"name": "x"}]),
    ("epochs", None),
    ("epochs", "two"),
    ("versions", [1]),
    ("git_commit", 123),
    ("reported", "xx"),
    ("details", [1]),
    ("details", "text"),
    ("test.experts", None),
    ("test.experts", []),
    ("test.experts.0.compensated", {}),
    ("test.ensemble.compensated.all", "abc"),
    ("test.ensemble.compensated.all", float("nan")),
    ("test.ensemble.raw.ece", "x"),
    ("test.per_class.raw", [1.0]),
    ("test.per_class", [[1.0]]),
    ("test.reliability", {"raw": {}}),
    ("test.reliability.raw.count", [1] * 15),
    ("test", None),
    ("train_seconds", "x"),
    ("parameters", "x"),
    ("reconstructed", [1]),
    ("class_counts", ["a"] * 10),
    ("class_counts", [10**400] * 10),
    ("shot_groups", [1, 2, 3]),
    ("method", 3),
    ("method", "\ud800"),
    ("data_digest", 5),
]
BAD_SETTINGS = [
    (":seed", "x"),
    (":seed", None),
    (":data", None),
    (":data", "text"),
    (":method", None),
    (":method", "text"),
    (":network", None),
    (":network", {}),
    (":trainer", None),
    (":trainer", "text"),
    (":data.imbalance_factor", "big"),
    (":data.root", 5),
    (":evaluation", "x"),
    (":evaluation.many_above", "x"),
    (":evaluation.few_below", 500),
]


@pytest.mark.parametrize(("name", "value"), [*BAD_RESULTS, *BAD_SETTINGS])
def test_a_file_that_no_run_writes_costs_its_run_alone(real, made, tmp_path, name, value):
    good, bad = made(real["mutual0"], "good"), made(real["mutual1"], "bad")
    put(bad, name, value)
    told = report(tmp_path / "runs")
    (problem,) = told.problems
    file = "config.yaml" if name.startswith(":") else "results.json"
    assert problem.startswith(f"{bad}: its {file} cannot be read: ")
    assert problem.endswith("; the run is left out.")
    (layout,) = told.layouts
    assert [run.folder.root for group in layout.experiment.groups for run in group.runs] == [good]
    assert problem.partition(": ")[0] in (told.folder / "report.html").read_text()


@pytest.mark.parametrize("content", ['{"test": ', "[]", '{"method": "mutual"}', "[" * 100_000, "\0", '{"epochs": 1e999}'])
def test_results_that_are_no_results_leave_the_run_out_and_say_why(real, made, content):
    run = made(real["mutual0"], "a")
    (run / "results.json").write_text(content)
    with pytest.raises(ArgumentError, match=r"a: its results.json cannot be read: .*; the run is left out"):
        find_runs([run])


@pytest.mark.parametrize("name", ["stages", "versions", "details", "reconstructed", "class_names", "parameters", "reported"])
@pytest.mark.parametrize("how", ["null", "missing"])
def test_what_results_need_not_tell_may_be_missing(real, made, tmp_path, name, how):
    run = made(real["mutual0"], "a")
    told = json.loads((run / "results.json").read_text())
    told[name] = None
    if how == "missing":
        del told[name]
    (run / "results.json").write_text(json.dumps(told))
    written = report(tmp_path / "runs")
    assert written.problems == []
    assert written.layouts[0].rows[-1].own[3] is not None


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 9,
        "epoch,train/löss\n1,2\n".encode("latin-1"),
        b"a,b\n1,2\n",
        b"epoch,train/loss\n1.0,2\n",
        b"epoch,train/loss\nsoon,2\n",
        b"epoch,train/loss\n1,abc\n",
        b"epoch,train/loss\n1,2,3,4\n",
        b"epoch,train/loss\n1,2\n\0\0\0\n",
    ],
)
def test_a_damaged_metrics_csv_costs_the_curves_and_nothing_else(real, made, tmp_path, content):
    run = made(real["mutual0"], "a")
    (run / "metrics.csv").write_bytes(content)
    written = report(tmp_path / "runs")
    assert written.problems == []
    (layout,) = written.layouts
    assert layout.rows[-1].own[3] is not None
    assert any("the curves of seed 0 are left out: its metrics.csv cannot be read" in note for note in layout.notes)
    assert "Training loss" not in (written.folder / "report.html").read_text()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_was_no_number_any_more_is_drawn_as_far_as_it_was(real, made, tmp_path, value):
    run = made(real["mutual0"], "a")
    (run / "metrics.csv").write_text(f"epoch,train/loss\n1,2.0\n2,{value}\n")
    assert "Training loss" in (report(tmp_path / "runs").folder / "report.html").read_text()


def test_an_unfinished_run_says_how_far_it_came(real, made):
    run = made(real["mutual0"], "a", finished=False)

    def told():
        return find_runs([run]).runs[0].problem

    assert "after its 2 epochs, before the test" in told()
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join(lines[:2]) + "\n")
    assert "after epoch 1 of 2" in told()
    (run / "metrics.csv").write_text("epoch,step\nsoon,1\n")
    assert "at a point that is not known: its metrics.csv cannot be read" in told()
    (run / "metrics.csv").unlink()
    assert "before the end of its first epoch" in told()


def test_an_unfinished_run_of_several_stages_says_in_which_it_is(real, made):
    run = made(real["crt0"], "a", finished=False)
    assert "after epoch 1 of the last stage" in find_runs([run]).runs[0].problem
    (run / "metrics.csv").unlink()
    assert "after epoch 2 of its stage features" in find_runs([run]).runs[0].problem


def test_the_curves_of_all_stages_come_in_order(real):
    (run,) = find_runs([real["crt0"]]).runs
    assert [(name, sorted(rows)) for name, rows in run.curves] == [("features", [1, 2]), ("head", [1])]
    (run,) = find_runs([real["mutual0"]]).runs
    ((name, rows),) = run.curves
    assert (name, sorted(rows)) == ("", [1, 2])
    assert all(float(row["train/loss"]) > 0 for row in rows.values())


def test_a_method_of_ones_own_that_has_not_finished_goes_by_its_class(real, made):
    run = made(real["mutual0"], "a", {"method._target_": "my_package.Owls"}, finished=False)
    assert find_runs([run]).runs[0].method == "Owls"
