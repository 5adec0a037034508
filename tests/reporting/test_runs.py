"""Finding runs, and telling how far the unfinished ones came."""

from __future__ import annotations

import shutil

import pytest

from mllt.errors import ArgumentError
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
    for name in ("torn", "list", "less", "without"):
        assert f"{name} is left out" in told
    assert "has no network, seed, trainer" in told


@pytest.mark.parametrize("content", ['{"test": ', "[]", '{"method": "mutual"}', '{"test": {"ensemble": {"raw": {}}}}'])
def test_a_run_whose_results_cannot_be_used_is_unfinished_and_says_why(real, made, content):
    run = made(real["mutual0"], "a")
    (run / "results.json").write_text(content)
    (told,) = find_runs([run]).runs
    assert not told.finished
    assert "results.json cannot be used" in told.problem
    assert told.method == "mutual"


def test_an_unfinished_run_says_how_far_it_came(real, made):
    run = made(real["mutual0"], "a", finished=False)

    def told():
        return find_runs([run]).runs[0].problem

    assert "after its 2 epochs, before the test" in told()
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join(lines[:2]) + "\n")
    assert "after epoch 1 of 2" in told()
    (run / "metrics.csv").write_text("epoch,step\nsoon,1\n")
    assert "does not tell" in told()
    (run / "metrics.csv").unlink()
    assert "before the end of its first epoch" in told()


def test_an_unfinished_run_of_several_stages_says_in_which_it_is(real, made):
    run = made(real["crt0"], "a", finished=False)
    assert "after epoch 1 of the last stage" in find_runs([run]).runs[0].problem
    (run / "metrics.csv").unlink()
    assert "after epoch 2 of its stage features" in find_runs([run]).runs[0].problem


def test_the_curves_of_all_stages_come_in_order(real):
    (run,) = find_runs([real["crt0"]]).runs
    assert [(name, sorted(rows)) for name, rows in run.curves()] == [("features", [1, 2]), ("head", [1])]
    (run,) = find_runs([real["mutual0"]]).runs
    ((name, rows),) = run.curves()
    assert (name, sorted(rows)) == ("", [1, 2])
    assert all(float(row["train/loss"]) > 0 for row in rows.values())


def test_a_method_of_ones_own_that_has_not_finished_goes_by_its_class(real, made):
    run = made(real["mutual0"], "a", {"method._target_": "my_package.Owls"}, finished=False)
    assert find_runs([run]).runs[0].method == "Owls"
