"""One file for a small data set: nothing is lost, and what is damaged or means harm is refused."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from tests import hostile
from tests.data.make_images import picture

from mllt.data import packed_arrays
from mllt.data.packed_arrays import MAGIC, PackedArrays, read, write
from mllt.errors import ArgumentError, DataError, StorageError

NAMES = ["owl", "jay", "emu"]


def arrays(kept: int = 70, total: int = 90, test: int = 5) -> PackedArrays:
    """Pictures of noise, which nothing compresses, and smooth ones, of three classes in no order."""
    draw = np.random.default_rng(kept)
    rows = np.sort(draw.permutation(total)[:kept])
    images = draw.integers(0, 256, (kept, 32, 32, 3), dtype=np.uint8)
    images[::2] = np.stack([np.asarray(picture(row, 32, 32)) for row in rows[::2]])
    test_images = draw.integers(0, 256, (test, 32, 32, 3), dtype=np.uint8)
    return PackedArrays("BIRDS", NAMES, draw.integers(0, 3, total), rows, images, draw.integers(0, 3, test), test_images)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A file; read it, do not change it."""
    path = tmp_path_factory.mktemp("packed") / "birds.mllt"
    write(path, arrays())
    return path


@pytest.mark.parametrize(("kept", "total"), [(1, 1), (63, 90), (64, 64), (65, 90), (130, 131)])
def test_every_bit_comes_back(tmp_path, kept, total):
    packed = arrays(kept, total)
    size = write(tmp_path / "new" / "birds.mllt", packed)
    assert size == (tmp_path / "new" / "birds.mllt").stat().st_size
    found = read(tmp_path / "new" / "birds.mllt")
    assert found.equals(packed)
    assert found.images.dtype == np.uint8
    assert {found.labels.dtype, found.rows.dtype, found.test_labels.dtype} == {np.dtype(np.int64)}


@pytest.mark.parametrize("part", ["labels", "rows", "images", "test_labels", "test_images", "class_names", "dataset"])
def test_any_difference_is_one(part):
    ours, theirs = arrays(), arrays()
    assert ours.equals(theirs)
    other: Any = {"class_names": [*NAMES[:2], "kiwi"], "dataset": "CATS"}.get(part)
    if other is None:
        other = getattr(theirs, part).copy()
        other.flat[-1] ^= 1
    object.__setattr__(theirs, part, other)
    assert not ours.equals(theirs)


