"""The second view of an image, for methods that compare two views of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from mllt.data.augment import Normalize
from mllt.data.images import check_scale
from mllt.data.order import Draws
from mllt.errors import check_bool, check_integer, check_number

# The stream of `Draws` that seeds a view; part of the format, apart from those of `augment` and `images`.
_VIEW = 33


class ContrastiveView:
    """MoCo-v2's augmentation, by torchvision: a random part, other colours, perhaps grey, perhaps blurred, perhaps flipped.

    Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020: RandomResizedCrop of 0.2 .. 1 of the area,
    with probability 0.8 ColorJitter(0.4, 0.4, 0.4, 0.1), 0.2 grey, 0.5 Gaussian blur of sigma 0.1 .. 2 pixels, 0.5 flip.

    Takes pictures of any sizes, or uint8 `(B, 3, H, W)`; each one's view follows from its own random numbers only.

    Args:
        size: side of the square in pixels.
        mean, std: three numbers each; normalisation is applied last.
        scale: smallest and largest share of the area.
        jitter: strength j of brightness, contrast and saturation, in 0 .. 1; a quarter of it that of hue.
        grey: probability of grey, in 0 .. 1.
        blur: probability of blur, in 0 .. 1. Images of 32 pixels and fewer are customarily not blurred.
        flip: whether to flip left-right.

    Raises:
        ArgumentError: a value is out of range.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        scale: Sequence[float] = (0.2, 1.0),
        jitter: float = 0.4,
        grey: float = 0.2,
        blur: float = 0.5,
        *,
        flip: bool = True,
    ) -> None:
        check_integer("size", size, 1)
        check_number("jitter", jitter, 0, 1)
        kernel = 2 * (size // 20) + 1  # a tenth of the side, as in SimCLR
        steps: list[torch.nn.Module] = [
            v2.RandomResizedCrop(size, scale=check_scale(scale), interpolation=InterpolationMode.BILINEAR, antialias=True),
            v2.RandomApply([v2.ColorJitter(jitter, jitter, jitter, jitter / 4)], 0.8),
            v2.RandomGrayscale(check_number("grey", grey, 0, 1)),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], check_number("blur", blur, 0, 1)),
        ]
        if check_bool("flip", flip):
            steps.append(v2.RandomHorizontalFlip())
        self._augment = v2.Compose([v2.ToImage(), *steps])
        self._normalize = Normalize(mean, std)

    def __call__(self, images: Sequence[Image.Image] | Tensor, draws: Draws) -> Tensor:
        pixels = []
        with torch.random.fork_rng(devices=[]):  # see `images.RandomResizedCropFlip`
            for image, seed in zip(images, draws.seeds(_VIEW), strict=True):
                torch.default_generator.manual_seed(seed)
                pixels.append(self._augment(image).as_subclass(Tensor))
        return self._normalize(torch.stack(pixels), draws)
