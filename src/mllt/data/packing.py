"""Writing pictures into shards, and looking whether they are whole (`mllt.data.shards` reads them).

What is interrupted leaves no set that looks whole: the index is written last, when every picture has been read back. The
same command then goes on with the shards that are missing.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mllt.data.images import FileSource, PictureError, decode, quiet, use_picture
from mllt.data.lists import ImageFileDataModule, blob_id, refuse
from mllt.data.order import SHUFFLE, IntArray, permutation
from mllt.data.shards import INDEX, VERSION, ShardIndex, Shards, require_litdata, shard_file
from mllt.errors import ArgumentError, DataError, StorageError, name_some
from mllt.files import FolderLock, cannot_write, written_whole
from mllt.version import __version__

#: In the folder while it is packed: the plan, the checksums of the shards that are written, and shards being written
PARTS = "packing"
_PLAN = "plan.json"
_WORD = 4
_LARGEST = 2**32 - 1  # bytes of a shard: litdata counts them in 32 bits
_AT_ONCE = 256  # pictures that are scaled down before they are kept

#: Told of work done: bytes written or read
Advance = Callable[[int], None]
#: Told of each pass as it begins, by its name and its bytes
Tell = Callable[[str, int], Advance]


# ---------------------------------------------------------------------------------------------------------------
# Planning


@dataclass(frozen=True)
class Scaling:
    """How training pictures are made smaller: those whose short side is longer are scaled to it, and written as JPEG.

    Args:
        short_side: pixels.
        quality: of JPEG, 1 .. 100.
    """

    short_side: int
    quality: int = 90

    def as_dict(self) -> dict[str, int]:
        """Plain values, for the index."""
        return {"short_side": self.short_side, "quality": self.quality}

    def __call__(self, content: bytes, image: Image.Image) -> bytes:
        """The encoded picture, as it is, or scaled down: upright, in RGB, by Lanczos' filter."""
        short = min(image.size)
        if short <= self.short_side:
            return content
        upright = decode(image)
        size = [max(round(side * self.short_side / short), 1) for side in upright.size]
        written = io.BytesIO()
        upright.resize((size[0], size[1]), Image.Resampling.LANCZOS).save(written, "JPEG", quality=self.quality)
        return written.getvalue()


class ScaledSource(FileSource):
    """Pictures that are scaled down and lie one behind the other in a few files.

    Args:
        source: the pictures as they were.
        files: of `_AT_ONCE` pictures each.
        sizes: `(n,)` bytes of each picture.
    """

    def __init__(self, source: FileSource, files: list[Path], sizes: IntArray) -> None:
        super().__init__(source.paths, source.labels, source.root)
        self.files, self.sizes = files, sizes

    def open(self, index: int) -> BinaryIO:
        file, place = divmod(index, _AT_ONCE)
        with open(self.files[file], "rb") as held:
            held.seek(int(self.sizes[index - place : index].sum()))
            return io.BytesIO(held.read(int(self.sizes[index])))


@dataclass
class Plan:
    """Which picture goes where.

    Args:
        about: of the data set, see `ShardIndex`.
        sources: the files of each split.
        places: of each split, each row's number in the order of storage.
        sizes: `(n,)` bytes of each picture, in the order of storage.
        firsts: `(shards + 1,)`, the first picture of each shard, and n.
        digest: digits that tell this plan, and these files, from any other.
    """

    about: dict[str, Any]
    sources: dict[str, FileSource]
    places: dict[str, IntArray]
    sizes: IntArray
    firsts: IntArray
    digest: str

    @property
    def file_sizes(self) -> list[int]:
        """Bytes of each shard."""
        return self.index(np.zeros((len(self.sizes), 32), np.uint8)).file_sizes.tolist()

    def index(self, sums: NDArray[np.uint8]) -> ShardIndex:
        """What the shards hold once they are written; `sums` are the checksums of the pictures."""
        splits = {
            name: {"paths": source.paths, "labels": source.labels, "places": self.places[name]}
            for name, source in self.sources.items()
        }
        return ShardIndex(self.about, splits, self.sizes, sums, self.firsts)


