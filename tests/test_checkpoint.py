"""Reading checkpoints: what is damaged, hostile or somebody else's is refused with a helpful error, and nothing is run."""

import pickle
import zipfile
from fractions import Fraction
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mllt import MutualLTModule, load_checkpoint
from mllt.checkpoint import FORMAT, KEY, export_model, plain_values, read_checkpoint
from mllt.errors import ArgumentError, CheckpointError

pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning:lightning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
]

OURS = {KEY: {"format": FORMAT, "method": "mutual", "version": "0"}, "state_dict": {}, "hyper_parameters": {}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a real training."""
    folder = tmp_path_factory.mktemp("run")
    loader = DataLoader(TensorDataset(torch.randn(12, 3, 8, 8), torch.arange(12) % 3), batch_size=6)
    module = MutualLTModule(class_counts=[4, 4, 4], network="resnet20", shared="none", width=0.25, num_experts=2)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder)
    trainer.fit(module, loader)
    (path,) = folder.rglob("*.ckpt")  # Lightning's own ModelCheckpoint wrote it
    return path


class Payload:
    """Runs code when a pickle of it is loaded the unsafe way: it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "run")


def refused(path):
    """Both ways to open a file refuse it; returns the message."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    return message


def test_a_real_checkpoint_holds_tensors_and_plain_values_only(trained):
    content = torch.load(trained, weights_only=True)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "hyper_parameters", KEY} <= set(content)
    assert set(read_checkpoint(trained)) == set(content)
    assert set(content[KEY]) == {"format", "method", "subclass", "stage", "version", "class_names", "preprocessing"}
    assert type(content["hyper_parameters"]) is dict


def test_a_path_may_be_a_string(trained):
    assert read_checkpoint(str(trained))["epoch"] == read_checkpoint(trained)["epoch"]


def test_the_same_model_is_exported_to_the_same_bytes(trained, tmp_path):
    def of_other_texts(value):
        """Equal, but made of texts that are not the same objects, as after going on."""
        if isinstance(value, dict):
            return {of_other_texts(key): of_other_texts(item) for key, item in value.items()}
        if isinstance(value, list):
            return [of_other_texts(item) for item in value]
        return "".join(list(value)) if isinstance(value, str) else value

    torch.save(of_other_texts(torch.load(trained, weights_only=True)), tmp_path / "other.ckpt")
    first = export_model(trained, tmp_path / "first" / "model.ckpt")
    assert export_model(tmp_path / "other.ckpt", tmp_path / "second" / "model.ckpt") == first
    assert "optimizer_states" not in read_checkpoint(tmp_path / "first" / "model.ckpt")


@pytest.mark.parametrize("where", ["beside the weights", "in the hyper-parameters", "alone", "in an old-style file"])
def test_code_in_a_file_is_not_run(tmp_path, where):
    def write(name):
        payload, path = Payload(tmp_path / f"{name}.txt"), tmp_path / f"{name}.ckpt"
        if where == "in an old-style file":
            path.write_bytes(pickle.dumps({**OURS, "extra": payload}))
        elif where == "in the hyper-parameters":
            torch.save({**OURS, "hyper_parameters": {"lr": payload}}, path)
        else:
            torch.save(payload if where == "alone" else {**OURS, "extra": payload}, path)
        return path

    control = write("control")  # the payload works: without protection it is run
    if where == "in an old-style file":
        pickle.loads(control.read_bytes())
    else:
        torch.load(control, weights_only=False)
    assert (tmp_path / "control.txt").exists()
    refused(write("attack"))
    assert not (tmp_path / "attack.txt").exists()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused_and_told_to_be(trained, tmp_path, share):
    whole = trained.read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "it is cut off or damaged: the list of its parts, at the end, is missing" in refused(path)


GARBAGE = [
    (b"", "it is empty: the disk was full"),
    (b"\0", "it begins with zeros"),
    (bytes(5000), "it begins with zeros: its blocks were never written"),
    (b"\x80", "a bare pickle"),
    (b"\x80\x02}q\x00.", "a bare pickle"),
    (b"garbage", "it is a text, which begins 'garbage'"),
    (b"garbage " * 1000, "it is a text"),
    (b"<!DOCTYPE html><html>not found</html>", "it is a text, which begins '<!DOCTYPE html>"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a pointer of Git LFS"),
    (b"PK\x03\x04", "it is cut off or damaged"),
    (bytes(range(256)) * 20, "its beginning is damaged, or another program wrote it"),
    (b"\x93NUMPY\x01\x00v\x00{'descr'}", "another program wrote it"),
]


@pytest.mark.parametrize(("content", "cause"), GARBAGE, ids=[cause for _, cause in GARBAGE])
def test_garbage_is_refused_with_its_size_and_likely_cause(tmp_path, content, cause):
    path = tmp_path / "garbage.ckpt"
    path.write_bytes(content)
    message = refused(path)
    assert cause in message
    assert f"({len(content):,} bytes)" in message
    assert message.isprintable()


def test_zeros_in_the_place_of_a_part_are_found(trained, tmp_path):
    whole = trained.read_bytes()
    path = tmp_path / "holes.ckpt"
    for place in range(0, len(whole) - 4096, len(whole) // 12):  # lost blocks of a disk
        path.write_bytes(whole[:place] + bytes(4096) + whole[place + 4096 :])
        assert f"({len(whole):,} bytes)" in refused(path)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and type(one) is type(other)


def test_one_flipped_bit_anywhere_is_found_or_changes_nothing(trained, tmp_path):
    """In a file of 240 kB: at 150 places over the whole, and at 150 in what lists its parts."""
    whole, expected = trained.read_bytes(), read_checkpoint(trained)
    path, found = tmp_path / "flipped.ckpt", 0
    listing = whole.index(b"PK\x01\x02")
    for part in (range(0, len(whole), len(whole) // 150), range(listing, len(whole), (len(whole) - listing) // 150)):
        for place in part:
            path.write_bytes(flip(whole, place))
            try:
                assert same(read_checkpoint(path), expected), place
            except CheckpointError:
                found += 1
    assert found > 150


def test_no_message_advises_to_switch_the_protection_off(tmp_path):
    path = tmp_path / "attack.ckpt"
    torch.save({**OURS, "extra": Payload(tmp_path / "file.txt")}, path)
    message = refused(path)
    assert "plain values only" in message
    assert "weights_only" not in message
    assert "\x1b" not in message  # nor colours them
    assert "will likely succeed" not in message
    assert "you trust" not in message


def flip(content, position):
    return content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :]


def test_a_flipped_bit_among_the_weights_is_found(trained, tmp_path):
    largest = max(zipfile.ZipFile(trained).infolist(), key=lambda member: member.file_size * ("/data/" in member.filename))
    whole = trained.read_bytes()
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(flip(whole, largest.header_offset + largest.file_size // 2))
    assert "damaged" in refused(path)


def test_a_missing_file_is_named_and_so_are_its_neighbours(trained):
    with pytest.raises(CheckpointError, match="there is none at") as caught:
        read_checkpoint(trained.parent / "wrong.ckpt")
    assert str(trained) in str(caught.value)
    with pytest.raises(CheckpointError, match="there is none at") as caught:
        read_checkpoint(trained.parent.parent / "wrong.ckpt")  # looks into checkpoints/, too
    assert str(trained) in str(caught.value)


def test_a_folder_is_not_a_checkpoint_and_the_error_says_where_one_may_be(tmp_path):
    assert str(tmp_path / "checkpoints" / "last.ckpt") in refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"weight": torch.zeros(2)}, "epoch": 3, "pytorch-lightning_version": "2.6.0"},
        {"mllt": "mutual"},
        {"mllt": {"format": FORMAT}},
        {"mllt": {"format": FORMAT, "method": 3}},
        [1, 2, 3],
        torch.zeros(3),
    ],
    ids=["lightning", "string", "no method", "method is no name", "list", "tensor"],
)
def test_somebody_elses_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "foreign.ckpt"
    torch.save(content, path)
    assert "says nothing of a method" in refused(path)


def test_another_format_names_the_version_that_wrote_it(tmp_path):
    path = tmp_path / "future.ckpt"
    torch.save({**OURS, KEY: {"format": FORMAT + 1, "method": "mutual", "version": "9.8.7"}}, path)
    message = refused(path)
    assert f"format {FORMAT + 1}" in message
    assert "9.8.7" in message


@pytest.mark.parametrize(
    "changed",
    [
        {"hyper_parameters": {}},
        {"hyper_parameters": None},
        {"hyper_parameters": [1]},
        {"state_dict": {}},
        {"state_dict": None},
        {"state_dict": [torch.zeros(2)]},
    ],
    ids=str,
)
def test_a_checkpoint_without_its_parts_is_refused(trained, tmp_path, changed):
    path = tmp_path / "parts.ckpt"
    torch.save({**torch.load(trained, weights_only=True), **changed}, path)
    with pytest.raises(CheckpointError, match=r"parts\.ckpt"):
        load_checkpoint(path)


def test_weights_of_another_size_are_refused(trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    content["hyper_parameters"]["width"] = 0.5
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"Expected .*other.ckpt to fit MutualLTModule, but it does not"):
        load_checkpoint(path)


def test_a_setting_that_no_version_had_is_refused(trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    content["hyper_parameters"]["colour"] = "red"
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="colour"):
        load_checkpoint(path)


def test_a_damaged_setting_is_the_files_fault_and_not_the_callers(trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    content["hyper_parameters"]["schedule"] = "multi3tep"
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"other\.ckpt"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(2), 2),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Fraction(1, 4), 0.25),
        (range(3), [0, 1, 2]),
        ({"a": (torch.tensor(1.5), None)}, {"a": [1.5, None]}),
    ],
    ids=repr,
)
def test_settings_become_pythons_own_values(value, plain):
    result = plain_values(value)
    assert result == plain
    assert type(result) is type(plain)


@pytest.mark.parametrize("value", [object(), b"bytes", 1j, torch.nn.ReLU, {"a": [len]}], ids=lambda value: type(value).__name__)
def test_a_setting_that_no_checkpoint_can_hold_is_refused_at_once(value):
    with pytest.raises(ArgumentError, match="what a checkpoint can hold, but got"):
        plain_values(value)
