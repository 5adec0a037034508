"""A run that breaks off on two processes goes on on one, two or four; and all processes stop where one is asked to."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from benchmarks.crash import differences

pytestmark = pytest.mark.slow

#: A transformer has no batch statistics, which differ between devices. 321 images in batches of 32: uneven shares.
RECIPE = (
    "method=dive",  # it adds up over the epoch on every device
    "network=timm",
    "network.name=timm/vit_tiny_patch16_224",
    "network.network_options={img_size: 8, patch_size: 2, depth: 2, embed_dim: 48, num_heads: 3}",
    "network.num_experts=1",
    "batch_size=32",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "schedule.warmup_epochs=1",
    "checkpoints.every_steps=1",
)
CUT = "+callbacks.cut={_target_: tests.commands.break_off.BreakOff, stage: student, epochs: 1, batches: 5}"


def start(folder, run, devices, *more):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLLT_RUN", "MLLT_FULL"))}
    strategy = ("trainer=ddp", f"trainer.devices={devices}") if devices > 1 else ()
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return subprocess.Popen(
        [sys.executable, "-m", "mllt.train", *strategy, *RECIPE, *more, f"output_dir={run}"],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that went through on one process."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, folder / "run", 1)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return folder / "run"


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_run_of_two_processes_goes_on_within_an_epoch_on_another_number(devices, whole, tmp_path):
    process = start(tmp_path, tmp_path / "run", 2, CUT)
    process.communicate(timeout=300)
    assert process.returncode != 0
    process = start(tmp_path, tmp_path / "run", devices)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    first, second = (rows(run / "metrics.csv") for run in (whole, tmp_path / "run"))
    assert [row["step"] for row in first] == [row["step"] for row in second]
    for one, other in zip(first, second, strict=True):
        for name in ("train/loss", "train/distillation", "lr"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-5), name
    one, other = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, tmp_path / "run"))
    assert one["mllt"]["virtual_examples"] == pytest.approx(torch.tensor(other["mllt"]["virtual_examples"]), rel=1e-4)
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], value, rtol=1e-4, atol=1e-5)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_both_processes_save_and_stop_where_one_is_asked_to(tmp_path):
    pytest.importorskip("timm")
    run = tmp_path / "run"
    process = start(tmp_path, run, 2, "trainer.max_epochs=10000", "schedule=constant")
    deadline = time.monotonic() + 200
    while not (run / "stages" / "teacher" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # the first process only
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.count("Stopped by SIGTERM in epoch") == 1, "told once"
    assert "Traceback" not in err
    left = subprocess.run(["pgrep", "-f", str(run)], capture_output=True, text=True).stdout
    assert not left, "no process is left behind"


def test_two_processes_train_the_same_bits_wherever_their_batches_are_made(tmp_path):
    pytest.importorskip("timm")
    for setting in ("true", "false"):
        process = start(tmp_path, tmp_path / setting, 2, "method=bbn", f"data.on_device={setting}", "data.rotation=15")
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert differences(tmp_path / "true", tmp_path / "false") == []
