"""AutoAugment for whole batches of images in memory: operations that were searched for, each at its own strength.

Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019. What an operation does is what torchvision's
`AutoAugment` has it do to uint8 tensors, with nearest neighbours and black where a picture was moved away, bit for bit on
images of 32 pixels. What happens to an image follows from its own random numbers alone.

Images of a batch are grouped by the way in which an operation is done, of which there are seven, rather than by operation, so
that a batch costs a few calls on the CPU, and few kernels on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torchvision.transforms.functional as torchvision
from torch import Tensor

from mllt.data.augment import pick
from mllt.data.order import Draws, IntArray
from mllt.data.sources import to_device
from mllt.errors import check_choice

# Streams of `Draws`, beside those of `augment`; part of the format. Of the two operations one after the other.
_PAIR, _DONE, _SIGN = 6, (7, 8), (9, 10)

#: The policies by name: pairs of operations, one of which is drawn for an image; each is then done with its probability, at
#: its level of 0 .. 9. Those of CIFAR-10 are from table 7 of the paper.
POLICIES: dict[str, str] = {
    "cifar10": """
        Invert 0.1, Contrast 0.2 6
        Rotate 0.7 2, TranslateX 0.3 9
        Sharpness 0.8 1, Sharpness 0.9 3
        ShearY 0.5 8, TranslateY 0.7 9
        AutoContrast 0.5, Equalize 0.9
        ShearY 0.2 7, Posterize 0.3 7
        Color 0.4 3, Brightness 0.6 7
        Sharpness 0.3 9, Brightness 0.7 9
        Equalize 0.6, Equalize 0.5
        Contrast 0.6 7, Sharpness 0.6 5
        Color 0.7 7, TranslateX 0.5 8
        Equalize 0.3, AutoContrast 0.4
        TranslateY 0.4 3, Sharpness 0.2 6
        Brightness 0.9 6, Color 0.2 8
        Solarize 0.5 2, Invert 0.0
        Equalize 0.2, AutoContrast 0.6
        Equalize 0.2, Equalize 0.6
        Color 0.9 9, Equalize 0.6
        AutoContrast 0.8, Solarize 0.2 8
        Brightness 0.1 3, Color 0.7 0
        Solarize 0.4 5, AutoContrast 0.9
        TranslateY 0.9 9, TranslateY 0.7 9
        AutoContrast 0.9, Solarize 0.8 3
        Equalize 0.8, Invert 0.1
        TranslateY 0.7 9, AutoContrast 0.9
    """,
}


class Step(NamedTuple):
    """One of a pair: an operation, the probability that it is done, and its level, where it has one."""

    name: str
    probability: float
    level: int | None


def policy(name: str) -> list[tuple[Step, ...]]:
    """The pairs of a policy.

    >>> policy("cifar10")[0]
    (Step(name='Invert', probability=0.1, level=None), Step(name='Contrast', probability=0.2, level=6))

    Raises:
        ArgumentError: there is no such policy.
    """
    lines = POLICIES[check_choice("autoaugment", name, POLICIES)].strip().splitlines()
    return [tuple(_step(*text.split()) for text in line.split(",")) for line in lines]


def _step(name: str, probability: str, level: str | None = None) -> Step:
    return Step(name, float(probability), None if level is None else int(level))


class Operation(NamedTuple):
    """An operation at a level of 0 .. 9 (None for those that have none), one way or, with sign -1, the other."""

    name: str
    level: int | None = None
    sign: int = 1


_SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")


def _directions(step: Step) -> list[Operation]:
    """Both ways of a step; the same one twice for what has no direction."""
    return [Operation(step.name, step.level, sign if step.name in _SIGNED else 1) for sign in (1, -1)]


class AutoAugment:
    """Draw one pair of operations for each image, and do each of the two with its probability.

    Operations that have two directions (to the left or to the right, brighter or darker) take either as often.

    Args:
        name: the policy; "cifar10" is the only one there is.

    Raises:
        ArgumentError: there is no such policy.
    """

    def __init__(self, name: str = "cifar10") -> None:
        pairs = policy(name)
        both = [[_directions(step) for step in pair] for pair in pairs]
        self._do = Operations(list(dict.fromkeys(operation for pair in both for step in pair for operation in step)))
        number = self._do.operations.index
        self._number = np.array([[[number(operation) for operation in step] for step in pair] for pair in both])
        self._probability = np.array([[step.probability for step in pair] for pair in pairs])

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Of uint8 `(B, 3, H, W)` on any device, the augmented ones, on the same."""
        for numbers in self.drawn(draws):
            images = self._do(images, numbers)
        return images

    def drawn(self, draws: Draws) -> list[IntArray]:
        """The number of the first operation of each image, int64 `(B,)`, and that of the second; -1 for none."""
        pair = draws.integers(_PAIR, len(self._number))
        found = []
        for place in (0, 1):
            done = draws.uniform(_DONE[place]) < self._probability[pair, place]
            found.append(np.where(done, self._number[pair, place, draws.integers(_SIGN[place], 2)], -1))
        return found

    @property
    def operations(self) -> list[Operation]:
        """All that there are, by number."""
        return self._do.operations


