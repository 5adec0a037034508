"""CIFAR's subsets from one packed file: what is trained on is what the original files give."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.make_cifar import FACTOR, Files, save_cifar10
from tests.data.make_images import assert_same_batches, real_data

from mllt.data import CIFAR10LT, CIFAR100LT
from mllt.data.arrays import DeviceArrays, DeviceSource
from mllt.data.packed_arrays import PackedArrays, read, write
from mllt.data.sources import ArraySource
from mllt.data.subsets import long_tailed_indices
from mllt.errors import ArgumentError, DataError
from mllt.longtail import profile_counts


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    return save_cifar10(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture
def folder(files, monkeypatch) -> Path:
    """CIFAR-10's own files, as far as torchvision knows."""
    files.make_known(monkeypatch)
    return files.root


@pytest.fixture(scope="module")
def packed(files, tmp_path_factory) -> Path:
    """A file of the subset, with two more images per class; read it, do not change it."""
    path = tmp_path_factory.mktemp("packed") / "cifar10-lt.mllt"
    with pytest.MonkeyPatch.context() as monkeypatch:
        files.make_known(monkeypatch)
        write(path, cifar10(files.root, val_images=2).to_pack())
    return path


def cifar10(root: Path, **settings) -> CIFAR10LT:
    return CIFAR10LT(root, **{"imbalance_factor": FACTOR, **settings})


def assert_same_data(ours, theirs):
    """All that a run takes from its data, to the bit."""
    ours.setup()
    theirs.setup()
    for name in ("train", "val", "test"):
        mine, other = getattr(ours.splits, name), getattr(theirs.splits, name)
        assert (mine is None) == (other is None)
        if mine is not None:
            assert torch.equal(mine.load(np.arange(len(mine))), other.load(np.arange(len(other)))), name
            assert mine.labels.tolist() == other.labels.tolist()
            assert mine.rows.tolist() == other.rows.tolist()
    assert_same_batches([next(iter(ours.train_dataloader()))], [next(iter(theirs.train_dataloader()))])
    assert ours.train_indices.tolist() == theirs.train_indices.tolist()
    assert ours.class_names == theirs.class_names
    assert ours.fingerprint == theirs.fingerprint
    assert ours.summary() == theirs.summary()


@pytest.mark.parametrize(
    "settings", [{}, {"val_images": 2}, {"val_images": 1, "rotation": 15.0}, {"val_fraction": 0.2, "seed": 5}]
)
def test_one_file_serves_every_subset_whose_images_it_holds(folder, packed, settings):
    assert_same_data(cifar10(folder, **settings), cifar10(packed, **settings))


def test_only_the_images_of_the_subset_are_packed_and_held(folder, packed):
    module = cifar10(folder)
    packed_again = cifar10(packed).to_pack()
    assert packed_again.equals(module.to_pack())
    assert packed_again.rows.tolist() == sorted(module.train_indices)
    assert len(packed_again.images) == len(module.train_indices) < len(packed_again.labels)
    assert len(cifar10(packed).splits.train.images) == len(read(packed).images) == len(packed_again.images) + 18


def test_images_that_are_not_in_the_file_are_counted_with_what_to_type(folder, packed, tmp_path):
    cifar10(folder, subset_seed=1).setup()
    with pytest.raises(DataError) as caught:
        cifar10(packed, subset_seed=1, val_images=1).setup()
    wanted = "data.profile=exponential data.imbalance_factor=5000 data.val_images=1 data.subset_seed=1"
    for part in (f"Expected {packed} to hold the 8,", f"images of {wanted}, but ", "python -m mllt.pack experiment=cifar10_lt"):
        assert part in str(caught.value)
    assert str(caught.value).endswith(f"{wanted} data.root=FOLDER output=FILE")
    missing = int(re.search(r"but ([\d,]+) of them", str(caught.value))[1].replace(",", ""))
    there = read(packed).rows
    theirs = cifar10(folder, subset_seed=1, val_images=1).to_pack().rows
    assert missing == len(np.setdiff1d(theirs, there)) > 0
    with pytest.raises(DataError, match="of them are not among its"):
        cifar10(packed, subset_seed=1).to_pack()


