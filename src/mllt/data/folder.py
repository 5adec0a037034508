"""`ImageFolderLT`: any pictures of yours, in class folders or given by lists."""

from __future__ import annotations

import csv
import io
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllt.data.base import counted
from mllt.data.images import FileSource, damaged_files
from mllt.data.lists import (
    ImageFileDataModule,
    Stored,
    check_paths,
    folder_names,
    read_bytes,
    read_class_names,
    read_list,
    refuse,
)
from mllt.data.order import SPLIT, IntArray, permutation
from mllt.data.sources import data_root
from mllt.data.subsets import long_tailed_indices
from mllt.errors import ArgumentError, DataError, check_choice, check_number, check_seed, did_you_mean, name_some
from mllt.longtail import PROFILES, profile_counts

# fmt: off
IMAGE_EXTENSIONS = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
])
# fmt: on
LAYOUTS = ("auto", "splits", "classes")

# What the folders of the split layout, and the rows of a CSV list, may call each split, in upper or lower case
_SPLITS = {"training": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


def split_called(name: str) -> str | None:
    """The split that a folder or a row means, or None.

    >>> split_called("Train"), split_called("valid"), split_called("cat")
    ('training', 'validation', None)
    """
    return next((split for split, words in _SPLITS.items() if name.lower() in words), None)


# ---------------------------------------------------------------------------------------------------------------
# Class folders


@dataclass
class Found:
    """The pictures of a folder of class folders.

    pictures: by class name, paths relative to the data folder; ignored: how many entries of each kind were passed over.
    """

    pictures: dict[str, list[bytes]] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)


def scan_classes(root: Path, folder: str = "") -> Found:
    """Look through `root/folder`: every folder in it is a class, every picture anywhere below that is one of the class.

    A picture is what has an image file's extension, in upper or lower case. Symbolic links are followed, save those that
    lead back to a folder they lie in. Hidden entries, other files, and files outside class folders are ignored and counted.
    Classes and paths come in alphabetical order.
    """
    found = Found()
    for entry in list_folder(root / folder):
        if entry.name.startswith("."):
            found.ignored["hidden"] += 1
        elif entry.is_dir():
            place = os.fsencode(os.path.join(folder, entry.name))
            found.pictures[entry.name] = list(_pictures(entry.path, place, found.ignored, frozenset()))
        elif _is_image(entry.name):
            found.ignored["outside class folders"] += 1
        else:
            found.ignored[_kind(entry.name)] += 1
    return found