def make_plan(
    data: ImageFileDataModule, shard_bytes: int, sources: dict[str, FileSource] | None = None, scaling: Scaling | None = None
) -> Plan:
    """Lay out the pictures of a data module in shards of about `shard_bytes`.

    Training pictures are stored in a random order, so that each shard is a sample of all classes (what `ShardOrder` needs);
    the others in their own, in which they are read. No shard holds pictures of two splits.

    Args:
        data: the data module.
        shard_bytes: see `pack`.
        sources: the pictures to store; None: the data module's.
        scaling: how they came of the data module's.
    """
    stored = data.stored
    sources = stored.sources if sources is None else sources
    places, sizes, firsts, digest = {}, [], [np.zeros(1, dtype=np.int64)], hashlib.sha256()
    about = {
        "format": "shards",
        "version": VERSION,
        "data": type(data).__name__,
        "title": data.title,
        "class_names": stored.class_names,
        "notes": [*stored.notes, *([] if scaling is None else [_told(scaling)])],
        "lists": {path.name: blob_id(path) for path in data.source_lists()},
        "mllt": __version__,
        **({} if scaling is None else {"scaled": scaling.as_dict()}),
    }
    digest.update(json.dumps([about, shard_bytes]).encode())
    begin = 0
    for name, source in sources.items():
        order = permutation(len(source), 0, SHUFFLE) if name == "training" else np.arange(len(source), dtype=np.int64)
        places[name] = np.empty(len(source), dtype=np.int64)
        places[name][order] = begin + np.arange(len(source))
        status = file_states(name, source)
        stored_sizes = source.sizes if isinstance(source, ScaledSource) else status[:, 0]
        sizes.append(stored_sizes[order])
        firsts.append(begin + cut(sizes[-1], shard_bytes)[1:])
        begin += len(source)
        for array in (source.paths, source.labels, status, stored_sizes):
            digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return Plan(about, sources, places, np.concatenate(sizes), np.concatenate(firsts), digest.hexdigest())


def _told(scaling: Scaling) -> str:
    return (
        f"training pictures with a short side of more than {scaling.short_side:,} pixels were scaled down to it as they were "
        f"packed (JPEG quality {scaling.quality}): results are not those of the pictures as they were"
    )


def file_states(split: str, source: FileSource) -> IntArray:
    """Size in bytes and time of the last change of each file, int64 `(n, 2)`."""

    def state(index: int) -> tuple[int, int]:
        try:
            status = os.stat(source.name_of(index))
        except OSError:
            return -1, 0
        return status.st_size, status.st_mtime_ns

    with ThreadPoolExecutor() as threads:
        found = np.array(list(threads.map(state, range(len(source)), chunksize=256)), dtype=np.int64).reshape(-1, 2)
    expected = f"Expected every {split} picture to be there"
    refuse(expected, [source.name_of(int(i)) for i in np.flatnonzero(found[:, 0] < 0)], "cannot be found", "cannot be found")
    return found


def cut(sizes: IntArray, shard_bytes: int) -> IntArray:
    """Where shards begin, and the end: as many pictures each as fit, at least one.

    >>> cut(np.array([30, 30, 30, 500, 10]), shard_bytes=100).tolist()
    [0, 2, 3, 4, 5]
    """
    firsts, filled = [0], 2 * _WORD
    for number, size in enumerate(sizes.tolist()):
        needed = size + 2 * _WORD
        if filled + needed > shard_bytes and number > firsts[-1]:
            firsts.append(number)
            filled = 2 * _WORD
        filled += needed
    return np.array([*firsts, len(sizes)], dtype=np.int64)


# ---------------------------------------------------------------------------------------------------------------
# Scaling down


def scale_down(
    source: FileSource, scaling: Scaling, folder: Path, threads: int | None = None, tell: Tell | None = None
) -> ScaledSource:
    """Scale the pictures of a source down, into files of `folder`; what is there already of the same pictures is kept.

    Pictures that cannot be read stay as they are: what becomes of them is for each run to say (`on_error`).
    """
    states = file_states("training", source)
    parts = range(0, len(source), _AT_ONCE)
    files = [folder / f"scaled-{first}.bin" for first in parts]
    sizes = np.zeros(len(source), dtype=np.int64)
    advance = tell("scaling", int(states[:, 0].sum())) if tell else _no_one

    def one(number: int) -> list[int]:
        rows = range(parts[number], min(parts[number] + _AT_ONCE, len(source)))
        mark = hashlib.sha256(repr([scaling, source.paths[rows.start : rows.stop].tolist(), states[rows].tolist()]).encode())
        return _scale_part(source, rows, scaling, files[number], mark.hexdigest())

    def done(number: int, found: list[int]) -> None:
        first = parts[number]
        sizes[first : first + len(found)] = found
        advance(int(states[first : first + len(found), 0].sum()))

    with quiet():
        _in_threads(one, len(files), threads, done)
    return ScaledSource(source, files, sizes)


