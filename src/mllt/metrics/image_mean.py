"""The mean of a value over images that came in batches of uneven size."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class ImageMean(Metric):
    """The mean over all images of all devices of what was averaged batch by batch.

    sum_b n_b v_b / sum_b n_b, and NaN where no image was seen. It never waits for the device, as `torchmetrics.MeanMetric`
    does to look for NaN (and where told not to look, in 1.9, it leaves out the weights, too).

    >>> mean = ImageMean()
    >>> mean.update(torch.tensor(2.0), images=3)
    >>> mean.update(torch.tensor(4.0), images=1)
    >>> mean.compute()
    tensor(2.5000)
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "images"):  # float32 also where half precision is the default type
            self.add_state(name, torch.tensor(0.0, dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, value: Tensor, images: Tensor | int) -> None:
        """Take in a batch: the mean `value` (scalar) of so many `images` (0 leaves it out)."""
        self.total += value.detach() * images
        self.images += images

    def compute(self) -> Tensor:
        """The mean, a float32 scalar."""
        return self.total / self.images