def _pictures(folder: str, place: bytes, ignored: Counter[str], above: frozenset[tuple[int, int]]) -> Iterator[bytes]:
    """Paths of the pictures in a class folder and below; `above` are the folders on the way here."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        ignored["links in a circle"] += 1
        return
    for entry in list_folder(folder):
        path = os.path.join(place, os.fsencode(entry.name))
        if entry.name.startswith("."):
            ignored["hidden"] += 1
        elif entry.is_dir():
            yield from _pictures(entry.path, path, ignored, above | {here})
        elif not entry.is_file():
            ignored["broken links"] += 1
        elif _is_image(entry.name):
            yield path
        else:
            ignored[_kind(entry.name)] += 1


def find_pictures(folder: Path) -> tuple[list[Path], Counter[str]]:
    """All pictures in a folder and below, by path, and how many entries of each kind were passed over."""
    ignored: Counter[str] = Counter()
    found = [folder / os.fsdecode(path) for path in _pictures(str(folder), b"", ignored, frozenset())]
    return found, ignored


def list_folder(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"Cannot list the folder {folder}: {error.strerror or error}.") from error


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _kind(name: str) -> str:
    extension = os.path.splitext(name)[1].lower()
    return f"{extension} files" if extension else "files without extension"


# ---------------------------------------------------------------------------------------------------------------
# Lists


@dataclass
class Table:
    """What a list says, `(n,)` each: relative paths, labels (numbers, or text), and in which split (a key of `_SPLITS`, or
    another word), where it tells."""

    paths: NDArray[np.bytes_]
    labels: NDArray[Any]
    splits: NDArray[np.str_] | None

    def rows(self, which: NDArray[np.bool_]) -> Table:
        """Some of the rows, without their split."""
        return Table(self.paths[which], self.labels[which], None)


def read_csv(path: Path, root: str | Path) -> Table:
    """Read a CSV list with the header `path,label` and perhaps `split` (other columns are not looked at).

    Columns are separated by commas, semicolons or tabs, whichever the header has most of.

    Args:
        path: the list.
        root: the folder its paths start from, or that absolute ones lead into.

    Raises:
        DataError: columns are missing; rows lack a field, or name a split other than train, val and test; paths that
            leave the data folder or come twice. All of a kind are counted, the first few named by file:line.
    """
    try:
        columns, rows, lines = _read_columns(path)
    except csv.Error as error:
        raise DataError(f"Cannot read {path} as CSV: {error}.") from error
    if not rows:
        raise DataError(f"Expected {path} to name pictures, one per row below the header, but it has no rows.")
    lacking = [f"{path}:{line}: {','.join(row)}" for row, line in zip(rows, lines, strict=True) if not all(row)]
    refuse(f"Expected every row to have {', '.join(columns)}", lacking, "row lacks one", "rows lack one")
    paths = check_paths([os.fsencode(row[0]) for row in rows], root, lambda i: f"{path}:{lines[i]}")
    labels = np.array([row[1] for row in rows])
    if "split" not in columns:
        return Table(paths, labels, None)
    splits = [split_called(row[2]) for row in rows]
    odd = [f"{path}:{lines[i]}: {rows[i][2]}" for i, split in enumerate(splits) if split is None]
    refuse("Expected `split` to be train, val or test", odd, "is not", "are not")
    return Table(paths, labels, np.array(splits, np.str_))


def _read_columns(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """The names of the columns that count, their fields row by row, and the line of each row."""
    text = read_bytes(path).decode("utf-8", "surrogateescape")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    for column in ("path", "label"):
        if column not in reader.fieldnames:
            raise DataError(
                f"Expected the first line of {path} to name a column {column!r}, but it does not. "
                f"{did_you_mean(column, reader.fieldnames)} Rename the column, or write the header path{separator}label."
            )
    columns = ["path", "label", "split"] if "split" in reader.fieldnames else ["path", "label"]
    rows, lines = [], []
    for row in reader:
        rows.append([(row[column] or "").strip() for column in columns])
        lines.append(reader.line_num)
    return columns, rows, lines


# ---------------------------------------------------------------------------------------------------------------
# Cutting


def hold_out_test(labels: IntArray, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Indices kept for training and indices held out for the test: of a class with n images round(n * fraction).

    From 3 images on a class gives at least one to the test, and no class gives its last one. A function of the
    arguments only.

    Returns:
        (kept, held_out), each int64 and ascending.

    >>> kept, held_out = hold_out_test(np.array([0, 0, 0, 1, 1, 2]), 0.2, seed=0)
    >>> len(kept), len(held_out)
    (5, 1)
    """
    in_test = np.zeros(len(labels), dtype=bool)
    by_class = np.argsort(labels, kind="stable")
    for members in np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1):
        total = len(members)
        wanted = max(round(total * fraction), 1 if total >= 3 else 0)
        label = int(labels[members[0]]) if total else 0
        in_test[members[permutation(total, seed, SPLIT, label)[: min(wanted, total - 1)]]] = True
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def largest_profile(sizes: Sequence[int], profile: str, imbalance_factor: float) -> list[int]:
    """The largest profile that classes of these sizes can carry.

    n_max is the largest number for which `profile_counts(profile, C, n_max, imbalance_factor)[k] <= sizes[k]` for every k.

    Args:
        sizes: images per class, descending, each at least 1.

    Returns:
        C numbers, n_max first.

    Raises:
        ArgumentError: that profile would leave a class empty.

    >>> largest_profile([1000, 90, 10], "exponential", 10)
    [109, 34, 10]
    """

    def too_large(max_count: int) -> bool:
        try:
            counts = profile_counts(profile, len(sizes), max_count, imbalance_factor)
        except ArgumentError:  # too small: a class would be empty
            return False
        return any(count > size for count, size in zip(counts, sizes, strict=True))

    # Counts grow with n_max, so the numbers that are not too large come first
    max_count = bisect_left(range(1, sizes[0] + 1), True, key=too_large)
    return profile_counts(profile, len(sizes), max_count, imbalance_factor)


