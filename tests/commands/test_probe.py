"""`python -m mllt.probe`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tests.commands.conftest import SMALL, read_json
from tests.reference.metrics import shot_accuracy
from tests.reference.representation import geometry, nearest_class

from mllt import DigitsLT, load_checkpoint
from mllt.checkpoint import read_checkpoint

GROUPS = ("many", "medium", "few", "all")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run that a test may write into."""
    return shutil.copytree(trained, tmp_path / "run")


def model(run):
    return f"checkpoint={run / 'checkpoints' / 'model.ckpt'}"


def probed(mllt_command, run, *arguments, name="probe"):
    done = mllt_command("probe", model(run), *arguments)
    assert done.status == 0, done.err
    return read_json(run / "probes" / f"{name}.json"), done.out


def features_of(module, source, data):
    """Of the first expert, in one batch, without what the command uses."""
    images = data.eval_transform()(source.load(np.arange(len(source))), None)
    with torch.inference_mode():
        return module.eval().network.features(images)[0].double().numpy(), source.labels


def test_all_figures_are_those_of_the_references(mllt_command, run):
    found, out = probed(mllt_command, run)
    module, data = load_checkpoint(run / "checkpoints" / "model.ckpt"), DigitsLT(val_fraction=0.2)
    data.setup()
    counts = data.class_counts.tolist()
    queries, targets = features_of(module, data.splits.test, data)
    for which, source in (("balanced", data.balanced_source()), ("long_tailed", data.splits.train)):
        features, labels = features_of(module, source, data)
        assert found["images"][which] == len(labels)
        weights = 1 / np.bincount(labels)[labels]
        scaler = StandardScaler().fit(features, sample_weight=weights)
        theirs = LogisticRegression(C=1 / (found["settings"]["l2"] * len(labels)), class_weight="balanced", max_iter=10_000)
        theirs.fit(scaler.transform(features), labels)
        own = np.bincount(labels).tolist()
        answers = {
            "linear": theirs.predict(scaler.transform(queries)).tolist(),
            "neighbours": [nearest_class(query, features, labels, 20) for query in queries],
        }
        if which == "long_tailed":
            answers["neighbours_by_count"] = [nearest_class(query, features, labels, 20, own) for query in queries]
        row = found["trained_on"][which]["expert 1"]
        assert set(row) == {*answers, "iterations", "converged"}
        for kind, answer in answers.items():
            expected = shot_accuracy(answer, targets.tolist(), counts)
            for group in GROUPS:  # a probe that is not converged to the last digit answers close calls otherwise
                if np.isnan(expected[group]):
                    assert row[kind][group] is None
                else:
                    near = 1.5 if kind == "linear" else 0.5
                    assert row[kind][group] == pytest.approx(100 * expected[group], abs=near)
    spread, separation = geometry(queries, targets, range(10))
    assert found["features"]["expert 1"]["spread"]["all"] == pytest.approx(spread, rel=1e-4)
    assert found["features"]["expert 1"]["separation"]["all"] == pytest.approx(separation, rel=1e-4)
    assert list(found["features"]) == ["expert 1", "expert 2", "trunk", "concatenation"]
    assert [row["size"] for row in found["features"].values()] == [48, 48, 16, 96]
    told = read_json(run / "results.json")
    assert {name: found[name] for name in ("method", "seed", "data_digest", "shot_groups")} == {
        name: told[name] for name in ("method", "seed", "data_digest", "shot_groups")
    }
    assert found["checkpoint_sha256"] == told["model"]["sha256"]
    for text in ("learned from the whole balanced training set (1,200 images)", "concatenation", "kNN / n", "Written to"):
        assert text in out


def test_repetition_gives_the_same_numbers_and_the_size_of_a_batch_changes_rounding_only(mllt_command, run):
    first, again, other = (probed(mllt_command, run, *size)[0] for size in ([], [], ["eval_batch_size=37"]))
    for name in ("features", "trained_on"):
        assert first[name] == again[name]
    for name, row in first["features"].items():
        assert other["features"][name]["spread"]["all"] == pytest.approx(row["spread"]["all"], rel=1e-4)
    for which, rows in first["trained_on"].items():
        for name, row in rows.items():
            for kind in ("linear", "neighbours"):
                assert other["trained_on"][which][name][kind]["all"] == pytest.approx(row[kind]["all"], abs=0.5)


