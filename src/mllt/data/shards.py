"""Shards: the pictures of a data set in a few large files, in a folder or in an object store.

The files are a litdata data set (`index.json`, `chunk-0-0.bin`, ...), and `mllt-shards.npz` beside them says what litdata
does not: labels, paths, class names, and of every picture its place, its size and its SHA-256. litdata writes the files
and brings them from an object store; which picture is read when stays with `mllt.data.order`, so that a run is the same
from shards as from loose files, to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import os
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mllt.data.images import FileSource, Reader
from mllt.data.order import SHUFFLE, IntArray, permutation, random_bits
from mllt.data.sources import data_root
from mllt.errors import ArgumentError, DataError, check_bool, check_integer, check_seed, name_some

INDEX = "mllt-shards.npz"
VERSION = 1
_ARRAYS = ("paths", "labels", "places")
_KEPT = 128  # shards that a process keeps mapped: each takes one of the files that it may have open
_WORD = 4  # bytes; a shard is: the number of pictures, where each begins, where the last ends; then each one's size and bytes


def shard_file(number: int) -> str:
    """The name of a shard, which litdata gives it.

    >>> shard_file(3)
    'chunk-0-3.bin'
    """
    return f"chunk-0-{number}.bin"


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether shards lie in a store (`s3://...`) and not in a folder; `local:FOLDER` treats a folder as such a store.

    >>> is_url("s3://bucket/birds"), is_url("local:/mnt/birds"), is_url("/data/birds")
    (True, True, False)
    """
    return "://" in str(location) or str(location).startswith("local:")


def require_litdata() -> None:
    """Raise `ArgumentError` where litdata is not installed."""
    try:
        import litdata.streaming  # noqa: F401
    except ImportError as error:
        raise ArgumentError(
            f"Packing shards, and reading them from a store, takes litdata, which cannot be imported ({error}). "
            "Type pip install 'mllt[shards]' to have it."
        ) from error


# ---------------------------------------------------------------------------------------------------------------
# What is where


