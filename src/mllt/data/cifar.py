"""`CIFAR10LT` and `CIFAR100LT`: the customary long-tailed subsets of CIFAR."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from mllt.data import packed_arrays
from mllt.data.arrays import ArrayDataModule
from mllt.data.base import Figures, Splits
from mllt.data.order import IntArray
from mllt.data.packed_arrays import PackedArrays
from mllt.data.sources import ArraySource, data_root
from mllt.data.subsets import long_tailed_indices
from mllt.errors import ArgumentError, DataError, check_bool, check_integer, check_seed
from mllt.longtail import profile_counts


class _CIFARLT(ArrayDataModule):
    """What the two share; see `CIFAR100LT`."""

    image_size = 32
    # CIFAR-10's statistics; the -LT literature (LDAM-DRW, RIDE, MiSLAS, BBN, LADE) uses them for CIFAR-100 too.
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2023, 0.1994, 0.2010)
    dataset: ClassVar[type[CIFAR10]]
    max_count: ClassVar[int]
    #: training images of the customary subsets, by profile and imbalance factor
    known_sizes: ClassVar[dict[str, dict[float, int]]]
    #: images of the test that are among the 50,000 training images, too
    shared: ClassVar[int] = 0

    def __init__(
        self,
        root: str | Path = "data",
        profile: str = "exponential",
        imbalance_factor: float = 100,
        subset_seed: int = 0,
        padding: int = 4,
        flip: bool = True,
        rotation: float = 0.0,
        autoaugment: str | None = None,
        cutout: int = 0,
        val_images: int = 0,
        download: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root = data_root(root)
        self.counts = profile_counts(profile, self._num_classes, self.max_count, imbalance_factor)
        self.profile, self.imbalance_factor = profile, imbalance_factor
        self.subset_seed = check_seed("subset_seed", subset_seed)
        self.val_images = check_integer("val_images", val_images, 0, self.max_count)
        self.download = check_bool("download", download)
        self.augment_by(padding, flip=flip, rotation=rotation, autoaugment=autoaugment, cutout=cutout)
        self.title = f"{self.dataset.__name__}-LT ({profile} profile)"

    @property
    def _num_classes(self) -> int:
        return 50_000 // self.max_count

    @property
    def train_indices(self) -> IntArray:
        """Positions in CIFAR's official training order of the kept images (after any validation split), int64."""
        source = self.splits.train
        return source.rows  # type: ignore[attr-defined]

    def official_figures(self) -> Figures | None:
        size = self.known_sizes.get(self.profile, {}).get(self.imbalance_factor)
        if size is None:
            return None
        smallest = int(self.max_count / self.imbalance_factor)
        return Figures(size, self._num_classes, self.max_count, smallest, test=10_000, shared=self.shared)

    def prepare_data(self) -> None:
        """Download CIFAR when asked to (once per machine)."""
        if self.download and self.root.is_file():
            raise ArgumentError(f"{self.root} is a file, into which nothing is downloaded: leave data.download=true out.")
        if self.download:
            self._read(train=True, download=True)

    def load_splits(self) -> Splits:
        stored = self._stored()
        kept, left_over = self._chosen(stored)
        pixels, labels = _channels_first(stored.images), stored.labels
        places = None if len(stored.rows) == len(labels) else stored.places
        return Splits(
            train=ArraySource(pixels, labels, kept, places),
            test=ArraySource(_channels_first(stored.test_images), stored.test_labels),
            val=ArraySource(pixels, labels, left_over, places) if self.val_images else None,
            class_names=stored.class_names,
        )

    def to_pack(self) -> PackedArrays:
        """The subset's images (and those of `val_images`) and the test, for `mllt.data.packed_arrays.write`."""
        stored = self._stored()
        return stored.take(np.concatenate(self._chosen(stored)))

    def _chosen(self, stored: PackedArrays) -> tuple[IntArray, IntArray]:
        """Positions in the official order of the training images, and of those for validation that they leave over."""
        kept = long_tailed_indices(stored.labels, self.counts, self.subset_seed)
        more = [min(count + self.val_images, self.max_count) for count in self.counts]
        left_over = np.setdiff1d(long_tailed_indices(stored.labels, more, self.subset_seed), kept)
        missing = np.setdiff1d(np.concatenate([kept, left_over]), stored.rows)
        if len(missing):
            name, validation = self.dataset.__name__, f" data.val_images={self.val_images}" if self.val_images else ""
            chosen = f"data.profile={self.profile} data.imbalance_factor={self.imbalance_factor:g}{validation}"
            if self.subset_seed:
                chosen += f" data.subset_seed={self.subset_seed}"
            raise DataError(
                f"Expected {self.root} to hold the {len(kept) + len(left_over):,} images of {chosen}, but {len(missing):,} of "
                f"them are not among its {len(stored.rows):,}. Ask for those that were packed, or pack these where {name}'s "
                f"own files are: python -m mllt.pack experiment={name.lower()}_lt {chosen} data.root=FOLDER output=FILE"
            )
        return kept, left_over

    def _stored(self) -> PackedArrays:
        """All images of the folder, or those that a packed file holds."""
        name = self.dataset.__name__
        if self.root.is_file():
            stored = packed_arrays.read(self.root)
            if (stored.dataset, len(stored.class_names)) != (name, self._num_classes):
                raise DataError(
                    f"Expected {self.root} to hold images of {name}, but it holds {stored.dataset}. Give another file."
                )
            return stored
        train, test = self._read(train=True), self._read(train=False)
        labels, test_labels = np.asarray(train.targets, np.int64), np.asarray(test.targets, np.int64)
        every = np.arange(len(labels), dtype=np.int64)
        return PackedArrays(name, list(train.classes), labels, every, train.data, test_labels, test.data)

    def balanced_source(self) -> ArraySource | None:
        """All 50,000 training images; None where a packed file holds but some of them."""
        train: Any = self.splits.train
        return train.whole() if train.places is None else None

    def _read(self, *, train: bool, download: bool = False) -> CIFAR10:
        try:
            return self.dataset(str(self.root), train=train, download=download)
        except (RuntimeError, OSError) as error:  # files missing, their md5 is another, or fetching them failed
            name = self.dataset.__name__
            raise DataError(
                f"Expected {name} (python version) under {self.root}, as the folder {self.dataset.base_folder}/, but "
                f"{self._problem(error)}. Get {self.dataset.filename} from {self.dataset.url.rpartition('/')[0]}, unpack it "
                f"there, and point data.root at the folder that holds it, or at a file of python -m mllt.pack; or let it be "
                f"fetched: data.download=true. To check: md5sum {self.dataset.filename} must print {self.dataset.tgz_md5}."
            ) from error

    @staticmethod
    def _problem(error: Exception) -> str:
        if isinstance(error, OSError):
            return f"reading or fetching them failed: {error}"
        return "files are missing or damaged"


