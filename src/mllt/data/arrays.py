"""`ArrayDataModule`: images of one size, held in memory and augmented as whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mllt.data.augment import CropFlip, Normalize
from mllt.data.base import LongTailedDataModule
from mllt.data.sources import Transform


class ArrayDataModule(LongTailedDataModule):
    """The base of the CIFARs and the digits: a subclass loads its images, and says how they are augmented."""

    #: pixels of a side
    image_size: ClassVar[int]
    #: of the channels in 0 .. 1, for normalisation
    mean: ClassVar[Sequence[float]]
    std: ClassVar[Sequence[float]]

    def augment_by(self, padding: int, *, flip: bool, rotation: float) -> None:
        """Augment training images by padded crops, flips and rotations; see `CropFlip`."""
        self._normalize = Normalize(self.mean, self.std)
        self._augment = CropFlip(self._normalize, padding, flip=flip, rotation=rotation)

    def train_transform(self) -> Transform:
        return self._augment

    def eval_transform(self) -> Transform:
        return self._normalize

    @property
    def preprocessing(self) -> dict[str, Any]:
        return {"size": self.image_size, "resize": None, "mean": list(self.mean), "std": list(self.std)}