@dataclass
class ShardIndex:
    """What the shards hold.

    Args:
        about: the data set in plain values: its class, title, class names, notes, lists.
        splits: of "training", "test" and perhaps "validation": "paths" (bytes), "labels" (int64) and "places" (int64, each
            picture's number in the order of storage), `(rows,)` each.
        sizes: `(n,)` bytes of each picture, in the order of storage.
        sums: uint8 `(n, 32)`, the SHA-256 of each.
        firsts: `(shards + 1,)`, the first picture of each shard, and n.
    """

    about: dict[str, Any]
    splits: dict[str, dict[str, NDArray[Any]]]
    sizes: IntArray
    sums: NDArray[np.uint8]
    firsts: IntArray
    #: `(n,)`: the shard of each picture, and where its bytes begin there; `(shards,)`: bytes of each shard
    shards: IntArray = field(init=False)
    offsets: IntArray = field(init=False)
    file_sizes: IntArray = field(init=False)

    def __post_init__(self) -> None:
        counts = np.diff(self.firsts)
        self.shards = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        heads = _WORD * (counts + 2)
        ends = np.concatenate([[0], np.cumsum(self.sizes + _WORD)])
        starts = ends[self.firsts]
        self.file_sizes = heads + np.diff(starts)
        self.offsets = ends[:-1] - starts[self.shards] + heads[self.shards] + _WORD

    @property
    def paths(self) -> NDArray[np.bytes_]:
        """The path of each picture, in the order of storage."""
        width = max(split["paths"].dtype.itemsize for split in self.splits.values())
        found = np.empty(len(self.sizes), f"S{max(width, 1)}")
        for split in self.splits.values():
            found[split["places"]] = split["paths"]
        return found

    def write(self, file: IO[Any]) -> None:
        """Write the index as NumPy's npz, whose parts carry checksums."""
        arrays = {f"{name}.{part}": split[part] for name, split in self.splits.items() for part in _ARRAYS}
        about = np.frombuffer(json.dumps({**self.about, "splits": list(self.splits)}).encode(), np.uint8)
        np.savez(file, about=about, sizes=self.sizes, sums=self.sums, firsts=self.firsts, **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> ShardIndex:
        """Read an index, and check that it is whole and contradicts itself nowhere.

        Raises:
            DataError: it is damaged, or of a version that is not known here.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                about = json.loads(stored["about"].tobytes())
                if about["version"] != VERSION:
                    raise DataError(
                        f"Expected shards of version {VERSION}, but {path} is of version {about['version']!r}. Use the mllt "
                        "that packed it, or pack the pictures again."
                    )
                splits = {name: {part: stored[f"{name}.{part}"] for part in _ARRAYS} for name in about.pop("splits")}
                index = cls(about, splits, stored["sizes"], stored["sums"], stored["firsts"])
            index._check()
        except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError, zipfile.BadZipFile) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"The index of the shards, {path}, is damaged: {type(error).__name__}: {error}.") from error
        return index

    def _check(self) -> None:
        places = np.concatenate([split["places"] for split in self.splits.values()])
        if not np.array_equal(np.sort(places), np.arange(len(self.sizes))):
            raise ValueError("its places are not one for each picture")
        if self.sums.shape != (len(self.sizes), 32) or self.sums.dtype != np.uint8:
            raise ValueError("it has not one checksum for each picture")
        if self.firsts[0] != 0 or self.firsts[-1] != len(self.sizes) or (np.diff(self.firsts) < 1).any():
            raise ValueError("its shards do not hold each picture once")
        if (self.sizes < 0).any() or any(len({len(split[part]) for part in _ARRAYS}) > 1 for split in self.splits.values()):
            raise ValueError("its columns do not fit each other")


# ---------------------------------------------------------------------------------------------------------------
# Reading


class Store:
    """An object store, reached by litdata's downloaders.

    Args:
        url: as litdata takes it: s3://, gs://, azure://, r2://, hf://, or local:FOLDER.
    """

    def __init__(self, url: str) -> None:
        require_litdata()
        self.url = url.rstrip("/")
        self._downloader: tuple[int, Any] | None = None

    def get(self, name: str, path: Path) -> None:
        """Bring a file: it is at `path` whole, or not at all.

        Raises:
            DataError: it cannot be had; names the file and the cause.
        """
        try:
            self._connect(path.parent).download_file(f"{self.url}/{name}", str(path))
            missing = not path.exists()
        except ArgumentError:
            raise
        except Exception as error:  # each store fails in its own ways
            cause = " ".join(str(error).split())[:300]
            raise DataError(f"Cannot fetch {self.url}/{name}: {type(error).__name__}: {cause}") from error
        if missing:
            raise DataError(f"Cannot fetch {self.url}/{name}: litdata brought nothing.")

    def _connect(self, folder: Path) -> Any:
        """litdata's downloader; connections must not go along to another process."""
        if self._downloader is None or self._downloader[0] != os.getpid():
            from litdata.streaming.downloader import LocalDownloader, get_downloader

            found = get_downloader(self.url, str(folder), [])
            if type(found) is LocalDownloader:  # what litdata takes where it knows no better
                raise ArgumentError(f"Expected a folder or a URL that litdata knows (s3://, gs://, ...), but got {self.url!r}.")
            self._downloader = os.getpid(), found
        return self._downloader[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_downloader": None}


class Shards:
    """The shards of a data set, and how their bytes are read.

    Shards in a folder are mapped into memory when they are first read. Nothing else is kept between two reads, so processes
    may share it as they like. Shards from a store are fetched whole, once for all processes of a machine, into `folder`.
    (litdata's own reader goes through chunks in litdata's order; for reads in another order it drops chunks that other
    processes still read.)

    Args:
        index: what they hold.
        folder: where the files lie, or are fetched to.
        store: where they are fetched from; None: they lie in `folder`.
        budget: bytes that fetched shards may take; beyond, those that were not read for the longest time go. None: all stay.
    """

    def __init__(self, index: ShardIndex, folder: Path, store: Store | None = None, budget: float | None = None) -> None:
        self.index, self.folder, self.store, self.budget = index, folder, store, budget
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()  # those that were read last at the end

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict()}

    @property
    def location(self) -> str:
        """The folder or URL."""
        return str(self.folder) if self.store is None else self.store.url

    def place_of(self, shard: int) -> str:
        """What to call a shard in an error."""
        return f"{self.location}/{shard_file(shard)}"

    def picture(self, number: int) -> bytes:
        """The encoded picture of that number in the order of storage, its checksum checked.

        Raises:
            DataError: the shard is not there, ends too early, or holds other bytes than were packed.
        """
        index = self.index
        shard, offset, size = int(index.shards[number]), int(index.offsets[number]), int(index.sizes[number])
        content = b""
        for _ in range(2):
            content = self._read(shard, offset, size)
            if hashlib.sha256(content).digest() == index.sums[number].tobytes():
                return content
            if self.store is None:
                break
            (self.folder / shard_file(shard)).unlink(missing_ok=True)  # the fetched copy may be at fault: once more
        cause = f"it ends {size - len(content):,} bytes too early" if len(content) < size else "its checksum is another one"
        raise DataError(
            f"the shard {shard_file(shard)} is damaged, {cause} (type python -m mllt.pack verify={self.location} to see all "
            "that is damaged)"
        )

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard, fewer where it ends too early."""
        mapped = self._mapped(shard) if self.store is None else None
        if mapped is None:
            with self.open_shard(shard) as file:
                file.seek(offset)
                return file.read(size)
        _fetch_ahead(mapped, offset, size)
        return mapped[offset : offset + size]

    def ahead(self, numbers: IntArray) -> None:
        """Have the system begin to read pictures that will be asked for, by their numbers, side by side."""
        if self.store is not None:
            return
        index = self.index
        for number in numbers:
            with contextlib.suppress(DataError, OSError):  # it will be told when the picture is asked for
                mapped = self._mapped(int(index.shards[number]))
                if mapped is not None:
                    _fetch_ahead(mapped, int(index.offsets[number]), int(index.sizes[number]))

    def _mapped(self, shard: int) -> mmap.mmap | None:
        """A shard as memory; None for one of another length, since touching memory behind a file's end ends the process."""
        mapped = self._maps.get(shard)
        if mapped is None:
            with self.open_shard(shard) as file:
                if os.fstat(file.fileno()).st_size != self.index.file_sizes[shard]:
                    return None
                mapped = self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                mapped.madvise(mmap.MADV_RANDOM)
            if len(self._maps) > _KEPT:
                self._maps.popitem(last=False)
        self._maps.move_to_end(shard)
        return mapped

    def open_shard(self, shard: int) -> BinaryIO:
        """The file of a shard, fetched if need be."""
        path = self.folder / shard_file(shard)
        file = _opened(path)
        if file is None and self.store is None:
            raise DataError(f"there is no file {path}")
        if file is None:
            return self._fetch(shard, path)
        if self.budget is not None:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)  # tells which shards were not read for the longest time
        return file

    def check_files(self) -> None:
        """Raise `DataError` when shards in a folder are missing or of another size than was packed."""
        if self.store is not None:
            return
        wrong = []
        for shard, size in enumerate(self.index.file_sizes.tolist()):
            try:
                found = os.path.getsize(self.folder / shard_file(shard))
            except FileNotFoundError:
                wrong.append(f"{shard_file(shard)}: missing")
                continue
            if found != size:
                wrong.append(f"{shard_file(shard)}: {found:,} bytes, not {size:,}")
        if wrong:
            raise DataError(
                f"Expected {len(self.index.file_sizes):,} shards in {self.folder}, but {len(wrong):,} of them are missing or "
                f"damaged: {name_some(wrong)}. Copy them again, or pack the pictures again. (verify_files=false goes on "
                "without this check.)"
            )

    def _fetch(self, shard: int, path: Path) -> BinaryIO:
        """Fetch a shard, and open it before it is where another process may remove it again to make room."""
        store: Store = self.store  # type: ignore[assignment]
        with FileLock(f"{path}.fetch"):
            file = _opened(path)  # another process may have fetched it meanwhile
            if file is not None:
                return file
            for left in path.parent.glob(f"new-{path.name}*"):  # by a process that was killed
                left.unlink()
            new = path.with_name(f"new-{path.name}")
            store.get(path.name, new)
            expected, found = int(self.index.file_sizes[shard]), new.stat().st_size
            if found != expected:
                new.unlink()
                raise DataError(f"{self.place_of(shard)} is damaged: expected {expected:,} bytes, but fetched {found:,}.")
            file = open(new, "rb")  # noqa: SIM115
            os.replace(new, path)
        if self.budget is not None:
            self._make_room(path)
        return file

    def _make_room(self, newest: Path) -> None:
        with FileLock(str(self.folder / "room.lock")):
            found = []
            for path in self.folder.glob("chunk-*.bin"):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
            taken = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if taken <= (self.budget or 0):
                    break
                if path != newest:
                    path.unlink(missing_ok=True)
                    taken -= size


