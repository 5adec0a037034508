"""Data sets given by lists of files: ImageNet-LT, Places-LT, iNaturalist 2018, and the base of all file data modules.

A list names one picture per line, "relative/path label", the label last: the official format of ImageNet-LT (Liu et
al., "Large-Scale Long-Tailed Recognition in an Open World" (OLTR), CVPR 2019), which Places-LT and the customary
iNaturalist 2018 lists share.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllt.data.augment import check_statistics
from mllt.data.base import Figures, LongTailedDataModule, Splits, counted
from mllt.data.broken import SkippingSource
from mllt.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    FileSource,
    PaddedCropFlip,
    RandomResizedCropFlip,
    check_scale,
)
from mllt.data.jpeg import FastRandomResizedCropFlip
from mllt.data.order import IntArray
from mllt.data.shards import INDEX, ShardOrder, Shards, ShardSource, is_url, open_shards
from mllt.data.sources import ImageSource, Transform, data_root
from mllt.data.views import ContrastiveView
from mllt.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    check_bool,
    check_choice,
    check_integer,
    check_number,
    name_some,
)

_NOT_IN_PATHS = re.compile(rb"[\x00-\x1f\x7f\\]")
#: What reading JSON of another shape than expected, or made to be hard to read, may raise.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)

INATURALIST_MEAN, INATURALIST_STD = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)


# ---------------------------------------------------------------------------------------------------------------
# Reading lists


def read_list(path: str | Path, root: str | Path) -> FileSource:
    """The pictures and labels of a list: "relative/path label" per line.

    Paths may hold spaces, and may be absolute where they lead into `root`; blank lines are skipped. Whether the pictures
    exist is not looked at: `absent_files` does.

    Args:
        path: the list.
        root: the folder its paths start from.

    Raises:
        DataError: no such file; lines that are not a path and a whole number; paths that leave `root` or come twice.
            All of a kind are counted, the first few named by file:line.
    """
    paths, labels, lines, malformed = [], [], [], []
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        fields = line.strip().rsplit(None, 1)
        # Nine digits hold any label, and fit an int64
        if len(fields) == 2 and fields[1].isdigit() and len(fields[1]) <= 9:
            paths.append(fields[0])
            labels.append(int(fields[1]))
            lines.append(number)
        elif fields:
            malformed.append(f"{path}:{number}: {os.fsdecode(line.strip())}")
    refuse("Expected each line to be a path and a label, a whole number from 0 on", malformed, "line is not", "lines are not")
    if not paths:
        raise DataError(f"Expected {path} to name pictures, one `relative/path label` per line, but it is empty.")
    return FileSource(check_paths(paths, root, lambda i: f"{path}:{lines[i]}"), labels, root)


def read_bytes(path: str | Path) -> bytes:
    """What is in a text file, without the byte order mark that some editors put first."""
    try:
        return Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def check_paths(paths: Sequence[bytes], root: str | Path, place: Callable[[int], str]) -> NDArray[np.bytes_]:
    """Paths relative to `root` in their shortest form; none leads out of it, none comes twice.

    What counts is what is written: symbolic links in the folder are followed, also to elsewhere, since a list cannot make
    any. Backslashes and control characters (NUL) are refused: they mean other paths to other systems, and no file's name
    needs them.

    Args:
        paths: relative to `root`, or absolute.
        root: the folder of the pictures.
        place: where the i-th was found, to name it in an error.

    >>> check_paths([b"./cat/1.jpg", b"cat//2.jpg", b"/data/cat/3.jpg"], "/data", str).tolist()
    [b'cat/1.jpg', b'cat/2.jpg', b'cat/3.jpg']
    """
    odd = [i for i, path in enumerate(paths) if not path or _NOT_IN_PATHS.search(path)]
    refuse(
        "Expected paths with / between folders, without backslashes and control characters",
        [f"{place(i)}: {os.fsdecode(paths[i])}" for i in odd],
        "is odd",
        "are odd",
        "Write cat/1.jpg for cat\\1.jpg, and rename files whose names hold such characters.",
    )
    folder = data_root(root)
    roots = [os.path.join(os.fsencode(form(folder)), b"") for form in (os.path.abspath, os.path.realpath)]
    # Almost all paths of a long list are in that form already
    short = [_shortest(path, roots) if b"//" in path or b"/." in path or path[:1] in b"./" else path for path in paths]
    leaving = [i for i, path in enumerate(short) if os.path.isabs(path) or path in (b".", b"..") or path.startswith(b"../")]
    refuse(
        f"Expected paths inside the data folder {folder}",
        [f"{place(i)}: {os.fsdecode(paths[i])}" for i in leaving],
        "leaves it",
        "leave it",
        "Write paths from that folder on, or set data.root to one that holds all pictures.",
    )
    first: dict[bytes, int] = {}
    twice = [i for i, path in enumerate(short) if first.setdefault(path, i) != i]
    refuse(
        "Expected every picture once",
        [f"{place(i)}: {os.fsdecode(paths[i])}, as {place(first[short[i]])}" for i in twice],
        "comes again",
        "come again",
    )
    return np.array(short, np.bytes_)


def _shortest(path: bytes, roots: Iterable[bytes]) -> bytes:
    path = os.path.normpath(path)
    return next((path[len(root) :] for root in roots if path.startswith(root)), path)


def refuse(expected: str, problems: Sequence[str], one: str, many: str, advice: str = "") -> None:
    """Raise `DataError` when there are problems of a kind: how many, and the first few; `one` or `many` says what they are.

    >>> refuse("Expected even numbers", ["3", "5"], "is odd", "are odd")
    Traceback (most recent call last):
    mllt.errors.DataError: Expected even numbers, but 2 are odd: '3', '5'.
    """
    if problems:
        raise DataError(f"{expected}, but {counted(len(problems), one, many)}: {name_some(problems)}. {advice}".rstrip())


def absent_files(source: FileSource) -> list[str]:
    """Relative paths of a source that are not on disk: one directory listing per folder, not one look per file."""
    by_folder: dict[bytes, list[bytes]] = defaultdict(list)
    for path in source.paths.tolist():
        folder, _, name = path.rpartition(b"/")
        by_folder[folder].append(name)
    absent = []
    for folder, names in by_folder.items():
        try:
            present = set(os.listdir(os.path.join(os.fsencode(source.root), folder) or b"."))
        except (FileNotFoundError, NotADirectoryError):
            present = set()
        except OSError as error:
            raise DataError(f"Cannot list {error.filename!r}: {error.strerror}.") from error
        absent += [os.fsdecode(os.path.join(folder, name)) for name in names if name not in present]
    return absent


def check_disjoint(sources: Mapping[str, FileSource]) -> None:
    """Raise `DataError` when two splits share a picture: a test on training pictures would be no test."""
    for (one, first), (other, second) in combinations(sources.items(), 2):
        shared = np.intersect1d(first.paths, second.paths)
        refuse(
            "Expected every picture in one split only",
            [os.fsdecode(path) for path in shared],
            f"is in both the {one} and the {other} split",
            f"are in both the {one} and the {other} split",
        )


def blob_id(path: str | Path) -> str:
    """The identifier that `git hash-object FILE` prints: SHA-1 of the contents behind a short header."""
    content = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_coco(path: str | Path, root: str | Path) -> tuple[FileSource, dict[int, str]]:
    """The pictures of a COCO-style JSON file, as iNaturalist publishes them, and its categories.

    Read are `images` (`id`, `file_name`), `annotations` (`image_id`, `category_id`; one per image) and `categories`
    (`id`, `name`).

    Returns:
        The source, labelled by *category identifier*, in the order of `images`; and the name of each category.
    """
    try:
        data = json.loads(read_bytes(path))
        files = {image["id"]: os.fsencode(image["file_name"]) for image in data["images"]}
        seen = Counter(image["id"] for image in data["images"])
        pairs = [(annotation["image_id"], _identifier(annotation["category_id"])) for annotation in data["annotations"]]
        names = {_identifier(category["id"]): str(category.get("name", category["id"])) for category in data["categories"]}
    except _MALFORMED as error:
        raise DataError(
            f"Expected {path} to be JSON with `images` (id, file_name), `annotations` (image_id, category_id) and "
            f"`categories` (id, name), but reading it failed: {type(error).__name__}: {error}."
        ) from error
    refuse(
        f"Expected every image identifier once in {path}", [str(i) for i in seen if seen[i] > 1], "comes again", "come again"
    )
    times = Counter(image for image, _ in pairs)
    strays = [str(i) for i in times if i not in files]
    refuse(f"Expected annotations of images in {path}", strays, "names no image", "name no image")
    refuse(
        f"Expected one annotation per image in {path}",
        [f"{os.fsdecode(file)}: {times[image]}" for image, file in files.items() if times[image] != 1],
        "image has none, or several",
        "images have none, or several",
    )
    unlisted = sorted({str(c) for _, c in pairs if c not in names})
    refuse(f"Expected known categories in {path}", unlisted, "is not listed", "are not listed")
    label_of = dict(pairs)
    images = list(files)
    paths = check_paths(list(files.values()), root, lambda i: f"{path}: image {images[i]}")
    return FileSource(paths, [label_of[image] for image in images], root), names


def _identifier(value: Any) -> int:
    """A whole number of a JSON file, small enough for every array."""
    number = int(value)
    if abs(number) > 2**62:
        raise ValueError(f"{value:.3e} is no identifier")
    return number


# ---------------------------------------------------------------------------------------------------------------
# Class names


def read_class_names(folders: Iterable[Path], *, drop_first_word: bool = False) -> list[str] | None:
    """The name of each class in label order, from a file in one of the folders; None where there is none.

    `classnames.txt`: line k (from 0) names class k. `categories.json`: a list of `{"id": label, "name": ...}`.

    Args:
        folders: where to look, best first.
        drop_first_word: lines of `classnames.txt` are "identifier name", as in that of ImageNet-LT.

    Raises:
        DataError: a file that cannot be read, or that leaves out a label.
    """
    for folder in folders:
        if (folder / "classnames.txt").is_file():
            lines = read_bytes(folder / "classnames.txt").decode("utf-8", "replace").split("\n")
            names = [line.strip() for line in lines if line.strip()]
            return [name.split(None, 1)[-1] for name in names] if drop_first_word else names
        if (folder / "categories.json").is_file():
            return _category_names(folder / "categories.json")
    return None


def _category_names(path: Path) -> list[str]:
    try:
        names = {_identifier(category["id"]): str(category["name"]) for category in json.loads(read_bytes(path))}
    except _MALFORMED as error:
        raise DataError(
            f'Expected {path} to be a JSON list of {{"id": label, "name": ...}}, but reading it failed: '
            f"{type(error).__name__}: {error}."
        ) from error
    gaps = [str(label) for label in range(len(names)) if label not in names]
    refuse(f"Expected the identifiers in {path} to be the labels 0 .. {len(names) - 1}", gaps, "is missing", "are missing")
    return [names[label] for label in range(len(names))]


def folder_names(train: FileSource) -> list[str]:
    """Class names from the folders of the training pictures, or else the label numbers.

    Folders name the classes where each class has one of its own: by their last part, or the whole where that is not
    unique.

    Raises:
        DataError: labels without training pictures between 0 and the largest one.

    >>> folder_names(FileSource(["train/cat/1.jpg", "train/dog/1.jpg"], [0, 1]))
    ['cat', 'dog']
    >>> folder_names(FileSource(["1.jpg", "2.jpg"], [0, 1]))
    ['0', '1']
    """
    present = np.unique(train.labels)
    highest = int(present[-1])
    if present[0] == 1 and highest == len(present):
        raise DataError(f"Expected labels from 0 on, but they go from 1 to {highest}. Number the classes from 0.")
    if highest + 1 != len(present):  # `highest` may be a slip of the pen: make nothing of that length
        gaps = np.setdiff1d(np.arange(min(highest, len(present) + 5)), present)[:5]
        raise DataError(
            f"Expected every class to have a training image, but the labels go up to {highest} and "
            f"{counted(highest + 1 - len(present), 'of them has', 'of them have')} none, first "
            f"{name_some(gaps.tolist())}. Number the classes from 0 without gaps."
        )
    folders_of: list[set[str]] = [set() for _ in present]
    for path, label in zip(train.paths.tolist(), train.labels.tolist(), strict=True):
        folders_of[label].add(os.fsdecode(os.path.dirname(path)))
    folders = [next(iter(found)) for found in folders_of if len(found) == 1]
    for names in ([os.path.basename(folder) for folder in folders], folders):
        if len(set(names)) == len(present) and all(names):
            return names
    return [str(label) for label in present]


# ---------------------------------------------------------------------------------------------------------------
# Data modules


@dataclass
class Stored:
    """What lies in the storage of a data module, before anything is held out or cut.

    Args:
        sources: the pictures of "training", "test" and perhaps "validation".
        class_names: in label order.
        notes: what a person should know of it.
    """

    sources: dict[str, FileSource]
    class_names: list[str]
    notes: list[str]


STORAGES = ("files", "shards")
PIPELINES = ("torchvision", "fast", "scaled")


class ImageFileDataModule(LongTailedDataModule):
    """Base of the data modules whose pictures are files of any size: transforms, checks, notes.

    A subclass implements `read_splits`. `notes` holds what a person should know of the data as found, and `summary`
    tells it.

    Args:
        root: the folder of the pictures; with storage "shards", the folder or URL of the shards.
        image_size: side of the square that the network sees, in pixels.
        resize: pixels of the short side before the central crop of evaluation; "auto": `image_size` x 256 / 224,
            rounded; None: evaluation scales straight to the square.
        color_jitter: strength of the jitter of brightness, contrast and saturation in training; 0 for none.
        hue: strength of the jitter of hue, in 0 .. 0.5.
        crop_scale: smallest and largest share of a picture's area that a training crop keeps.
        padding: None: train on random resized crops. A number: on the square of evaluation, padded by so many pixels,
            cropped back and flipped, the augmentation of small pictures; without colour jitter.
        pipeline: how training pictures are decoded, cropped and jittered. "torchvision": by it and Pillow. "fast": the same
            but for rounding, JPEG files by simplejpeg (`FastRandomResizedCropFlip`); "scaled": so, and large ones decoded
            at a fraction of their size. Evaluation and second views are the same with all.
        mean, std: of the three channels in 0 .. 1, for normalisation.
        on_error: "error": a training picture that cannot be read ends the run. "skip": the next readable one of its class
            stands in for it (`SkippingSource`); results tell which were broken. Validation and test pictures are always
            needed: a test without them would be another test.
        max_broken: share of the training pictures, in 0 .. 1, above which broken ones are an error all the same.
        verify_files: look at setup whether every picture is there (by listing folders; off: the first use tells). Whether
            they can be decoded, the first use tells (`ImageFolderLT` looks at those of validation and test).
        storage: "files": loose ones. "shards": those that `python -m mllt.pack` wrote of them; batches are the same.
        shard_window: None: shuffle over all training pictures, as with files. A number: over so many shards at a time
            (`ShardOrder`), where shards do not all fit the cache.
        shard_cache: the folder that shards from a URL are fetched to; None: `~/.cache/mllt/shards`.
        shard_cache_gb: gigabytes (10^9 bytes) that they may take there; None: as many as they are.
        common: `LongTailedDataModule`'s arguments.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_size: int = 224,
        resize: int | str | None = "auto",
        color_jitter: float = 0.0,
        hue: float = 0.0,
        crop_scale: Sequence[float] = (0.08, 1.0),
        padding: int | None = None,
        pipeline: str = "torchvision",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        on_error: str = "error",
        max_broken: float = 0.01,
        verify_files: bool = True,
        storage: str = "files",
        shard_window: int | None = None,
        shard_cache: str | Path | None = None,
        shard_cache_gb: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root = data_root(root)
        self.storage = check_choice("storage", storage, STORAGES)
        self.shard_window = None if shard_window is None else check_integer("shard_window", shard_window, 1)
        self.shard_cache_gb = None if shard_cache_gb is None else check_number("shard_cache_gb", shard_cache_gb, above=0)
        self.shard_place = os.fspath(root), shard_cache
        if storage == "files":
            given = {"shard_window": shard_window, "shard_cache": shard_cache, "shard_cache_gb": shard_cache_gb}
            self.refuse_settings(
                given, "is about shards: leave it out, or set data.storage=shards with their folder as data.root"
            )
            if is_url(root):
                raise ArgumentError(f"Expected `root` to be a folder with storage=files, but got {os.fspath(root)!r}.")
        self.image_size = check_integer("image_size", image_size, 1)
        self.resize = _check_resize(resize, image_size)
        self.color_jitter = check_number("color_jitter", color_jitter, 0)
        self.hue = check_number("hue", hue, 0, 0.5)
        self.crop_scale = check_scale(crop_scale, "crop_scale")
        self.padding = None if padding is None else check_integer("padding", padding, 0)
        if padding is not None and (color_jitter or hue):
            raise ArgumentError("Padded crops have no colour jitter: set `color_jitter` and `hue` to 0, or `padding` to null.")
        self.pipeline = check_choice("pipeline", pipeline, PIPELINES)
        if padding is not None and pipeline != "torchvision":
            raise ArgumentError("Padded crops have one pipeline only: set `pipeline` to torchvision, or `padding` to null.")
        self.mean, self.std = check_statistics(mean, std)
        self.on_error = check_choice("on_error", on_error, ("error", "skip"))
        self.max_broken = check_number("max_broken", max_broken, 0, 1)
        #: Causes of the broken training pictures, by index
        self._causes: dict[int, str] = {}
        self.verify_files = check_bool("verify_files", verify_files)
        self.notes: list[str] = []

    @abstractmethod
    def read_splits(self) -> tuple[dict[str, FileSource], list[str]]:
        """The pictures of "training", "test" and perhaps "validation", and the class names; may add to `notes`."""

    def source_lists(self) -> list[Path]:
        """The list files that say which pictures there are."""
        return []

    def make_splits(self, stored: Stored) -> dict[str, FileSource]:
        """The pictures of each split, as the settings make them of those that are stored; may add to `notes`."""
        return dict(stored.sources)

    def refuse_settings(self, given: Mapping[str, Any], why: str) -> None:
        """Raise `ArgumentError` for a setting that is given (not None) and would have no effect."""
        for name, value in given.items():
            if value is not None:
                raise ArgumentError(f"`{name}` {why}.")

    @property
    def stored(self) -> Stored:
        """What lies in the storage; looks there on first use."""
        self.setup()
        return self._stored

    def load_splits(self) -> Splits:
        self.notes = []
        self._stored = stored = self._read_files() if self.storage == "files" else self._read_shards()
        sources, names = self.make_splits(stored), stored.class_names
        check_disjoint(sources)
        if self.verify_files:
            for split, source in sources.items():
                self._check_files(split, source)
        untested = np.setdiff1d(sources["training"].labels, sources["test"].labels)
        if len(untested):
            some = name_some([names[label] if label < len(names) else str(label) for label in untested])
            verb = "has" if len(untested) == 1 else "have"
            self.notes.append(f"{len(untested):,} of {len(names):,} classes {verb} no test image: {some}")
        return Splits(sources["training"], sources["test"], names, sources.get("validation"))

    def _read_files(self) -> Stored:
        if (self.root / INDEX).is_file():
            raise ArgumentError(f"{self.root} holds shards, not loose pictures: set data.storage=shards.")
        sources, names = self.read_splits()
        return Stored(sources, names, list(self.notes))

    def _read_shards(self) -> Stored:
        shards = open_shards(*self.shard_place, self.shard_cache_gb)
        about = shards.index.about
        if about["data"] != type(self).__name__:
            raise DataError(
                f"Expected shards of {type(self).__name__}, but those in {shards.location} were packed from {about['data']} "
                f"({about['title']}). Choose the data or the experiment that they were packed by."
            )
        if self.verify_files:
            shards.check_files()
        self.title, self.notes = about["title"], list(about["notes"])
        self.check_packed(shards)
        sources: dict[str, FileSource] = {
            name: ShardSource(shards, split["paths"], split["labels"], split["places"])
            for name, split in shards.index.splits.items()
        }
        return Stored(sources, about["class_names"], list(self.notes))

    def check_packed(self, shards: Shards) -> None:
        """Raise `DataError` when shards are not what the settings ask for."""

    def instance_order(self, source: ImageSource) -> Callable[[int], IntArray]:
        stored = source.source if isinstance(source, SkippingSource) else source
        if self.shard_window is None or not isinstance(stored, ShardSource):
            return super().instance_order(source)
        return ShardOrder(stored.shard_of, self.shard_window, self.seed, shuffle=self.shuffle)

    def _check_files(self, split: str, source: FileSource) -> None:
        absent = absent_files(source) if self.storage == "files" else []  # shards are looked at as they are opened
        if absent and split == "training" and self.on_error == "skip" and len(absent) <= self.max_broken * len(source):
            self.notes.append(
                f"{counted(len(absent), 'training picture is', 'training pictures are')} not there: {name_some(absent)}; "
                "others of their classes stand in for them (on_error='skip')"
            )
        elif absent:
            raise DataError(
                f"{self.title}: expected {len(source):,} {split} pictures under {self.root}, but "
                f"{counted(len(absent), 'is', 'are')} not there: {name_some(absent)}. {self.advice()} "
                "(verify_files=false goes on without this check.)"
            )

    def advice(self) -> str:
        """What to do when pictures or lists are missing."""
        return "Check `root`: the paths of the lists start there."

    # ------------------------------------------------------------------------------------------ broken pictures

    def guard(self, train: ImageSource) -> ImageSource:
        return SkippingSource(train, self.max_broken) if self.on_error == "skip" else train

    def state_dict(self) -> dict[str, Any]:
        """Which training pictures were broken so far, with their causes; a run that goes on still tells them.

        In a distributed run every device must ask, as for every checkpoint.
        """
        causes = self._broken()
        return {"broken": {self._path_of(index): cause for index, cause in causes.items()}} if causes else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add what a checkpoint tells of broken training pictures."""
        train, causes = self.splits.train, state_dict.get("broken", {})
        if not isinstance(causes, dict):
            raise CheckpointError(f"Expected a checkpoint to tell broken pictures as path: cause, but got {causes!r:.100}.")
        if isinstance(train, SkippingSource) and causes:
            known = {self._path_of(index): index for index in range(len(train))}
            told = {known[path]: str(cause) for path, cause in causes.items() if path in known}
            self._causes = {**self._causes, **told}
            train.note(told)

    def broken_images(self) -> dict[str, Any] | None:
        """Training pictures that were broken and replaced, or None.

        Returns:
            `count`; `files`: path and cause of each, in the order of the list or folder; `by_class`: how many, by the names
            of the classes; `readable`: pictures of each class that are left, in label order. Losses and compensation use
            the counts of the whole: every class comes as often as if nothing were broken.
        """
        causes = self._broken()
        if not causes:
            return None
        labels = self.splits.train.labels[list(causes)]
        lost = np.bincount(labels, minlength=self.num_classes)
        return {
            "count": len(causes),
            "files": [{"path": self._path_of(index), "cause": cause} for index, cause in causes.items()],
            "by_class": {self.class_names[label]: int(lost[label]) for label in np.flatnonzero(lost)},
            "readable": (self.class_counts.numpy() - lost).tolist(),
        }

    def _broken(self) -> dict[int, str]:
        """Causes of the broken training pictures of all devices, by index, ascending."""
        train = self.splits.train
        if isinstance(train, SkippingSource):
            found = train.unite()
            self._causes = {index: self._causes.get(index) or train.cause(index) for index in found}
        return self._causes

    def _path_of(self, index: int) -> str:
        """A training picture's path from the data folder on, in letters that every file can hold."""
        name = self.splits.train.name_of(index).removeprefix(os.path.join(self.root, ""))
        return name.encode("utf-8", "backslashreplace").decode()

    # -------------------------------------------------------------------------------------------- transforms

    def train_transform(self) -> Transform:
        if self.padding is not None:
            return PaddedCropFlip(self.preprocessing, self.padding)
        settings = (self.image_size, self.mean, self.std, self.color_jitter, self.hue, self.crop_scale)
        if self.pipeline == "torchvision":
            return RandomResizedCropFlip(*settings)
        return FastRandomResizedCropFlip(*settings, scaled=self.pipeline == "scaled")

    def view_transform(self) -> Transform:
        """MoCo-v2's; small pictures are not blurred."""
        blur = 0.5 if self.padding is None else 0.0
        return ContrastiveView(self.image_size, self.mean, self.std, blur=blur)

    def eval_transform(self) -> Transform:
        return EvalTransform(self.preprocessing)

    @property
    def preprocessing(self) -> dict[str, Any]:
        return {"size": self.image_size, "resize": self.resize, "mean": self.mean, "std": self.std}

    def summary(self, many_above: int = 100, few_below: int = 20, *, inclusive: bool = False) -> str:
        """As `LongTailedDataModule.summary`, with one more line per note."""
        tail = super().summary(many_above, few_below, inclusive=inclusive)
        return "\n".join([tail, *(f"Note: {note}" for note in self.notes)])