def _scale_part(source: FileSource, rows: range, scaling: Scaling, path: Path, mark: str) -> list[int]:
    """Write some pictures, scaled down, one behind the other; how many bytes each takes."""
    described = path.with_suffix(".json")
    try:
        told = json.loads(described.read_text())
        if told["mark"] == mark and sum(told["sizes"]) == path.stat().st_size:
            return told["sizes"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    sizes = []
    with written_whole(path, "wb") as file:
        for row in rows:
            content = _scaled(source, row, scaling)
            file.write(content)
            sizes.append(len(content))
    with written_whole(described) as file:
        json.dump({"mark": mark, "sizes": sizes}, file)
    return sizes


def _scaled(source: FileSource, row: int, scaling: Scaling) -> bytes:
    with source.open(row) as file:
        content = file.read()
    try:
        return use_picture(source.name_of(row), lambda: io.BytesIO(content), partial(scaling, content))
    except PictureError:
        return content


# ---------------------------------------------------------------------------------------------------------------
# Writing


def pack(
    data: ImageFileDataModule,
    output: str | os.PathLike[str],
    shard_bytes: int = 64_000_000,
    threads: int | None = None,
    tell: Tell | None = None,
    scaling: Scaling | None = None,
) -> ShardIndex:
    """Pack all pictures of a data module into shards, read every one back, and write the index.

    Packed is what the lists or folders name; a test split that is held out and a profile that is cut are made of it
    afterwards, by the settings of each run, as of loose files.

    Args:
        data: the data module, of loose files.
        output: the folder to be made, or one whose packing was interrupted.
        shard_bytes: of a shard, about; at least 1, below 2^32. A picture larger than that has a shard of its own.
        threads: how many read and write side by side; None: as Python finds fit.
        tell: called as a pass begins, with its name and its bytes; what it returns is told of bytes done.
        scaling: how large training pictures are made smaller; None: every file as it is.

    Raises:
        ArgumentError: litdata is not installed, or the folder holds something else.
        DataError: pictures are missing or change meanwhile, or what was written cannot be read back.
        StorageError: the disk is full.
    """
    require_litdata()
    folder = Path(output).expanduser()
    _check_output(folder, data)
    data.setup()
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    with _full_disks(folder), FolderLock(folder / PARTS):
        sources = dict(data.stored.sources)
        if scaling is not None:
            sources["training"] = scale_down(sources["training"], scaling, folder / PARTS, threads, tell)
        plan = make_plan(data, shard_bytes, sources, scaling)
        _begin(folder, plan)
        _write_shards(folder, plan, threads, tell)
        index = plan.index(_sums(folder, plan))
        shards = Shards(index, folder)
        damage = verify(shards, threads, tell)
        if damage:
            for shard in damage:
                (folder / PARTS / f"{shard}.json").unlink()
            told = [problem for problems in damage.values() for problem in problems]
            raise DataError(
                f"What was written to {folder} is not what was read: {name_some(told)}. The disk may be failing. The same "
                "command writes these shards again."
            )
        with written_whole(folder / "index.json") as file:
            file.write(_litdata_index(folder, plan))
        with written_whole(folder / INDEX, "wb") as file:
            index.write(file)
    shutil.rmtree(folder / PARTS)
    return index


def _check_output(folder: Path, data: ImageFileDataModule) -> None:
    """Raise `ArgumentError` for a folder that must not be written to."""
    if (folder / INDEX).is_file():
        raise ArgumentError(
            f"{folder} holds shards already. Choose another output, or type python -m mllt.pack verify={folder} to look "
            "whether they are whole."
        )
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"Expected `output` to be a folder, but {folder} is a file.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PARTS).is_dir():
        raise ArgumentError(
            f"{folder} is not empty, and what it holds is no packing that was interrupted. Choose another output."
        )
    if folder.resolve().is_relative_to(data.root.resolve()):
        raise ArgumentError(f"Expected `output` to lie outside the pictures' folder {data.root}, but got {folder}.")


@contextmanager
def _full_disks(folder: Path) -> Iterator[None]:
    """What litdata writes may meet a full disk as well as what we write."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise cannot_write(folder, error) from error


def _begin(folder: Path, plan: Plan) -> None:
    """Keep what an interrupted packing of the same plan has written; of another plan, remove it. Look whether there is room."""
    try:
        same = json.loads((folder / PARTS / _PLAN).read_text())["digest"] == plan.digest
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        for path in [*folder.glob("chunk-0-*.bin"), *folder.glob(f"{PARTS}/[0-9]*.json"), folder / "index.json"]:
            path.unlink(missing_ok=True)
        with written_whole(folder / PARTS / _PLAN) as file:
            json.dump({"digest": plan.digest}, file)
    sizes = plan.file_sizes
    if max(sizes) > _LARGEST:
        raise DataError(f"Expected shards below 4 GiB, but one would be of {max(sizes):,} bytes. Lower `shard_mb`.")
    needed = sum(size for shard, size in enumerate(sizes) if not _is_written(folder, shard, size))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"Expected {needed / 1e9:,.3f} GB of free disk for {folder}, but there are {free / 1e9:,.3f} GB. Choose another "
            "output, or make room."
        )


def _is_written(folder: Path, shard: int, size: int) -> bool:
    path = folder / shard_file(shard)
    return (folder / PARTS / f"{shard}.json").is_file() and path.is_file() and path.stat().st_size == size


def _write_shards(folder: Path, plan: Plan, threads: int | None, tell: Tell | None) -> None:
    index = plan.index(np.zeros((len(plan.sizes), 32), np.uint8))
    sizes = index.file_sizes.tolist()
    files = [(source, row) for source in plan.sources.values() for row in range(len(source))]
    rows = np.argsort(np.concatenate(list(plan.places.values())))
    advance = tell("writing", sum(sizes)) if tell else _no_one

    def one(shard: int) -> int:
        if not _is_written(folder, shard, sizes[shard]):
            _write_shard(folder, shard, [files[row] for row in rows[plan.firsts[shard] : plan.firsts[shard + 1]]], index)
        return sizes[shard]

    _in_threads(one, len(sizes), threads, lambda _, size: advance(size))


def _write_shard(folder: Path, shard: int, files: list[tuple[FileSource, int]], index: ShardIndex) -> None:
    """Write a shard picture by picture (litdata's writer holds all of it in memory), and what litdata says of it."""
    sums: list[str] = []
    new = folder / PARTS / shard_file(shard)  # what a killed packing leaves of it goes with that folder
    with written_whole(new, "wb") as output:
        output.write(_head(index, shard))
        for number, (source, row) in enumerate(files, int(index.firsts[shard])):
            with source.open(row) as file:
                content = file.read()
            if len(content) != index.sizes[number]:
                raise DataError(f"{source.name_of(row)} changed while it was packed. Type the same command again.")
            sums.append(hashlib.sha256(content).hexdigest())
            output.write(_entry(content))
    os.replace(new, folder / shard_file(shard))
    found = _described(folder / PARTS / str(shard), content)
    found["chunks"][0].update(filename=shard_file(shard), chunk_size=len(files), chunk_bytes=int(index.file_sizes[shard]))
    found["config"]["chunk_size"] = len(files)
    with written_whole(folder / PARTS / f"{shard}.json") as file:
        json.dump({"chunk": found["chunks"][0], "config": found["config"], "sums": sums}, file)


def _described(folder: Path, content: bytes) -> dict[str, Any]:
    """What litdata writes down of a shard that holds one picture; that it would write the bytes that we do is looked at."""
    from litdata.streaming import Cache
    from litdata.streaming.resolver import Dir

    shutil.rmtree(folder, ignore_errors=True)
    # A size, or litdata announces the one that it takes: of a cache, which is not in play here
    writer = Cache(Dir(path=str(folder)), chunk_size=1, max_cache_size="1GB")
    writer[0] = content
    writer.done()
    (described,) = folder.glob("*index.json")
    (written,) = folder.glob("chunk-*.bin")
    alone = ShardIndex({}, {}, np.array([len(content)]), np.zeros((1, 32), np.uint8), np.array([0, 1]))
    if written.read_bytes() != _head(alone, 0) + _entry(content):
        raise DataError("This version of litdata writes shards of another form. Install one that mllt's setup.cfg admits.")
    found = json.loads(described.read_text())
    shutil.rmtree(folder)
    return found


def _sums(folder: Path, plan: Plan) -> NDArray[np.uint8]:
    """The checksums of all pictures, in the order of storage."""
    parts = [json.loads((folder / PARTS / f"{shard}.json").read_text())["sums"] for shard in range(len(plan.firsts) - 1)]
    return np.frombuffer(bytes.fromhex("".join(text for part in parts for text in part)), np.uint8).reshape(-1, 32)


def _litdata_index(folder: Path, plan: Plan) -> str:
    """What makes of the shards one litdata data set."""
    parts = [json.loads((folder / PARTS / f"{shard}.json").read_text()) for shard in range(len(plan.firsts) - 1)]
    return json.dumps({"chunks": [part["chunk"] for part in parts], "config": parts[0]["config"]}, sort_keys=True)


def _in_threads(work: Callable[[int], Any], count: int, threads: int | None, done: Callable[[int, Any], None]) -> None:
    """`work(0)` .. `work(count - 1)` side by side; `done` gets each number and result as they come. One failure ends all."""
    with ThreadPoolExecutor(threads) as pool:
        futures = {pool.submit(work, number): number for number in range(count)}
        try:
            for future in as_completed(futures):
                done(futures[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _no_one(_: int) -> None:
    """Nobody asked to be told."""


# ---------------------------------------------------------------------------------------------------------------
# Verifying


def verify(shards: Shards, threads: int | None = None, tell: Tell | None = None) -> dict[int, list[str]]:
    """Read every byte of the shards and compare it with the index.

    Args:
        shards: opened ones; those of a store are fetched into their cache.
        threads, tell: as in `pack`.

    Returns:
        Of each damaged shard what is wrong, in words, pictures by name; empty where all is whole.
    """
    index, paths, damage = shards.index, shards.index.paths, dict[int, list[str]]()
    advance = tell("verifying", int(index.file_sizes.sum())) if tell else _no_one

    def done(shard: int, problems: list[str]) -> None:
        advance(int(index.file_sizes[shard]))
        if problems:
            damage[shard] = problems

    _in_threads(lambda shard: _check_shard(shards, shard, paths), len(index.file_sizes), threads, done)
    return dict(sorted(damage.items()))


def _check_shard(shards: Shards, shard: int, paths: NDArray[np.bytes_]) -> list[str]:
    """What is wrong with a shard; it is read picture by picture, since it may be as large as the memory."""
    index, where = shards.index, shards.place_of(shard)
    first, last = int(index.firsts[shard]), int(index.firsts[shard + 1])
    problems = []
    try:
        with shards.open_shard(shard) as file:
            if hasattr(os, "posix_fadvise"):  # what lies on the disk, not what is remembered of it
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            length, expected = os.fstat(file.fileno()).st_size, int(index.file_sizes[shard])
            head = _head(index, shard)
            whole = file.read(len(head)) == head
            for number in range(first, last):
                size = int(index.sizes[number])
                whole &= file.read(_WORD) == size.to_bytes(_WORD, "little")
                if hashlib.sha256(file.read(size)).digest() != index.sums[number].tobytes():
                    problems.append(f"{where}: {os.fsdecode(paths[number])} is not what was packed")
    except (DataError, OSError) as error:
        held = name_some([os.fsdecode(path) for path in paths[first:last]])
        return [f"{where}: {error}; it held {last - first:,} pictures: {held}"]
    if length != expected:
        problems.insert(0, f"{where}: expected {expected:,} bytes, but got {length:,}")
    elif not whole:
        problems.append(f"{where}: its table of contents is not what was packed")
    return problems


def _head(index: ShardIndex, shard: int) -> bytes:
    """What a shard begins with: how many pictures there are, where each begins, and where the last ends."""
    first, last = int(index.firsts[shard]), int(index.firsts[shard + 1])
    begins = index.offsets[first:last] - _WORD
    return np.concatenate([[last - first], begins, index.file_sizes[shard : shard + 1]]).astype("<u4").tobytes()


def _entry(content: bytes) -> bytes:
    """A picture as it lies in a shard: its size, and its bytes."""
    return len(content).to_bytes(_WORD, "little") + content