def _fetch_ahead(mapped: mmap.mmap, offset: int, size: int) -> None:
    """All of a picture in one go: else the system reads it page by page, as it is touched."""
    if hasattr(mmap, "MADV_WILLNEED"):
        begin = offset - offset % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, begin, offset + size - begin)


def _opened(path: Path) -> BinaryIO | None:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return None


def open_shards(
    location: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None, cache_gb: float | None = None
) -> Shards:
    """The shards in a folder, or at a URL.

    Args:
        location: the folder, or a URL as litdata takes it.
        cache: the folder that shards from a URL are fetched to; None: `~/.cache/mllt/shards`. Each data set has a folder of
            its own there, by the checksum of its index.
        cache_gb: gigabytes (10^9 bytes) that they may take there; None: as many as they are.

    Raises:
        ArgumentError: litdata is needed and not installed, or does not know the URL.
        DataError: there are no shards, or their index is damaged.
    """
    if not is_url(location):
        folder = data_root(os.fspath(location))
        if not (folder / INDEX).is_file():
            raise DataError(
                f"Expected shards in {folder}, but there is no {INDEX}. Set data.root to the folder that python -m mllt.pack "
                "wrote whole, or data.storage=files for loose pictures."
            )
        return Shards(ShardIndex.read(folder / INDEX), folder)
    store = Store(str(location))
    above = data_root(os.fspath(cache)) if cache is not None else default_cache()
    above.mkdir(parents=True, exist_ok=True)
    fetched = above / f"index-{os.getpid()}-{os.urandom(4).hex()}.npz"
    try:
        store.get(INDEX, fetched)
        folder = above / hashlib.sha256(fetched.read_bytes()).hexdigest()[:16]
        folder.mkdir(exist_ok=True)
        os.replace(fetched, folder / INDEX)
    finally:
        for left in above.glob(f"{fetched.name}*"):
            left.unlink(missing_ok=True)
    return Shards(ShardIndex.read(folder / INDEX), folder, store, None if cache_gb is None else cache_gb * 1e9)