def _check_resize(resize: int | str | None, image_size: int) -> int | None:
    if resize is None:
        return None
    if resize == "auto":
        return round(image_size * 256 / 224)
    if isinstance(resize, str):
        raise ArgumentError(f"Expected `resize` to be a number of pixels, 'auto' or null, but got {resize!r}.")
    return check_integer("resize", resize, image_size)


class ImageListDataModule(ImageFileDataModule):
    """Base of the official data sets: three lists of known names, and instructions where they are missing.

    Class names come from `classnames.txt` or `categories.json` in `list_dir` or `root`, else from the folders of the
    training pictures (`read_class_names`, `folder_names`). Class counts come from the training list only.

    Args:
        root: the folder that the paths in the lists start from.
        list_dir: the folder of the lists; None: `root`.
        verify_lists: refuse lists that differ from the official ones; otherwise a note tells.
        settings: `ImageFileDataModule`'s arguments.
    """

    #: file names of the lists; a validation list is used where it is there
    train_list: str
    test_list: str
    val_list: str | None = None
    #: the official lists by file name: what `git hash-object FILE` prints for each release
    blob_ids: ClassVar[dict[str, tuple[str, ...]]]
    #: where pictures and lists are published and how their folders look, with {root} and {lists}
    how_to_get: str
    #: images and classes of the official lists
    figures: Figures
    #: whether lines of `classnames.txt` are "identifier name"
    names_follow_identifiers = False

    def __init__(
        self, root: str | Path, list_dir: str | Path | None = None, *, verify_lists: bool = False, **settings: Any
    ) -> None:
        super().__init__(root, **settings)
        self.list_dir = self.root if list_dir is None else data_root(list_dir)
        self.verify_lists = check_bool("verify_lists", verify_lists)
        if self.storage == "shards":
            self.refuse_settings({"list_dir": list_dir}, "is not read with storage=shards, which hold the lists: leave it out")

    def official_figures(self) -> Figures:
        return self.figures

    def advice(self) -> str:
        known = "; ".join(f"{name} {' or '.join(ids)}" for name, ids in self.blob_ids.items())
        place = self.how_to_get.format(root=self.root, lists=self.list_dir)
        return (
            f"{place} If they lie elsewhere: data.root=FOLDER, and data.list_dir=FOLDER for the lists. Check a list with "
            f"`git hash-object FILE`; it prints for {known}."
        )

    def read_splits(self) -> tuple[dict[str, FileSource], list[str]]:
        self._require([self.train_list, self.test_list])
        sources = {"training": self._read(self.train_list), "test": self._read(self.test_list)}
        if self.val_list is not None:
            if self._has(self.val_list):
                sources["validation"] = self._read(self.val_list)
            else:
                self.notes.append(f"no {self.val_list} in {self.list_dir}, hence no validation split of its own")
        return sources, self._names_on_file() or folder_names(sources["training"])

    def _names_on_file(self) -> list[str] | None:
        return read_class_names([self.list_dir, self.root], drop_first_word=self.names_follow_identifiers)

    def _has(self, *files: str | None) -> bool:
        return all(name is not None and (self.list_dir / name).is_file() for name in files)

    def _require(self, files: Sequence[str]) -> None:
        """Raise `DataError` with the whole advice when the folder of pictures or one of the lists is missing."""
        missing = [str(self.list_dir / name) for name in files if not self._has(name)]
        if self.verify_files and not self.root.is_dir():
            missing.insert(0, f"{self.root}{os.sep}")
        if missing:
            raise DataError(f"{self.title}: the data is missing: no {', no '.join(missing)}. {self.advice()}")

    def _read(self, name: str) -> FileSource:
        source = read_list(self.list_dir / name, self.root)
        self.notes += self._compare(name, blob_id(self.list_dir / name))
        return source

    def _compare(self, name: str, found: str) -> list[str]:
        official = self.blob_ids.get(name)
        if official is None or found in official:
            return []
        differs = f"{name} is not the official list (`git hash-object` prints {found}, not {' or '.join(official)})"
        if self.verify_lists:
            raise DataError(f"{self.title}: {differs}. Get the official one, or set verify_lists=false to use it all the same.")
        return [differs]

    def source_lists(self) -> list[Path]:
        names = (self.train_list, self.val_list, self.test_list)
        return [self.list_dir / name for name in names if name is not None and self._has(name)]

    def check_packed(self, shards: Shards) -> None:
        for name, found in shards.index.about["lists"].items():
            self._compare(name, found)  # the notes were written when they were packed


