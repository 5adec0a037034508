"""Picture files: the fast pipeline against torchvision's, and packed reading against loose files.

`python -m benchmarks.jpeg` prints its lines, `python -m benchmarks.jpeg parts` where the time of an image goes. Pictures are
made on the spot: smooth fields with texture of all sizes, saved at quality 90, some 2 bits per pixel. More texture means more
decoding, and a lower ratio.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import simplejpeg
import torch
from benchmarks.measure import Row, compare, cpu, once, wall
from benchmarks.table import show
from PIL import Image
from torchvision.transforms.v2 import functional as F

from mllt.data.folder import ImageFolderLT
from mllt.data.images import IMAGENET_MEAN, IMAGENET_STD, FileSource, OpenFile, RandomResizedCropFlip, read_picture
from mllt.data.jpeg import FastRandomResizedCropFlip, Scratch, cut_out, decode_plain
from mllt.data.jpeg import jitter as apply_jitter
from mllt.data.order import BatchRequest, Draws
from mllt.data.packing import Scaling, pack
from mllt.data.shards import ShardSource, open_shards
from mllt.data.sources import ImageDataset

COUNT = 128  # pictures of a batch
MANY = 1500  # files that are read
SIZES = ((500, 375), (800, 600))
SETTINGS = (224, IMAGENET_MEAN, IMAGENET_STD, 0.4)
DECODE = "decoding them by libjpeg-turbo, into memory at hand"


def photograph(seed: int, width: int, height: int, grain: float = 0.75) -> Image.Image:
    """A field of random levels at every scale, of which each finer one is `grain` times as strong; 118 +- 58 in 8 bits."""
    rng = np.random.default_rng(seed)
    levels, strength, across = np.zeros((height, width, 3), np.float32), 1.0, 2
    while across < width:
        size = (max(across * height // width, 2), across)
        coarse = rng.normal(size=(*size, 1)) + rng.normal(size=(*size, 3)) / 2
        for channel in range(3):
            enlarged = Image.fromarray(coarse[..., channel].astype(np.float32)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            levels[..., channel] += strength * np.asarray(enlarged)
        across, strength = across * 2, strength * grain
    levels = 118 + 58 * (levels - levels.mean()) / levels.std()
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def save_photographs(root: Path, width: int, height: int, count: int = COUNT) -> FileSource:
    """Photographs in two class folders of a training and a test split; the source is of the training pictures."""
    names = [f"train/{number % 2}/{number}.jpg" for number in range(count)]
    for number, name in enumerate([*names, "test/0/0.jpg", "test/1/1.jpg"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(number, width, height).save(root / name, quality=90)
    return FileSource(names, [number % 2 for number in range(count)], root)


def batch(source: FileSource, transform: RandomResizedCropFlip) -> Callable[[], object]:
    """Reading, augmenting and normalising one batch of all pictures."""
    dataset, rows = ImageDataset(source, transform, seed=0), np.arange(len(source))
    return lambda: dataset[BatchRequest(0, rows, rows, 1.0)]


def decoding(source: FileSource) -> float:
    """Seconds of decoding all pictures, and nothing else."""
    contents = [source.open(row).read() for row in range(len(source))]
    height, width = simplejpeg.decode_jpeg_header(contents[0])[:2]
    memory = np.empty(height * width * 3, np.uint8)
    return min(once(lambda: [simplejpeg.decode_jpeg(one, buffer=memory) for one in contents], cpu) for _ in range(5))


def pipelines(root: Path) -> Iterator[Row]:
    """CPU time per training image, from file to normalised float32."""
    measured = partial(compare, clock=cpu, unit="us", per=COUNT, rounds=7, target=1.8)
    for width, height in SIZES:
        folder = root / f"{width}"
        source = save_photographs(folder, width, height)
        size = f"{width}x{height}"
        usual = batch(source, RandomResizedCropFlip(*SETTINGS))
        floor = decoding(source)
        kilobytes = np.mean([source.size_of(row) or 0 for row in range(COUNT)]) / 1e3
        for name in ("fast", "scaled") if width > 500 else ("fast",):
            fast = batch(source, FastRandomResizedCropFlip(*SETTINGS, scaled=name == "scaled"))
            yield measured(
                f"JPEG {size}, pipeline={name}",
                usual,
                fast,
                floor=floor if name == "fast" else None,
                floor_is=DECODE if name == "fast" else "",
                note=f"CPU per image; torchvision on Pillow; {kilobytes:.0f} kB each, quality 90",
            )
        data = ImageFolderLT(folder, batch_size=COUNT)
        pack(data, root / f"{width}-packed", threads=1, scaling=Scaling(320))
        stored = ImageFolderLT(root / f"{width}-packed", storage="shards", batch_size=COUNT).splits.train
        assert isinstance(stored, ShardSource)
        yield measured(
            f"JPEG {size}, packed with short_side=320, pipeline=fast",
            usual,
            batch(stored, FastRandomResizedCropFlip(*SETTINGS)),
            floor=decoding(stored),
            floor_is=DECODE,
            note="CPU per image; changes results; the baseline reads the pictures as they were",
        )


def parts(root: Path) -> Iterator[Row]:
    """Where the CPU time of a training image goes, torchvision's way and the fast one."""
    for width, height in SIZES:
        source = save_photographs(root / f"{width}", width, height)
        yield from (replace(row, what=f"{width}x{height}: {row.what}") for row in parts_of(source, width, height))