class Operations:
    """Operations by number, ready to be done to those images of a batch that they are meant for.

    Args:
        operations: any, each at one level and in one direction.

    >>> invert = Operations([Operation("Invert")])
    >>> invert(torch.full((2, 3, 1, 1), 5, dtype=torch.uint8), np.array([0, -1]))[:, 0].flatten().tolist()
    [250, 5]
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = list(operations)
        self._ways = {way: tuple(o for o in self.operations if o.name in names) for way, names in _WAYS.items()}
        place = {o: (way, row) for way, group in enumerate(self._ways.values()) for row, o in enumerate(group)}
        self._place = np.array([(-1, 0), *(place[operation] for operation in self.operations)]).T

    def __call__(self, images: Tensor, numbers: IntArray) -> Tensor:
        """Of uint8 `(B, 3, H, W)`, what the operation of number `numbers[i]` makes of image i; -1: the image as it is."""
        ways, rows = self._place[:, numbers + 1]
        order = np.argsort(ways, kind="stable")
        counts = np.bincount(ways + 1, minlength=len(self._ways) + 1).tolist()
        sent = to_device(torch.from_numpy(np.stack([order, np.argsort(order), rows[order]])), images.device)
        untouched, *parts = images.index_select(0, sent[0]).split(counts)
        groups = zip(self._ways.items(), parts, sent[2].split(counts)[1:], strict=True)
        changed = [way(part, operations, row) for (way, operations), part, row in groups if len(part)]
        return torch.cat([untouched, *changed]).index_select(0, sent[1])


# ----------------------------------------------------------------------------------------------------------------
# The seven ways of doing an operation. Each takes uint8 `(n, 3, H, W)`, the operations that are done this way, and for each
# image the row among them of its own, int64 `(n,)`.
#
# The same bits on every device: tables are made on the CPU, by torchvision. What is left is gathers, whole numbers, minima and
# maxima, and float32 products and sums, each in a kernel of its own, which IEEE 754 has rounded alike everywhere; no division,
# which a GPU may replace by a product, and no mean, whose sum may be taken in any order. They are the steps that torchvision
# takes, in its order, so that the bits are its own, too.


def move(images: Tensor, operations: tuple[Operation, ...], rows: Tensor) -> Tensor:
    """Shear, translate, rotate: each pixel is one of the image's, or black."""
    return pick(images, _places(operations, images.shape[2], images.shape[3], images.device).index_select(0, rows))


def look_up(images: Tensor, operations: tuple[Operation, ...], rows: Tensor) -> Tensor:
    """Brightness, posterize, solarize, invert: what becomes of a level depends on nothing else."""
    tables = _levels(operations, images.device).index_select(0, rows)
    return tables.gather(1, images.flatten(1).long()).view(images.shape)


def autocontrast(images: Tensor, operations: tuple[Operation, ...], rows: Tensor) -> Tensor:
    """Stretch each channel from black to white; one of a single level stays."""
    darkest, brightest = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    span = brightest - darkest
    scale = _stretch(images.device)[span.long()]
    return (images - darkest * (span > 0)).float().mul_(scale).clamp_(0, 255).to(torch.uint8)


def equalize(images: Tensor, operations: tuple[Operation, ...], rows: Tensor) -> Tensor:
    """Spread the levels of each channel so that all are about as frequent; all whole numbers."""
    levels = images.flatten(0, 1).flatten(1).long()
    histogram = torch.zeros(len(levels), 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, levels, torch.ones_like(levels))
    below_last = levels.shape[1] - histogram.gather(1, levels.amax(dim=1, keepdim=True))
    step = below_last // 255
    below = histogram.cumsum(1) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    spread = table.gather(1, levels).to(torch.uint8).view(images.shape)
    return torch.where(step.view(*images.shape[:2], 1, 1) > 0, spread, images)  # too few pixels of other levels to be spread


def contrast(images: Tensor, operations: tuple[Operation, ...], rows: Tensor) -> Tensor:
    """Towards the mean grey of the image, or away from it."""
    total = _grey(images).sum(dim=(1, 2, 3), dtype=torch.int64, keepdim=True)
    return _blend(images, total.float() * (1 / (images.shape[2] * images.shape[3])), operations, rows)


def color(images: Tensor, operations: tuple[Operation, ...], rows: Tensor) -> Tensor:
    """Towards grey, or away from it."""
    return _blend(images, _grey(images), operations, rows)


def sharpness(images: Tensor, operations: tuple[Operation, ...], rows: Tensor) -> Tensor:
    """Towards a blurred image, or away from it: a mean of 3 x 3 pixels, the middle one with a weight of 5; the edge stays."""
    levels = images.short()
    across = levels[..., :-2] + levels[..., 1:-1] + levels[..., 2:]
    total = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :] + 4 * levels[..., 1:-1, 1:-1]
    blurred = images.clone()
    # A thirteenth, rounded; there are no halves
    blurred[..., 1:-1, 1:-1] = torch.div(total + 6, 13, rounding_mode="floor").to(torch.uint8)
    return _blend(images, blurred, operations, rows)


