"""`ArrayDataModule`: images of one size, held in memory and augmented as whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mllt.data.augment import CropFlip, Normalize
from mllt.data.base import LongTailedDataModule
from mllt.data.sources import Transform
from mllt.data.views import ContrastiveView


class ArrayDataModule(LongTailedDataModule):
    """The base of the CIFARs and the digits: a subclass loads its images, and says how they are augmented."""

    #: pixels of a side
    image_size: ClassVar[int]
    #: of the channels in 0 .. 1, for normalisation
    mean: ClassVar[Sequence[float]]
    std: ClassVar[Sequence[float]]
    #: smallest and largest share of the area that a second view shows
    view_scale: ClassVar[Sequence[float]] = (0.2, 1.0)

    def augment_by(self, padding: int, *, flip: bool, rotation: float) -> None:
        """Augment training images by padded crops, flips and rotations; see `CropFlip`."""
        self._normalize = Normalize(self.mean, self.std)
        self._augment = CropFlip(self._normalize, padding, flip=flip, rotation=rotation)

    def train_transform(self) -> Transform:
        return self._augment

    def view_transform(self) -> Transform:
        """MoCo-v2's, without blur; flipped where the other view is."""
        return ContrastiveView(self.image_size, self.mean, self.std, self.view_scale, blur=0.0, flip=self._augment.flip)

    def eval_transform(self) -> Transform:
        return self._normalize

    @property
    def preprocessing(self) -> dict[str, Any]:
        return {"size": self.image_size, "resize": None, "mean": list(self.mean), "std": list(self.std)}