def default_cache() -> Path:
    """Where shards are fetched to when nothing is said."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mllt" / "shards"


class ShardSource(FileSource):
    """Pictures in shards: a `FileSource` whose files are read from there.

    Args:
        shards: where they are read.
        paths: of the files that were packed.
        labels: `(n,)` whole numbers.
        places: `(n,)` each picture's number in the order of storage.
    """

    def __init__(self, shards: Shards, paths: NDArray[np.bytes_], labels: IntArray, places: IntArray) -> None:
        super().__init__(paths, labels)
        self.shards, self.places = shards, places

    @property
    def scaled(self) -> dict[str, int] | None:
        """How training pictures were scaled down as they were packed; None where all are as they were."""
        return self.shards.index.about.get("scaled")

    @property
    def shard_of(self) -> IntArray:
        """`(n,)` the shard of each picture."""
        return self.shards.index.shards[self.places]

    def load(self, indices: IntArray, readers: Sequence[Reader] | None = None) -> list[Any]:
        self.ahead(indices)
        return super().load(indices, readers)

    def ahead(self, indices: IntArray) -> None:
        """Have the system begin to read the pictures at `indices`."""
        self.shards.ahead(self.places[indices])

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self.shards.picture(int(self.places[index])))

    def size_of(self, index: int) -> int:
        return int(self.shards.index.sizes[self.places[index]])

    def subset(self, indices: IntArray) -> ShardSource:
        return ShardSource(self.shards, self.paths[indices], self.labels[indices], self.places[indices])

    def name_of(self, index: int) -> str:
        return f"{os.fsdecode(self.paths[index])} of {self.shards.place_of(int(self.shards.index.shards[self.places[index]]))}"


# ---------------------------------------------------------------------------------------------------------------
# An order that needs few shards at a time


class ShardOrder:
    """Every image once per epoch, few shards at a time: where shards do not all fit the cache, each is fetched once an epoch.

    The shards come in random order, anew by (seed, epoch); so many of them at a time make a window, and the images of a
    window are shuffled. It fits where `EpochOrder` does. Images near each other in an epoch come from the same few shards,
    which is harmless where shards are random samples of the training images, as those of `mllt.pack` are.

    Args:
        shard_of: `(n,)` the shard of each image.
        window: shards at a time, at least 1.
        seed: with the epoch, all that the order depends on.
        shuffle: a new order every epoch; without it, that of epoch 0.

    >>> order = ShardOrder(np.array([0, 0, 1, 1, 2, 2]), window=1, seed=0)
    >>> sorted(order(0).tolist()), (order(0) // 2).tolist()
    ([0, 1, 2, 3, 4, 5], [1, 1, 0, 0, 2, 2])
    """

    def __init__(self, shard_of: IntArray, window: int, seed: int, *, shuffle: bool = True) -> None:
        check_integer("length", len(shard_of), 1)
        # Some shards may have lost all their images to another split
        self.shard_of = np.unique(shard_of, return_inverse=True)[1].astype(np.int64)
        self.window = check_integer("shard_window", window, 1)
        self.seed = check_seed("seed", seed)
        self.shuffle = check_bool("shuffle", shuffle)

    def __len__(self) -> int:
        return len(self.shard_of)

    def __call__(self, epoch: int) -> IntArray:
        epoch = epoch if self.shuffle else 0
        turns = np.argsort(permutation(int(self.shard_of.max()) + 1, self.seed, SHUFFLE, epoch, 1))
        windows = turns[self.shard_of] // self.window
        images = np.arange(len(self.shard_of), dtype=np.int64)
        return np.lexsort((random_bits(self.seed, SHUFFLE, epoch, 0, images), windows)).astype(np.int64)
