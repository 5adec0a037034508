"""The fast training transforms of picture files: what `RandomResizedCropFlip` makes, in less processor time.

They draw torchvision's own numbers from the same seeds, so that crop, flip, factors and their order are those of the
torchvision path, picture by picture; only how these are carried out differs:

- plain JPEG files are decoded by simplejpeg (libjpeg-turbo, as in Pillow) into memory that is used again and again: what it
  saves is mostly the system's making of new pages;
- the part is cut out first, and scaled by torch's vectorised kernel, whose two passes round almost as Pillow's do;
- the jitter is Pillow's arithmetic to the bit, with floats that hold whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as v2F

from mllt.data.images import OpenFile, RandomResizedCropFlip, Reader, decode, is_turned, read_picture
from mllt.data.order import Draws
from mllt.errors import ArgumentError

# Luma as Pillow computes it (ITU-R 601-2), in whole 1 / 65536: below 256, a float32 holds every sum of these exactly
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)
# ColorJitter's steps, by its numbers
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_FACTORS = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
_SMALLEST = 8  # libjpeg scales down to an eighth


def require_simplejpeg() -> None:
    """Raise `ArgumentError` where simplejpeg is not installed."""
    try:
        import simplejpeg  # noqa: F401
    except ImportError as error:
        raise ArgumentError(
            f"data.pipeline=fast and scaled take simplejpeg, which cannot be imported ({error}). Type pip install 'mllt[jpeg]' "
            "to have it, or data.pipeline=torchvision."
        ) from error


class Scratch:
    """Memory for pictures, used again for the next one: new pages take the system up to half as long as the decoding."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes; what was taken before is lost."""
        if len(self._bytes) < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size]


class Part(NamedTuple):
    """A rectangle of a picture, in pixels.

    >>> Part(10, 20, 100, 81).in_scaled((400, 300), (200, 150))
    Part(top=5, left=10, height=50, width=40)
    """

    top: int
    left: int
    height: int
    width: int

    def in_scaled(self, full: tuple[int, int], scaled: tuple[int, int]) -> Part:
        """The same rectangle in the picture scaled from `full` to `scaled`, heights and widths, to the nearest pixels."""
        down, across = scaled[0] / full[0], scaled[1] / full[1]
        top, left = round(self.top * down), round(self.left * across)
        bottom, right = round((self.top + self.height) * down), round((self.left + self.width) * across)
        return Part(top, left, min(bottom, scaled[0]) - top, min(right, scaled[1]) - left)


class Square(NamedTuple):
    """What is read of a picture: the part that is kept, scaled, and what is still to be done to it.

    pixels: uint8 `(3, size, size)`, channels last in memory; flip: whether to mirror it; jitter: `ColorJitter`'s factors.
    """

    pixels: Tensor
    flip: bool
    jitter: dict[str, Any] | None


class FastRandomResizedCropFlip(RandomResizedCropFlip):
    """`RandomResizedCropFlip`, faster, and the same but for rounding; takes the `Square`s that its `readers` read.

    Before normalisation and without jitter, a pixel is at most 2 of 255 levels off, hardly ever more than none: the mean is
    below 0.05. Jitter makes of that what it makes of any difference; at strength 0.4, at most 8 levels, the mean below 0.15.

    Args:
        args, kwargs: as in `RandomResizedCropFlip`.
        scaled: decode pictures at 1/2, 1/4 or 1/8 of their size where the part that is kept is still no smaller than what
            is made of it. Faster with large pictures, but another way of scaling: the part is off by up to one pixel of the
            decoded picture, and finer detail is kept.

    Raises:
        ArgumentError: simplejpeg is not installed.
    """

    def __init__(self, *args: Any, scaled: bool = False, **kwargs: Any) -> None:
        require_simplejpeg()
        super().__init__(*args, **kwargs)
        self.scaled = scaled

    def readers(self, draws: Draws) -> list[Reader]:
        """How to read each picture of a batch."""
        decoded, cut = Scratch(), Scratch()
        return [partial(self._read, seed, decoded, cut) for seed in self.seeds(draws)]

    def __call__(self, images: Sequence[Square], draws: Draws) -> Tensor:  # type: ignore[override]
        # By NumPy, which asks the system for large pages: they come several times faster than torch's small ones
        batch = torch.from_numpy(np.empty((len(images), 3, self.size, self.size), np.float32))
        luma = torch.empty(self.size, self.size)
        for row, image in enumerate(images):
            pixels = batch[row]
            pixels.copy_(image.pixels)
            if image.jitter is not None:
                jitter(pixels, luma, image.jitter)
            if image.flip:
                pixels.copy_(pixels.flip(2))
            self.normalize(batch[row : row + 1], draws)  # in place, as it is of floats, while the cache holds the picture
        return batch

    def _read(self, seed: int, decoded: Scratch, cut: Scratch, name: str, open_file: OpenFile) -> Square:
        return read_picture(name, open_file, partial(self._square, seed, decoded, cut))

    def _square(self, seed: int, decoded: Scratch, cut: Scratch, image: Image.Image) -> Square:
        plain = is_plain(image)
        upright = image if plain else decode(image)
        width, height = upright.size
        part, flip, factors = self._draw(seed, height, width)
        smaller = shrink(part, self.size) if self.scaled else 1
        pixels = decode_plain(image, smaller, decoded) if plain else np.asarray(upright)
        part = part.in_scaled((height, width), pixels.shape[:2])
        return Square(cut_out(pixels, part, self.size, cut), flip, factors)

    def _draw(self, seed: int, height: int, width: int) -> tuple[Part, bool, dict[str, Any] | None]:
        """The part of a picture of this size that is kept, whether it is mirrored, and its jitter."""
        like = torch.empty(()).expand(3, height, width)  # tells the size, and holds nothing
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            part = self.crop.make_params([like])
            flip = bool(torch.rand(1) < self.flip.p)
            factors = None if self.jitter is None else self.jitter.make_params([])
        return Part(part["top"], part["left"], part["height"], part["width"]), flip, factors


