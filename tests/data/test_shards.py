"""Shards: what is trained on is what loose files give, and damage is never decoded."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
import urllib.parse
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.data.make_images import (
    SETTINGS,
    assert_same_batches,
    by_index,
    imagenet_rows,
    picture,
    real_data,
    save_imagenet_lt,
    save_list,
    save_pictures,
    training_batches,
)

from mllt.data import packing, shards
from mllt.data.folder import ImageFolderLT
from mllt.data.images import load_rgb
from mllt.data.lists import ImageNetLT
from mllt.data.packing import Scaling, pack, verify
from mllt.data.shards import INDEX, ShardIndex, ShardOrder, open_shards, shard_file
from mllt.errors import ArgumentError, DataError, StorageError

pytest.importorskip("litdata", reason="needs the extra shards")

COUNTS = {"cat": 14, "dog": 8, "eel": 4}
SMALL = 4_000  # bytes of a shard: a few pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures in class folders, with a test split."""
    root = tmp_path_factory.mktemp("pictures")
    save_pictures(root, [f"train/{name}/{i}.jpg" for name, count in COUNTS.items() for i in range(count)])
    save_pictures(root, [f"test/{name}/{i}.jpg" for name in COUNTS for i in range(3)])
    (root / "train" / "cat" / "notes.txt").write_text("not a picture")
    return root


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory) -> Path:
    """Its shards; read them, do not change them."""
    output = tmp_path_factory.mktemp("packed") / "shards"
    pack(ImageFolderLT(folder, **SETTINGS), output, SMALL, threads=2)
    return output


@pytest.fixture
def copy(packed, tmp_path) -> Path:
    """Shards to be damaged."""
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def of_shards(place, **settings) -> ImageFolderLT:
    return ImageFolderLT(place, storage="shards", **{**SETTINGS, **settings})


def evaluation_batches(module) -> list:
    return list(module.test_dataloader())


def assert_same_data(files, stored):
    """All that a run takes from its data, to the bit."""
    for epoch in (0, 1):
        assert_same_batches(training_batches(files, epoch), training_batches(stored, epoch))
    assert_same_batches(evaluation_batches(files), evaluation_batches(stored))
    assert files.class_names == stored.class_names
    assert files.class_counts.tolist() == stored.class_counts.tolist()
    assert files.fingerprint == stored.fingerprint
    assert files.summary() == stored.summary()


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


# ------------------------------------------------------------------------------------------------ the same as files


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_from_shards_are_those_of_loose_files(folder, packed, num_workers):
    assert_same_data(ImageFolderLT(folder, **SETTINGS, num_workers=num_workers), of_shards(packed, num_workers=num_workers))


@pytest.mark.parametrize(
    "settings",
    [
        {"profile": "exponential", "imbalance_factor": 2.0, "subset_seed": 3},
        {"val_fraction": 0.25},
        {"test_fraction": 0.3, "split_seed": 1},
    ],
)
def test_one_packing_serves_every_profile_and_held_out_split(folder, tmp_path, settings):
    root = folder / "train"  # class folders without a test split
    pack(ImageFolderLT(root, layout="classes", **SETTINGS), tmp_path / "shards", SMALL)
    files = ImageFolderLT(root, layout="classes", **SETTINGS, **settings)
    stored = of_shards(tmp_path / "shards", **settings)
    assert_same_data(files, stored)
    if files.splits.val is not None:
        assert_same_batches(list(files.val_dataloader()), list(stored.val_dataloader()))


def test_official_lists_are_packed_with_their_notes_and_hashes(tmp_path):
    root = save_imagenet_lt(tmp_path / "imagenet", imagenet_rows((12, 6, 2)))
    (root / "classnames.txt").write_text("n0 tench\nn1 goldfish\nn2 shark\n")
    pack(ImageNetLT(root, **SETTINGS), tmp_path / "shards", SMALL)
    stored = ImageNetLT(tmp_path / "shards", storage="shards", **SETTINGS)
    assert_same_data(ImageNetLT(root, **SETTINGS), stored)
    assert stored.class_names == ["tench", "goldfish", "shark"]
    assert len(stored.splits.val) == 6
    assert "is not the official list" in stored.summary()
    with pytest.raises(DataError, match=r"is not the official list .* verify_lists=false"):
        ImageNetLT(tmp_path / "shards", storage="shards", verify_lists=True, **SETTINGS).setup()