class ImageNetLT(ImageListDataModule):
    """ImageNet-LT: 115,846 training images of 1,000 classes, 1,280 to 5 per class; 20,000 to validate, 50,000 to test.

    Liu et al., "Large-Scale Long-Tailed Recognition in an Open World" (OLTR), CVPR 2019. Training takes random resized
    crops of 224 pixels, flips and colour jitter 0.4; evaluation scales to 256 and crops the central 224 (Kang et al.,
    "Decoupling Representation and Classifier", ICLR 2020, and after it RIDE, MiSLAS, LADE).

    Args:
        root: the folder with ImageNet's `train/` and `val/`, each holding one folder per class.
        list_dir: the folder of the three lists; None: `root`.
        color_jitter: as in `ImageFileDataModule`; here 0.4.
        settings: arguments of `ImageListDataModule`, `ImageFileDataModule`, `LongTailedDataModule`.
    """

    title = "ImageNet-LT"
    figures = Figures(train=115_846, classes=1_000, largest=1_280, smallest=5, test=50_000, val=20_000)
    train_list, val_list, test_list = "ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt"
    blob_ids: ClassVar[dict[str, tuple[str, ...]]] = {
        "ImageNet_LT_train.txt": ("a063f095fcd475db4cf8b0658c4b73955535bbf9",),
        "ImageNet_LT_val.txt": ("3ed3188b2f44829ce2dec1cc27040d8d40984088",),
        "ImageNet_LT_test.txt": ("76a2fb9749d6cd29e765cc4f8c270f2504131e2f",),
    }
    how_to_get = (
        "Pictures: ImageNet, ILSVRC 2012 (image-net.org), as {root}/train/<wnid>/<wnid>_<number>.JPEG and, sorted into "
        "class folders, {root}/val/<wnid>/ILSVRC2012_val_<number>.JPEG. Lists, in {lists}: ImageNet_LT_train.txt, "
        "ImageNet_LT_val.txt and ImageNet_LT_test.txt of OpenLongTailRecognition-OLTR (Liu et al., CVPR 2019), the same in "
        "facebookresearch/classifier-balancing."
    )
    names_follow_identifiers = True

    def __init__(
        self, root: str | Path, list_dir: str | Path | None = None, *, color_jitter: float = 0.4, **settings: Any
    ) -> None:
        super().__init__(root, list_dir, color_jitter=color_jitter, **settings)


