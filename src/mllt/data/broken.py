"""`SkippingSource`: a training goes on past broken pictures, and can tell which they were."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mllt.data.order import IntArray
from mllt.data.sources import ImageSource
from mllt.errors import DataError, check_number, name_some


class SkippingSource:
    """Images of another source; in the place of one that cannot be read stands the next readable one of its class.

    "Next" is by index, and after the last comes the first again. So what stands in follows from the index and the files
    alone, whatever the number of processes and devices and however often the run was broken off, and every class comes as
    often as if nothing were broken. Which images were found broken is noted where all loader processes see it; each is
    warned of once.

    Args:
        source: images that load as a list.
        max_broken: share of the images, in 0 .. 1; where more are broken, loading is a `DataError`.

    Raises:
        DataError: from `load`; a class without any readable image, or too many broken ones.
    """

    def __init__(self, source: ImageSource, max_broken: float) -> None:
        self.source, self.labels = source, source.labels
        self.max_broken = check_number("max_broken", max_broken, 0, 1)
        self._broken = torch.zeros(len(source), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.source)

    def load(self, indices: IntArray, readers: Sequence[Any] | None = None) -> list[Any]:
        """The images at `indices`, or what stands in for them, by the same readers (see `images.FileSource`)."""
        if hasattr(self.source, "ahead"):  # one is loaded at a time, but all are known
            self.source.ahead(indices)
        each = [()] * len(indices) if readers is None else [([reader],) for reader in readers]
        return [self._load_one(int(index), *how) for index, how in zip(indices, each, strict=True)]

    def subset(self, indices: IntArray) -> SkippingSource:
        part = SkippingSource(self.source.subset(indices), self.max_broken)
        part._broken[:] = self._broken[torch.from_numpy(indices)]
        return part

    def name_of(self, index: int) -> str:
        """Of the image itself, not of what stands in for it."""
        return self.source.name_of(index)

    @property
    def broken(self) -> list[int]:
        """Indices of the images found broken so far, by this process and its loaders', or noted; ascending."""
        # Of a copy: other processes may be writing, and looking for what is not 0 goes through it twice
        return np.flatnonzero(self._broken.numpy().copy()).tolist()

    def note(self, indices: Iterable[int]) -> None:
        """Take note of images that others found broken.

        Raises:
            DataError: these are too many.
        """
        for index in indices:
            self._broken[index] = True
        self._check()

    def unite(self) -> list[int]:
        """`broken`, of all devices; each must ask."""
        if dist.is_available() and dist.is_initialized():
            found: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(found, self.broken)
            self.note(index for part in found for index in part)
        return self.broken

    def cause(self, index: int) -> str:
        """Why an image cannot be read."""
        try:
            self.source.load(np.array([index]))
        except DataError as error:
            return getattr(error, "cause", str(error))
        return "it could not be read when it was needed; now it can"

    def _load_one(self, index: int, *how: Any) -> Any:
        for candidate in self._line(index):
            try:
                return self.source.load(np.array([candidate]), *how)[0]
            except DataError as error:
                self._found(candidate, error)
        raise DataError(
            f"Expected class {self.labels[index]} to have a picture that can be read, but it has none: "
            f"{name_some([self.name_of(i) for i in self._line(index)])}. Mend them, or leave the class out."
        )

    def _line(self, index: int) -> Iterator[int]:
        """An image and those that could stand in for it, in order."""
        members = np.flatnonzero(self.labels == self.labels[index])
        yield from np.roll(members, -int(np.searchsorted(members, index))).tolist()

    def _found(self, index: int, error: DataError) -> None:
        if not self._broken[index]:
            self._broken[index] = True
            warnings.warn(f"{error} In its place stands another one of its class (on_error='skip').", stacklevel=4)
        self._check()

    def _check(self) -> None:
        found = self.broken
        if len(found) > self.max_broken * len(self) + 1e-9:
            raise DataError(
                f"Expected at most {self.max_broken:g} of the {len(self):,} training pictures to be broken (max_broken), but "
                f"{len(found):,} are: {name_some([self.name_of(i) for i in found], show=20)}. Mend them or take them out; "
                "python -m mllt.check with the same experiment and data settings finds all of them and their causes."
            )
