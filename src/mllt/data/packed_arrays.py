"""A small data set in one file: the images of a long-tailed subset and its test, without loss, to take anywhere.

The file begins with `MAGIC`, the length of its header (4 bytes, little-endian), the header (JSON) and the header's SHA-256.
Then come its parts, whose lengths and SHA-256 the header tells. Images lie class by class in pictures of up to 64, one under
the other, each as lossless WebP: pictures of some images share the tables that a single small one would have to bring along.
Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from mllt.data.order import IntArray
from mllt.errors import ArgumentError, DataError, printable
from mllt.files import cannot_write, sync_folder
from mllt.version import __version__

MAGIC = b"\x89mllt-images\r\n\x1a\n"
VERSION = 1
SIDE = 32  # pixels
_TOGETHER = 64  # images of one picture
_WORD = 4  # bytes of a length
_SUM = 32  # bytes of a SHA-256
_MOST_IMAGES = 100_000  # of training and of test: what is unfolded has a bound, however little is stored
_MOST_CLASSES = 256  # labels are bytes
_MOST_HEADER = 1 << 20  # bytes
#: The parts of a file, and how many bytes each may have
_PARTS = {
    "labels": _MOST_IMAGES,
    "rows": 4 * _MOST_IMAGES,
    "test_labels": _MOST_IMAGES,
    "images": 4096 * _MOST_IMAGES,
    "test_images": 4096 * _MOST_IMAGES,
}
# WebP without loss: how hard it tries. More takes several times as long, and gains nothing (docs/shards.md)
_EFFORT = {"method": 4, "quality": 50}

#: Told of bytes done
Advance = Callable[[int], None]


@dataclass(frozen=True)
class PackedArrays:
    """Labelled images of an official data set: all of them, or only some of the training images.

    Args:
        dataset: its name, "CIFAR100" for instance.
        class_names: in label order.
        labels: int64 `(n,)`, of all official training images, whether they are here or not.
        rows: int64 `(k,)`, ascending: which of these are here.
        images: uint8 `(k, 32, 32, 3)`.
        test_labels: int64 `(m,)`.
        test_images: uint8 `(m, 32, 32, 3)`.
    """

    dataset: str
    class_names: list[str]
    labels: IntArray
    rows: IntArray
    images: NDArray[np.uint8]
    test_labels: IntArray
    test_images: NDArray[np.uint8]

    @property
    def places(self) -> IntArray:
        """Of each official training image, where it lies in `images`; -1 where it is not here. int64 `(n,)`."""
        places = np.full(len(self.labels), -1, dtype=np.int64)
        places[self.rows] = np.arange(len(self.rows))
        return places

    def take(self, rows: IntArray) -> PackedArrays:
        """With only these training images, which must be here."""
        rows = np.unique(rows)
        images = self.images[self.places[rows]]
        return PackedArrays(self.dataset, self.class_names, self.labels, rows, images, self.test_labels, self.test_images)

    def equals(self, other: PackedArrays) -> bool:
        """Whether all is the same, to the bit."""
        names = ("labels", "rows", "images", "test_labels", "test_images")
        told = (self.dataset, self.class_names) == (other.dataset, other.class_names)
        return told and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)


# ---------------------------------------------------------------------------------------------------------------
# Writing


def write(
    path: str | os.PathLike[str],
    arrays: PackedArrays,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    advance: Advance | None = None,
) -> int:
    """Write the file, read it back, compare it, and only then put it in its place.

    Args:
        path: of the file.
        arrays: what it is to hold.
        overwrite: whether a file that is there already may be replaced.
        threads: how many compress side by side; None: as Python finds fit.
        advance: told of bytes, before they are compressed, that are done.

    Returns:
        Its size in bytes.

    Raises:
        ArgumentError: there is a file already, or a folder.
        DataError: what was written cannot be read back.
        StorageError: it cannot be written, the disk being full, for instance.
    """
    path = Path(path).expanduser()
    _expect_free(path, overwrite)
    _expect_webp(path)
    parts = {
        "labels": arrays.labels.astype(np.uint8).tobytes(),
        "rows": arrays.rows.astype("<u4").tobytes(),
        "test_labels": arrays.test_labels.astype(np.uint8).tobytes(),
        "images": _fold(arrays.images, arrays.labels[arrays.rows], threads, advance),
        "test_images": _fold(arrays.test_images, arrays.test_labels, threads, advance),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(".packing", f".{path.name}.", path.parent) as folder:
            new = Path(folder) / path.name
            with new.open("wb") as file:
                file.writelines((MAGIC, *_header(arrays, parts), *parts.values()))
                file.flush()
                os.fsync(file.fileno())
            if not _holds(new, arrays):
                raise DataError(f"What was written to {path} is not what was read. The disk may be failing: pack it again.")
            size = new.stat().st_size
            _expect_free(path, overwrite)  # still
            os.replace(new, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    return size


def _holds(path: Path, arrays: PackedArrays) -> bool:
    try:
        return read(path).equals(arrays)
    except DataError:
        return False


def _expect_free(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise ArgumentError(f"Expected `output` to be a file, but {path} is a folder. Type output={path}/NAME.")
    if path.exists() and not overwrite:
        raise ArgumentError(f"{path} is there already. Choose another output, or replace it: overwrite=true.")


def _expect_webp(path: Path) -> None:
    if not features.check("webp"):
        raise ArgumentError(
            f"{path} takes a Pillow that knows WebP, but this one was built without. Type pip install --force-reinstall pillow."
        )


def _header(arrays: PackedArrays, parts: Mapping[str, bytes]) -> tuple[bytes, bytes, bytes]:
    """Its length, the header, and its checksum."""
    told = {
        "version": VERSION,
        "dataset": arrays.dataset,
        "class_names": arrays.class_names,
        "parts": {name: {"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()} for name, part in parts.items()},
        "mllt": __version__,
    }
    header = json.dumps(told).encode()
    return len(header).to_bytes(_WORD, "little"), header, hashlib.sha256(header).digest()


def _fold(images: NDArray[np.uint8], labels: IntArray, threads: int | None, advance: Advance | None) -> bytes:
    """The images as pictures, each behind its length."""
    sorted_images = images[_by_class(labels)]

    def encode(first: int) -> bytes:
        some = sorted_images[first : first + _TOGETHER]
        written = io.BytesIO()
        Image.fromarray(some.reshape(-1, SIDE, 3)).save(written, "WEBP", lossless=True, **_EFFORT)
        if advance is not None:
            advance(some.nbytes)
        return len(written.getvalue()).to_bytes(_WORD, "little") + written.getvalue()

    with ThreadPoolExecutor(threads) as pool:
        return b"".join(pool.map(encode, range(0, len(images), _TOGETHER)))


def _by_class(labels: IntArray) -> IntArray:
    """The order in which images are stored: those of a class resemble each other."""
    return np.argsort(labels, kind="stable")


# ---------------------------------------------------------------------------------------------------------------
# Reading


def read(path: str | os.PathLike[str]) -> PackedArrays:
    """Read a file, every byte of it, and compare it with its checksums.

    Raises:
        DataError: it is no such file, of another version, cut off or damaged, or holds what cannot be.
        ArgumentError: Pillow was built without WebP.

    >>> folder = Path(tempfile.mkdtemp())
    >>> two, one = np.zeros((2, 32, 32, 3), np.uint8), np.ones((1, 32, 32, 3), np.uint8)
    >>> birds = PackedArrays("birds", ["owl", "jay"], np.array([0, 1, 0]), np.array([0, 2]), two, np.array([1]), one)
    >>> _ = write(folder / "birds.mllt", birds)
    >>> read(folder / "birds.mllt").rows.tolist()
    [0, 2]
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            told = _read_header(path, file)
            size = os.fstat(file.fileno()).st_size
            expected = file.tell() + sum(part["bytes"] for part in told["parts"].values())
            if size != expected:
                _refuse(path, f"it was packed with {expected:,} bytes, but has {size:,}")
            parts = {name: file.read(part["bytes"]) for name, part in told["parts"].items()}
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    for name, part in parts.items():
        if hashlib.sha256(part).hexdigest() != told["parts"][name].get("sha256"):
            _refuse(path, f"its part {name} is not what was packed")
    return _arrays(path, told, parts)


