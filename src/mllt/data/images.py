"""Picture files: decoding, the source of files, and the transforms of the ImageNet family.

Decoding tolerates what is harmless (odd modes, broken metadata) and refuses what is not (cut-off or undecodable
data, decompression bombs), by name. Transforms here take the list of Pillow images that a `FileSource` loads, of any size each.
"""

from __future__ import annotations

import functools
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from mllt.data.augment import CropFlip, Normalize, check_statistics
from mllt.data.order import Draws, IntArray
from mllt.data.sources import data_root
from mllt.errors import ArgumentError, DataError, check_integer, check_number, did_you_mean

#: Pixels of the largest picture that is decoded, such as 10,000 x 10,000: under 2 GB while it is.
MAX_PIXELS = 100_000_000
#: Bytes of the largest file that is read.
MAX_BYTES = 2**29
#: Formats by Pillow's names. Of all that Pillow knows, these decode within the limits; others start programs (EPS), or hold
#: pictures of other sizes than their header tells (ICO, ICNS).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The stream of `Draws` that seeds the augmentation of a picture; part of the format, apart from those of `augment`.
_PICTURE = 32

# For transforms that draw nothing
_NO_DRAWS = Draws(0, 0, np.zeros(1, dtype=np.int64))

_PREPROCESSING = ("size", "resize", "mean", "std")

_T = TypeVar("_T")

#: Opens the encoded picture
OpenFile = Callable[[], BinaryIO]
#: How a source makes of an encoded picture, by its name and what opens it, what it loads
Reader = Callable[[str, OpenFile], Any]

_TIFF_TILE = (322, 323)  # width and length
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# ---------------------------------------------------------------------------------------------------------------
# Decoding


class PictureError(DataError):
    """A picture that cannot be read.

    cause: why, without the name of the file.
    """

    cause = ""


def load_rgb(path: str | bytes | os.PathLike[str]) -> Image.Image:
    """The picture in a file, upright, as a plain 8-bit RGB image without metadata.

    The EXIF orientation is applied where it can be read; broken metadata is ignored, and so are Pillow's warnings. Of
    an animation it is the first frame. How other modes become RGB says `to_rgb`. Formats are those of `FORMATS`.

    Raises:
        DataError: a file that is not there or that Pillow cannot decode whole; one of more than `MAX_PIXELS` pixels as its
            header tells, or of more than `MAX_BYTES`, before any of it is decoded (where `PIL.Image.MAX_IMAGE_PIXELS` is
            lower, Pillow refuses more than twice that number); names the file and the cause.
    """
    name = os.fsdecode(path)
    return _load_rgb(name, partial(_open_file, name))


def _load_rgb(name: str, open_file: OpenFile) -> Image.Image:
    return read_picture(name, open_file, decode)


def read_picture(name: str, open_file: OpenFile, use: Callable[[Image.Image], _T]) -> _T:
    """What `use` makes of an opened picture, of which nothing is decoded yet; with the guards and errors of `load_rgb`.

    Whatever fails is a `PictureError` that names the file and the cause.
    """
    with quiet():
        return use_picture(name, open_file, use)


def decode(image: Image.Image) -> Image.Image:
    """An opened picture, upright, as 8-bit RGB without metadata."""
    image.load()
    turn, upright = _orientation(image), to_rgb(image)
    if turn is not None:
        upright = upright.transpose(turn)
    upright.info = {}  # else the orientation could be applied again
    return upright


def is_turned(image: Image.Image) -> bool:
    """Whether an opened picture is stored otherwise than upright."""
    return _orientation(image) is not None


def inspect_picture(path: str | bytes | os.PathLike[str]) -> tuple[str, tuple[int, int]]:
    """The mode of a picture as it is stored, and its width and height upright; it is decoded as `load_rgb` does.

    Raises:
        DataError: as in `load_rgb`.
    """
    name = os.fsdecode(path)
    with quiet():
        return use_picture(name, partial(_open_file, name), _inspect)


def damaged_files(source: FileSource) -> list[str]:
    """What is wrong with the pictures of a source that cannot be decoded: "path: cause", by threads.

    Every file is read whole, so cut-off ones are found too; JPEG files are decoded at an eighth of their size, which is
    several times faster.
    """
    with quiet(), ThreadPoolExecutor() as threads:
        causes = threads.map(partial(_damage, source), range(len(source)))
        return [f"{os.fsdecode(path)}: {cause}" for path, cause in zip(source.paths, causes, strict=True) if cause]