def cut_profile(labels: IntArray, profile: str, imbalance_factor: float, seed: int = 0) -> IntArray:
    """Which images stay so that the classes, ranked by size (ties by label), follow the largest profile they can carry.

    `largest_profile` says how many of each, `long_tailed_indices` which ones.

    Args:
        labels: `(n,)` labels 0 .. C-1, each there.

    Returns:
        int64, ascending.

    >>> labels = np.repeat([0, 1, 2], [10, 1000, 90])
    >>> np.bincount(labels[cut_profile(labels, "exponential", 10)]).tolist()
    [10, 109, 34]
    """
    sizes = np.bincount(labels)
    ranked = np.argsort(-sizes, kind="stable")
    counts = np.empty_like(sizes)
    counts[ranked] = largest_profile(sizes[ranked].tolist(), profile, imbalance_factor)
    return np.sort(long_tailed_indices(labels, counts.tolist(), seed))


# ---------------------------------------------------------------------------------------------------------------
# The data module


class ImageFolderLT(ImageFileDataModule):
    """Any pictures of yours, long-tailed by nature or cut to a profile. Three layouts:

    * **splits**: `root/train/<class>/` and `root/test/<class>/`, perhaps `root/val/<class>/`. Without `test` the `val`
      folder is the test set, as in iNaturalist's protocol, and a note says so. In upper or lower case; `training`, `testing`,
      `valid` and `validation` mean the same.
    * **classes**: `root/<class>/`; of every class a share is held out for the test (`hold_out_test`).
    * **lists**: `train_list`, `test_list`, `val_list`: text files, "relative/path label" per line, or CSV files with
      the header `path,label` (or with semicolons or tabs) where the label is a number or the name of a class. One CSV file
      with a third column `split` (train, val, test) does for all. Without test images, a share of the training images is
      held out.

    Pictures may lie in sub-folders of their class folder (`scan_classes`). Classes are numbered in alphabetical order;
    numbers in lists stand, and `root/classnames.txt` names them (line k, from 0, is class k). Every class of the
    test and validation images must be one of the training images; `summary` tells which lack test images, and which
    files were ignored.

    With `verify_files` (the default) every validation and test picture is decoded once at setup, so that a broken one is
    found before the training and not after it. Broken training pictures show in the first epoch.

    Args:
        root: the folder of the pictures, from which also the paths in lists start.
        layout: "splits", "classes", or "auto": splits where `root/train` is there and `root/test` or `root/val` too or no
            other folder.
        train_list, test_list, val_list: list files, relative to `root` or to the working directory.
        test_fraction: share of each class held out where there are no test images, above 0, at most 0.9.
        split_seed: which images are held out for the test; independent of `seed`, so that runs share their test set.
        profile: None: all training images. "exponential" or "step": classes ranked by size (ties by label) keep
            the counts of `longtail.profile_counts` for the largest n_max that all of them can carry (`cut_profile`).
        imbalance_factor: of the profile, at least 1; only with one.
        subset_seed: which images the profile keeps.
        settings: arguments of `ImageFileDataModule` and `LongTailedDataModule`.

    Raises:
        ArgumentError: a setting is out of range, or does not go with another one.
        DataError: at setup; what is missing or contradicts itself, by name.
    """

    title = "image folder"

    def __init__(
        self,
        root: str | Path,
        *,
        layout: str = "auto",
        train_list: str | Path | None = None,
        test_list: str | Path | None = None,
        val_list: str | Path | None = None,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        profile: str | None = None,
        imbalance_factor: float | None = None,
        subset_seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        self.title = f"folder {self.root.resolve().name}"
        self.layout = check_choice("layout", layout, LAYOUTS)
        self.lists = {"training": train_list, "validation": val_list, "test": test_list}
        self.test_fraction = check_number("test_fraction", test_fraction, above=0, maximum=0.9)
        self.split_seed = check_seed("split_seed", split_seed)
        self.profile = None if profile is None else check_choice("profile", profile, PROFILES)
        self.imbalance_factor = None if imbalance_factor is None else check_number("imbalance_factor", imbalance_factor, 1)
        self.subset_seed = check_seed("subset_seed", subset_seed)
        if (profile is None) != (imbalance_factor is None):
            raise ArgumentError("`profile` and `imbalance_factor` go together: set both, or neither.")
        if train_list is None and (test_list is not None or val_list is not None):
            raise ArgumentError("Expected `train_list` where `test_list` or `val_list` is set.")
        if train_list is not None and layout != "auto":
            raise ArgumentError("`layout` is about folders: leave it at 'auto' where `train_list` is set.")
        if self.storage == "shards":
            given = {"layout": None if layout == "auto" else layout, "train_list": train_list}
            self.refuse_settings(given, "was read when the shards were packed: leave it out with storage=shards")

    def read_splits(self) -> tuple[dict[str, FileSource], list[str]]:
        if not self.root.is_dir():
            raise DataError(f"{self.title}: expected a folder {self.root}, but there is none. {self.advice()}")
        return self._read_folders() if self.lists["training"] is None else self._read_lists()

    def make_splits(self, stored: Stored) -> dict[str, FileSource]:
        sources = super().make_splits(stored)
        train = sources["training"]
        if "test" not in sources:
            kept, held_out = hold_out_test(train.labels, self.test_fraction, self.split_seed)
            train, sources["test"] = train.subset(kept), train.subset(held_out)
            self.notes.append(
                f"{counted(len(held_out), 'test image is', 'test images are')} held out of the others "
                f"({self.test_fraction:g} of each class, split_seed={self.split_seed})"
            )
        sources["training"] = self._cut(train, len(stored.class_names))
        return sources

    def _cut(self, train: FileSource, num_classes: int) -> FileSource:
        if self.profile is None or self.imbalance_factor is None:
            return train
        if not np.array_equal(np.unique(train.labels), np.arange(num_classes)):
            return train  # empty classes or unknown labels: `setup` refuses them by name
        cut = train.subset(cut_profile(train.labels, self.profile, self.imbalance_factor, self.subset_seed))
        self.notes.append(
            f"{len(cut):,} of {len(train):,} training images are kept: {self.profile} profile of imbalance factor "
            f"{self.imbalance_factor:g}, subset_seed={self.subset_seed}"
        )
        return cut

    def source_lists(self) -> list[Path]:
        return [self._find_list(given) for given in self.lists.values() if given is not None]

    def advice(self) -> str:
        return (
            "The folder must hold train/<class>/ and test/<class>/ (perhaps val/<class>/), or <class>/ folders from which a "
            "test split is held out, or the pictures that `train_list` names."
        )

    def _check_files(self, split: str, source: FileSource) -> None:
        if self.lists["training"] is not None:  # files found in folders were there a moment ago
            super()._check_files(split, source)
        if split != "training":
            refuse(
                f"{self.title}: expected {split} pictures that can be decoded",
                damaged_files(source),
                "cannot be",
                "cannot be",
                "Mend them or take them out. (verify_files=false goes on without this check.)",
            )

    # ------------------------------------------------------------------------------------------------- folders

    def _read_folders(self) -> tuple[dict[str, FileSource], list[str]]:
        found = self._scan()
        names = list(found["training"].pictures)
        if len(names) < 2:
            raise DataError(
                f"{self.title}: expected at least two class folders with training images under {self.root}, but found "
                f"{len(names)}{f' ({names[0]})' if names else ''}. {self._guess(found['training'])}{self.advice()}"
            )
        for split in found:
            self._refuse_unknown(split, sorted(set(found[split].pictures) - set(names)))
        ignored = sum((one.ignored for one in found.values()), Counter[str]())
        if ignored:
            self.notes.append("ignored " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(ignored.items())))
        return {split: _labelled(found[split].pictures, names, self.root) for split in found}, names

    def _guess(self, found: Found) -> str:
        """What a folder without class folders may be instead."""
        places = [self.root / name for name in found.pictures]
        inner = [place for place in places if place.is_dir() and len(_folders(place)) > 1]
        flat = found.ignored["outside class folders"]
        if inner:
            return f"Did you mean data.root={inner[0]}? "
        if flat:
            return f"{counted(flat, 'picture lies', 'pictures lie')} in no class folder: each class needs one of its own. "
        return ""

    def _refuse_unknown(self, split: str, names: list[str]) -> None:
        expected = f"{self.title}: expected the classes of the training images"
        refuse(expected, names, f"is among the {split} images only", f"are among the {split} images only")

    def _scan(self) -> dict[str, Found]:
        folders: dict[str | None, list[str]] = {}
        for name in _folders(self.root):
            folders.setdefault(split_called(name), []).append(name)
        others = folders.pop(None, [])
        has_splits = "training" in folders and (len(folders) > 1 or not others)
        if self.layout == "classes" or (self.layout == "auto" and not has_splits):
            return {"training": scan_classes(self.root)}
        if "training" not in folders:
            raise DataError(f"{self.title}: expected a folder {self.root / 'train'}, but there is none. {self.advice()}")
        found = {split: scan_classes(self.root, self._only(split, folders[split])) for split in _SPLITS if split in folders}
        if others:
            unread = counted(len(others), "folder is", "folders are")
            self.notes.append(f"beside train, val and test, {unread} not read: {name_some(others)}")
        if "test" not in found and "validation" in found:
            found["test"] = found.pop("validation")
            self.notes.append(f"there is no folder test: {folders['validation'][0]} is the test set")
        return found

    def _only(self, split: str, folders: list[str]) -> str:
        if len(folders) > 1:
            raise DataError(
                f"{self.title}: expected one folder of {split} images in {self.root}, but got {len(folders)}: "
                f"{name_some(folders)}. Put one of them elsewhere, or set data.layout=classes if they are classes."
            )
        return folders[0]

    # --------------------------------------------------------------------------------------------------- lists

    def _read_lists(self) -> tuple[dict[str, FileSource], list[str]]:
        tables: dict[str, Table] = {}
        for split, given in self.lists.items():
            if given is None:
                continue
            table = self._read_table(given)
            if table.splits is None:
                tables[split] = table
            elif self.lists["test"] is None and self.lists["validation"] is None:
                tables = {name: table.rows(table.splits == name) for name in _SPLITS if name in table.splits}
            else:
                raise DataError(f"{self.title}: {given} has a column `split`; give it as `train_list` alone, or take it out.")
        if "training" not in tables:
            raise DataError(f"{self.title}: expected training images in {self.lists['training']}, but no row has split train.")
        if all(_is_number(label) for table in tables.values() for label in table.labels):
            sources = {
                split: FileSource(table.paths, table.labels.astype(np.int64), self.root) for split, table in tables.items()
            }
            return sources, read_class_names([self.root]) or folder_names(sources["training"])
        return self._named(tables)

    def _named(self, tables: dict[str, Table]) -> tuple[dict[str, FileSource], list[str]]:
        """Sources of lists whose labels are names."""
        names = np.unique(tables["training"].labels)
        for split, table in tables.items():
            self._refuse_unknown(split, np.setdiff1d(table.labels, names).tolist())
        sources = {split: FileSource(t.paths, np.searchsorted(names, t.labels), self.root) for split, t in tables.items()}
        return sources, names.tolist()

    def _find_list(self, given: str | Path) -> Path:
        places = [self.root / data_root(given), data_root(given)]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise DataError(f"{self.title}: expected a list {given}, but there is none at {' or '.join(map(str, places))}.")
        return path

    def _read_table(self, given: str | Path) -> Table:
        path = self._find_list(given)
        if path.suffix.lower() == ".csv":
            return read_csv(path, self.root)
        source = read_list(path, self.root)
        return Table(source.paths, source.labels, None)


def _folders(folder: Path) -> list[str]:
    """Names of the visible folders in a folder."""
    return [entry.name for entry in list_folder(folder) if entry.is_dir() and not entry.name.startswith(".")]


def _labelled(pictures: dict[str, list[bytes]], names: list[str], root: Path) -> FileSource:
    paths = [path for name in names for path in pictures.get(name, [])]
    labels = np.repeat(np.arange(len(names)), [len(pictures.get(name, [])) for name in names])
    return FileSource(paths, labels, root)


def _is_number(label: Any) -> bool:
    return not isinstance(label, str) or (label.isascii() and label.isdigit() and len(label) <= 9)