class CIFAR100LT(_CIFARLT):
    """Long-tailed CIFAR-100: up to 500 training images per class; test is the full balanced set of 10,000.

    The subsets are those of LDAM-DRW's code (Cao et al., NeurIPS 2019), index for index. There is no validation split
    in this protocol. `val_images` takes one from the official training images that the subset leaves over: nearly balanced,
    and the training images stay the same ones, so that settings can be chosen by it without a look at the test.
    `val_fraction` holds one out of the subset itself: as long-tailed, and of the rarest classes next to nothing.

    Args:
        root: folder that holds `cifar-100-python/`, or a file that `python -m mllt.pack` has written.
        profile: "exponential" (n_k = int(500 * (1 / imbalance_factor) ** (k / 99))) or "step".
        imbalance_factor: largest over smallest class, at least 1; the literature uses 10, 50, 100, 200.
        subset_seed: which images are kept; 0 is the customary choice.
        padding, flip, rotation: augmentation, see `mllt.data.augment.CropFlip`; RIDE and SADE use rotation=15.
        autoaugment: "cifar10": AutoAugment by the policy that was found for CIFAR-10, after crop, flip and rotation (see
            `mllt.data.autoaugment`); None: none. Later long-tailed work (BALMS, PaCo) uses it on CIFAR-100, too.
        cutout: side in pixels of a square that is blacked out last (see `mllt.data.augment.Cutout`), 16 beside AutoAugment in
            that work; 0: none.
        val_images: validation images per class from what the subset leaves over; fewer of a class that leaves fewer, none of
            one that is kept whole.
        download: fetch the data when it is missing.
        common: see `ArrayDataModule`.

    Raises:
        ArgumentError: a setting is out of range.
        DataError: the files are missing or damaged, or the packed file lacks images of this subset (at `setup`).

    >>> data = CIFAR100LT("data", imbalance_factor=100)
    >>> data.counts[0], data.counts[-1], sum(data.counts)
    (500, 5, 10847)
    """

    dataset = CIFAR100
    max_count = 500
    known_sizes: ClassVar[dict[str, dict[float, int]]] = {
        "exponential": {10: 19_573, 20: 15_907, 50: 12_608, 100: 10_847, 200: 9_502},
        "step": {100: 25_250},
    }
    shared = 10  # counted in the official files


class CIFAR10LT(_CIFARLT):
    """Long-tailed CIFAR-10: up to 5,000 training images per class. Everything else as in `CIFAR100LT`.

    >>> CIFAR10LT("data", imbalance_factor=100).counts
    [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """

    dataset = CIFAR10
    max_count = 5_000
    known_sizes: ClassVar[dict[str, dict[float, int]]] = {
        "exponential": {10: 20_431, 20: 17_023, 50: 13_996, 100: 12_406, 200: 11_203},
        "step": {100: 25_250},
    }


def _channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
