import pickle
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.make_cifar import FACTOR, NAMES, Files, save_cifar10
from tests.data.make_images import real_data, training_batches
from tests.reference import longtail as reference
from torchvision.datasets import CIFAR10

from mllt.data import CIFAR10LT, CIFAR100LT
from mllt.data.subsets import long_tailed_indices
from mllt.errors import ArgumentError, DataError
from mllt.longtail import profile_counts

SUBSETS = [("exp", 200), ("exp", 100), ("exp", 50), ("exp", 20), ("exp", 10), ("step", 100)]
PROFILE = {"exp": "exponential", "step": "step"}


# ------------------------------------------------------------------------------------------------ the customary subsets


def customary(name: str, kind: str, factor: int) -> np.ndarray:
    """Rows (index into the official training order, label) of the images that LDAM-DRW's code keeps."""
    path = real_data("cifar-lt-reference") / f"{name}_{kind}_if{factor}_seed0_indices.txt"
    return np.loadtxt(path, dtype=np.int64)


def cifar100(**settings) -> CIFAR100LT:
    module = CIFAR100LT(real_data("cifar-100-python").parent, **settings)
    module.setup()
    return module


@pytest.fixture(scope="module")
def at_100() -> CIFAR100LT:
    return cifar100(imbalance_factor=100)


def raw(split: str) -> dict:
    with (real_data("cifar-100-python") / split).open("rb") as file:
        return pickle.load(file, encoding="latin1")


def official_labels(name: str) -> np.ndarray:
    """CIFAR's training labels, without its pictures where those are not at hand."""
    if name == "cifar100":
        return np.array(raw("train")["fine_labels"])
    return np.fromfile(real_data("cifar-lt-reference") / "cifar10_train_labels.u8", dtype=np.uint8)


@pytest.mark.parametrize(("name", "module", "max_count"), [("cifar10", CIFAR10LT, 5000), ("cifar100", CIFAR100LT, 500)])
def test_all_subsets_are_the_customary_ones_image_for_image(name, module, max_count):
    labels = official_labels(name)
    for kind, factor in SUBSETS:
        expected = customary(name, kind, factor)
        counts = module(profile=PROFILE[kind], imbalance_factor=factor).counts
        assert counts == profile_counts(PROFILE[kind], 50_000 // max_count, max_count, factor)
        kept = long_tailed_indices(labels, counts)
        assert kept.tolist() == expected[:, 0].tolist(), (kind, factor)
        assert labels[kept].tolist() == expected[:, 1].tolist()


@pytest.mark.parametrize(
    ("kind", "factor"),
    [subset if subset[1] in (10, 100) else pytest.param(*subset, marks=pytest.mark.slow) for subset in SUBSETS],
)
def test_the_data_module_holds_the_customary_subset(kind, factor, at_100):
    expected = customary("cifar100", kind, factor)
    whole = (kind, factor) == ("exp", 100)
    module = at_100 if whole else cifar100(profile=PROFILE[kind], imbalance_factor=factor)
    assert module.train_indices.dtype == np.int64
    assert module.train_indices.tolist() == expected[:, 0].tolist()
    assert module.splits.train.labels.tolist() == expected[:, 1].tolist()
    assert module.class_counts.tolist() == np.bincount(expected[:, 1]).tolist() == module.counts


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_any_seed_gives_what_the_literatures_code_gives(seed):
    labels = np.random.default_rng(3).integers(0, 5, 300)
    counts = [40, 20, 10, 5, 1]
    assert long_tailed_indices(labels, counts, seed).tolist() == reference.customary_subset(labels.tolist(), counts, seed)


def test_choosing_a_subset_leaves_numpys_global_generator_alone():
    before = np.random.get_state()[1].tolist()
    long_tailed_indices(np.zeros(50, dtype=np.int64), [5], 7)
    assert np.random.get_state()[1].tolist() == before


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(ArgumentError, match="class 1 to have at least 3 images to keep, but it has 2"):
        long_tailed_indices(np.array([0, 0, 0, 1, 1]), [3, 3])


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True])
def test_a_wrong_subset_seed_is_refused(seed):
    with pytest.raises(ArgumentError, match="`subset_seed` to be a whole number of at least 0 and of at most 4294967295"):
        long_tailed_indices(np.zeros(5, dtype=np.int64), [2], seed)


def test_another_subset_seed_keeps_other_images_of_the_same_number(at_100):
    other = cifar100(imbalance_factor=100, subset_seed=1)
    assert other.class_counts.tolist() == at_100.class_counts.tolist()
    in_both = len(np.intersect1d(other.train_indices, at_100.train_indices))
    by_chance = sum(n * n / 500 for n in at_100.counts)  # two independent choices of n among 500
    assert in_both == pytest.approx(by_chance, rel=0.03)