def test_csv_lists_are_packed(folder, tmp_path):
    rows = [f"train/{name}/{i}.jpg,{name}" for name in COUNTS for i in range(4)]
    tests = [f"test/{name}/{i}.jpg,{name}" for name in COUNTS for i in range(3)]
    for name, some in (("train.csv", rows), ("test.csv", tests)):
        (tmp_path / name).write_text("\n".join(["path,label", *some]))
    files = ImageFolderLT(folder, train_list=tmp_path / "train.csv", test_list=tmp_path / "test.csv", **SETTINGS)
    pack(files, tmp_path / "shards", SMALL)
    assert_same_data(files, of_shards(tmp_path / "shards"))


def test_blood_cells_from_shards_are_those_of_loose_files(tmp_path):
    root = real_data("bccd-cells") / "images"
    pack(ImageFolderLT(root), tmp_path / "shards", 1_000_000)
    files, stored = (
        ImageFolderLT(place, storage=s, image_size=32) for place, s in ((root, "files"), (tmp_path / "shards", "shards"))
    )
    assert files.fingerprint == stored.fingerprint
    assert files.class_counts.tolist() == stored.class_counts.tolist() == [289, 3322, 298]
    some = np.arange(0, len(files.splits.train), 40)
    for one, other in zip(files.splits.train.load(some), stored.splits.train.load(some), strict=True):
        assert one.tobytes() == other.tobytes()


