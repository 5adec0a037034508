"""`python -m mllt.pack`: pack pictures into shards, or CIFAR's subsets into one file, or look whether these are whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mllt.cli import run

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from mllt.data import CIFAR10LT, CIFAR100LT, LongTailedDataModule
    from mllt.data.packing import Tell
    from mllt.data.shards import ShardIndex

FORMATS = ("shards", "file")
_LARGEST_MB = 4000  # of a shard: litdata counts its bytes in 32 bits
_SHOWN = 20  # problems of a shard


def main() -> None:
    """The command. The exit status is 1 when shards are damaged."""
    damaged = run(pack, "pack")
    sys.exit(1 if damaged else 0)


def pack(config: DictConfig) -> int:
    """Pack into `output`, or look at `verify`.

    Returns:
        How many shards are damaged, of a file 1 or 0; what was packed has been found whole.
    """
    from pathlib import Path

    from mllt.errors import ArgumentError, check_bool, check_choice, check_integer, check_number

    if config.format is not None:
        check_choice("format", config.format, FORMATS)
    if config.shard_mb is not None:
        check_number("shard_mb", config.shard_mb, above=0, maximum=_LARGEST_MB)
    if config.short_side is not None:
        check_integer("short_side", config.short_side, 1)
    check_integer("jpeg_quality", config.jpeg_quality, 1, 100)
    if config.num_workers is not None:
        check_integer("num_workers", config.num_workers, 1)
    check_bool("overwrite", config.overwrite)
    if (config.output is None) == (config.verify is None):
        raise ArgumentError("Expected `output` (a folder to pack into) or `verify` (shards to look at): type one of them.")
    if config.verify is not None:
        if config.get("data") is not None:
            raise ArgumentError("Shards are verified by themselves: leave the experiment and the data out.")
        file = Path(str(config.verify)).expanduser()
        return verify_file(file) if file.is_file() else verify_shards(str(config.verify), config.num_workers)
    pack_data(config)
    return 0


def pack_data(config: DictConfig) -> None:
    """Pack the data set that `config.data` describes into `config.output`, in the form that fits it."""
    from mllt.build import absolute_paths, build_data, plain
    from mllt.data import CIFAR10LT, CIFAR100LT
    from mllt.errors import ArgumentError

    if config.get("data") is None:
        raise ArgumentError("Expected a data set to pack. Type experiment=... or data=... (see python -m mllt.train --help).")
    absolute_paths(config.data)
    data = build_data(plain(config.data))
    form = "file" if isinstance(data, (CIFAR10LT, CIFAR100LT)) else "shards"
    if config.format not in (None, form):
        raise ArgumentError(f"{data.title} is packed as format={form}, not {config.format}: leave format out.")
    if isinstance(data, (CIFAR10LT, CIFAR100LT)):
        pack_file(config, data)
    else:
        pack_shards(config, data)


def pack_file(config: DictConfig, data: CIFAR10LT | CIFAR100LT) -> None:
    """Pack a subset of CIFAR, and the test, into one file."""
    from mllt.data import packed_arrays
    from mllt.errors import ArgumentError
    from mllt.results import say

    if config.short_side is not None:
        raise ArgumentError(f"{data.title} is packed without loss: leave short_side out.")
    arrays = data.to_pack()
    with progress() as tell:
        advance = tell("packing", arrays.images.nbytes + arrays.test_images.nbytes)
        size = packed_arrays.write(
            str(config.output), arrays, overwrite=config.overwrite, threads=config.num_workers, advance=advance
        )
    say(
        f"{data.title}: {len(arrays.images):,} training and {len(arrays.test_images):,} test images, {size:,} bytes, written "
        f"to {config.output} and read back whole.",
        f"To train from them: data.root={config.output}",
    )


def pack_shards(config: DictConfig, data: LongTailedDataModule) -> None:
    """Pack pictures into shards."""
    from mllt.data import packing
    from mllt.data.lists import ImageFileDataModule
    from mllt.errors import ArgumentError
    from mllt.results import say

    if not isinstance(data, ImageFileDataModule) or data.storage != "files":
        raise ArgumentError(
            f"Expected CIFAR or a data set of loose picture files, but {data.title} "
            + ("holds its images in memory." if not isinstance(data, ImageFileDataModule) else "is to be read from shards.")
        )
    if config.overwrite:
        raise ArgumentError("Shards are not written over: leave overwrite out, and choose another output.")
    shard_bytes = int((_LARGEST_MB if config.shard_mb is None else config.shard_mb) * 1e6)
    scaling = None if config.short_side is None else packing.Scaling(config.short_side, config.jpeg_quality)
    with progress() as tell:
        index = packing.pack(data, str(config.output), shard_bytes, config.num_workers, tell, scaling)
    say(
        f"{described(index)}, written to {config.output} and read back whole.",
        f"To train from them: data.storage=shards data.root={config.output}",
    )


def verify_file(path: Path) -> int:
    """Read every byte of a packed file, and print what is wrong.

    Returns:
        1 where it cannot be used, else 0.
    """
    from mllt.data.packed_arrays import read
    from mllt.errors import DataError
    from mllt.results import say

    try:
        arrays = read(path)
    except DataError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    say(
        f"{arrays.dataset}: {len(arrays.images):,} of {len(arrays.labels):,} training images and {len(arrays.test_images):,} "
        "test images, read whole: nothing is damaged."
    )
    return 0


def verify_shards(location: str, threads: int | None) -> int:
    """Read every byte of the shards, and print what is wrong.

    Returns:
        How many shards are damaged.
    """
    import tempfile

    from mllt.data.packing import verify
    from mllt.data.shards import open_shards
    from mllt.results import plural, say

    # Shards of a store are fetched anew, not taken from where a training has kept them, and go when they are read
    with tempfile.TemporaryDirectory() as cache, progress() as tell:
        shards = open_shards(location, cache, cache_gb=1e-9)
        damage = verify(shards, threads, tell)
    if not damage:
        say(f"{described(shards.index)}, read whole: nothing is damaged.")
        return 0
    for problems in damage.values():
        more = [f"... and {len(problems) - _SHOWN:,} more in this shard"] if len(problems) > _SHOWN else []
        say(*problems[:_SHOWN], *more)
    count = f"{len(damage):,} of {plural(len(shards.index.file_sizes), 'shard')}"
    print(f"Error: In {location}, {count} cannot be used. Pack the pictures again.", file=sys.stderr)
    return len(damage)


def described(index: ShardIndex) -> str:
    """What shards hold, in a few words."""
    from mllt.results import plural

    size, shards = index.file_sizes.sum() / 1e6, plural(len(index.file_sizes), "shard")
    return f"{index.about['title']}: {plural(len(index.sizes), 'picture')} in {shards}, {size:,.1f} MB"


@contextmanager
def progress() -> Iterator[Tell]:
    """A bar on standard error for each pass, in bytes; elsewhere than on a terminal, none."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def tell(name: str, size: int):  # type: ignore[no-untyped-def]
            task = bar.add_task(name, total=size)
            return lambda done: bar.advance(task, done)

        yield tell


if __name__ == "__main__":
    main()