# ---------------------------------------------------------------------------------------------------------------
# Decoding


def is_plain(image: Image.Image) -> bool:
    """Whether an opened picture is a JPEG file in colour or grey that is stored upright: what is decoded fast."""
    return image.format == "JPEG" and image.mode in ("RGB", "L") and not is_turned(image)


def decode_plain(image: Image.Image, smaller: int, scratch: Scratch) -> NDArray[np.uint8]:
    """The pixels of an opened plain JPEG file, uint8 `(H, W, 3)`; they last until the next one is decoded.

    Args:
        image: opened, not decoded.
        smaller: 1, 2, 4 or 8: the share of its height and width that it is decoded at.
    """
    import simplejpeg

    file: BinaryIO = image.fp  # type: ignore[attr-defined]
    file.seek(0)
    height, width = -(-image.height // smaller), -(-image.width // smaller)
    try:
        return simplejpeg.decode_jpeg(file.read(), min_height=height, min_width=width, buffer=scratch.take(3 * height * width))
    except ValueError:  # Pillow knows which damaged ones can be used, and what to say of the others
        return np.asarray(decode(image))


def shrink(part: Part, size: int) -> int:
    """By how much a picture may be scaled down before a part of it is smaller than `size`: 1, 2, 4 or 8.

    >>> [shrink(Part(0, 0, side, side), 224) for side in (447, 448, 900, 5000)]
    [1, 2, 4, 8]
    """
    factor = 1
    while factor < _SMALLEST and min(part.height, part.width) >= 2 * factor * size:
        factor *= 2
    return factor


def cut_out(pixels: NDArray[np.uint8], part: Part, size: int, scratch: Scratch) -> Tensor:
    """A part of a picture, scaled to a square, bilinear and antialiased: uint8 `(3, size, size)`, channels last in memory.

    Args:
        pixels: uint8 `(H, W, 3)`.
    """
    top, left, height, width = part
    kept = scratch.take(3 * height * width).reshape(height, width, 3)
    np.copyto(kept, pixels[top : top + height, left : left + width])
    # The axis of a batch first, or torch does not see that channels are last, and takes a slower kernel
    one = torch.from_numpy(kept).unsqueeze(0).permute(0, 3, 1, 2)
    return F.interpolate(one, (size, size), mode="bilinear", antialias=True)[0]


# ---------------------------------------------------------------------------------------------------------------
# Jitter


def jitter(pixels: Tensor, luma: Tensor, factors: dict[str, Any]) -> None:
    """Brightness, contrast, saturation and hue of one picture, in place, to the bit as torchvision's `ColorJitter` on Pillow.

    Args:
        pixels: whole numbers as float32 `(3, H, W)` in 0 .. 255.
        luma: float32 `(H, W)`, to be written to.
        factors: of `ColorJitter.make_params`.
    """
    for step in factors["fn_idx"].tolist():
        factor = factors[_FACTORS[step]]
        if factor is None:
            continue
        if step == _HUE:
            turned = v2F.adjust_hue(v2F.to_pil_image(pixels.to(torch.uint8)), factor)
            pixels.copy_(v2F.pil_to_tensor(turned))
            continue
        if step == _BRIGHTNESS:
            pixels.mul_(factor)
        else:
            grey: Any = grey_of(pixels, luma)
            if step == _CONTRAST:
                grey = int(grey.sum(dtype=torch.float64).item() / luma.numel() + 0.5)
            pixels.sub_(grey).mul_(factor).add_(grey)
        if factor > 1:  # else they lie between grey, or black, and what they were
            pixels.clamp_(0, 255)
        pixels.floor_()


def grey_of(pixels: Tensor, luma: Tensor) -> Tensor:
    """Pillow's grey of a picture, whole numbers, written to `luma`."""
    torch.mul(pixels[0], _LUMA[0], out=luma)
    return luma.add_(pixels[1], alpha=_LUMA[1]).add_(pixels[2], alpha=_LUMA[2]).add_(0.5).floor_()