class PlacesLT(ImageListDataModule):
    """Places-LT: 62,500 training images of 365 classes, 4,980 to 5 per class; 7,300 to validate, 36,500 to test.

    Liu et al., CVPR 2019, as ImageNet-LT; the transforms are the same. The lists of the large release
    (`train/<category>/`) and of the 256-pixel release (`data_256/a/<category>/`, `val_256/`) both work.

    Args:
        root: the folder with Places365's `train/` and `val/`, or `data_256/` and `val_256/`.
        list_dir: the folder of the three lists; None: `root`.
        color_jitter: as in `ImageFileDataModule`; here 0.4.
        settings: arguments of `ImageListDataModule`, `ImageFileDataModule`, `LongTailedDataModule`.
    """

    title = "Places-LT"
    figures = Figures(train=62_500, classes=365, largest=4_980, smallest=5, test=36_500, val=7_300)
    train_list, val_list, test_list = "Places_LT_train.txt", "Places_LT_val.txt", "Places_LT_test.txt"
    blob_ids: ClassVar[dict[str, tuple[str, ...]]] = {
        "Places_LT_train.txt": ("6392252f8ae867bc8a5e841cc1b29e5b8ef4b636", "1d608b558c25c271da75c06f1e5e3625a4ebcb79"),
        "Places_LT_val.txt": ("b93a2ca58ccb7f3b671c176f395a70bf52c95533", "89c29c0973328f77d7a77a8b580634ce20acdc11"),
        "Places_LT_test.txt": ("e732e58b8aa718a2c1c11933375f5710652c2b93", "d43400ac9bc2275baa058456da40b20abb50b108"),
    }
    how_to_get = (
        "Pictures: Places365-Standard (places2.csail.mit.edu), as {root}/train/<category>/<number>.jpg and "
        "{root}/val/<category>/Places365_val_<number>.jpg, or the 256-pixel release as {root}/data_256/a/<category>/ and "
        "{root}/val_256/. Lists, in {lists}: Places_LT_train.txt, Places_LT_val.txt and Places_LT_test.txt of "
        "OpenLongTailRecognition-OLTR (Liu et al., CVPR 2019), as in facebookresearch/classifier-balancing, or with the "
        "paths of the 256-pixel release in hyperconnect/LADE."
    )
    names_follow_identifiers = True

    def __init__(
        self, root: str | Path, list_dir: str | Path | None = None, *, color_jitter: float = 0.4, **settings: Any
    ) -> None:
        super().__init__(root, list_dir, color_jitter=color_jitter, **settings)