def test_held_out_images_are_no_training_images_and_the_runs_seed_chooses_none(at_100):
    module = cifar100(imbalance_factor=100, val_fraction=0.2, seed=5)
    held_out = module.splits.val.rows
    assert not set(module.train_indices) & set(held_out)
    assert set(module.train_indices) | set(held_out) == set(at_100.train_indices)
    assert module.class_counts.tolist() == [n - round(n * 0.2) for n in at_100.counts]


def test_validation_images_of_what_the_subset_leaves_over_are_nearly_balanced_and_training_stays_the_same(at_100):
    module = cifar100(imbalance_factor=100, val_images=45)
    held_out = module.splits.val
    assert module.train_indices.tolist() == at_100.train_indices.tolist()
    assert not set(module.train_indices) & set(held_out.rows)
    assert np.bincount(held_out.labels, minlength=100).tolist() == [min(45, 500 - n) for n in module.counts]
    assert held_out.labels.tolist() == official_labels("cifar100")[held_out.rows].tolist()
    fewer = cifar100(imbalance_factor=100, val_images=20).splits.val
    assert set(fewer.rows) < set(held_out.rows)


# -------------------------------------------------------------------------------------------------------------- CIFAR-100


def test_the_training_pictures_and_labels_are_the_official_ones(at_100):
    data = raw("train")
    kept = at_100.train_indices[::97]
    pictures = at_100.splits.train.load(np.arange(len(at_100.train_indices))[::97])
    assert pictures.dtype == torch.uint8
    assert np.array_equal(pictures.numpy(), data["data"][kept].reshape(-1, 3, 32, 32))
    assert at_100.splits.train.labels[::97].tolist() == [data["fine_labels"][i] for i in kept]


def test_the_test_split_is_cifars_own_and_whole(at_100):
    data, source = raw("test"), at_100.splits.test
    assert len(source) == 10_000
    assert source.labels.tolist() == data["fine_labels"]
    assert np.array_equal(source.load(np.arange(10_000)).numpy(), data["data"].reshape(-1, 3, 32, 32))
    assert np.bincount(source.labels).tolist() == [100] * 100


def test_class_names_are_in_official_order(at_100):
    names = at_100.class_names
    assert len(names) == at_100.num_classes == 100
    assert names == sorted(names) == raw("meta")["fine_label_names"]
    assert (names[0], names[1], names[23], names[99]) == ("apple", "aquarium_fish", "cloud", "worm")


def test_the_summary_of_cifar100_lt(at_100):
    assert at_100.summary() == (
        "CIFAR100-LT (exponential profile): 10,847 training images in 100 classes, 500 to 5 per class "
        "(imbalance factor 100); 35 many / 35 medium / 30 few-shot classes; 10,000 test images, no validation split"
    )


