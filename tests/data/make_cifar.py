"""CIFAR-10's files with fewer images, made for tests."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from mllt.longtail import profile_counts

FACTOR = 5000  # the steepest profile: fewest images, 5,000 of the first class still
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def save(path: Path, content: dict) -> str:
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


class Files(NamedTuple):
    """CIFAR-10's files with fewer images, and what torchvision has to know to take them for the right ones."""

    root: Path
    labels: np.ndarray
    pixels: np.ndarray
    known: dict[str, Any]

    def make_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have torchvision take them for CIFAR-10's."""
        for name, value in self.known.items():
            monkeypatch.setattr(CIFAR10, name, value)


def save_cifar10(root: Path) -> Files:
    """Save the files under `root`; each picture is of one grey."""
    folder = root / CIFAR10.base_folder
    folder.mkdir()
    counts = np.array(profile_counts("exponential", 10, 5000, FACTOR)) + 2  # two more of each class than are kept
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), counts))
    # each picture is of one grey: quick to pack
    pixels = np.repeat((np.arange(len(labels)) % 251).astype(np.uint8)[:, None], 3072, axis=1)
    train_list = [
        [name, save(folder / name, {"data": pixels[part], "labels": labels[part].tolist()})]
        for (name, _), part in zip(CIFAR10.train_list, np.array_split(np.arange(len(labels)), 5), strict=True)
    ]
    test_labels = [i % 10 for i in range(30)]
    test_list = [["test_batch", save(folder / "test_batch", {"data": pixels[:30], "labels": test_labels})]]
    meta = {**CIFAR10.meta, "md5": save(folder / "batches.meta", {"label_names": NAMES})}
    with tarfile.open(root / CIFAR10.filename, "w:gz", compresslevel=1) as archive:
        archive.add(folder, arcname=CIFAR10.base_folder)
    md5 = hashlib.md5((root / CIFAR10.filename).read_bytes()).hexdigest()
    return Files(root, labels, pixels, {"train_list": train_list, "test_list": test_list, "meta": meta, "tgz_md5": md5})