class INaturalist2018(ImageListDataModule):
    """iNaturalist 2018: 437,513 training images of 8,142 species, 1,000 to 2 per class; 24,426 to test, 3 per class.

    Van Horn et al., "The iNaturalist Species Classification and Detection Dataset", CVPR 2018; the 2018 competition.
    By protocol its validation images are the *test* set, and there is no validation split. No colour jitter, and
    normalisation by iNaturalist's own mean and deviation (Kang et al., ICLR 2020; RIDE, LADE).

    The lists `iNaturalist18_train.txt` and `iNaturalist18_val.txt` are read, or where one of them is missing the official
    `train2018.json` and `val2018.json`; labels are then the categories ranked by identifier.

    Args:
        root: the folder with `train_val2018/`.
        list_dir: the folder of the lists or JSON files; None: `root`.
        mean, std: as in `ImageFileDataModule`; here iNaturalist's.
        settings: arguments of `ImageListDataModule`, `ImageFileDataModule`, `LongTailedDataModule`.
    """

    title = "iNaturalist 2018"
    figures = Figures(train=437_513, classes=8_142, largest=1_000, smallest=2, test=24_426)
    train_list, test_list = "iNaturalist18_train.txt", "iNaturalist18_val.txt"
    train_json, test_json = "train2018.json", "val2018.json"
    blob_ids: ClassVar[dict[str, tuple[str, ...]]] = {
        "iNaturalist18_train.txt": ("4accdb7584d2f0a5106c40a33ed6afa392189bcc",),
        "iNaturalist18_val.txt": ("4c23900857fd0f5adcd4cc0dffef345039eeb05f",),
    }
    how_to_get = (
        "Pictures: iNaturalist 2018 (visipedia/inat_comp), as {root}/train_val2018/<group>/<category>/<name>.jpg. Lists, in "
        "{lists}: iNaturalist18_train.txt and iNaturalist18_val.txt, as in hyperconnect/LADE or dvlab-research/MiSLAS; or "
        "train2018.json and val2018.json of visipedia/inat_comp. (Of the JSON files no official identifier is known here. "
        "The right ones give 437,513 training images of 8,142 classes and 24,426 test images: the summary of the data tells.)"
    )

    def __init__(
        self,
        root: str | Path,
        list_dir: str | Path | None = None,
        *,
        mean: Sequence[float] = INATURALIST_MEAN,
        std: Sequence[float] = INATURALIST_STD,
        **settings: Any,
    ) -> None:
        super().__init__(root, list_dir, mean=mean, std=std, **settings)

    def read_splits(self) -> tuple[dict[str, FileSource], list[str]]:
        if self._has(self.train_list, self.test_list) or not self._has(self.train_json, self.test_json):
            return super().read_splits()
        self._require([])
        return self._read_json()

    def source_lists(self) -> list[Path]:
        return super().source_lists() or [self.list_dir / self.train_json, self.list_dir / self.test_json]

    def _read_json(self) -> tuple[dict[str, FileSource], list[str]]:
        train, names = read_coco(self.list_dir / self.train_json, self.root)
        test, _ = read_coco(self.list_dir / self.test_json, self.root)
        categories = np.array(sorted(names), dtype=np.int64)
        unknown = np.setdiff1d(test.labels, categories)
        refuse(
            f"Expected the categories of {self.train_json} in {self.test_json}",
            [str(c) for c in unknown],
            "is not there",
            "are not there",
        )
        for source in (train, test):
            source.labels = rank_labels(source.labels, categories)
        return {"training": train, "test": test}, self._names_on_file() or [names[category] for category in sorted(names)]


def rank_labels(labels: IntArray, categories: IntArray) -> IntArray:
    """Each label's place in the ascending categories.

    >>> rank_labels(np.array([7, 3]), np.array([3, 5, 7]))
    array([2, 0])
    """
    return np.searchsorted(categories, labels).astype(np.int64)
