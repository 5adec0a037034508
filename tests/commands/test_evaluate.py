"""`python -m mllt.evaluate`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tests.commands.conftest import read_json

from mllt import DigitsLT, load_checkpoint
from mllt.longtail import long_tailed_prior


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run that a test may write into."""
    return shutil.copytree(trained, tmp_path / "run")


def last(run):
    return f"checkpoint={run / 'checkpoints' / 'last.ckpt'}"


def mean_class_accuracy(logits, targets):
    """In percent, by counting one image after another."""
    right, seen = [0] * 10, [0] * 10
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        right[target] += row.index(max(row)) == target
        seen[target] += 1
    return 100 * sum(r / s for r, s in zip(right, seen, strict=True)) / 10


@pytest.fixture(scope="module")
def answers(trained):
    """The checkpoint's logits `(2, 500, 10)` on the test images, their labels, and the training counts."""
    module = load_checkpoint(trained / "checkpoints" / "last.ckpt")
    data = DigitsLT(val_fraction=0.2)
    images, targets = zip(*[(batch.images, batch.targets) for batch in data.test_dataloader()], strict=True)
    with torch.inference_mode():
        return module(torch.cat(images)).double(), torch.cat(targets), data.class_counts.double()


def test_without_a_prior_it_repeats_the_results_of_the_run(mllt_command, run):
    done = mllt_command("evaluate", last(run))
    assert done.status == 0, done.err
    again = read_json(run / "evaluations" / "test-uniform.json")
    assert again["test"] == read_json(run / "results.json")["test"]
    assert (again["split"], again["test_prior"], again["images"], again["method"]) == ("test", "uniform", 500, "mutual")


@pytest.mark.parametrize("prior", ["uniform", "train", "backward", "forward"])
def test_compensation_goes_to_the_prior_that_is_named(mllt_command, run, answers, prior):
    logits, targets, counts = answers
    done = mllt_command("evaluate", last(run), f"test_prior={prior}", "test_prior_factor=50")
    assert done.status == 0, done.err
    weights = {"uniform": torch.ones(10), "train": counts}.get(prior)
    if weights is None:
        weights = long_tailed_prior(counts.long(), 50, backward=prior == "backward")
    compensated = logits - (counts / counts.sum()).log() + (weights / weights.sum()).log()
    name = f"{prior}-50" if prior in ("forward", "backward") else prior
    results = read_json(run / "evaluations" / f"test-{name}.json")
    found = results["test"]
    assert found["ensemble"]["compensated"]["all"] == pytest.approx(mean_class_accuracy(compensated.mean(0), targets), abs=1e-4)
    for row, expert in zip(found["experts"], compensated, strict=True):
        assert row["compensated"]["all"] == pytest.approx(mean_class_accuracy(expert, targets), abs=1e-4)
    assert found["ensemble"]["raw"] == read_json(run / "results.json")["test"]["ensemble"]["raw"]
    if prior == "train":
        assert found["ensemble"]["compensated"]["all"] == found["ensemble"]["raw"]["all"]
    assert results["test_prior_factor"] == (50 if prior in ("forward", "backward") else None)


def test_the_prior_may_be_a_list_and_a_factor_alone_changes_that_of_the_checkpoint(mllt_command, run, answers):
    logits, targets, counts = answers
    done = mllt_command("evaluate", last(run), "test_prior=[1,1,1,1,1,1,1,1,1,11]", f"output={run / 'list.json'}")
    assert done.status == 0, done.err
    found = read_json(run / "list.json")
    assert found["test_prior"] == pytest.approx([0.05] * 9 + [0.55])
    compensated = logits - (counts / counts.sum()).log() + torch.tensor(found["test_prior"]).log()
    assert found["test"]["ensemble"]["compensated"]["all"] == pytest.approx(mean_class_accuracy(compensated.mean(0), targets))
    assert mllt_command("evaluate", last(run), "test_prior=backward", f"output={run / 'own.json'}").status == 0
    assert read_json(run / "own.json")["test_prior_factor"] == 100, "the checkpoint's own"