def test_other_settings_are_written_beside(mllt_command, run):
    probed(mllt_command, run, "neighbours=3", "l2=0.5", "trained_on=[long_tailed]", name="probe-k3-l2_0.5-long_tailed")
    assert mllt_command("probe", f"checkpoint={run / 'checkpoints' / 'best.ckpt'}", "trained_on=[balanced]").status == 0
    found = read_json(run / "probes" / "probe-best-balanced.json")
    assert list(found["trained_on"]) == ["balanced"]
    done = mllt_command("probe", model(run), f"output={run / 'x' / 'mine.json'}", "trained_on=[balanced]")
    assert done.status == 0
    assert f"Written to {run / 'x' / 'mine.json'}" in done.out
    assert not (run / "probes" / "probe.json").exists()


def test_data_that_were_not_cut_from_a_balanced_set_show_the_long_tailed_part_and_say_so(mllt_command, run, monkeypatch):
    monkeypatch.setattr(DigitsLT, "balanced_source", lambda self: None)
    found, out = probed(mllt_command, run)
    assert list(found["trained_on"]) == ["long_tailed"]
    assert "was not cut from a balanced set that is there: the long-tailed part only" in " ".join(found["remarks"])
    assert found["remarks"][0] in out
    done = mllt_command("probe", model(run), "trained_on=[balanced]")
    assert done.status == 2
    assert "set trained_on=[long_tailed]" in done.err


@pytest.mark.parametrize("method", ["ace", "bbn", "ride", "cross_entropy"])
def test_networks_of_other_kinds_are_probed(mllt_command, tmp_path, method):
    experts = {"ace": 2, "ride": 2}.get(method, 1)
    few = [*SMALL, f"network.num_experts={experts}", "trainer.max_epochs=1", "trainer.limit_train_batches=1"]
    more = ["method.max_counts=[19]"] if method == "ace" else []
    done = mllt_command("train", *few, *more, "schedule.warmup_epochs=0", f"method={method}", f"output_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    found, _ = probed(mllt_command, tmp_path / "run")
    names = [f"expert {k}" for k in range(1, experts + 1)] + ["trunk"] + ["concatenation"] * (experts > 1)
    assert list(found["features"]) == names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["neighbours=258"], "at most 257, the images of the run's own training images, but got 258"),
        (["neighbours=0"], "`neighbours` to be a whole number of at least 1"),
        (["l2=-1"], "`l2` to be a number of at least 0"),
        (["trained_on=[]"], "`trained_on` to be a list of balanced and long_tailed"),
        (["trained_on=[balanced,balanced]"], "`trained_on` to be a list"),
        (["trained_on=[balance]"], "Did you mean 'balanced'?"),
        (["data_root=/nowhere"], "reads no folder: leave data_root out"),
        (["accelerator=gpu"], "`accelerator` to be one of auto"),
        (["neighbors=3"], "Did you mean 'neighbours'?"),
        (["output=."], "`output` to be a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(mllt_command, run, arguments, said):
    done = mllt_command("probe", model(run), *arguments)
    assert done.status == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (run / "probes").exists()


def test_a_checkpoint_that_is_not_there_and_one_that_diverged_are_told(mllt_command, run):
    done = mllt_command("probe", f"checkpoint={run / 'checkpoints' / 'none.ckpt'}")
    assert (done.status, "there is none at" in done.err) == (2, True)
    path = run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(path)
    content["state_dict"]["network.trunk.stem.0.weight"] *= float("nan")
    torch.save(content, path)
    done = mllt_command("probe", f"checkpoint={path}")
    assert done.status == 2
    assert "features of expert 1 to be finite" in done.err


@pytest.mark.slow
def test_data_that_lie_elsewhere_are_asked_for_and_cifar_has_its_whole_training_set(mllt_command, tmp_path):
    root = os.environ.get("MLLT_DATA")
    if not root or not Path(root, "cifar-100-python").is_dir():
        pytest.skip("MLLT_DATA does not name a folder that holds cifar-100-python/")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "cifar-100-python").symlink_to(Path(root, "cifar-100-python").resolve())
    few = ["experiment=cifar100_lt", "network=resnet20", "network.num_experts=2", "network.width=0.1", "trainer.max_epochs=1"]
    few += [
        "trainer.limit_train_batches=1",
        "trainer.limit_test_batches=1",
        "schedule.warmup_epochs=0",
        "data.val_fraction=0.5",
    ]
    done = mllt_command("train", *few, f"data.root={tmp_path / 'there'}", f"output_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    done = mllt_command("probe", model(tmp_path / "run"))
    assert done.status == 2
    assert "data_root=FOLDER" in done.err
    found, _ = probed(mllt_command, tmp_path / "run", f"data_root={tmp_path / 'elsewhere'}", "l2=0.1", name="probe-l2_0.1")
    assert found["images"]["balanced"] == 50_000
    assert found["images"]["test"] == 10_000
