"""`python -m mllt.pack`, and training from what it wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from benchmarks.crash import differences
from tests.commands.break_off import PowerCut
from tests.commands.conftest import read_json
from tests.data.make_images import save_pictures

from mllt.checkpoint import read_checkpoint
from mllt.data import packing
from mllt.data.shards import INDEX, open_shards, shard_file

pytest.importorskip("litdata", reason="needs the extra shards")

COUNTS = {"cat": 12, "dog": 6, "eel": 3}


@pytest.fixture
def pictures(tmp_path):
    """Pictures in class folders, with a test split."""
    root = tmp_path / "pictures"
    save_pictures(root, [f"train/{name}/{i}.jpg" for name, count in COUNTS.items() for i in range(count)])
    save_pictures(root, [f"test/{name}/{i}.jpg" for name in COUNTS for i in range(2)])
    return root


@pytest.fixture
def pack(mllt_command, pictures, tmp_path):
    """Pack the pictures into `tmp_path/shards`."""

    def command(*more):
        return mllt_command("pack", "experiment=folder_lt", f"data.root={pictures}", f"output={tmp_path / 'shards'}", *more)

    return command


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_packed_pictures_are_counted_and_a_run_from_them_is_the_run_from_files(pack, mllt_command, pictures, tmp_path):
    done = pack("shard_mb=0.004")
    assert done.status == 0, done.err
    assert "folder pictures: 27 pictures in 8 shards" in done.out
    assert f"data.storage=shards data.root={tmp_path / 'shards'}" in done.out
    small = ["trainer.max_epochs=1", "data.image_size=16", "network=resnet20", "network.num_experts=2", "batch_size=7"]
    for name, root in (("files", pictures), ("shards", tmp_path / "shards")):
        where = [f"data.root={root}", f"data.storage={name}", f"output_dir={tmp_path / name}-run"]
        done = mllt_command("train", "experiment=folder_lt", *where, *small, "data.num_workers=0", "schedule.warmup_epochs=0")
        assert done.status == 0, done.err
    files, shards = (read_json(tmp_path / f"{name}-run/results.json") for name in ("files", "shards"))
    assert files["test"] == shards["test"]
    assert files["data_digest"] == shards["data_digest"]
    weights = [
        torch.load(tmp_path / f"{name}-run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("files", "shards")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    # and the test again, from the shards, of the run that was made from files, and the other way round
    moved = mllt_command("evaluate", f"checkpoint={tmp_path}/shards-run/checkpoints/last.ckpt", f"output={tmp_path}/again.json")
    assert moved.status == 0, moved.err
    assert read_json(tmp_path / "again.json")["test"] == shards["test"]


def test_a_run_from_shards_that_breaks_off_goes_on_to_the_same_bits(pack, mllt_command, tmp_path):
    assert pack("shard_mb=0.004").status == 0
    where = ("data.storage=shards", f"data.root={tmp_path / 'shards'}", "data.image_size=16", "data.num_workers=2")
    small = ("network=resnet20", "network.num_experts=1", "trainer.max_epochs=2", "batch_size=7", "schedule.warmup_epochs=0")
    command = ("train", "experiment=folder_lt", "method=cross_entropy", *where, *small, "checkpoints.every_steps=1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert mllt_command(*command, f"output_dir={whole}").status == 0
    for epochs in (0, 1):
        cut = f"{{_target_: tests.commands.break_off.BreakOff, stage: training, epochs: {epochs}, batches: 2}}"
        with pytest.raises(PowerCut):
            mllt_command(*command, f"+callbacks.cut={cut}", f"output_dir={parts}")
    assert read_checkpoint(parts / "checkpoints" / "last.ckpt")["global_step"] == 4, "within the second epoch"
    assert mllt_command(*command, f"output_dir={parts}").status == 0
    assert differences(whole, parts) == []


def test_each_split_is_one_file_where_no_size_is_given_and_large_pictures_are_scaled_down(pack, mllt_command, tmp_path):
    done = pack("shard_mb=null", "short_side=20", "jpeg_quality=80")
    assert done.status == 0, done.err
    assert "27 pictures in 2 shards" in done.out
    index = open_shards(tmp_path / "shards").index
    assert index.about["scaled"] == {"short_side": 20, "quality": 80}
    assert mllt_command("pack", f"verify={tmp_path / 'shards'}").status == 0


def test_damage_is_named_and_gives_status_one(pack, mllt_command, tmp_path):
    pack("shard_mb=0.004")
    shards = tmp_path / "shards"
    whole = mllt_command("pack", f"verify={shards}")
    assert (whole.status, whole.err) == (0, "")
    assert "27 pictures in 8 shards" in whole.out
    assert "nothing is damaged" in whole.out
    index = open_shards(shards).index
    flip(shards / shard_file(2), int(index.offsets[index.firsts[2] + 1]))
    (shards / shard_file(5)).unlink()
    broken = mllt_command("pack", f"verify={shards}")
    assert broken.status == 1
    picture = os.fsdecode(index.paths[index.firsts[2] + 1])
    assert f"{shards}/chunk-0-2.bin: {picture} is not what was packed\n" in broken.out
    assert f"{shards}/chunk-0-5.bin: there is no file" in broken.out
    assert broken.err == f"Error: In {shards}, 2 of 8 shards cannot be used. Pack the pictures again.\n"


def test_shards_in_a_store_are_verified_as_they_lie_there(pack, mllt_command, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack("shard_mb=0.004")
    assert mllt_command("pack", f"verify='local:{tmp_path / 'shards'}'").status == 0
    flip(tmp_path / "shards" / shard_file(0), 500)
    broken = mllt_command("pack", f"verify='local:{tmp_path / 'shards'}'")
    assert broken.status == 1
    assert "local:" in broken.out
    assert not (tmp_path / "cache").exists(), "what is verified is not kept"


def test_nothing_is_written_over(pack, tmp_path):
    pack()
    before = {path: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    again = pack()
    assert again.status == 2
    assert "holds shards already. Choose another output, or type python -m mllt.pack verify=" in again.err
    assert before == {path: path.read_bytes() for path in (tmp_path / "shards").iterdir()}


@pytest.mark.parametrize("held", ["a file", "a folder", "the pictures"])
def test_an_output_that_holds_something_else_is_refused(pack, pictures, tmp_path, held):
    output = tmp_path / "shards"
    if held == "a file":
        output.write_text("mine")
    elif held == "a folder":
        output.mkdir()
        (output / "mine.txt").write_text("mine")
    else:
        output = pictures / "shards"
    done = pack(f"output={output}")
    assert done.status == 2
    assert {"a file": "but .* is a file", "a folder": "is not empty", "the pictures": "outside the pictures"}[held].split(".*")[
        0
    ] in done.err
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected `output` (a folder to pack into) or `verify`"),
        (["output=x"], "Expected a data set to pack. Type experiment=... or data=..."),
        (["output=x", "experiment=digits_lt"], "loose picture files, but Digits-LT"),
        (["output=x", "experiment=folder_lt", "data.root=y", "data.storage=shards"], "is to be read from shards"),
        (["output=x", "experiment=folder_lt"], "`data.root` has no default"),
        (["output=x", "experiment=folder_lt", "data.root=nowhere"], "nowhere, but there is none"),
        (["output=x", "experiment=folder_lt", "data.rot=y"], "Did you mean 'root'"),
        (["output=x", "experiment=folder_lt", "data.root=y", "format=shard"], "Did you mean 'shards'"),
        (
            ["output=x", "experiment=folder_lt", "data.root=y", "shard_mb=0"],
            "`shard_mb` to be a number of at most 4000 and above 0",
        ),
        (["output=x", "experiment=folder_lt", "data.root=y", "short_side=0"], "`short_side` to be a whole number"),
        (["output=x", "experiment=folder_lt", "data.root=y", "jpeg_quality=101"], "`jpeg_quality` to be a whole number"),
        (["output=x", "experiment=folder_lt", "data.root=y", "num_workers=0"], "`num_workers` to be a whole number"),
        (["verify=x", "experiment=folder_lt"], "leave the experiment and the data out"),
        (["verify=nowhere"], "there is no mllt-shards.npz"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_type(mllt_command, tmp_path, arguments, message):
    done = mllt_command("pack", *arguments)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list((tmp_path / "here").iterdir()) == []


def test_what_was_interrupted_is_not_taken_for_whole_and_goes_on(pack, mllt_command, tmp_path, monkeypatch):
    shards, write, calls = tmp_path / "shards", packing._write_shard, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(packing, "_write_shard", interrupted)
    stopped = pack("shard_mb=0.004", "num_workers=1")
    assert (stopped.status, stopped.err) == (130, "Interrupted.\n")
    assert not (shards / INDEX).exists()
    assert not (shards / "index.json").exists()
    assert mllt_command("pack", f"verify={shards}").status == 2
    written = {path: path.stat().st_ino for path in shards.glob("*.bin")}
    assert len(written) >= 3
    calls_before = len(calls)
    done = pack("shard_mb=0.004", "num_workers=1")
    assert done.status == 0, done.err
    assert len(calls) - calls_before == 8 - len(written), "what was whole was written again"
    assert written.items() <= {path: path.stat().st_ino for path in shards.glob("*.bin")}.items()
    assert mllt_command("pack", f"verify={shards}").status == 0
    assert not (shards / "packing").exists()


def test_pictures_that_changed_since_the_interruption_are_packed_as_they_are_now(pack, pictures, tmp_path, monkeypatch):
    shards, write = tmp_path / "shards", packing._write_shard

    def interrupted(folder, shard, *arguments):
        if shard == 7:
            raise KeyboardInterrupt
        write(folder, shard, *arguments)

    monkeypatch.setattr(packing, "_write_shard", interrupted)
    assert pack("shard_mb=0.004", "num_workers=1").status == 130
    monkeypatch.undo()
    for path in pictures.rglob("*.jpg"):
        flip(path, 15)  # a byte of the header that says nothing: the size stays
    assert pack("shard_mb=0.004").status == 0
    packed = open_shards(shards)
    for number, path in enumerate(packed.index.paths):
        assert packed.picture(number) == (pictures / os.fsdecode(path)).read_bytes()


def test_shards_that_cannot_be_read_back_are_told_and_written_again(pack, mllt_command, tmp_path, monkeypatch):
    shards, write = tmp_path / "shards", packing._write_shard

    def failing_disk(folder, shard, *arguments):
        write(folder, shard, *arguments)
        if shard == 1:
            flip(folder / shard_file(shard), 1000)

    monkeypatch.setattr(packing, "_write_shard", failing_disk)
    done = pack("shard_mb=0.004")
    assert done.status == 2
    assert "is not what was read: " in done.err
    assert "chunk-0-1.bin" in done.err
    assert not (shards / INDEX).exists()
    monkeypatch.undo()
    assert pack("shard_mb=0.004").status == 0
    assert mllt_command("pack", f"verify={shards}").status == 0


KILLED = """
import os, sys, threading
from mllt.checkpoint import read_checkpoint
from mllt.data import packing
write, count = packing._write_shard, iter(range(int(sys.argv.pop(1))))
def dying(*arguments):
    if next(count, None) is None:
        print("now", flush=True)
        threading.Event().wait()
    write(*arguments)
