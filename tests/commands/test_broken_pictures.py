"""Training goes on past broken pictures where it is asked to, and its results tell which they were."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from benchmarks.crash import differences
from tests.commands.break_off import PowerCut
from tests.commands.conftest import read_json
from tests.data.make_images import save_pictures

COUNTS = {"ant": 8, "bee": 5, "cat": 3}
CUT, EMPTY = "train/ant/2.jpg", "train/bee/1.jpg"


@pytest.fixture
def photos(tmp_path):
    """Sixteen training pictures, two of them broken, and six test pictures."""
    root = tmp_path / "photos"
    save_pictures(root, [f"train/{name}/{i}.jpg" for name, count in COUNTS.items() for i in range(count)])
    save_pictures(root, [f"test/{name}/{i}.jpg" for name in COUNTS for i in range(2)])
    (root / CUT).write_bytes((root / CUT).read_bytes()[:-200])
    (root / EMPTY).write_bytes(b"")
    return root


def recipe(root, *more):
    return (
        "train",
        "experiment=folder_lt",
        f"data.root={root}",
        *("data.image_size=16", "data.num_workers=0", "data.on_error=skip", "data.max_broken=0.2"),
        *("network=resnet20", "network.num_experts=1", "batch_size=4", "schedule=constant", "schedule.warmup_epochs=0"),
        *more,
    )


ONE = ("method=cross_entropy", "trainer.max_epochs=2")


def told(run):
    results = read_json(run / "results.json")
    return results["broken_images"], results


def test_results_tell_the_broken_pictures_and_honest_counts(mllt_command, photos, tmp_path):
    with pytest.warns(UserWarning, match="stands another one of its class"):
        done = mllt_command(*recipe(photos, *ONE), f"output_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    broken, results = told(tmp_path / "run")
    assert results["class_counts"] == [8, 5, 3]
    assert broken["readable"] == [7, 4, 3]
    assert broken["count"] == 2
    assert broken["by_class"] == {"ant": 1, "bee": 1}
    assert [file["path"] for file in broken["files"]] == [CUT, EMPTY]
    assert "truncated" in broken["files"][0]["cause"]
    assert broken["files"][1]["cause"] == "the file is empty"


def cut(stage, epochs, batches=1):
    place = f"stage: {stage}, epochs: {epochs}, batches: {batches}"
    return f"+callbacks.cut={{_target_: tests.commands.break_off.BreakOff, {place}}}"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:Cannot read the picture")
def test_a_run_that_was_broken_off_tells_what_it_found_before(mllt_command, photos, tmp_path, workers):
    command = recipe(photos, *ONE, f"data.num_workers={workers}", f"output_dir={tmp_path / 'run'}")
    with pytest.raises(PowerCut):
        mllt_command(*command, cut("training", 1))
    mend(photos)  # the second part of the run cannot find it out by itself
    done = mllt_command(*command, "resume=auto")
    assert done.status == 0, done.err
    files = told(tmp_path / "run")[0]["files"]
    assert [file["path"] for file in files] == [CUT, EMPTY]
    assert files[1]["cause"] == "the file is empty"


def mend(photos):
    for path in (CUT, EMPTY):
        (photos / path).write_bytes((photos / "train/cat/0.jpg").read_bytes())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:Cannot read the picture")
def test_a_run_that_was_broken_off_ends_with_the_weights_and_results_of_a_whole_one(mllt_command, photos, tmp_path, workers):
    command = recipe(photos, *ONE, f"data.num_workers={workers}", "checkpoints.every_steps=1")
    whole, parts = ((*command, f"output_dir={tmp_path / name}") for name in ("whole", "parts"))
    assert mllt_command(*whole).status == 0
    for epochs in (0, 1):
        with pytest.raises(PowerCut):
            mllt_command(*parts, cut("training", epochs, batches=3))
    assert mllt_command(*parts).status == 0
    assert told(tmp_path / "parts")[0]["count"] == 2
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.filterwarnings("ignore:Cannot read the picture")
def test_what_an_earlier_stage_found_is_told_after_a_break(mllt_command, photos, tmp_path):
    command = recipe(photos, "method=crt", "method.head_epochs=1", "trainer.max_epochs=1")
    run = tmp_path / "run"
    with pytest.raises(PowerCut):
        mllt_command(*command, cut("head", 0), f"output_dir={run}")
    mend(photos)
    done = mllt_command(*command, "resume=auto", f"output_dir={run}")
    assert done.status == 0, done.err
    assert [file["path"] for file in told(run)[0]["files"]] == [CUT, EMPTY]


def test_too_many_end_the_run_with_one_line_that_lists_them(mllt_command, photos, tmp_path):
    with pytest.warns(UserWarning, match="stands another one of its class"):
        done = mllt_command(*recipe(photos, *ONE), "data.max_broken=0.1", f"output_dir={tmp_path / 'run'}")
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert "at most 0.1 of the 16 training pictures" in line
    assert str(photos / CUT) in line
    assert str(photos / EMPTY) in line
    assert "python -m mllt.check" in line


@pytest.mark.slow
def test_two_processes_tell_what_one_tells(photos, tmp_path):
    """Each reads its half of the one epoch: only together do they know all."""
    for devices in (1, 2):
        strategy = ("trainer=ddp", f"trainer.devices={devices}", "trainer.accelerator=cpu") if devices > 1 else ()
        command = recipe(
            photos, "method=cross_entropy", "trainer.max_epochs=1", *strategy, f"output_dir={tmp_path / str(devices)}"
        )
        done = subprocess.run(
            [sys.executable, "-m", "mllt.train", *command[1:]],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        for path in (CUT, EMPTY):
            assert done.stderr.count(f"{photos / path}: ") == 1
    assert told(tmp_path / "1")[0] == told(tmp_path / "2")[0]
    state = [torch.load(tmp_path / d / "checkpoints/last.ckpt", weights_only=True)["ImageFolderLT"]["broken"] for d in "12"]
    assert state[0] == state[1]
    assert list(state[0]) == [CUT, EMPTY]
