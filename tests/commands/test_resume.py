"""A run that breaks off goes on to the same bits, wherever that was."""

from __future__ import annotations

import itertools
import subprocess
from types import SimpleNamespace

import pytest
from benchmarks.crash import differences
from tests.commands.break_off import PowerCut

from mllt.callbacks import MetricsCSV
from mllt.checkpoint import read_checkpoint

SHORT = (
    "network.num_experts=2",
    "trainer.max_epochs=3",
    "schedule.warmup_epochs=1",
    "checkpoints.every_steps=1",
    "batch_size=64",
)


def cut(stage, epochs, batches):
    place = f"{{_target_: tests.commands.break_off.BreakOff, stage: {stage}, epochs: {epochs}, batches: {batches}}}"
    return f"+callbacks.cut={place}"


@pytest.mark.parametrize(
    "settings",
    [
        ("data.num_workers=0",),
        pytest.param(("data.num_workers=2",), marks=pytest.mark.slow),
        pytest.param(("trainer.accumulate_grad_batches=2", "data.val_fraction=0.2"), marks=pytest.mark.slow),
        pytest.param(("optimizer.ema_decay=0.9", "data.val_fraction=0.2"), marks=pytest.mark.slow),
        ("trainer.accumulate_grad_batches=2", "optimizer.ema_decay=0.9", "data.num_workers=2", "data.val_fraction=0.2"),
    ],
    ids="+".join,
)
def test_a_run_breaks_off_within_an_epoch_and_goes_on_to_the_same_bits(settings, mllt_command, tmp_path):
    command = ("train", *SHORT, *settings)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert mllt_command(*command, f"output_dir={whole}").status == 0
    for epochs, batches in ((0, 3), (1, 3), (2, 5)):  # of the first epoch, within one, in the last batches
        with pytest.raises(PowerCut):
            mllt_command(*command, cut("training", epochs, batches), f"output_dir={parts}")
    done = mllt_command(*command, f"output_dir={parts}")
    assert done.status == 0, done.err
    assert differences(whole, parts) == []
    (parts / "results.json").unlink()  # as when it was killed between the last epoch and the test
    assert mllt_command(*command, f"output_dir={parts}").status == 0
    assert differences(whole, parts) == []


@pytest.mark.parametrize(
    ("minutes", "seconds_between", "saved"),
    [(1e-9, None, [4, 5]), (2, 60, [2, 4]), (60, 60, [])],
    ids=["at every step", "at every second step", "not yet"],
)
def test_minutes_that_have_gone_by_are_a_reason_to_save(minutes, seconds_between, saved, mllt_command, tmp_path, monkeypatch):
    if seconds_between is not None:  # by a clock that nobody waits for, which each look moves on
        clock = itertools.count(step=seconds_between)
        monkeypatch.setattr("mllt.callbacks.saving.time", SimpleNamespace(monotonic=lambda: next(clock)))
    within = ("checkpoints.every_steps=null", f"checkpoints.every_minutes={minutes}")
    with pytest.raises(PowerCut):
        mllt_command("train", *SHORT, *within, cut("training", 0, 6), f"output_dir={tmp_path / 'run'}")
    paths = (tmp_path / "run" / "checkpoints").glob("*.ckpt")
    assert sorted(read_checkpoint(path)["global_step"] for path in paths) == saved