_WAYS: dict[Callable[[Tensor, tuple[Operation, ...], Tensor], Tensor], tuple[str, ...]] = {
    move: ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    look_up: ("Brightness", "Posterize", "Solarize", "Invert"),
    autocontrast: ("AutoContrast",),
    equalize: ("Equalize",),
    contrast: ("Contrast",),
    color: ("Color",),
    sharpness: ("Sharpness",),
}


def _blend(images: Tensor, other: Tensor, operations: tuple[Operation, ...], rows: Tensor) -> Tensor:
    """`factor * images + (1 - factor) * other`, cut to 0 .. 255, fractions dropped."""
    own, others = _factors(operations, images.device).index_select(1, rows).view(2, -1, 1, 1, 1)
    return (images * own).add_(other * others).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """The brightness that a person sees (ITU-R BT.601), uint8 `(n, 1, H, W)`."""
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114).to(torch.uint8)


# ----------------------------------------------------------------------------------------------------------------
# Tables, kept for the next batch


def _ten(first: float, last: float) -> list[float]:
    """Levels 0 .. 9, evenly between, rounded as torchvision's are."""
    return torch.linspace(first, last, 10).tolist()


#: How strong each operation is, by level: the tangent of the angle of shear; a share of the image's side, which torchvision
#: has from images of 331 pixels; degrees; what a factor is more than 1; bits that are kept; and the level from which on all are
#: inverted.
_STRENGTH: dict[str, list[float]] = {
    **{name: _ten(0, 0.3) for name in ("ShearX", "ShearY")},
    **{name: [150 / 331 * level / 9 for level in range(10)] for name in ("TranslateX", "TranslateY")},
    "Rotate": _ten(0, 30),
    **{name: _ten(0, 0.9) for name in ("Brightness", "Color", "Contrast", "Sharpness")},
    "Posterize": [8 - round(level * 4 / 9) for level in range(10)],
    "Solarize": _ten(255, 0),
}


def strength(operation: Operation) -> float:
    """How strong an operation is, see `_STRENGTH`, with its sign; 0 for those without a level.

    >>> strength(Operation("Posterize", 7)), round(strength(Operation("Rotate", 2, -1)), 3)
    (5, -6.667)
    """
    name, level, sign = operation
    if level is None:
        return 0
    return sign * _STRENGTH[name][level]


@lru_cache(maxsize=16)
def _places(operations: tuple[Operation, ...], height: int, width: int, device: torch.device) -> Tensor:
    """Where each operation takes its pixels from, int64 `(operations, H * W)`, in the numbers of `augment.pick`."""
    numbers = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, height, width)
    moved = [_moved(numbers, operation) for operation in operations]
    return torch.stack(moved).long().flatten(1).to(device)


def _moved(image: Tensor, operation: Operation) -> Tensor:
    """`(1, H, W)`, by torchvision. A shear leaves the upper left corner where it is."""
    amount, vertical = strength(operation), operation.name.endswith("Y")
    if operation.name == "Rotate":
        return torchvision.rotate(image, amount)
    along = [0.0, 0.0]
    if operation.name.startswith("Translate"):
        along[vertical] = int(amount * image.shape[1 if vertical else 2])
        return torchvision.affine(image, angle=0, translate=along, scale=1, shear=[0.0, 0.0])
    along[vertical] = math.degrees(math.atan(amount))
    return torchvision.affine(image, angle=0, translate=[0, 0], scale=1, shear=along, center=[0, 0])


@lru_cache(maxsize=16)
def _levels(operations: tuple[Operation, ...], device: torch.device) -> Tensor:
    """What each operation makes of 0 .. 255, uint8 `(operations, 256)`."""
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    do: dict[str, Callable[[float], Tensor]] = {
        "Brightness": lambda more: torchvision.adjust_brightness(ramp, 1 + more),
        "Posterize": lambda bits: torchvision.posterize(ramp, int(bits)),
        "Solarize": lambda first: torchvision.solarize(ramp, first),
        "Invert": lambda _: torchvision.invert(ramp),
    }
    return torch.stack([do[operation.name](strength(operation)).flatten() for operation in operations]).to(device)


@lru_cache(maxsize=16)
def _factors(operations: tuple[Operation, ...], device: torch.device) -> Tensor:
    """The factor of each operation, and what is left of it to 1, float32 `(2, operations)`."""
    factors = [1 + strength(operation) for operation in operations]
    return torch.tensor([factors, [1 - factor for factor in factors]]).to(device)


@lru_cache(maxsize=16)
def _stretch(device: torch.device) -> Tensor:
    """The factor that makes 255 of a level, float32 `(256,)`; 1 for level 0."""
    factors = 255 / torch.arange(256).float()
    factors[0] = 1
    return factors.to(device)


#: What is kept between batches.
KEPT = (_places, _levels, _factors, _stretch)