def _damage(source: FileSource, index: int) -> str | None:
    name = source.name_of(index)
    try:
        return use_picture(name, partial(source.open, index), _skim)
    except PictureError as error:
        return error.cause


def _inspect(image: Image.Image) -> tuple[str, tuple[int, int]]:
    mode = image.mode
    return mode, decode(image).size


def _skim(image: Image.Image) -> None:
    image.draft(None, (1, 1))
    image.load()


def use_picture(name: str, open_file: OpenFile, use: Callable[[Image.Image], _T]) -> _T:
    """`read_picture` for threads: it leaves warnings alone, see `quiet`."""
    try:
        # A file of our own: Pillow leaves the one that it opens itself to the garbage collector when it fails
        with open_file() as file, Image.open(file, formats=_formats()) as image:
            _check_pixels(image)
            return use(image)
    except Exception as error:  # decoders fail in many ways: OSError, SyntaxError, ValueError, struct.error, ...
        shown = name if name.isprintable() else repr(name)  # a name may hold what a terminal obeys, or what is no UTF-8
        problem = PictureError(f"Cannot read the picture {shown}: {_cause(error, name)}.")
        problem.cause = _cause(error, name)  # not an argument: errors of loader processes are made anew, of their text
        raise problem from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open_file(path: str) -> BinaryIO:
    """Refuse what is not read to an end in reasonable time: pipes, devices, huge files (a few bytes on disk, if sparse)."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise DataError("it is a folder, a pipe or a device")
    if status.st_size > MAX_BYTES:
        raise DataError(f"it is of {status.st_size:,} bytes, and no more than {MAX_BYTES:,} are read")
    return open(path, "rb")


def _check_pixels(image: Image.Image) -> None:
    """Refuse a picture by its header: a few kilobytes may unfold to gigabytes. (Metadata that would, Pillow refuses.)"""
    width, height = image.size
    if image.format == "TIFF":  # decoded tile by tile, and a tile may be larger than the picture
        tile = [int(image.tag_v2.get(tag, 0)) for tag in _TIFF_TILE]  # type: ignore[attr-defined]
        width, height = max((width, height), (tile[0], tile[1]), key=lambda size: size[0] * size[1])
    if width * height > MAX_PIXELS:
        raise DataError(
            f"its header tells of {width:,} x {height:,} pixels, and no more than {MAX_PIXELS:,} are decoded: a decompression "
            "bomb, or to be scaled down"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, for the whole program: to be entered once around threads, not in them, which would undo each other's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any Pillow mode as 8-bit RGB (a copy).

    Transparent pixels, by alpha channel, palette or colour key, are laid over white. 16-bit greys are scaled, not clipped:
    round(v / 257). 32-bit greys have no agreed white; it is the first of these that no pixel exceeds: for whole numbers
    65535, for floats 1, 255, 65535; else the largest pixel. CMYK is converted without colour profile.

    >>> to_rgb(Image.new("I;16", (1, 1), 65535)).getpixel((0, 0))
    (255, 255, 255)
    >>> to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image)
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    # In place as far as can be: of the largest picture, this array is 0.8 GB
    values = np.nan_to_num(np.asarray(image).astype(np.float64), copy=False, posinf=0.0, neginf=0.0)
    customary = {"F": (1, 255, 65535)}.get(image.mode, (65535,))
    highest, key = values.max(), image.info.get("transparency")
    white = next((level for level in customary if highest <= level), highest)
    clear = values == key if isinstance(key, int) else False
    values = values.clip(0, white, out=values)
    values *= 255 / white
    grey = np.rint(values, out=values).astype(np.uint8)
    grey[clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """How to turn the image upright, or None where nothing (readable) says so."""
    try:
        return _UPRIGHT.get(image.getexif()[_EXIF_ORIENTATION])
    except Exception:  # mostly KeyError; parsing broken EXIF fails in as many ways as decoding, the picture itself is fine
        return None


def _cause(error: BaseException, name: str) -> str:
    if isinstance(error, DataError):  # of a source that knows more
        return str(error).rstrip(".")
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        empty = os.path.exists(name) and os.path.getsize(name) == 0
        return "the file is empty" if empty else f"it is no picture of a known format ({', '.join(_formats())})"
    return f"{type(error).__name__}: {error}".rstrip(".: ")


# ---------------------------------------------------------------------------------------------------------------
# The source


class FileSource:
    """Picture files with labels, decoded when asked for.

    Paths are kept as one NumPy array of bytes, not as Python strings: loader processes share its memory, since
    reading it touches no reference counts.

    Args:
        paths: of the files, relative to `root` or absolute.
        labels: `(n,)` whole numbers.
        root: the folder that relative paths start from; by default the working directory.
    """

    def __init__(
        self,
        paths: Sequence[str | bytes | os.PathLike[str]] | NDArray[np.bytes_],
        labels: Sequence[int] | IntArray,
        root: str | Path = "",
    ) -> None:
        self.root = str(data_root(root))
        self.paths = paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(path) for path in paths], np.bytes_)
        self.labels = np.asarray(labels, dtype=np.int64)
        if len(self.labels) != len(self.paths):
            raise DataError(f"Expected one label per file, but got {len(self.paths)} files and {len(self.labels)} labels.")

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, indices: IntArray, readers: Sequence[Reader] | None = None) -> list[Any]:
        """One picture per index: what its reader makes of it, by default an upright RGB image of its own size."""
        readers = [_load_rgb] * len(indices) if readers is None else readers
        return [
            read(self.name_of(int(index)), partial(self.open, int(index))) for index, read in zip(indices, readers, strict=True)
        ]

    def open(self, index: int) -> BinaryIO:
        """The encoded picture at `index`, to be read; a source that keeps its pictures elsewhere overrides this."""
        return _open_file(self.name_of(index))

    def size_of(self, index: int) -> int | None:
        """Bytes of the encoded picture at `index`; None where it is not there."""
        name = self.name_of(index)
        return os.path.getsize(name) if os.path.exists(name) else None

    def subset(self, indices: IntArray) -> FileSource:
        return FileSource(self.paths[indices], self.labels[indices], self.root)

    def name_of(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.paths[index]))


# ---------------------------------------------------------------------------------------------------------------
# Transforms


class RandomResizedCropFlip:
    """A random part of the picture scaled to a square, flipped left-right with probability 1/2, jittered in colour.

    The training augmentation of ImageNet-LT, Places-LT and iNaturalist: torchvision's `RandomResizedCrop(size, scale)`
    (aspect ratio 3/4 .. 4/3, bilinear, antialiased), `RandomHorizontalFlip()` and `ColorJitter(j, j, j, hue)`.

    Args:
        size: side of the square in pixels.
        mean, std: three numbers each; normalisation is applied last.
        color_jitter: strength j of brightness, contrast and saturation, at least 0; 0 for none.
        hue: strength of hue in 0 .. 0.5.
        scale: smallest and largest share of the picture's area that is kept, in 0 .. 1.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        color_jitter: float = 0.0,
        hue: float = 0.0,
        scale: Sequence[float] = (0.08, 1.0),
    ) -> None:
        self.size = check_integer("size", size, 1)
        jitter = check_number("color_jitter", color_jitter, 0)
        hue = check_number("hue", hue, 0, 0.5)
        # In this order they draw from the generator
        self.crop = v2.RandomResizedCrop(
            size, scale=check_scale(scale), interpolation=InterpolationMode.BILINEAR, antialias=True
        )
        self.flip = v2.RandomHorizontalFlip()
        self.jitter = v2.ColorJitter(jitter, jitter, jitter, hue) if jitter or hue else None
        self.normalize = Normalize(mean, std)

    def __call__(self, images: Sequence[Image.Image], draws: Draws) -> Tensor:
        # torchvision draws from the global generator: lend it one seed per picture, and give it back as it was. Not
        # `torch.manual_seed`, which would also seed the GPUs, and nothing would restore those.
        pixels = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images, self.seeds(draws), strict=True):
                torch.default_generator.manual_seed(seed)
                flipped = self.flip(self.crop(image))
                pixels.append(F.pil_to_tensor(flipped if self.jitter is None else self.jitter(flipped)))
        return self.normalize(torch.stack(pixels), draws)

    @staticmethod
    def seeds(draws: Draws) -> list[int]:
        """What torchvision's generator is seeded with for each picture."""
        return draws.seeds(_PICTURE)


