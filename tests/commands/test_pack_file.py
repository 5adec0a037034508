"""`python -m mllt.pack` of CIFAR's subsets, and training from the file that it wrote."""

from __future__ import annotations

import pytest
import torch
from tests.commands.conftest import read_json
from tests.data.make_cifar import FACTOR, save_cifar10

from mllt.data import CIFAR10LT

SUBSET = ("experiment=cifar10_lt", f"data.imbalance_factor={FACTOR}")
QUICK = (
    "network=resnet20",
    "network.num_experts=2",
    "trainer.max_epochs=1",
    "schedule.warmup_epochs=0",
    "batch_size=16",
    "trainer.limit_train_batches=2",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_cifar10(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture
def folder(files, monkeypatch):
    files.make_known(monkeypatch)
    return files.root


@pytest.fixture
def packed(folder, mllt_command, tmp_path):
    """A packed file, written by the command into the folder where it is typed."""
    done = mllt_command("pack", *SUBSET, f"data.root={folder}", "output=cifar10-lt.mllt")
    assert done.status == 0, done.err
    path = tmp_path / "here" / "cifar10-lt.mllt"
    module = CIFAR10LT(folder, imbalance_factor=FACTOR)
    assert f"{len(module.train_indices):,} training and 30 test images, {path.stat().st_size:,} bytes, written" in done.out
    assert "To train from them: data.root=cifar10-lt.mllt" in done.out
    return path


def test_a_run_from_the_file_is_the_run_from_the_folder_to_the_bit(packed, folder, mllt_command, tmp_path):
    for name, root in (("folder", folder), ("file", "cifar10-lt.mllt")):
        where = (f"data.root={root}", f"output_dir={tmp_path / name}")
        done = mllt_command("train", *SUBSET, *QUICK, *where)
        assert done.status == 0, done.err
    weights = [torch.load(tmp_path / f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("folder", "file")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    folders, files = (read_json(tmp_path / f"{name}/results.json") for name in ("folder", "file"))
    assert folders["test"] == files["test"]
    assert folders["data_digest"] == files["data_digest"], "what runs must have in common to be averaged"


def test_verify_tells_whether_the_file_is_whole(packed, mllt_command):
    whole = mllt_command("pack", f"verify={packed}")
    assert (whole.status, whole.err) == (0, "")
    assert "training images and 30 test images, read whole: nothing is damaged" in whole.out
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    packed.write_bytes(content)
    for damaged in (bytes(content), bytes(content[:-1]), b"something else"):
        packed.write_bytes(damaged)
        done = mllt_command("pack", f"verify={packed}")
        assert (done.status, done.out) == (1, "")
        assert done.err.startswith("Error: ")
        assert str(packed) in done.err
        assert done.err.count("\n") == 1


def test_nothing_is_written_over_unless_asked(packed, folder, mllt_command):
    before = packed.stat().st_ino
    again = ("pack", *SUBSET, f"data.root={folder}", "output=cifar10-lt.mllt")
    done = mllt_command(*again)
    assert done.status == 2
    assert "is there already. Choose another output, or replace it: overwrite=true" in done.err
    assert packed.stat().st_ino == before
    assert mllt_command(*again, "overwrite=true").status == 0
    assert packed.stat().st_ino != before
    assert [path.name for path in packed.parent.iterdir()] == [packed.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=shards"], "is packed as format=file, not shards: leave format out"),
        (["short_side=16"], "is packed without loss: leave short_side out"),
        (["overwrite=1"], "`overwrite`"),
        (["data.root=nowhere"], "or at a file of python -m mllt.pack"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_type(mllt_command, folder, tmp_path, arguments, message):
    done = mllt_command("pack", *SUBSET, f"data.root={folder}", "output=x", *arguments)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list((tmp_path / "here").iterdir()) == []