def parts_of(source: FileSource, width: int, height: int) -> Iterator[Row]:
    """The same for pictures of one size."""
    measured = partial(compare, clock=cpu, unit="us", per=COUNT, rounds=5)
    rows, usual, fast = np.arange(COUNT), RandomResizedCropFlip(*SETTINGS), FastRandomResizedCropFlip(*SETTINGS)
    draws, cut, luma = Draws(0, 0, rows), Scratch(), torch.empty(224, 224)
    jitter = usual.jitter
    assert jitter is not None
    opened = [partial(read_picture, use=lambda image: image.size)] * COUNT
    decoded = [partial(read_picture, use=partial(decode_plain, smaller=1, scratch=Scratch()))] * COUNT
    images, squares = source.load(rows), source.load(rows, fast.readers(draws))
    arrays = [np.asarray(image) for image in images]
    places = [fast._draw(seed, height, width)[0] for seed in fast.seeds(draws)]
    small, levels = [image.resize((224, 224)) for image in images], torch.rand(3, 224, 224).mul_(255).floor_()
    yield measured("opening (baseline: and decoding)", lambda: source.load(rows), lambda: source.load(rows, opened))
    yield measured("opening and decoding", lambda: source.load(rows), lambda: source.load(rows, decoded))
    yield measured(
        "cutting out and scaling",
        lambda: [usual.crop(image) for image in images],
        lambda: [cut_out(pixels, part, 224, cut) for pixels, part in zip(arrays, places, strict=True)],
    )
    yield measured(
        "jitter",
        lambda: [jitter(image) for image in small],
        lambda: [apply_jitter(levels, luma, square.jitter) for square in squares],
    )
    yield measured(
        "jitter, flip, normalising",
        lambda: usual.normalize(torch.stack([F.pil_to_tensor(usual.flip(jitter(image))) for image in small]), draws),
        lambda: fast(squares, draws),
    )


def forget(paths: list[Path]) -> None:
    """Have the system drop what it holds of files in memory; it keeps what some process has mapped or not yet written."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(root: Path) -> Iterator[Row]:
    """Pictures read in random order, without decoding: loose files against one packed file."""
    source = save_photographs(root / "few", 500, 375, 8)
    contents = [source.open(row).read() for row in range(8)]
    names = [f"train/{number % 2}/{number // 500}/{number}.jpg" for number in range(MANY)]
    for number, name in enumerate([*names, "test/0/0.jpg", "test/1/1.jpg"]):
        path = root / "loose" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[number % 8])
    pack(ImageFolderLT(root / "loose", verify_files=False), root / "packed", 4_000_000_000, threads=1)
    loose = ImageFolderLT(root / "loose", verify_files=False).splits.train
    order = np.array_split(np.random.default_rng(0).permutation(MANY), MANY // COUNT)

    def shards() -> ShardSource:
        """Opened anew: what is mapped stays in memory."""
        held = open_shards(root / "packed")
        split = held.index.splits["training"]
        return ShardSource(held, split["paths"], split["labels"], split["places"])

    stored: list[Any] = [shards()]

    def read(source: Any) -> None:
        for rows in order:
            source.load(rows, [_bytes] * len(rows))

    def unchecked() -> None:
        held = stored[0].shards
        index = held.index
        for number in stored[0].places[np.concatenate(order)]:
            held._read(int(index.shards[number]), int(index.offsets[number]), int(index.sizes[number]))

    about = f"{len(contents[0]) / 1e3:.0f} kB each, in random order, {COUNT} at a time; packed ones with their SHA-256"
    warm = partial(compare, baseline=lambda: read(loose), unit="us", per=MANY)
    yield warm("reading, warm: loose files, packed", ours=lambda: read(stored[0]), note=f"{about}; wall")
    yield warm("reading, warm: CPU", ours=lambda: read(stored[0]), clock=cpu, note=about)
    yield warm("reading, warm: CPU without checksums", ours=unchecked, clock=cpu, note=about.split(";")[0])
    if hasattr(os, "posix_fadvise"):
        pairs = []
        for _ in range(7):
            forget([Path(loose.name_of(row)) for row in range(MANY)])
            theirs = once(lambda: read(loose), wall)
            stored[0] = None
            forget(sorted((root / "packed").glob("*.bin")))
            stored[0] = shards()
            pairs.append((theirs, once(lambda: read(stored[0]), wall)))
        low, ratio, high = quantiles([theirs / ours for theirs, ours in pairs], n=4)
        baseline, ours = (median(times) / MANY * 1e6 for times in zip(*pairs, strict=True))
        note = f"{about}; wall. Of the system's memory only: folders and what the disk's host remembers cannot be dropped"
        yield Row("reading, cold: loose files, packed", "us", baseline, ours, ratio, low, high, note=note)


def _bytes(_: str, open_file: OpenFile) -> bytes:
    with open_file() as file:
        return file.read()


def rows() -> Iterator[Row]:
    """The lines of the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        yield from pipelines(Path(folder))
        yield from reading(Path(folder))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        show(parts(Path(made)) if sys.argv[1:] == ["parts"] else rows())