WORKER = """
import sys, torch, torch.distributed as dist
from mllt.data.folder import ImageFolderLT
rank, folder, place = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", store=dist.FileStore(folder + "/store", 2), rank=rank, world_size=2)
data = ImageFolderLT(place, storage="shards", image_size=16, batch_size=4, num_workers=1, shard_cache=folder + "/cache",
                     shard_cache_gb=8e-6)
batches = {"train": data.train_dataloader(), "test": data.test_dataloader()}
torch.save({k: [tuple(batch) for batch in loader] for k, loader in batches.items()}, f"{folder}/seen-{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_that_share_a_small_cache_take_the_batches_of_one_with_files(folder, packed, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, str(tmp_path / "worker.py")]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path), f"local:{packed}"], env={**os.environ, "PYTHONPATH": path})
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"seen-{rank}.pt") for rank in range(2))
    files = ImageFolderLT(folder, **SETTINGS)
    for batch, *halves in zip(training_batches(files), first["train"], second["train"], strict=True):
        for whole, one, other in zip(batch[:3], *(half[:3] for half in halves), strict=True):
            assert torch.equal(whole, torch.cat([one, other]))
    halves = [batch for half in (first, second) for batch in half["test"]]
    counted = sorted(int(row) for batch in halves if batch[3] for row in batch[2])  # not those that make up the number
    assert counted == list(range(9)), "each test picture once"
    expected = by_index(evaluation_batches(files))
    assert all(
        torch.equal(expected[int(row)], image) for batch in halves for image, row in zip(batch[0], batch[2], strict=True)
    )


def test_litdata_reads_the_same_bytes(folder, packed):
    from litdata import StreamingDataset

    stored = StreamingDataset(str(packed))
    index = open_shards(packed).index
    assert len(stored) == sum(COUNTS.values()) + 9
    for number, path in enumerate(index.paths):
        assert stored[number] == (folder / os.fsdecode(path)).read_bytes()


def test_a_source_of_shards_can_be_sent_to_another_process(packed):
    source = of_shards(packed).splits.train
    again = pickle.loads(pickle.dumps(source))
    assert again.load(np.array([3]))[0].tobytes() == source.load(np.array([3]))[0].tobytes()


def test_training_pictures_lie_mixed_and_test_pictures_in_order(packed):
    module = of_shards(packed)
    classes = {shard: set() for shard in range(20)}
    for shard, label in zip(module.splits.train.shard_of, module.splits.train.labels, strict=True):
        classes[int(shard)].add(int(label))
    assert np.mean([len(found) for found in classes.values() if found]) > 1.5, "shards are no samples of the classes"
    assert (np.diff(module.splits.test.places) == 1).all()
    assert not set(module.splits.train.shard_of) & set(module.splits.test.shard_of)


# --------------------------------------------------------------------------------------------------- from a store


def test_shards_from_a_store_are_fetched_once_and_kept(folder, packed, tmp_path):
    stored = of_shards(f"local:{packed}", shard_cache=tmp_path / "cache", num_workers=2)
    assert_same_data(ImageFolderLT(folder, **SETTINGS), stored)
    (kept,) = (tmp_path / "cache").iterdir()
    number = len(open_shards(packed).index.file_sizes)
    assert sorted(path.name for path in kept.glob("*.bin")) == sorted(shard_file(i) for i in range(number))
    times = {path: path.stat().st_mtime_ns for path in kept.glob("*.bin")}
    training_batches(of_shards(f"local:{packed}", shard_cache=tmp_path / "cache"))
    assert times == {path: path.stat().st_mtime_ns for path in kept.glob("*.bin")}


def test_a_cache_smaller_than_the_data_gives_the_same_batches_and_stays_small(folder, packed, tmp_path):
    gigabytes = 2.5 * SMALL / 1e9
    stored = of_shards(f"local:{packed}", shard_cache=tmp_path, shard_cache_gb=gigabytes, num_workers=2)
    assert_same_data(ImageFolderLT(folder, **SETTINGS), stored)
    (kept,) = tmp_path.iterdir()
    assert 0 < sum(path.stat().st_size for path in kept.glob("*.bin")) <= 4 * SMALL, (
        "more than the budget and one shard for each process"
    )


def test_pictures_that_were_packed_anew_are_not_taken_from_an_older_cache(folder, packed, tmp_path):
    remote = Path(shutil.copytree(packed, tmp_path / "remote"))
    older = of_shards(f"local:{remote}", shard_cache=tmp_path / "cache").splits.train
    first = [image.tobytes() for image in older.load(np.arange(26))]
    shutil.rmtree(remote)
    other = tmp_path / "pictures"
    save_pictures(other, [f"train/{name}/other-{i}.jpg" for name in COUNTS for i in range(4)])
    save_pictures(other, [f"test/{name}/other-{i}.jpg" for name in COUNTS for i in range(2)])
    pack(ImageFolderLT(other, **SETTINGS), remote, SMALL)
    assert_same_data(ImageFolderLT(other, **SETTINGS), of_shards(f"local:{remote}", shard_cache=tmp_path / "cache"))
    assert [image.tobytes() for image in older.load(np.arange(26))] == first, "a run that is on its way lost its shards"


def test_a_damaged_copy_is_fetched_anew(folder, packed, tmp_path):
    stored = of_shards(f"local:{packed}", shard_cache=tmp_path)
    training_batches(stored)
    (kept,) = tmp_path.iterdir()
    flip(kept / shard_file(0), 2000)
    assert_same_data(ImageFolderLT(folder, **SETTINGS), of_shards(f"local:{packed}", shard_cache=tmp_path))


def test_damage_in_the_store_is_an_error_and_not_an_endless_fetch(copy, tmp_path):
    flip(copy / shard_file(0), 2000)
    source = of_shards(f"local:{copy}", shard_cache=tmp_path / "cache").splits.train
    with pytest.raises(DataError, match=rf"of local:{copy}/chunk-0-0.bin: the shard chunk-0-0.bin is damaged, its checksum"):
        source.load(np.arange(len(source)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "Cannot fetch local:.*chunk-0-0.bin: FileNotFoundError"),
        (lambda path: os.truncate(path, 100), "chunk-0-0.bin is damaged: expected [0-9,]+ bytes, but fetched 100"),
    ],
)
def test_a_shard_that_cannot_be_fetched_whole_is_an_error(copy, tmp_path, damage, message):
    damage(copy / shard_file(0))
    source = of_shards(f"local:{copy}", shard_cache=tmp_path / "cache", verify_files=False).splits.train
    with pytest.raises(DataError, match=message):
        source.load(np.arange(len(source)))
    assert not list((tmp_path / "cache").glob("*/*chunk-0-0.bin")), "what is not whole must not stay"


def test_a_store_without_shards_is_an_error_that_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"Cannot fetch local:.*{INDEX}"):
        of_shards(f"local:{tmp_path / 'empty'}", shard_cache=tmp_path / "cache").setup()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_url_reaches_litdata_as_it_was_typed(packed, tmp_path):
    from litdata.streaming.downloader import LocalDownloader, register_downloader, unregister_downloader

    asked = []

    class Bucket(LocalDownloader):
        """A store whose objects lie in a folder."""

        def download_file(self, remote_filepath, local_filepath):
            asked.append(remote_filepath)
            name = urllib.parse.urlparse(remote_filepath).path.rpartition("/")[2]
            super().download_file(str(packed / name), local_filepath)

    register_downloader("bucket://", Bucket)
    try:
        source = of_shards("bucket://birds/a%20b/shards/", shard_cache=tmp_path, verify_files=False).splits.train
        source.load(np.array([0]))
    finally:
        unregister_downloader("bucket://")
    assert asked[0] == f"bucket://birds/a%20b/shards/{INDEX}"
    assert asked[1] == f"bucket://birds/a%20b/shards/{shard_file(int(source.shard_of[0]))}"


S3 = """
import http.server, os, sys, threading
import torch
from litdata.streaming import downloader
from mllt.data.folder import ImageFolderLT

