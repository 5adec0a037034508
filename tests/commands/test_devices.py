"""The recipe on two processes is the recipe on one: real processes over gloo, on CPU."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest
import torch
from tests.commands.conftest import read_json

# A transformer, since it has no batch statistics: those differ between devices (on GPUs, sync_batchnorm mends that).
# 257 images in batches of 16 leave one for the last batch: less than one for each device.
VIT = "{img_size: 8, patch_size: 2, depth: 2, embed_dim: 48, num_heads: 3}"
RECIPE = (
    "network=timm",
    "network.name=timm/vit_tiny_patch16_224",
    f"network.network_options={VIT}",
    "network.num_experts=2",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "schedule.warmup_epochs=1",
    "data.val_fraction=0.2",
)


def run(name, *arguments, folder):
    """A command in processes of its own: Lightning starts the others by starting this one again."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLLT_RUN", "MLLT_FULL"))}
    return subprocess.run(
        [sys.executable, "-m", f"mllt.{name}", *arguments],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of the same recipe on one and on two processes, and what the latter printed."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("devices")
    for devices in (1, 2):
        strategy = ("trainer=ddp", f"trainer.devices={devices}") if devices > 1 else ()
        done = run("train", *strategy, *RECIPE, f"output_dir={folder / str(devices)}", folder=folder)
        assert done.returncode == 0, done.stderr
    return folder, done


def column(path, name):
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.parametrize("name", ["train/loss", "train/cross_entropy", "train/mutual", "val/raw/ece"])
def test_two_processes_see_the_same_curves_as_one(runs, name):
    folder, _ = runs
    one, two = (column(folder / devices / "metrics.csv", name) for devices in "12")
    assert len(one) == 2
    assert one == pytest.approx(two, rel=1e-5)


def test_two_processes_end_with_the_same_weights_as_one(runs):
    folder, _ = runs
    one, two = (torch.load(folder / devices / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for devices in "12")
    start = {name: value.abs().max() for name, value in one.items()}
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5 * max(float(start[name]), 1))


def test_one_folder_holds_the_run_and_the_table_is_printed_once(runs):
    folder, done = runs
    files = {str(path.relative_to(folder / "2")) for path in (folder / "2").rglob("*") if path.is_file()}
    assert files == {"config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv", "results.json"}
    assert done.stdout.count("Everything lies in") == 1
    assert done.stdout.count("training images in 10 classes") == 1
    assert "sync_dist" not in done.stderr
    assert read_json(folder / "2" / "results.json")["device"].startswith("2 x cpu")
    assert read_json(folder / "2" / "results.json")["epochs"] == 2


def test_a_checkpoint_tests_to_the_same_numbers_on_one_and_two_processes(runs, tmp_path):
    """250 images on each: every one counted once, nothing padded; to the last digit."""
    folder, _ = runs
    checkpoint = f"checkpoint={folder / '2' / 'checkpoints' / 'last.ckpt'}"
    tables = []
    for devices in (1, 2):
        output = tmp_path / f"{devices}.json"
        arguments = (checkpoint, f"devices={devices}", "accelerator=cpu", "eval_batch_size=99", f"output={output}")
        done = run("evaluate", *arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        tables.append(read_json(output)["test"])
    assert tables[0] == tables[1] == read_json(folder / "2" / "results.json")["test"]


def test_a_global_batch_that_does_not_divide_is_refused_with_those_that_do(tmp_path):
    arguments = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "batch_size=15", "output_dir=run")
    done = run("train", *arguments, "trainer.max_epochs=1", folder=tmp_path)
    assert done.returncode != 0
    assert "Set it to 14 or 16" in done.stderr
    assert "Traceback" not in done.stderr


SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=6", "data.val_fraction=0")
STAGES = {
    "ace": (),
    "bbn": (),
    "crt": ("method.head_epochs=1",),
    "dive": (),
    "mislas": ("method.head_epochs=1",),
    "ride": ("method.routing_epochs=1", "method.distill=true", "method.teacher_experts=2"),
    "ssd": ("method.label_epochs=1", "method.rescaling_epochs=1", "method.queue_size=50"),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", STAGES)
def test_two_processes_go_through_all_stages_to_the_weights_of_one(method, tmp_path):
    pytest.importorskip("timm")
    experts = "2" if method in ("ace", "ride") else "1"
    own = (f"network.num_experts={experts}", *STAGES[method], *(("method.max_counts=[20]",) if method == "ace" else ()))
    for devices in (1, 2):
        strategy = ("trainer=ddp", f"trainer.devices={devices}") if devices > 1 else ()
        recipe = (*strategy, f"method={method}", *RECIPE, *SHORT, *own)
        done = run("train", *recipe, f"output_dir={tmp_path / str(devices)}", folder=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (tmp_path / devices for devices in "12")
    checkpoints = sorted(path.relative_to(one) for path in one.rglob("*.ckpt"))
    assert checkpoints
    for path in checkpoints:
        first, second = (torch.load(folder / path, weights_only=True)["state_dict"] for folder in (one, two))
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(
                second[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, at=(path, name): f"{at}: {text}"
            )
    details = [read_json(folder / "results.json")["details"] for folder in (one, two)]
    assert details[0].keys() == details[1].keys()
