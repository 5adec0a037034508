"""The paper's experiment as a program: `benchmarks.cifar100_lt`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks import cifar100_lt as program
from hydra import compose, initialize_config_module
from tests.data.make_images import real_data

from mllt.build import build_data, build_module, plain
from mllt.cli import CONFIG_MODULE

PARTS = [part for part in program.PARTS if part != "probes"]


def runs_of(part):
    return program.planned(part, variants=list(program.VARIANTS) if part == "contenders" else ())


def method_of(name):
    return "mutual" if name == "independent" else name


def written(root, part, name, seed, ensemble, each):
    """A finished run's results, as far as the table reads them."""
    row = {"compensated": {"all": ensemble, "few": ensemble / 2}}
    experts = [{"compensated": {"all": value}} for value in each]
    path = root / part / name / str(seed) / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"seed": seed, "train_seconds": 9.0, "val": {"ensemble": row, "experts": experts}}))


def test_the_methods_are_all_ten_systems_of_the_papers_tables_with_three_seeds():
    systems = {
        "cross_entropy",
        "bbn",
        "lade",
        "mislas",
        "ssd",
        "dive",
        "ride",
        "ace",
        "mutual",
    }  # PC Softmax trains as the first
    runs = program.planned("methods")
    assert {run.name for run in runs} == systems | {"independent"}
    assert {(run.name, run.seed) for run in runs} == {(name, seed) for name in systems | {"independent"} for seed in (0, 1, 2)}


def test_no_two_runs_share_a_folder_and_none_is_judged_on_the_test_before_its_time():
    runs = [run for part in PARTS for run in runs_of(part)]
    folders = [run.folder(Path("root")) for run in runs]
    assert len(set(folders)) == len(folders)
    for run in runs:
        assert (f"data.val_images={program.VAL_IMAGES}" in run.overrides) == (run.part in ("ablations", "contenders"))


@pytest.mark.parametrize("part", PARTS)
def test_every_run_is_one_that_can_be_built(part):
    """Its settings compose, and the data and the method take them; what a run learns from its images is a stand-in here."""
    runs = runs_of(part)
    for run in (run for run in runs if run.seed == runs[0].seed):
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            config = compose("train", [*run.overrides, "data.root=nowhere"])
        data = build_data(plain(config.data), batch_size=config.batch_size, seed=config.seed)
        stand_in = SimpleNamespace(class_counts=data.counts, class_names=None, preprocessing=None)
        module = build_module(config, stand_in)
        assert (config.seed, config.trainer.max_epochs) == (run.seed, 400 if part == "strong" else 200), run
        assert module.method == (
            "mutual" if part in ("imbalance", "ablations", "contenders", "strong") else method_of(run.name)
        )


def test_ablations_change_one_thing_each_and_the_default_nothing():
    runs = {run.name: set(run.overrides) for run in program.planned("ablations")}
    assert [len(runs[name] - runs["mutual"]) for name in program.VARIANTS] == [0] + [1] * (len(runs) - 1)


def test_a_shortened_schedule_shortens_further_stages_and_says_so_in_every_command():
    for part in PARTS:
        runs = program.planned(part, 30, list(program.VARIANTS) if part == "contenders" else ())
        assert all(f"trainer.max_epochs={60 if part == 'strong' else 30}" in run.overrides for run in runs)
    assert "method.head_epochs=2" in next(run for run in program.planned("methods", 30) if run.name == "mislas").overrides


@pytest.mark.parametrize(("part", "has"), [("methods", "cross_entropy, bbn"), ("contenders", "mutual, experts-1")])
def test_a_variant_that_is_none_is_refused_with_those_that_are(part, has):
    with pytest.raises(SystemExit, match=f"Part {part} has no wieght-2. It has: {has}"):
        program.planned(part, variants=["wieght-2"])


def test_ablations_are_compared_by_validation_at_the_same_seeds(tmp_path, capsys):
    written(tmp_path, "ablations", "mutual", 0, 40.0, [38.0, 39.0])
    written(tmp_path, "ablations", "weight-2", 0, 41.0, [39.0, 39.5])
    written(tmp_path, "contenders", "mutual", 1, 42.0, [40.0, 41.0])
    written(tmp_path, "contenders", "weight-2", 1, 42.0, [40.0, 41.0])
    written(tmp_path, "contenders", "weight-2", 2, 50.0, [40.0, 41.0])
    assert program.main(["ablations", "--root", str(tmp_path)]) == 0
    rows = dict(line.strip("| ").split(" | ", 1) for line in capsys.readouterr().out.splitlines()[2:])
    assert rows["mutual"] == "2 | 41.0 ± 1.4 |  | 39.5 ± 1.4 | 20.5 ± 0.7"
    assert rows["weight-2"] == "3 | 44.3 ± 4.9 | +0.5 ± 0.7 | 40.1 ± 0.7 | 22.2 ± 2.5"


def test_without_ablations_their_table_says_how_to_get_one(tmp_path):
    with pytest.raises(SystemExit, match="run ablations"):
        program.main(["ablations", "--root", str(tmp_path)])


def test_a_folder_of_runs_keeps_to_the_settings_that_it_was_begun_with(tmp_path):
    program.check_same_plan(tmp_path, "methods", 30, ["threads=1", "data.root=here"])
    program.check_same_plan(tmp_path, "methods", 30, ["data.root=there", "threads=1"])
    program.check_same_plan(tmp_path, "imbalance", 200, [])
    with pytest.raises(SystemExit, match=r"were begun with --epochs 30 -- threads=1\. Type the same, or another --root"):
        program.check_same_plan(tmp_path, "methods", 200, ["threads=1"])


@pytest.mark.slow
def test_runs_go_on_slice_after_slice_until_all_is_done(tmp_path, capsys):
    real_data("cifar-100-python")
    short = ("network=resnet20", "trainer.limit_train_batches=8", "trainer.limit_test_batches=1", "threads=1")
    command = [
        "run",
        "methods",
        "--variants",
        "mislas",
        "cross_entropy",
        "--seeds",
        "0",
        "--epochs",
        "3",
        "--root",
        str(tmp_path),
    ]
    statuses = [program.main([*command, "--minutes", "0.15", "--", *short])]
    while statuses[-1] == 3 and len(statuses) < 20:
        statuses.append(program.main([*command, "--minutes", "0.25", "--", *short]))
    assert statuses[0] == 3
    assert statuses[-1] == 0, capsys.readouterr().out
    results = json.loads((tmp_path / "methods/mislas/0/results.json").read_text())
    assert [stage["epochs"] for stage in results["stages"]] == [3, 2]
    capsys.readouterr()
    assert program.main(["list", "--epochs", "3", "--root", str(tmp_path)]) == 0
    assert "methods        2 of  30 done" in capsys.readouterr().out
