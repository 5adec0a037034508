"""`ArrayDataModule`: images of one size, held in memory and augmented as whole tensors, on the device where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mllt.data.augment import CropFlip, Cutout, Normalize
from mllt.data.autoaugment import AutoAugment
from mllt.data.base import LongTailedDataModule, QuietLoader
from mllt.data.order import IntArray
from mllt.data.sources import ArraySource, Batch, ImageDataset, Transform, to_device
from mllt.data.views import ContrastiveView
from mllt.errors import ArgumentError, check_integer


class DeviceArrays:
    """Copies of whole arrays on devices: each is made when it is first asked for, and kept until all are let go."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def of(self, array: Tensor, device: torch.device) -> Tensor:
        """The array on the device; the same tensor whenever it is asked for."""
        if array.device == device:
            return array
        key = (id(array), device)  # which stays the array's own, since it is kept beside the copy
        if key not in self._kept:
            self._kept[key] = (array, to_device(array, device))
        return self._kept[key][1]

    def let_go(self) -> None:
        """Keep none of them any longer."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)


class DeviceSource(ArraySource):
    """An array's images, loaded on a device."""

    def __init__(self, source: ArraySource, arrays: DeviceArrays, device: torch.device) -> None:
        self.images, self.rows, self.places = source.images, source.rows, source.places
        self.labels, self._all_labels = source.labels, source._all_labels
        self.arrays, self.device = arrays, device

    def load(self, indices: IntArray) -> Tensor:
        """uint8 `(B, 3, H, W)`, on the device."""
        return self.take(self.arrays.of(self.images, self.device), indices)


class ArrayDataModule(LongTailedDataModule):
    """The base of the CIFARs and the digits: a subclass loads its images, and says how they are augmented.

    Args:
        on_device: whether a trainer's batches are made on its device: the images lie there as a whole, as uint8, what is drawn
            for a batch is sent after them, and the rest is done there, by the training process; `num_workers` has no meaning
            then, and none is started. "auto": on a GPU. Where it cannot be so, for a second view of other colours
            (`ContrastiveView`) or a source of one's own, processes make the batches as ever. Bits do not depend on it, and
            without a trainer at work, batches are always made on the CPU.
        common: see `LongTailedDataModule`.
    """

    #: pixels of a side
    image_size: ClassVar[int]
    #: of the channels in 0 .. 1, for normalisation
    mean: ClassVar[Sequence[float]]
    std: ClassVar[Sequence[float]]
    #: smallest and largest share of the area that a second view shows
    view_scale: ClassVar[Sequence[float]] = (0.2, 1.0)

    def __init__(self, *, on_device: bool | str = "auto", **common: Any) -> None:
        super().__init__(**common)
        if not isinstance(on_device, bool) and on_device != "auto":
            raise ArgumentError(f"Expected `on_device` to be true, false or auto, but got {on_device!r}.")
        self.on_device = on_device
        self._arrays = DeviceArrays()

    def augment_by(self, padding: int, *, flip: bool, rotation: float, autoaugment: str | None = None, cutout: int = 0) -> None:
        """Augment training images by padded crops, flips and rotations, then AutoAugment, then Cutout; see `mllt.data.augment`.

        Args:
            padding, flip, rotation: see `CropFlip`.
            autoaugment: the name of a policy of `AutoAugment`; None: none.
            cutout: side of the square of `Cutout` in pixels; 0: none.
        """
        self._normalize = Normalize(self.mean, self.std)
        then: list[Any] = [] if autoaugment is None else [AutoAugment(autoaugment)]
        then += [Cutout(cutout)] if check_integer("cutout", cutout, 0, self.image_size) else []
        self._augment = CropFlip(self._normalize, padding, flip=flip, rotation=rotation, then=then)

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

    def teardown(self, stage: str) -> None:
        """Let go of what lies on the device."""
        self._arrays.let_go()

    def _loader(
        self, dataset: ImageDataset, sampler: Any, loader: type[QuietLoader] = QuietLoader, *, once: bool = False
    ) -> DataLoader[Batch]:
        device = self._device()
        transforms = (dataset.transform, dataset.companion_transform)
        anywhere = type(dataset.source) is ArraySource and all(getattr(each, "any_device", False) for each in transforms)
        if device is not None and anywhere:
            source = DeviceSource(dataset.source, self._arrays, device)  # type: ignore[arg-type]
            dataset = ImageDataset(source, dataset.transform, dataset.seed, dataset.companion_transform, device)
        return super()._loader(dataset, sampler, loader, once=once)

    def _device(self) -> torch.device | None:
        """Where a trainer's batches are to be made; None: on the CPU, by whichever process."""
        if self.on_device is False or self.trainer is None or self.trainer.state.finished:
            return None
        device = self.trainer.strategy.root_device
        return device if self.on_device is True or device.type == "cuda" else None