packing._write_shard = dying
from mllt.pack import main
main()
"""


@pytest.mark.slow
def test_a_killed_packing_goes_on_where_it_was_and_begins_anew_when_pictures_changed(pack, mllt_command, pictures, tmp_path):
    shards = tmp_path / "shards"
    arguments = ["experiment=folder_lt", f"data.root={pictures}", f"output={shards}", "shard_mb=0.004", "num_workers=1"]

    def kill_after(number):
        (tmp_path / "killed.py").write_text(KILLED)
        path = os.pathsep.join(entry for entry in sys.path if entry)
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "killed.py"), str(number), *arguments],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
        )
        assert process.stdout.readline() == "now\n"
        if number == 3:  # meanwhile, a second one
            second = pack("shard_mb=0.004")
            assert second.status == 2
            assert "is writing to it. Wait until it is done" in second.err
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (shards / INDEX).exists()
        assert mllt_command("pack", f"verify={shards}").status == 2
        return {path.name: path.stat().st_ino for path in shards.glob("*.bin")}

    first = kill_after(3)
    assert len(first) == 3
    (shards / "packing" / "3").mkdir(exist_ok=True)
    (shards / "packing" / "3" / "chunk-0-3.bin").write_bytes(b"half")  # as of a write that was cut short
    second = kill_after(2)
    assert len(second) == 5
    assert first.items() <= second.items(), "what was whole was written again"
    time.sleep(0.01)
    save_pictures(pictures, ["train/eel/new.jpg"])
    done = pack("shard_mb=0.004", "num_workers=1")
    assert done.status == 0, done.err
    assert "28 pictures" in done.out
    assert mllt_command("pack", f"verify={shards}").status == 0
    assert not (shards / "packing").exists()
    assert b"train/eel/new.jpg" in open_shards(shards).index.paths