@pytest.mark.parametrize("suffix", [".json", ".csv", ".txt"])
def test_the_prior_may_be_a_file(mllt_command, run, tmp_path, answers, suffix):
    logits, targets, counts = answers
    numbers = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    text = {
        ".json": json.dumps(numbers),
        ".csv": "".join(f"digit {n - 1},{n}\n" for n in numbers),
        ".txt": "".join(f"{n}\n" for n in numbers),
    }
    path = tmp_path / f"deployment{suffix}"
    path.write_text(text[suffix])
    done = mllt_command("evaluate", last(run), f"test_prior={path}")
    assert done.status == 0, done.err
    compensated = logits - (counts / counts.sum()).log() + (torch.tensor(numbers) / 55).log()
    found = read_json(run / "evaluations" / "test-deployment.json")["test"]["ensemble"]["compensated"]["all"]
    assert found == pytest.approx(mean_class_accuracy(compensated.mean(0), targets), abs=1e-4)


def test_further_priors_are_told_from_the_same_pass_as_each_alone(mllt_command, run):
    passes = []
    for also in ("also=[backward,train]", "also=[]", "test_prior=backward", "test_prior=train"):
        done = mllt_command("evaluate", last(run), also, "test_prior_factor=50", f"output={run / 'out.json'}")
        assert done.status == 0, done.err
        passes.append(read_json(run / "out.json")["test"])
        assert ("compensated to backward-50" in done.out) == ("backward" in also)
    together, plain, *alone = passes
    for row, kind in ((together["ensemble"], "ensemble"), (together["per_class"], "per_class")):
        assert {name: row[name] for name in ("raw", "compensated")} == plain[kind]
        assert [row[name] for name in ("backward-50", "train")] == [table[kind]["compensated"] for table in alone]


def test_the_validation_split_and_the_output_can_be_chosen(mllt_command, run, tmp_path):
    done = mllt_command("evaluate", last(run), "split=val", f"output={tmp_path / 'out' / 'val.json'}")
    assert done.status == 0, done.err
    assert read_json(tmp_path / "out" / "val.json")["images"] == 64
    assert f"Written to {tmp_path / 'out' / 'val.json'}" in done.out


def test_the_best_checkpoint_can_be_tested_too(mllt_command, run):
    assert mllt_command("evaluate", f"checkpoint={run / 'checkpoints' / 'best.ckpt'}").status == 0


def test_the_size_of_a_batch_changes_no_digit(mllt_command, run):
    assert mllt_command("evaluate", last(run), "eval_batch_size=7").status == 0
    again = read_json(run / "evaluations" / "test-uniform.json")["test"]
    expected = read_json(run / "results.json")["test"]
    assert again["per_class"] == expected["per_class"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["split=train"], "`split` to be one of test, val"),
        (["test_prior=backwards"], "Did you mean 'backward'?"),
        (["test_prior=backward", "test_prior_factor=0"], "`factor` to be a number of at least 1"),
        (["checkpont=x"], "Did you mean 'checkpoint'?"),
        (["also=backward"], "`also` to be a list"),
        (["also=[1]"], "`also` to be a list of test priors"),
        (["also=[backwards]"], "Did you mean 'backward'?"),
        (["also=[train,train]"], "to have names that differ, but got"),
    ],
)
def test_mistakes_are_one_line(mllt_command, run, arguments, said):
    done = mllt_command("evaluate", last(run), *arguments)
    assert done.status == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_missing_checkpoint_is_named_with_those_nearby(mllt_command, run):
    done = mllt_command("evaluate", f"checkpoint={run / 'checkpoints' / 'lst.ckpt'}")
    assert done.status == 2
    assert f"there is none at {run / 'checkpoints' / 'lst.ckpt'}" in done.err
    assert str(run / "checkpoints" / "last.ckpt") in done.err


def test_a_folder_in_the_place_of_a_checkpoint_is_told_where_the_file_is(mllt_command, run):
    done = mllt_command("evaluate", f"checkpoint={run}")
    assert done.status == 2
    assert str(run / "checkpoints" / "last.ckpt") in done.err


def test_the_settings_in_a_folder_choose_no_code(mllt_command, run):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("_target_: mllt.data.DigitsLT", "_target_: os.abort"))
    done = mllt_command("evaluate", last(run))
    assert done.status == 2
    assert "os.abort" in done.err
    assert "mllt.data" in done.err


def test_without_settings_beside_the_checkpoint_it_says_so(mllt_command, run):
    (run / "config.yaml").unlink()
    done = mllt_command("evaluate", last(run))
    assert done.status == 2
    assert str(run / "config.yaml") in done.err
