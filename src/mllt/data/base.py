"""`LongTailedDataModule`: what all data modules share."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mllt.data.order import (
    ClassBalancedOrder,
    Companions,
    EpochOrder,
    EvaluationSampler,
    GlobalBatchSampler,
    IntArray,
    per_class_split,
)
from mllt.data.sources import Batch, ImageDataset, ImageSource, Transform, count_classes
from mllt.errors import ArgumentError, DataError, check_bool, check_choice, check_integer, check_number, check_seed, name_some
from mllt.longtail import imbalance_factor, shot_groups


@dataclass
class Splits:
    """What a data module is made of: the images of each split and the names of the classes."""

    train: ImageSource
    test: ImageSource
    class_names: list[str]
    val: ImageSource | None = None


@dataclass(frozen=True)
class Figures:
    """What is known of an official data set, for `python -m mllt.check`.

    Args:
        train: training images.
        classes: how many.
        largest, smallest: training images of the largest and the smallest class.
        test: test images.
        val: validation images; None where there is no such split.
        shared: images of the test that the official training images hold, too, byte for byte, and nobody can help.
    """

    train: int
    classes: int
    largest: int
    smallest: int
    test: int
    val: int | None = None
    shared: int = 0


def counted(number: int, one: str, many: str) -> str:
    """A number with the words that go with it.

    >>> counted(1, "class has", "classes have"), counted(2000, "class has", "classes have")
    ('1 class has', '2,000 classes have')
    """
    return f"{number:,} {one if number == 1 else many}"


def fingerprint(splits: Splits) -> str:
    """Sixteen digits of a hash of each split's labels and, where a source has them, its rows, or its paths and some sizes.

    Paths are relative to the data's folder, which may lie anywhere; sizes tell other pictures of the same names. How pictures
    were scaled down as they were packed counts, too.
    """
    digest = hashlib.sha256("\0".join(splits.class_names).encode("utf-8", "surrogateescape"))
    for source in (splits.train, splits.val, splits.test):
        for name in ("labels", "paths", "rows"):
            values = getattr(source, name, None)
            if isinstance(values, np.ndarray):
                digest.update(f"{name} {values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
        if source is not None and hasattr(source, "size_of"):
            some = np.unique(np.linspace(0, len(source) - 1, 1000).astype(np.int64))
            digest.update(repr([source.size_of(int(index)) for index in some]).encode())
        if getattr(source, "scaled", None):
            digest.update(repr(source.scaled).encode())  # type: ignore[union-attr]
    return digest.hexdigest()[:16]


class QuietLoader(DataLoader[Batch]):
    """A loader that leaves the global generator as it was: starting one takes a number from it.

    (A generator of its own would do too, but loaders with one cannot be handed to other processes by every PyTorch.)
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        with torch.random.fork_rng(devices=[]):
            return super().__iter__()


class TrainLoader(QuietLoader):
    """A loader of training batches that can begin within an epoch.

    Its state tells the optimizer steps whose batches were handed out, not those that its processes work on. A trainer keeps
    it in checkpoints, and gives it back to a run that goes on, on any number of devices and accumulated steps.
    """

    sampler: GlobalBatchSampler
    _handed_out = 0  # batches of the epoch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Begun with the first batch, its processes, too: when a run goes on, Lightning asks for this before it tells the epoch
        taken = getattr(self.sampler, "taken", 0)  # of another sampler, the data set tells
        self._handed_out = taken * self.sampler.accumulate if taken else 0
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its steps are done."""
        return {"epoch": self.sampler.epoch, "steps": self._handed_out // self.sampler.accumulate}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Begin that epoch behind the steps that are done."""
        self.sampler.go_on(state_dict["epoch"], min(state_dict["steps"], self.sampler.steps))


SAMPLINGS = ("instance", "balanced")