def test_the_same_images_make_the_same_file_by_any_number_of_threads(tmp_path):
    for threads in (1, 3):
        write(tmp_path / str(threads), arrays(), threads=threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


# ------------------------------------------------------------------------------------------------------------- writing


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "birds.mllt"
    path.write_text("mine")
    with pytest.raises(ArgumentError, match=r"is there already\. Choose another output, or replace it: overwrite=true"):
        write(path, arrays())
    assert path.read_text() == "mine"
    write(path, arrays(), overwrite=True)
    assert read(path).equals(arrays())
    with pytest.raises(ArgumentError, match=f"to be a file, but {tmp_path} is a folder"):
        write(tmp_path, arrays(), overwrite=True)


def full_disk(handle: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def failing_disk(handle: int) -> None:
    os.pwrite(handle, b"\xff\0\xff\0", os.fstat(handle).st_size - 20)


def interrupted(handle: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("sync", "error", "message"),
    [
        (full_disk, StorageError, r"birds\.mllt: No space left on device .* What was there before is still whole"),
        (failing_disk, DataError, r"birds\.mllt is not what was read\. The disk may be failing"),
        (interrupted, KeyboardInterrupt, None),
    ],
)
def test_what_cannot_be_written_whole_leaves_what_was_there(tmp_path, monkeypatch, sync, error, message):
    path = tmp_path / "birds.mllt"
    path.write_text("mine")
    monkeypatch.setattr(packed_arrays.os, "fsync", sync)
    with pytest.raises(error, match=message):
        write(path, arrays(), overwrite=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pillow_without_webp_is_told(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(ArgumentError, match="a Pillow that knows WebP"):
        write(tmp_path / "birds.mllt", arrays())
    with pytest.raises(ArgumentError, match="a Pillow that knows WebP"):
        read(whole)


# -------------------------------------------------------------------------------------------------------------- damage


def test_a_file_that_is_cut_off_or_grew_is_refused(whole, tmp_path):
    content = whole.read_bytes()
    path = tmp_path / "birds.mllt"
    for length in [*range(1, 40), *range(40, len(content), 7919), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"birds\.mllt are damaged: .*(cut off, or|but has [\d,]+\.).* overwrite=true"):
            read(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(DataError, match=r"was packed with .* bytes, but has"):
        read(path)


def test_no_flipped_bit_is_overlooked(whole, tmp_path):
    content = whole.read_bytes()
    path = tmp_path / "birds.mllt"
    for place in [*range(200), *range(200, len(content), 1009), len(content) - 1]:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"birds\.mllt"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + b"\0" * 100], ids=["empty", "text", "zip"])
def test_what_is_no_such_file_is_told_so(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=r"x to be a file that python -m mllt\.pack has written.* or a folder"):
        read(tmp_path / "x")


def test_what_cannot_be_opened_is_told_with_its_cause(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(DataError, match=f"Cannot read {path}: (Is a directory|No such file)"):
            read(path)


@pytest.mark.parametrize("form", hostile.FORMS)
def test_a_pickle_is_never_unpickled(tmp_path, form):
    path = hostile.FORMS[form]({"x": hostile.GADGETS["os.system"](tmp_path / "canary")}, tmp_path / "x")
    with pytest.raises(DataError, match="does not begin as one"):
        read(path)
    path.write_bytes(MAGIC + path.read_bytes())
    with pytest.raises(DataError, match="are damaged"):
        read(path)
    assert not (tmp_path / "canary").exists()


# --------------------------------------------------------------------------- files that mean harm: all checksums are right


def sections(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A file's header and its parts."""
    content = path.read_bytes()[len(MAGIC) :]
    length = int.from_bytes(content[:4], "little")
    told, rest, parts = json.loads(content[4 : 4 + length]), content[4 + length + 32 :], {}
    for name, part in told["parts"].items():
        parts[name], rest = rest[: part["bytes"]], rest[part["bytes"] :]
    return told, parts


def assemble(path: Path, header: bytes, parts: dict[str, bytes]) -> Path:
    length = len(header).to_bytes(4, "little")
    path.write_bytes(b"".join([MAGIC, length, header, hashlib.sha256(header).digest(), *parts.values()]))
    return path


def with_header(path: Path, whole: Path, **changes: Any) -> Path:
    told, parts = sections(whole)
    return assemble(path, json.dumps({**told, **changes}).encode(), parts)


def with_part(path: Path, whole: Path, name: str, content: bytes) -> Path:
    told, parts = sections(whole)
    told["parts"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return assemble(path, json.dumps(told).encode(), {**parts, name: content})


def test_the_helper_that_assembles_files_makes_good_ones(whole, tmp_path):
    assert with_header(tmp_path / "x", whole).read_bytes() == whole.read_bytes()


def test_another_version_is_told(whole, tmp_path):
    with pytest.raises(DataError, match=r"packed images of version 1, but .* is of version 2"):
        read(with_header(tmp_path / "x", whole, version=2))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "1"},
        {"version": True},
        {"dataset": 5},
        {"dataset": "\x1b[2J"},
        {"class_names": "owl"},
        {"class_names": []},
        {"class_names": [["owl"]]},
        {"class_names": ["owl", "\x1b[31m", "emu"]},
        {"class_names": ["owl", "\ud800", "emu"]},
        {"class_names": [str(number) for number in range(257)]},
        {"parts": None},
        {"parts": {}},
        {"parts": dict.fromkeys(packed_arrays._PARTS, 5)},
        {"parts": {name: {"bytes": 0} for name in [*packed_arrays._PARTS, "more"]}},
        *({"parts": {name: {"bytes": size} for name in packed_arrays._PARTS}} for size in (-1, True, 1.0, "1", None, 10**12)),
    ],
    ids=lambda changes: repr(changes)[:60],
)
def test_a_header_of_other_types_or_sizes_is_refused(whole, tmp_path, changes):
    with pytest.raises(DataError, match="its header does not tell what it should") as caught:
        read(with_header(tmp_path / "x", whole, **changes))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[" * 200_000, "its header is no JSON"),
        (b'{"version": ' + b"9" * 5000 + b"}", "its header is no JSON"),
        (b"\xff\xfe", "its header is no JSON"),
        (b"[1]", "does not tell what it should"),
        (b"null", "does not tell what it should"),
        (b" " * (2**20 + 1), "of an impossible length"),
    ],
    ids=["deep", "many digits", "no text", "list", "null", "long"],
)
def test_a_header_that_is_hard_to_read_is_refused(tmp_path, header, message):
    with pytest.raises(DataError, match=message):
        read(assemble(tmp_path / "x", header, {}))


def test_a_checksum_that_is_missing_is_no_checksum(whole, tmp_path):
    told, parts = sections(whole)
    del told["parts"]["labels"]["sha256"]
    with pytest.raises(DataError, match="its part labels is not what was packed"):
        read(assemble(tmp_path / "x", json.dumps(told).encode(), parts))


def numbers(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows", b"", "its rows are not some of the training images"),
        ("rows", b"\0\0\0", "its rows are no whole numbers"),
        ("rows", numbers(3, 2), "its rows are not some of the training images"),
        ("rows", numbers(2, 2), "its rows are not some of the training images"),
        ("rows", numbers(1, 90), "its rows are not some of the training images"),
        ("rows", numbers(2**32 - 1), "its rows are not some of the training images"),
        ("rows", numbers(*range(3)), "a picture of it is not of 3 images"),
        ("rows", numbers(*range(90)), "a picture of it is not of 26 images"),
        ("rows", numbers(*range(64)), "it holds more than its images"),
        ("labels", b"", "its rows are not some of the training images"),
        ("labels", b"\3" * 90, "it has labels beyond its class names"),
        ("test_labels", b"\3" * 5, "it has labels beyond its class names"),
        ("test_labels", b"\0" * 4, "a picture of it is not of 4 images"),
        ("test_labels", b"", "it holds more than its images"),
        ("images", b"", "a picture of it is not of 64 images"),
        ("images", b"\xff\xff\xff\xff", "a picture of it is not of 64 images"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(whole, tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read(with_part(tmp_path / "x", whole, name, content))


def encoded(width: int, height: int, kind: str = "WEBP", mode: str = "RGB", **more: Any) -> bytes:
    written = io.BytesIO()
    Image.new(mode, (width, height)).save(written, kind, **more)
    return written.getvalue()


def claiming(webp: bytes, width: int, height: int) -> bytes:
    """A lossless WebP whose header tells another size."""
    return webp[:21] + numbers((width - 1) | (height - 1) << 14) + webp[25:]


PICTURES: dict[str, Callable[[], bytes]] = {
    "a bomb": lambda: claiming(encoded(32, 160, lossless=True), 16384, 16384),
    "another shape of as many pixels": lambda: encoded(5 * 32, 32, lossless=True),
    "a lossy one": lambda: encoded(32, 160, lossless=False),
    "a PNG": lambda: encoded(32, 160, "PNG"),
    "an animation": lambda: encoded(32, 160, lossless=True, save_all=True, append_images=[Image.new("RGB", (32, 160), "red")]),
    "a pickle": lambda: pickle.dumps([1] * 100),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_no_decoder_is_given_what_was_not_packed(whole, tmp_path, kind, monkeypatch):
    content = PICTURES[kind]()
    path = with_part(tmp_path / "x", whole, "test_images", len(content).to_bytes(4, "little") + content)
    really, given = Image.open, []
    monkeypatch.setattr(Image, "open", lambda file, **more: given.append(file.getvalue()) or really(file, **more))
    with pytest.raises(DataError, match="a picture of it is not of 5 images"):
        read(path)
    assert given, "those of the training images are decoded"
    assert content not in given


def test_what_the_decoder_cannot_read_is_told(whole, tmp_path):
    content = encoded(32, 160, lossless=True)[:25]
    path = with_part(tmp_path / "x", whole, "test_images", len(content).to_bytes(4, "little") + content)
    with pytest.raises(DataError, match="a picture of it cannot be decoded"):
        read(path)


def test_few_bytes_do_not_unfold_to_more_than_a_bound(whole, tmp_path):
    """One colour compresses to next to nothing: the number of images is bounded, not only the size of the file."""
    most = packed_arrays._PARTS["test_labels"]
    with pytest.raises(DataError, match="its header does not tell what it should"):
        read(with_part(tmp_path / "x", whole, "test_labels", bytes(most + 1)))