def _refuse(path: Path, cause: str) -> NoReturn:
    raise DataError(
        f"The packed images {path} are damaged: {cause}. Copy the file again, or pack it again (python -m mllt.pack "
        f"experiment=... output={path} overwrite=true)."
    )


def _read_header(path: Path, file: BinaryIO) -> dict[str, Any]:
    """What the file tells of itself; all that is used of it has been looked at."""
    begin = file.read(len(MAGIC) + _WORD)
    if begin[: len(MAGIC)] != MAGIC[: len(begin)] or not begin:
        raise DataError(
            f"Expected {path} to be a file that python -m mllt.pack has written, but it does not begin as one. Give such a "
            "file, or a folder with the data set's own files."
        )
    length = int.from_bytes(begin[len(MAGIC) :], "little")
    if len(begin) < len(MAGIC) + _WORD or length > _MOST_HEADER:
        _refuse(path, "its header is cut off, or of an impossible length")
    header = file.read(length)
    if file.read(_SUM) != hashlib.sha256(header).digest():
        _refuse(path, "its header is cut off, or not what was packed")
    try:
        told = json.loads(header)
    except (ValueError, RecursionError):
        _refuse(path, "its header is no JSON")
    version = told.get("version") if isinstance(told, dict) else None
    if type(version) is int and version != VERSION:
        raise DataError(
            f"Expected packed images of version {VERSION}, but {path} is of version {version}. Use the mllt that packed it, or "
            "pack it again."
        )
    if type(version) is not int or not _is_sound(told):
        _refuse(path, "its header does not tell what it should")
    return told