packed, folder = sys.argv[1:]
asked = []

class Bucket(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments):
        super().__init__(*arguments, directory=packed)

    def translate_path(self, path):
        asked.append(path)
        return super().translate_path(path.removeprefix("/birds/some"))

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
threading.Thread(target=server.serve_forever, daemon=True).start()
keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "eu-north-1"}
os.environ.update(keys, AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.server_port}", AWS_EC2_METADATA_DISABLED="true")
downloader._OBSTORE_CLIENT_OPTIONS = {**downloader._OBSTORE_CLIENT_OPTIONS, "allow_http": True}
data = ImageFolderLT("s3://birds/some", storage="shards", image_size=16, batch_size=4, num_workers=2, shard_cache=folder)
torch.save([tuple(batch) for batch in data.train_dataloader()], folder + "/seen.pt")
print(sorted({path for path in asked}))
"""


@pytest.mark.slow
def test_shards_are_fetched_by_the_protocol_of_s3_in_this_process_and_in_those_of_the_loader(folder, packed, tmp_path):
    """From a server on this machine: in the clear, and without a look at the keys."""
    (tmp_path / "s3.py").write_text(S3)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "s3.py"), str(packed), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    number = len(open_shards(packed).index.file_sizes)
    assert done.stdout.strip() == str(sorted(f"/birds/some/{name}" for name in [INDEX, *map(shard_file, range(number))]))
    assert list(tmp_path.glob("index-*")) == [], "what litdata leaves beside a file that it brings"
    expected = training_batches(ImageFolderLT(folder, **SETTINGS))
    for batch, seen in zip(expected, torch.load(tmp_path / "seen.pt"), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(batch, seen, strict=True))


def test_a_url_that_litdata_does_not_know_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"a URL that litdata knows .* got 'ftp://birds'"):
        of_shards("ftp://birds", shard_cache=tmp_path).setup()


# ---------------------------------------------------------------------------------------------------------- damage


def test_a_flipped_bit_is_an_error_that_names_picture_shard_and_cause(copy):
    module = of_shards(copy)
    index = open_shards(copy).index
    number = int(module.splits.train.places[5])
    shard = int(index.shards[number])
    flip(copy / shard_file(shard), int(index.offsets[number] + index.sizes[number] // 2))
    path = os.fsdecode(module.splits.train.paths[5])
    with pytest.raises(
        DataError, match=rf"the picture {path} of {copy}/{shard_file(shard)}: the shard .* is damaged, its checksum"
    ):
        module.splits.train.load(np.array([5]))
    assert module.splits.train.load(np.array([4])), "the others can be read"


@pytest.mark.parametrize(
    ("damage", "at_setup", "later"),
    [
        (Path.unlink, "'chunk-0-0.bin: missing'", "there is no file"),
        (lambda path: os.truncate(path, 100), "'chunk-0-0.bin: 100 bytes, not [0-9,]+'", "ends [0-9,]+ bytes too early"),
    ],
)
def test_missing_and_cut_off_shards_are_found_at_setup_and_else_at_their_first_use(copy, damage, at_setup, later):
    damage(copy / shard_file(0))
    with pytest.raises(DataError, match=f"1 of them are missing or damaged: {at_setup}"):
        of_shards(copy).setup()
    source = of_shards(copy, verify_files=False).splits.train
    with pytest.raises(DataError, match=f"chunk-0-0.bin: .*{later}"):
        source.load(np.arange(len(source)))


def test_damage_of_a_test_picture_is_found_before_the_training(copy):
    index = open_shards(copy).index
    flip(copy / shard_file(len(index.file_sizes) - 1), int(index.offsets[-1]) + 50)
    with pytest.raises(
        DataError,
        match=r"test pictures that can be decoded, but 1 cannot be: .*eel/2.jpg: the shard chunk-0-[0-9]+.bin is damaged",
    ):
        of_shards(copy).setup()


def test_a_flipped_bit_in_the_index_is_refused_or_changes_nothing(packed, copy):
    """Nothing: in what a zip file says beside its contents, such as dates."""
    path = copy / INDEX
    whole, index, refused = path.read_bytes(), ShardIndex.read(packed / INDEX), 0
    for offset in range(0, len(whole), 41):
        flip(path, offset)
        try:
            found = ShardIndex.read(path)
        except DataError:
            refused += 1
        else:
            assert found.about == index.about
            for name in ("sizes", "sums", "firsts"):
                assert np.array_equal(getattr(found, name), getattr(index, name))
            for split, columns in index.splits.items():
                assert all(np.array_equal(found.splits[split][name], column) for name, column in columns.items())
        path.write_bytes(whole)
    assert refused > 0.6 * len(whole) / 41


@pytest.mark.parametrize("size", [0, 50, 2000])
def test_an_index_that_was_cut_off_is_refused(copy, size):
    os.truncate(copy / INDEX, size)
    with pytest.raises(DataError, match=f"{INDEX}.* is damaged"):
        of_shards(copy).setup()


def changed(folder: Path, **changes) -> None:
    """Write the index again with other contents, as by a faulty hand."""
    index = ShardIndex.read(folder / INDEX)
    for name, change in changes.items():
        setattr(index, name, change(getattr(index, name)))
    with (folder / INDEX).open("wb") as file:
        index.write(file)


def shift_first_place(splits):
    splits["training"]["places"][0] += 1
    return splits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"about": lambda about: {**about, "version": 2}}, "version 1, but .* is of version 2"),
        ({"sums": lambda sums: sums[1:]}, "one checksum for each picture"),
        ({"firsts": lambda firsts: firsts[:-1]}, "is damaged"),
        ({"splits": shift_first_place}, "one for each picture"),
    ],
)
def test_an_index_that_contradicts_itself_or_is_of_another_version_is_refused(copy, changes, message):
    changed(copy, **changes)
    with pytest.raises(DataError, match=message):
        of_shards(copy).setup()


# -------------------------------------------------------------------------------------------------------- settings


def test_shards_of_another_data_set_are_refused(packed):
    with pytest.raises(DataError, match=r"shards of ImageNetLT, but .* packed from ImageFolderLT"):
        ImageNetLT(packed, storage="shards", **SETTINGS).setup()


def test_shards_taken_for_loose_files_are_recognised(packed):
    with pytest.raises(ArgumentError, match=r"holds shards, not loose pictures: set data.storage=shards"):
        ImageFolderLT(packed, **SETTINGS).setup()


def test_loose_files_taken_for_shards_are_recognised(folder):
    with pytest.raises(DataError, match=r"no mllt-shards.npz.*data.storage=files for loose pictures"):
        of_shards(folder).setup()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_window": 2}, "`shard_window` is about shards"),
        ({"shard_cache": "x"}, "`shard_cache` is about shards"),
        ({"shard_cache_gb": 2}, "`shard_cache_gb` is about shards"),
        ({"root": "s3://birds"}, "`root` to be a folder with storage=files, but got 's3://birds'"),
        ({"storage": "shard"}, "Did you mean 'shards'"),
        ({"storage": "shards", "shard_window": 0}, "`shard_window` to be a whole number of at least 1"),
        ({"storage": "shards", "shard_cache_gb": 0}, "`shard_cache_gb` to be a number above 0"),
        ({"storage": "shards", "train_list": "a.txt"}, "`train_list` was read when the shards were packed"),
        ({"storage": "shards", "layout": "splits"}, "`layout` was read when the shards were packed"),
    ],
)
def test_settings_that_would_have_no_effect_or_no_sense_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        ImageFolderLT(**{"root": "x", **settings})


def test_without_litdata_packing_and_stores_name_the_extra_and_local_shards_are_read(folder, packed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata.streaming", None)
    for attempt in (
        lambda: pack(ImageFolderLT(folder, **SETTINGS), tmp_path / "out"),
        lambda: of_shards("s3://birds", shard_cache=tmp_path).setup(),
    ):
        with pytest.raises(ArgumentError, match=r"pip install 'mllt\[shards\]'"):
            attempt()
    assert not (tmp_path / "out").exists()
    assert len(training_batches(of_shards(packed))) == 7


@pytest.mark.slow
def test_litdata_is_not_imported_unless_it_is_used(packed):
    code = f"""
