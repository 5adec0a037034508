"""Small pictures and data sets on disk for the tests of this folder, and the data that lies under MLLT_DATA."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mllt.data.base import LongTailedDataModule
from mllt.data.sources import Batch

SETTINGS = {"image_size": 16, "batch_size": 4}


def real_data(name: str) -> Path:
    """The folder `name` of the real data; skips the test where it is not there."""
    folder = (Path(os.environ.get("MLLT_DATA", "")) / name).resolve()
    if not os.environ.get("MLLT_DATA") or not folder.is_dir():
        pytest.skip(f"needs the folder {name} of the real data: set MLLT_DATA")
    return folder


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A picture unlike any other: coarse noise, enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save_pictures(root: Path, paths: Sequence[str]) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        picture(sum(map(ord, path)) * 7919 + len(path)).save(root / path, format="JPEG")


def save_list(path: Path, rows: Sequence[tuple[str, int]]) -> None:
    path.write_text("".join(f"{name} {label}\n" for name, label in rows), encoding="utf-8")


def imagenet_rows(counts: Sequence[int] = (6, 3, 1)) -> dict[str, list[tuple[str, int]]]:
    """The rows of the three lists of a small ImageNet-LT."""
    names = ["n01440764", "n01443537", "n01484850", "n01491361", "n01494475"][: len(counts)]
    return {
        "train": [(f"train/{n}/{n}_{i}.JPEG", k) for k, n in enumerate(names) for i in range(counts[k])],
        "val": [(f"train/{n}/{n}_{100 + i}.JPEG", k) for k, n in enumerate(names) for i in range(2)],
        "test": [(f"val/{n}/ILSVRC2012_val_{k}{i}.JPEG", k) for k, n in enumerate(names) for i in range(2)],
    }


def save_imagenet_lt(root: Path, rows: Mapping[str, Sequence[tuple[str, int]]] | None = None) -> Path:
    """A small ImageNet-LT in the official layout."""
    for split, entries in (rows or imagenet_rows()).items():
        save_pictures(root, [path for path, _ in entries])
        save_list(root / f"ImageNet_LT_{split}.txt", entries)
    return root


def save_coco(path: Path, rows: Sequence[tuple[str, int]], categories: Mapping[int, str]) -> None:
    """An iNaturalist-style JSON file; identifiers of images are not their places."""
    content = {
        "images": [{"id": 1000 - i, "file_name": name} for i, (name, _) in enumerate(rows)],
        # in another order than the images
        "annotations": [{"id": i, "image_id": 1000 - i, "category_id": c} for i, (_, c) in list(enumerate(rows))[::-1]],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def training_batches(module: LongTailedDataModule, epoch: int = 0) -> list[Batch]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def assert_same_batches(first: Sequence[Batch], second: Sequence[Batch]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        for name, left, right in zip(Batch._fields, one, other, strict=True):
            assert torch.equal(left, right), name


def by_index(batches: Sequence[Batch]) -> dict[int, Tensor]:
    """Each image by its row of the split."""
    return {int(row): image for batch in batches for row, image in zip(batch.indices, batch.images, strict=True)}