class PaddedCropFlip:
    """The fixed square of `eval_pipeline`, then zero-pad, crop back, flip: `CropFlip`, for files of small pictures.

    Args:
        preprocessing: as in `eval_pipeline`.
        padding: pixels on each side.
    """

    def __init__(self, preprocessing: Mapping[str, Any], padding: int = 4) -> None:
        size, resize, mean, std = _check_preprocessing(preprocessing)
        self._square = partial(_square, size=size, resize=resize)
        self._crop_flip = CropFlip(Normalize(mean, std), padding)

    def __call__(self, images: Sequence[Image.Image], draws: Draws) -> Tensor:
        return self._crop_flip(torch.stack([self._square(image) for image in images]), draws)


class EvalTransform:
    """`eval_pipeline` for the pictures of a batch: the fixed transform of validation and test images.

    Args:
        preprocessing: as in `eval_pipeline`.
    """

    def __init__(self, preprocessing: Mapping[str, Any]) -> None:
        size, resize, mean, std = _check_preprocessing(preprocessing)
        self._square = partial(_square, size=size, resize=resize)
        self._normalize = Normalize(mean, std)

    def __call__(self, images: Sequence[Image.Image], draws: Draws) -> Tensor:
        return self._normalize(torch.stack([self._square(image) for image in images]), draws)