@pytest.fixture
def broken_off(mllt_command, tmp_path):
    """The folder of a run that broke off in its second epoch, with two checkpoints."""
    run = tmp_path / "run"
    with pytest.raises(PowerCut):
        mllt_command("train", *SHORT, cut("training", 1, 3), f"output_dir={run}")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    return run


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "cut off":
        content = content[: len(content) // 2]
    elif kind == "empty":
        content = bytearray()
    elif kind == "garbage":
        content = bytearray(b"\xa5" * len(content))
    else:  # in the middle of a tensor
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "kind", ["cut off", "one bit", *(pytest.param(k, marks=pytest.mark.slow) for k in ("empty", "garbage"))]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_gone_on_from(kind, mllt_command, broken_off, tmp_path):
    last, previous = broken_off / "checkpoints" / "last.ckpt", broken_off / "checkpoints" / "previous.ckpt"
    damage(last, kind)
    done = mllt_command("train", *SHORT, f"output_dir={broken_off}")
    assert done.status == 0, done.err
    warning = next(line for line in done.err.splitlines() if line.startswith("Warning: passed over"))
    assert str(last) in warning
    assert "bytes" in warning
    assert f"Going on from {previous}" in warning
    assert mllt_command("train", *SHORT, f"output_dir={tmp_path / 'whole'}").status == 0
    assert differences(tmp_path / "whole", broken_off) == []


def test_where_no_checkpoint_can_be_read_nothing_begins_anew_unasked(mllt_command, broken_off):
    for path in (broken_off / "checkpoints").iterdir():
        damage(path, "cut off")
    before = {path: path.read_bytes() for path in broken_off.rglob("*") if path.is_file()}
    done = mllt_command("train", *SHORT, f"output_dir={broken_off}")
    assert done.status == 2
    assert "none can be read" in done.err
    assert done.err.count(" bytes") == 2, "each with its size"
    assert "overwrite=true" in done.err
    assert {path: path.read_bytes() for path in broken_off.rglob("*") if path.is_file()} == before
    assert mllt_command("train", *SHORT, "overwrite=true", f"output_dir={broken_off}").status == 0


def test_a_run_whose_later_stage_cannot_be_read_begins_that_stage_again(mllt_command, tmp_path):
    crt = ("train", *SHORT, "network.num_experts=1", "method=crt", "method.head_epochs=2")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert mllt_command(*crt, f"output_dir={whole}").status == 0
    with pytest.raises(PowerCut):
        mllt_command(*crt, cut("head", 0, 2), f"output_dir={run}")
    damage(run / "checkpoints" / "last.ckpt", "cut off")
    done = mllt_command(*crt, f"output_dir={run}")
    assert done.status == 0, done.err
    assert "Warning: passed over" in done.err
    assert differences(whole, run) == []


def test_accumulating_over_more_steps_goes_on_at_the_same_image(mllt_command, broken_off):
    """As when a run moves from two devices to one of the same memory."""
    done = mllt_command("train", *SHORT, "trainer.accumulate_grad_batches=2", f"output_dir={broken_off}")
    assert done.status == 0, done.err
    rows = (broken_off / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["5", "11", "17"], "six optimizer steps in every epoch"


def test_what_asks_for_the_number_of_steps_early_does_not_lose_the_place(mllt_command, tmp_path):
    asks = "+callbacks.asks={_target_: tests.commands.break_off.AsksEarly}"
    command = ("train", *SHORT, asks, "data.num_workers=2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert mllt_command(*command, f"output_dir={whole}").status == 0
    with pytest.raises(PowerCut):
        mllt_command(*command, cut("training", 1, 3), f"output_dir={parts}")
    assert mllt_command(*command, f"output_dir={parts}").status == 0
    assert differences(whole, parts) == []


def test_a_disk_that_fills_up_ends_the_run_with_the_last_good_checkpoint(mllt_command, small_disk, tmp_path):
    command = ("train", *SHORT, f"output_dir={small_disk / 'run'}")
    done = mllt_command(*command)  # there is room for one
    assert done.status == 2
    assert "No space left on device" in done.err
    assert "still whole" in done.err
    checkpoints = small_disk / "run" / "checkpoints"
    read_checkpoint(checkpoints / "last.ckpt")
    assert not list(checkpoints.glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert mllt_command(*command).status == 0
    assert mllt_command("train", *SHORT, f"output_dir={tmp_path / 'whole'}").status == 0
    assert differences(tmp_path / "whole", small_disk / "run") == []


def test_a_power_cut_between_an_epochs_checkpoint_and_its_curves_loses_no_row(mllt_command, tmp_path, monkeypatch):
    command = ("train", *SHORT[:3], "batch_size=64", "network.num_experts=1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert mllt_command(*command, f"output_dir={whole}").status == 0

    def before_the_second_row(self):
        if "train/loss" in self._rows.get(2, {}):
            raise PowerCut
        written(self)

    written = MetricsCSV.save
    monkeypatch.setattr(MetricsCSV, "save", before_the_second_row)
    with pytest.raises(PowerCut):
        mllt_command(*command, f"output_dir={parts}")
    monkeypatch.undo()
    assert mllt_command(*command, f"output_dir={parts}").status == 0
    assert differences(whole, parts) == []


@pytest.mark.parametrize(
    "method", [("method=bbn",), pytest.param(("method=mislas", "method.head_epochs=2"), marks=pytest.mark.slow)], ids="+".join
)
def test_a_run_goes_on_to_the_same_bits_with_its_batches_made_elsewhere(method, mllt_command, tmp_path):
    """As when a run of loader processes moves to a GPU, or back."""
    command = ("train", *method, *SHORT[1:], "trainer.max_epochs=2", "data.rotation=15")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert mllt_command(*command, f"output_dir={whole}").status == 0
    here, there = "data.on_device=true", "data.on_device=false"
    stage = "head" if "method=mislas" in method else "training"
    for setting, epochs, batches in ((here, 0, 3), (there, 1, 2)):
        with pytest.raises(PowerCut):
            mllt_command(*command, setting, cut(stage, epochs, batches), f"output_dir={parts}")
    done = mllt_command(*command, here, f"output_dir={parts}")
    assert done.status == 0, done.err
    assert f"Going on from {parts / 'checkpoints' / 'last.ckpt'}" in done.out
    assert differences(whole, parts) == ["results.json: command"], "the last one typed where batches are made"