import sys, numpy as np
from mllt.data.folder import ImageFolderLT
ImageFolderLT({str(packed)!r}, storage="shards").splits.train.load(np.array([0]))
print([name for name in sys.modules if name.partition(".")[0] in ("litdata", "boto3")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# ------------------------------------------------------------------------------------------------- the order of few


@settings(max_examples=60, deadline=None)
@given(
    shard_of=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    window=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 50),
)
def test_every_image_comes_once_and_from_a_window_of_shards_at_a_time(shard_of, window, seed, epoch):
    shard_of = np.array(shard_of)
    order = ShardOrder(shard_of, window, seed)(epoch)
    assert sorted(order.tolist()) == list(range(len(shard_of)))
    distinct, done, open_now = len(set(shard_of.tolist())), 0, set()
    for image in order:
        open_now.add(int(shard_of[image]))
        if len(open_now) > window:  # a new window begins: no shard of it was begun before
            open_now = {int(shard_of[image])}
            done += window
    assert done + len(open_now) == distinct


def test_the_order_depends_on_seed_and_epoch_alone():
    shard_of = np.repeat(np.arange(8), 20)
    order = ShardOrder(shard_of, 3, seed=1)
    assert (order(4) == ShardOrder(shard_of, 3, seed=1)(4)).all()
    assert not (order(4) == order(5)).all()
    assert not (order(4) == ShardOrder(shard_of, 3, seed=2)(4)).all()
    fixed = ShardOrder(shard_of, 3, seed=1, shuffle=False)
    assert (fixed(0) == fixed(7)).all()


def test_images_of_a_window_are_mixed_and_its_shards_differ_between_epochs():
    shard_of = np.repeat(np.arange(10), 100)
    order = ShardOrder(shard_of, 2, seed=0)
    firsts = [frozenset(shard_of[order(epoch)[:200]].tolist()) for epoch in range(5)]
    assert all(len(first) == 2 for first in firsts)
    assert len(set(firsts)) > 2
    assert (np.diff(shard_of[order(0)[:200]]) != 0).sum() > 20, "one shard after the other"


def test_with_a_window_each_shard_is_fetched_once_an_epoch_though_the_cache_holds_only_the_window(
    packed, tmp_path, monkeypatch
):
    fetched = []
    get = shards.Store.get
    monkeypatch.setattr(shards.Store, "get", lambda self, name, path: (fetched.append(name), get(self, name, path))[1])
    stored = of_shards(
        f"local:{packed}", shard_cache=tmp_path, shard_cache_gb=2 * SMALL / 1e9, shard_window=2, verify_files=False
    )
    batches = training_batches(stored)
    assert sorted(int(row) for batch in batches for row in batch.indices) == list(range(26))
    used = {shard_file(int(shard)) for shard in stored.splits.train.shard_of}
    assert sorted(fetched) == sorted([INDEX, *used])
    assert len(used) > 4


def test_a_window_changes_the_order_and_nothing_else(packed):
    def images(module):
        return {
            int(row): position for position, row in enumerate(torch.cat([b.indices for b in training_batches(module)]).tolist())
        }

    full, windowed = images(of_shards(packed)), images(of_shards(packed, shard_window=1))
    assert full.keys() == windowed.keys()
    assert full != windowed
    assert_same_batches(evaluation_batches(of_shards(packed)), evaluation_batches(of_shards(packed, shard_window=1)))


# --------------------------------------------------------------------------------------------------------- packing


def test_verifying_finds_every_flipped_byte(copy):
    """Also in the tables that litdata reads and mllt does not."""
    path = copy / shard_file(0)
    whole = path.read_bytes()
    assert verify(open_shards(copy)) == {}
    for offset in [*range(40), *range(40, len(whole), 97), len(whole) - 1]:
        flip(path, offset)
        assert list(verify(open_shards(copy), threads=1)) == [0], offset
        path.write_bytes(whole)


def test_verifying_names_damaged_shards_and_pictures(copy):
    index = open_shards(copy).index
    flip(copy / shard_file(1), int(index.offsets[index.firsts[1]]))
    (copy / shard_file(2)).unlink()
    os.truncate(copy / shard_file(3), int(index.file_sizes[3]) - 1)
    found = verify(open_shards(copy))
    assert list(found) == [1, 2, 3]
    paths = [os.fsdecode(path) for path in index.paths]
    assert found[1] == [f"{copy}/chunk-0-1.bin: {paths[index.firsts[1]]} is not what was packed"]
    assert f"{copy}/chunk-0-2.bin: there is no file" in found[2][0]
    assert repr(paths[index.firsts[2]]) in found[2][0]
    assert f"but got {int(index.file_sizes[3]) - 1:,}" in found[3][0]
    assert found[3][1:] == [f"{copy}/chunk-0-3.bin: {paths[index.firsts[4] - 1]} is not what was packed"]


def test_a_picture_larger_than_a_shard_has_one_of_its_own(folder, tmp_path):
    index = pack(ImageFolderLT(folder, **SETTINGS), tmp_path / "shards", shard_bytes=1)
    assert len(index.file_sizes) == len(index.sizes) == 35
    assert_same_data(ImageFolderLT(folder, **SETTINGS), of_shards(tmp_path / "shards"))


def test_a_picture_that_goes_missing_is_named(folder, tmp_path):
    root = Path(shutil.copytree(folder, tmp_path / "pictures"))
    module = ImageFolderLT(root, **SETTINGS)
    module.setup()
    (root / "train/dog/3.jpg").unlink()
    with pytest.raises(DataError, match=r"every training picture to be there, but 1 cannot be found: '.*train/dog/3.jpg'"):
        pack(module, tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_no_room_is_told_before_anything_is_written(folder, small_disk):
    (small_disk / "ballast").write_bytes(bytes(256_000 - 20_000))
    with pytest.raises(DataError, match=r"0.0[0-9]+ GB of free disk for .*out, but there are 0.0[0-9]+ GB"):
        pack(ImageFolderLT(folder, **SETTINGS), small_disk / "out")
    assert not list((small_disk / "out").glob("*.bin"))


def test_a_disk_that_fills_up_is_told_and_the_same_command_goes_on(folder, small_disk, monkeypatch):
    module = ImageFolderLT(folder, **SETTINGS)
    ballast = small_disk / "ballast"

    def fills_up(_):
        ballast.write_bytes(bytes(256_000 - 50_000))  # somebody else's, once the look at the free space is past
        return shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)

    monkeypatch.setattr(packing.shutil, "disk_usage", fills_up)
    with pytest.raises(StorageError, match=r"No space left on device .* Make room there, then type the same command again"):
        pack(module, small_disk / "out", SMALL, threads=1)
    assert not (small_disk / "out" / INDEX).exists()
    assert not (small_disk / "out" / "index.json").exists()
    finished = [int(path.stem) for path in (small_disk / "out" / "packing").glob("[0-9]*.json")]
    kept = {path: path.stat().st_ino for path in (small_disk / "out" / shard_file(shard) for shard in finished)}
    assert kept
    monkeypatch.undo()
    ballast.unlink()
    pack(module, small_disk / "out", SMALL, threads=1)
    assert all(path.stat().st_ino == node for path, node in kept.items()), "what was whole was written again"
    assert_same_data(module, of_shards(small_disk / "out"))


def test_lists_with_spaces_and_unusual_names_are_packed(tmp_path):
    rows = [(f"a b/{name}.jpg", label) for label, name in enumerate(["1 2", "ä", "#x"]) for name in (name, f"{name} 2")]
    save_pictures(tmp_path / "p", [path for path, _ in rows])
    save_list(tmp_path / "train.txt", rows)
    settings = {**SETTINGS, "test_fraction": 0.5}
    files = ImageFolderLT(tmp_path / "p", train_list=tmp_path / "train.txt", **settings)
    pack(files, tmp_path / "shards", SMALL)
    assert_same_data(files, of_shards(tmp_path / "shards", test_fraction=0.5))


# ------------------------------------------------------------------------------------------------------ scaled down


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Training pictures above and below a short side of 24 pixels, odd and broken ones among them; a test split."""
    root = tmp_path / "mixed"
    save_pictures(root, [f"{split}/{name}/0.jpg" for split in ("train", "test") for name in ("cat", "dog")])  # 40 x 30
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1, 60, 80).save(root / "train/cat/turned.jpg", exif=exif)
    picture(2, 90, 20).save(root / "train/cat/low.jpg")
    picture(3, 24, 100).save(root / "train/cat/fits.png")
    picture(4, 50, 50).convert("RGBA").save(root / "train/cat/alpha.png")
    (root / "train/cat/broken.jpg").write_bytes((root / "train/cat/0.jpg").read_bytes()[:400])
    return root


def stored_bytes(source) -> dict[str, bytes]:
    return {os.fsdecode(source.paths[row]): source.open(row).read() for row in range(len(source))}


def test_only_large_training_pictures_are_scaled_down_and_the_digest_and_a_note_tell(mixed, tmp_path):
    files = ImageFolderLT(mixed, verify_files=False, **SETTINGS)
    pack(files, tmp_path / "shards", scaling=Scaling(24, 85))
    stored = of_shards(tmp_path / "shards", verify_files=False)
    found = stored_bytes(stored.splits.train)
    loose = stored_bytes(files.splits.train)
    kept = {"train/cat/low.jpg", "train/cat/fits.png", "train/cat/broken.jpg"}
    assert {name for name in found if found[name] == loose[name]} == kept
    assert stored_bytes(stored.splits.test) == stored_bytes(files.splits.test)
    sizes = {"train/cat/turned.jpg": (32, 24), "train/cat/alpha.png": (24, 24), "train/cat/0.jpg": (32, 24)}
    for name, size in sizes.items():
        with Image.open(io.BytesIO(found[name])) as image:
            assert (image.format, image.size, dict(image.getexif())) == ("JPEG", size, {})
            expected = load_rgb(mixed / name).resize(size, Image.Resampling.LANCZOS)
            assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 12
    assert stored.fingerprint != files.fingerprint
    assert "with a short side of more than 24 pixels were scaled down to it" in stored.summary()
    with pytest.raises(DataError, match=r"broken\.jpg"):
        training_batches(stored)


def test_digests_differ_by_how_pictures_were_scaled_even_where_none_was(folder, tmp_path):
    found = {ImageFolderLT(folder, **SETTINGS).fingerprint}
    for number, scaling in enumerate((None, Scaling(500), Scaling(500, 80))):
        pack(ImageFolderLT(folder, **SETTINGS), tmp_path / str(number), scaling=scaling)
        found.add(of_shards(tmp_path / str(number)).fingerprint)
    assert len(found) == 3, "without scaling, that of loose files"


def test_scaling_in_threads_leaves_the_programs_warnings_as_they_were(mixed, tmp_path, monkeypatch):
    """Silencing is of the whole program: threads that each do and undo it leave it silenced for good."""
    silenced_by, enter, before = set(), warnings.catch_warnings.__enter__, list(warnings.filters)

    def entered(self):
        silenced_by.add(threading.current_thread())
        return enter(self)

    monkeypatch.setattr(warnings.catch_warnings, "__enter__", entered)
    source = ImageFolderLT(mixed, **SETTINGS).splits.train
    scaled = packing.scale_down(source, Scaling(24), tmp_path, threads=2)
    assert scaled.sizes.sum() < source_bytes(source)
    assert silenced_by == {threading.main_thread()}
    assert warnings.filters == before


def source_bytes(source) -> int:
    return sum(source.size_of(row) for row in range(len(source)))


def test_interrupted_scaling_goes_on_and_pictures_that_changed_are_scaled_anew(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_AT_ONCE", 2)
    scale, names, limit = packing._scaled, [], 5

    def counted(source, row, scaling):
        if len(names) == limit:
            raise KeyboardInterrupt
        names.append(os.path.basename(source.name_of(row)))
        return scale(source, row, scaling)

    monkeypatch.setattr(packing, "_scaled", counted)
    data = ImageFolderLT(mixed, verify_files=False, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        pack(data, tmp_path / "shards", threads=1, scaling=Scaling(24))
    assert not (tmp_path / "shards" / INDEX).exists()
    first = names[:4]
    picture(9, 70, 60).save(mixed / "train/cat" / first[0])
    names.clear()
    limit = 100
    pack(data, tmp_path / "shards", threads=1, scaling=Scaling(24))
    assert set(first[2:4]).isdisjoint(names)
    assert len(names) == len(data.splits.train) - 2
    whole = ImageFolderLT(mixed, verify_files=False, **SETTINGS)
    pack(whole, tmp_path / "again", scaling=Scaling(24))
    places = (tmp_path / "shards", tmp_path / "again")
    one, other = (stored_bytes(of_shards(place, verify_files=False).splits.train) for place in places)
    assert one == other
    assert sorted(path.name for path in places[0].iterdir()) == sorted(path.name for path in places[1].iterdir())


# ------------------------------------------------------------------------------------------------------------ memory


def test_a_shard_in_a_folder_is_opened_once_and_few_stay_mapped(packed, monkeypatch):
    monkeypatch.setattr(shards, "_KEPT", 2)
    held = open_shards(packed)
    opened, really = [], shards._opened
    monkeypatch.setattr(shards, "_opened", lambda path: opened.append(path.name) or really(path))
    first = np.flatnonzero(held.index.shards == 0)
    for number in [*first, *first]:
        held.picture(int(number))
    assert opened == [shard_file(0)]
    for number in range(len(held.index.sizes)):
        held.picture(number)
    assert len(opened) == len(held.index.file_sizes)
    assert len(held._maps) == 2
    assert pickle.loads(pickle.dumps(held)).picture(0) == held.picture(0)


@pytest.mark.parametrize("left", [-10, 100, 0])
def test_a_shard_that_is_too_short_is_an_error_and_does_not_end_the_process(copy, left):
    held = open_shards(copy)
    last = int(held.index.firsts[1]) - 1
    path = copy / shard_file(0)
    path.write_bytes(path.read_bytes()[:left])
    held.ahead(np.array([last]))
    lost = 10 if left == -10 else held.index.sizes[last]
    with pytest.raises(DataError, match=f"it ends {lost:,} bytes too early"):
        held.picture(last)