def _is_sound(told: Mapping[str, Any]) -> bool:
    """Whether a header has all that is needed, of the right types, within bounds."""
    names, parts = told.get("class_names"), told.get("parts")
    return (
        isinstance(names, list)
        and 0 < len(names) <= _MOST_CLASSES
        and all(isinstance(name, str) and name == printable(name) for name in [told.get("dataset"), *names])
        and isinstance(parts, dict)
        and list(parts) == list(_PARTS)
        and all(isinstance(part, dict) for part in parts.values())
        and all(type(parts[name].get("bytes")) is int and 0 <= parts[name]["bytes"] <= most for name, most in _PARTS.items())
    )


def _arrays(path: Path, told: Mapping[str, Any], parts: Mapping[str, bytes]) -> PackedArrays:
    """The parts as arrays that fit each other."""
    labels, test_labels = (np.frombuffer(parts[name], np.uint8).astype(np.int64) for name in ("labels", "test_labels"))
    if len(parts["rows"]) % 4:
        _refuse(path, "its rows are no whole numbers")
    rows = np.frombuffer(parts["rows"], "<u4").astype(np.int64)
    if not len(rows) or (np.diff(rows) < 1).any() or rows[-1] >= len(labels):
        _refuse(path, "its rows are not some of the training images, in their order")
    if max(labels.max(), test_labels.max(initial=0)) >= len(told["class_names"]):
        _refuse(path, "it has labels beyond its class names")
    _expect_webp(path)
    images = _unfold(path, parts["images"], labels[rows])
    test_images = _unfold(path, parts["test_images"], test_labels)
    return PackedArrays(told["dataset"], told["class_names"], labels, rows, images, test_labels, test_images)


def _unfold(path: Path, content: bytes, labels: IntArray) -> NDArray[np.uint8]:
    """The images of `_fold`, uint8 `(n, 32, 32, 3)`."""
    images = np.empty((len(labels), SIDE, SIDE, 3), np.uint8)
    order, offset = _by_class(labels), 0
    for first in range(0, len(labels), _TOGETHER):
        rows = order[first : first + _TOGETHER]
        length = int.from_bytes(content[offset : offset + _WORD], "little")
        picture = content[offset + _WORD : offset + _WORD + length]
        offset += _WORD + length
        # The header is looked at before a decoder gets it: a picture of a few bytes may unfold to a gigabyte
        if _webp_size(picture) != (SIDE, SIDE * len(rows)):
            _refuse(path, f"a picture of it is not of {len(rows)} images")
        try:
            with Image.open(io.BytesIO(picture), formats=["WEBP"]) as decoded:
                images[rows] = np.asarray(decoded.convert("RGB")).reshape(-1, SIDE, SIDE, 3)
        except Exception as error:  # decoders fail in many ways
            raise DataError(f"The packed images {path} are damaged: a picture of it cannot be decoded ({error}).") from error
    if offset != len(content):
        _refuse(path, "it holds more than its images")
    return images


def _webp_size(picture: bytes) -> tuple[int, int] | None:
    """Width and height that the header of a lossless WebP tells, if it is one, without animation or metadata."""
    if len(picture) < 25 or (picture[:4], picture[8:16], picture[20]) != (b"RIFF", b"WEBPVP8L", 0x2F):
        return None
    (bits,) = struct.unpack_from("<I", picture, 21)
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