class LongTailedDataModule(L.LightningDataModule):
    """Long-tailed training images, their test images, and what is known of the tail.

    A subclass implements `load_splits`, `train_transform`, `eval_transform` and `preprocessing`. After `setup` the
    module tells `class_counts` (int64 `(C,)`, of the training images only), `class_names`, `num_classes`, and
    `summary()`.

    Its loaders yield `Batch`es: images, targets, indices (rows of the split) and weight, see `mllt.data.Batch`. To go
    through training batches by hand, tell the loader the epoch before each pass, as Lightning does, or every pass has
    the order and augmentation of epoch 0:

        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)
            for images, targets, indices, weight in loader:
                ...

    The best way to train on several devices is `trainer.fit(model, datamodule=data)`. A loader made by hand also takes its
    share there, but does not know of `accumulate_grad_batches`: each of its batches is a global batch.

    Args:
        batch_size: the *global* batch size: over all devices and accumulated steps together.
        eval_batch_size: images per evaluation batch on one device; None: `batch_size`.
        num_workers: loader processes per device; the batches are the same for any number.
        seed: what the order and the augmentation follow from.
        val_fraction: share of every class's training images held out for validation, in 0 .. 0.9 (at least one image
            of each class stays). Only for data without a validation split of its own.
        drop_last: batches of exactly `batch_size`, what is left of an epoch left out; else they differ by up to one image,
            so that none is small (see `GlobalBatchSampler`).
        shuffle: a new order every epoch; without it, the same order in every epoch, that of epoch 0 (random, too, by `seed`:
            each batch holds several classes).
        augment: whether training images are augmented.
    """

    #: how the data set is called in print
    title = "images"

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.0,
        drop_last: bool = False,
        shuffle: bool = True,
        augment: bool = True,
    ) -> None:
        super().__init__()
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.eval_batch_size = check_integer("eval_batch_size", batch_size if eval_batch_size is None else eval_batch_size, 1)
        self.num_workers = check_integer("num_workers", num_workers, 0)
        self.seed = check_seed("seed", seed)
        self.val_fraction = check_number("val_fraction", val_fraction, 0, 0.9)
        self.drop_last = check_bool("drop_last", drop_last)
        self.shuffle = check_bool("shuffle", shuffle)
        self.augment = check_bool("augment", augment)
        #: The order of the training images, "instance" or "balanced"; what goes beside each (`order.COMPANIONS`); and another
        #: global batch size. A method sets them when it begins to train, as its stage needs them.
        self.sampling = "instance"
        self.companion: str | None = None
        self.stage_batch_size: int | None = None
        self._splits: Splits | None = None
        self._fingerprint = ""

    # -------------------------------------------------------------------------------------------- for subclasses

    @abstractmethod
    def load_splits(self) -> Splits:
        """Find the images and labels of every split. Called once, in every process."""

    def official_figures(self) -> Figures | None:
        """What is known of the data set with these settings; None where nothing is."""
        return None

    @abstractmethod
    def train_transform(self) -> Transform:
        """The augmenting transform of training images."""

    def view_transform(self) -> Transform:
        """The transform of the second view of training images, for methods that compare two; by default the same one."""
        return self.train_transform()

    @abstractmethod
    def eval_transform(self) -> Transform:
        """The fixed transform of validation and test images."""

    @property
    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """How to bring any picture into the form the network was trained on: `mllt.data.images.eval_pipeline` takes it.

        Plain values: "size" (pixels, the square the network sees), "resize" (pixels of the short side before the
        central crop; None: straight to `size` x `size`), "mean" and "std" (three numbers each, in 0 .. 1).
        """

    def balanced_source(self) -> ImageSource | None:
        """The whole balanced set that the long-tailed training images were cut from, with them in it; None where there is none.

        Nothing trains on it: it is what frozen features are judged by (`python -m mllt.probe`).
        """
        return None

    def guard(self, train: ImageSource) -> ImageSource:
        """What stands between the training images and whoever loads them; by default nothing."""
        return train

    # ------------------------------------------------------------------------------------------------ what it tells

    @property
    def splits(self) -> Splits:
        """The loaded splits; loads them on first use."""
        self.setup()
        return self._splits  # type: ignore[return-value]

    @property
    def class_names(self) -> list[str]:
        """Name of each class, in label order."""
        return self.splits.class_names

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)

    @property
    def class_counts(self) -> Tensor:
        """Training images per class, int64 `(C,)`."""
        return count_classes(self.splits.train.labels, self.num_classes)

    @property
    def fingerprint(self) -> str:
        """Digits that tell which images with which labels are in which split (before any are held out), from other choices."""
        self.setup()
        return self._fingerprint

    def broken_images(self) -> dict[str, Any] | None:
        """Training images that could not be read and were replaced, for the results; None where there were none.

        In a distributed run every device must ask.
        """
        return None

    def summary(self, many_above: int = 100, few_below: int = 20, *, inclusive: bool = False) -> str:
        """The tail in a few words: images, classes, largest and smallest class, imbalance factor, classes per group.

        Args:
            many_above, few_below, inclusive: the shot-group rule, see `mllt.longtail.shot_groups`.
        """
        counts = self.class_counts
        groups = shot_groups(counts, many_above, few_below, inclusive=inclusive)
        splits = self.splits
        val = f"{len(splits.val):,} validation images" if splits.val is not None else "no validation split"
        return (
            f"{self.title}: {int(counts.sum()):,} training images in {self.num_classes:,} classes, "
            f"{int(counts.max()):,} to {int(counts.min()):,} per class (imbalance factor {imbalance_factor(counts):.4g}); "
            + " / ".join(f"{int(mask.sum()):,} {name}" for name, mask in groups.items())
            + f"-shot classes; {len(splits.test):,} test images, {val}"
        )

    # --------------------------------------------------------------------------------------------- Lightning's side

    def setup(self, stage: str | None = None) -> None:
        """Load the splits, hold out validation images when asked to, and check the whole."""
        if self._splits is not None:
            return
        splits = self.load_splits()
        self._fingerprint = fingerprint(splits)
        if self.val_fraction:
            if splits.val is not None:
                raise ArgumentError(f"{self.title} has a validation split of its own: set `val_fraction` to 0.")
            kept, held_out = per_class_split(splits.train.labels, self.val_fraction, self.seed)
            splits.train, splits.val = splits.train.subset(kept), splits.train.subset(held_out)
        self.check_splits(splits)
        splits.train = self.guard(splits.train)
        self._splits = splits

    def check_splits(self, splits: Splits) -> None:
        """Raise `DataError` for names that are no text, labels out of range, and classes or splits without images."""
        self._check_names(splits.class_names)
        for split, source in (("training", splits.train), ("validation", splits.val), ("test", splits.test)):
            if source is not None:
                self._check_labels(split, source, len(splits.class_names))
        counts = count_classes(splits.train.labels, len(splits.class_names))
        empty = [splits.class_names[i] for i in (counts == 0).nonzero().flatten().tolist()]
        if empty:
            raise DataError(
                f"{self.title}: expected every class to have a training image, but {len(empty)} of {len(counts)} "
                f"{'has' if len(empty) == 1 else 'have'} none: {name_some(empty)}. Give them images, or leave them out of the "
                "class names."
            )

    def _check_names(self, names: list[str]) -> None:
        """Results are written as UTF-8: what does not fit must not come to light after the training."""
        odd = [name for name in names if name.encode("utf-8", "ignore").decode("utf-8") != name]
        if odd:
            raise DataError(
                f"{self.title}: expected class names in UTF-8, but {counted(len(odd), 'is', 'are')} not: {name_some(odd)}. "
                "Rename the folders, or save the list in UTF-8."
            )

    def _check_labels(self, split: str, source: ImageSource, num_classes: int) -> None:
        if not len(source):
            raise DataError(f"{self.title}: expected {split} images, but there are none.")
        bad = np.flatnonzero((source.labels < 0) | (source.labels >= num_classes))
        if len(bad):
            some = name_some([f"{source.name_of(int(i))}: {int(source.labels[i])}" for i in bad[:5]])
            from_one = source.labels.min() == 1 and source.labels.max() == num_classes
            advice = " Number the classes from 0, not from 1." if from_one else ""
            raise DataError(
                f"{self.title}: expected labels in 0 .. {num_classes - 1} ({num_classes} class names), but "
                f"{counted(len(bad), f'{split} label is', f'{split} labels are')} outside: {some}.{advice}"
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """This device's shares of the global batches."""
        source = self.splits.train
        world, rank, accumulate = self._layout()
        check_choice("sampling", self.sampling, SAMPLINGS)
        balanced = self.sampling == "balanced"
        order = ClassBalancedOrder(source.labels, self.seed, shuffle=self.shuffle) if balanced else self.instance_order(source)
        sampler = GlobalBatchSampler(
            order,
            len(source),
            self.stage_batch_size or self.batch_size,
            num_replicas=world,
            rank=rank,
            accumulate=accumulate,
            drop_last=self.drop_last,
            companions=self._companions(source.labels),
        )
        transform = self.train_transform() if self.augment else self.eval_transform()
        other = self.view_transform() if self.companion == "view" and self.augment else transform
        return self._loader(ImageDataset(source, transform, self.seed, other), sampler, TrainLoader)

    def instance_order(self, source: ImageSource) -> Callable[[int], IntArray]:
        """The order in which an epoch takes every training image once."""
        return EpochOrder(len(source), self.seed, shuffle=self.shuffle)

    def _companions(self, labels: Any) -> Companions | None:
        return None if self.companion is None else Companions(self.companion, labels, self.seed, shuffle=self.shuffle)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Validation images, each once over all devices; an empty list where there are none."""
        return [] if self.splits.val is None else self._eval_loader(self.splits.val)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test images, each once over all devices."""
        return self._eval_loader(self.splits.test, once=True)

    def source_dataloader(self, source: ImageSource) -> DataLoader[Batch]:
        """The images of any source of this data, as test images are: by the eval transform, each once, in order."""
        return self._eval_loader(source, once=True)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test images."""
        return self.test_dataloader()

    def _layout(self) -> tuple[int | None, int, int]:
        """Number of devices, this one's rank, and accumulated steps, from the trainer; without one at work, None, 0 and 1."""
        if self.trainer is None or self.trainer.state.finished:
            return None, 0, 1
        return self.trainer.world_size, self.trainer.global_rank, self.trainer.accumulate_grad_batches

    def _eval_loader(self, source: ImageSource, *, once: bool = False) -> DataLoader[Batch]:
        world, rank, _ = self._layout()
        sampler = EvaluationSampler(len(source), self.eval_batch_size, num_replicas=world, rank=rank)
        return self._loader(ImageDataset(source, self.eval_transform(), self.seed), sampler, once=once)

    def _loader(
        self, dataset: ImageDataset, sampler: Any, loader: type[QuietLoader] = QuietLoader, *, once: bool = False
    ) -> DataLoader[Batch]:
        """A loader of this device's batches; `once`: its processes end after one pass."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        here = dataset.device is not None  # the batches are made by this process, where they are needed
        workers = 0 if here else self.num_workers
        return loader(
            dataset,
            batch_size=None,  # the sampler asks for whole batches
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0 and not once,
            pin_memory=on_gpu and not here,
        )