def test_a_source_hands_out_no_image_that_it_does_not_hold():
    images = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    labels, places = [0, 1, 2, 3], np.array([-1, 1, -1, 0])
    source = ArraySource(images, labels, np.array([3, 1, 3]), places)
    assert source.load(np.array([0, 1, 2]))[:, 0, 0, 0].tolist() == [0, 1, 0]
    assert source.labels.tolist() == [3, 1, 3]
    assert source.subset(np.array([1])).load(np.array([0]))[:, 0, 0, 0].tolist() == [1]
    on_device = DeviceSource(source, DeviceArrays(), torch.device("cpu"))
    assert torch.equal(on_device.load(np.array([0, 1])), source.load(np.array([0, 1])))
    for rows in (None, np.array([3, 2])):
        with pytest.raises(DataError, match="all images that are asked for to be held"):
            ArraySource(images, labels, rows, places)
    with pytest.raises(DataError, match="one label per image, but got 2 images and 4 labels"):
        ArraySource(images, labels)


def test_a_file_of_another_data_set_is_told(packed, tmp_path):
    with pytest.raises(DataError, match=f"Expected {packed} to hold images of CIFAR100, but it holds CIFAR10"):
        CIFAR100LT(packed).setup()
    grey = np.zeros((2, 32, 32, 3), np.uint8)
    few = PackedArrays("CIFAR100", ["a", "b"], np.array([0, 1]), np.array([0, 1]), grey, np.array([0, 1]), grey)
    write(tmp_path / "few", few)
    with pytest.raises(DataError, match="to hold images of CIFAR100"):
        CIFAR100LT(tmp_path / "few").setup()


def test_nothing_is_downloaded_into_a_file(packed):
    before = packed.read_bytes()
    with pytest.raises(ArgumentError, match=r"is a file, into which nothing is downloaded: leave data\.download=true out"):
        CIFAR10LT(packed, download=True).prepare_data()
    assert packed.read_bytes() == before


def test_where_there_is_neither_both_are_named(tmp_path):
    with pytest.raises(DataError, match=r"at the folder that holds it, or at a file of python -m mllt\.pack"):
        cifar10(tmp_path / "cifar10.mllt").setup()


# ------------------------------------------------------------------------------------------------------ the real CIFAR-100


@pytest.mark.parametrize("subset_seed", [0, 7])
def test_subsets_of_higher_imbalance_lie_within_those_of_lower(subset_seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 500))
    kept = [
        set(long_tailed_indices(labels, profile_counts("exponential", 100, 500, factor), subset_seed).tolist())
        for factor in (10, 50, 100, 200)
    ]
    assert kept[0] > kept[1] > kept[2] > kept[3]


@pytest.mark.slow
def test_all_customary_subsets_of_cifar100_come_from_one_file_under_50_mib(tmp_path):
    root, path = real_data("cifar-100-python").parent, tmp_path / "cifar100-lt.mllt"
    size = write(path, CIFAR100LT(root, imbalance_factor=10).to_pack())
    assert size < 50 * 2**20
    for factor in (10, 50, 100):
        official, ours = (CIFAR100LT(place, imbalance_factor=factor) for place in (root, path))
        for module in (official, ours):
            module.setup()
        assert ours.fingerprint == official.fingerprint
        assert ours.train_indices.tolist() == official.train_indices.tolist()
        for mine, theirs in ((ours.splits.train, official.splits.train), (ours.splits.test, official.splits.test)):
            every = np.arange(len(theirs))
            assert torch.equal(mine.load(every), theirs.load(every))
            assert mine.labels.tolist() == theirs.labels.tolist()


def test_the_balanced_set_is_told_of_the_original_files_alone(folder, packed):
    whole = cifar10(folder)
    balanced = whole.balanced_source()
    assert np.bincount(balanced.labels).tolist() == np.bincount(whole.splits.train._all_labels).tolist()
    assert len(balanced) > len(whole.splits.train)
    part = cifar10(packed)
    part.setup()
    assert part.balanced_source() is None