# ---------------------------------------------------------------------------------------- CIFAR-10's files, made for tests


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    return save_cifar10(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture
def cifar10_files(files, monkeypatch) -> Files:
    files.make_known(monkeypatch)
    return files


@pytest.fixture
def server(cifar10_files, monkeypatch):
    """The archive behind an address of this machine, instead of its home."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=cifar10_files.root)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(CIFAR10, "url", f"{address}/{CIFAR10.filename}")
        yield address
        running.shutdown()


def cifar10(root: Path, **settings) -> CIFAR10LT:
    return CIFAR10LT(root, **{"imbalance_factor": FACTOR, **settings})


def test_cifar10_reads_all_five_batches_in_order(cifar10_files):
    labels, pixels = cifar10_files.labels, cifar10_files.pixels
    module = cifar10(cifar10_files.root)
    module.prepare_data()
    module.setup()
    assert module.train_indices.tolist() == reference.customary_subset(labels.tolist(), module.counts, seed=0)
    assert module.class_counts.tolist() == module.counts
    source = module.splits.train
    assert source.labels.tolist() == labels[module.train_indices].tolist()
    some = np.arange(len(source))[::101]
    assert np.array_equal(source.load(some).numpy().reshape(-1, 3072), pixels[module.train_indices[::101]])
    assert module.class_names == NAMES
    assert module.splits.test.labels.tolist() == [i % 10 for i in range(30)]


def test_pictures_are_normalised_by_cifar10s_statistics_on_both_sets(cifar10_files):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    module = cifar10(cifar10_files.root)
    images = next(iter(module.test_dataloader())).images
    for row, channel in [(0, 0), (7, 1), (29, 2)]:  # the test pictures are of the grey values 0, 1, 2, ...
        expected = torch.full((32, 32), (row / 255 - mean[channel]) / std[channel])
        torch.testing.assert_close(images[row, channel], expected, rtol=0, atol=1e-6)
    for kind in (CIFAR10LT, CIFAR100LT):
        stated = kind("data").preprocessing
        assert (stated["size"], stated["resize"], tuple(stated["mean"]), tuple(stated["std"])) == (32, None, mean, std)


def test_training_pictures_are_shifted_by_up_to_four_pixels_and_turned_only_when_asked(cifar10_files):
    batch = training_batches(cifar10(cifar10_files.root, batch_size=128))[0]
    black = batch.images.amin(dim=(0, 2, 3), keepdim=True)
    inside = ((batch.images - black).abs() > 1e-6).any(dim=1)
    pictures = inside.flatten(1).any(dim=1)  # one in 251 is black itself
    rows, columns = inside.any(dim=2)[pictures], inside.any(dim=1)[pictures]
    for lines in (rows, columns):
        assert set(lines.sum(dim=1).tolist()) == {28, 29, 30, 31, 32}
    # whole rows and columns: a turned picture would have slanted edges
    assert torch.equal(inside[pictures], rows[:, :, None] & columns[:, None, :])
    turned = training_batches(cifar10(cifar10_files.root, batch_size=128, rotation=15, padding=0))[0]
    black_corners = ((turned.images - black).abs() < 1e-6).all(dim=1)[:, 0, 0]
    assert black_corners.float().mean() > 0.5


# ----------------------------------------------------------------------------------------------- missing and damaged data


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    ("kind", "folder", "archive", "md5"),
    [
        (CIFAR10LT, "cifar-10-batches-py", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
        (CIFAR100LT, "cifar-100-python", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
    ],
)
def test_missing_data_says_what_to_get_and_is_never_fetched_unasked(tmp_path, no_network, kind, folder, archive, md5):
    module = kind(tmp_path)
    module.prepare_data()
    with pytest.raises(DataError) as caught:
        module.setup()
    message = str(caught.value)
    for part in (str(tmp_path), f"{folder}/", f"Get {archive} from https://", "data.root", "data.download=true", md5):
        assert part in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_file_is_found(tmp_path, cifar10_files, name, damage):
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for path in (cifar10_files.root / CIFAR10.base_folder).iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    content = bytearray((cifar10_files.root / CIFAR10.base_folder / name).read_bytes())
    if damage == "changed":
        content[len(content) // 2] ^= 1
    if damage != "gone":
        (folder / name).write_bytes(content[:-5] if damage == "cut" else content)
    with pytest.raises(DataError, match=r"Expected CIFAR10 .*files are missing or damaged\. Get cifar-10-python\.tar\.gz"):
        cifar10(tmp_path).setup()


def test_download_fetches_and_unpacks_once(tmp_path, server):
    module = cifar10(tmp_path, download=True)
    module.prepare_data()
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / CIFAR10.base_folder).iterdir()}
    assert set(there) == {"batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))}
    module.setup()
    assert module.class_counts.tolist() == module.counts
    cifar10(tmp_path, download=True).prepare_data()
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / CIFAR10.base_folder).iterdir()} == there


def test_a_failed_download_says_where_to_get_the_archive(tmp_path, server, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", f"{server}/elsewhere/{CIFAR10.filename}")
    with pytest.raises(DataError, match=r"Get cifar-10-python\.tar\.gz"):
        cifar10(tmp_path, download=True).prepare_data()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile": "exp"}, "`profile` to be one of exponential, step, but got 'exp'"),
        ({"imbalance_factor": 0}, "`imbalance_factor` to be a number of at least 1, but got 0"),
        ({"imbalance_factor": 5001}, "Set `imbalance_factor` to at most 5000"),
        ({"download": "yes"}, "`download` to be true or false, but got 'yes'"),
        ({"padding": -4}, "`padding`"),
        ({"flip": 1}, "`flip`"),
        ({"rotation": 200}, "`rotation`"),
        ({"val_images": -1}, "`val_images` to be a whole number of at least 0 and of at most 5000, but got -1"),
    ],
)
def test_wrong_settings_are_refused_before_any_data_is_read(settings, message):
    with pytest.raises(ArgumentError, match=message):
        CIFAR10LT("nowhere", **settings)


def test_the_root_may_start_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"under {tmp_path}/pictures,"):
        CIFAR10LT("~/pictures").setup()