def eval_pipeline(preprocessing: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """From a picture of any size and mode to what the network sees, float32 `(3, size, size)`.

    Args:
        preprocessing: what `LongTailedDataModule.preprocessing` tells: "size"; "resize", pixels of the short side
            before the central crop, at least "size", or None to scale straight to `size` x `size`; "mean", "std".
            Scaling is bilinear and antialiased.

    Raises:
        ArgumentError: a key is missing, unknown, or its value out of range.

    >>> prepare = eval_pipeline({"size": 2, "resize": None, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]})
    >>> prepare(Image.new("RGB", (7, 5), "white")).flatten(1)
    tensor([[1., 1., 1., 1.],
            [1., 1., 1., 1.],
            [1., 1., 1., 1.]])
    """
    return partial(_prepare, EvalTransform(preprocessing))


def _prepare(transform: EvalTransform, image: Image.Image) -> Tensor:
    return transform([image], _NO_DRAWS)[0]


def _square(image: Image.Image, size: int, resize: int | None) -> Tensor:
    """The central square of the picture, uint8 `(3, size, size)`."""
    if image.mode != "RGB":
        image = to_rgb(image)
    scaled = F.resize(image, [size, size] if resize is None else [resize], InterpolationMode.BILINEAR, antialias=True)
    return F.pil_to_tensor(F.center_crop(scaled, [size, size]))


def check_scale(scale: Sequence[float], name: str = "scale") -> tuple[float, float]:
    """Smallest and largest share of a picture's area, 0 < smallest <= largest <= 1."""
    shares = [check_number(name, share) for share in scale] if isinstance(scale, (list, tuple)) else []
    if len(shares) != 2 or not 0 < shares[0] <= shares[1] <= 1:
        raise ArgumentError(f"Expected `{name}` to be two shares, 0 < smallest <= largest <= 1, but got {scale!r}.")
    return shares[0], shares[1]


def _check_preprocessing(preprocessing: Mapping[str, Any]) -> tuple[int, int | None, list[float], list[float]]:
    missing = [key for key in _PREPROCESSING if key not in preprocessing]
    if missing:
        raise ArgumentError(f"Expected `preprocessing` to hold {list(_PREPROCESSING)}, but {missing} are missing.")
    for key in preprocessing:
        if key not in _PREPROCESSING:
            raise ArgumentError(f"Unknown key {key!r} in `preprocessing`. {did_you_mean(key, _PREPROCESSING)}")
    size, resize = check_integer("size", preprocessing["size"], 1), preprocessing["resize"]
    if resize is not None:
        check_integer("resize", resize, size)
    return size, resize, *check_statistics(preprocessing["mean"], preprocessing["std"])
