"""Where names stand beside the points of a chart, so that none covers another, as far as there is room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DISTANCES = (5.0, 11.0, 19.0, 29.0, 41.0, 55.0)
_ANGLES = (0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240)
_ROUNDS = 4  # in which every name is placed again, given all others


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows upwards."""

    left: float
    low: float
    right: float
    high: float

    def shared(self, other: Box) -> float:
        """The area that two rectangles have in common.

        >>> Box(0, 0, 2, 2).shared(Box(1, 1, 3, 3)), Box(0, 0, 1, 1).shared(Box(2, 0, 3, 1))
        (1, 0)
        """
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return max(width, 0) * max(height, 0)

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.high - self.low)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The place in the rectangle that is nearest to a point."""
        return min(max(x, self.left), self.right), min(max(y, self.low), self.high)


def place(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], taken: Sequence[Box], frame: Box
) -> list[Box]:
    """A rectangle for the name of each point.

    Every name takes the place around its point that covers least of what is there, and of those the nearest; several times in
    turn, since each is in the way of others. Lengths are in points of print.

    Args:
        points: (x, y) of each.
        sizes: (width, height) of each name.
        taken: what names should leave free, marks and lines; the points' own marks among them.
        frame: what no name should leave.

    >>> place([(50, 50)], [(20, 8)], [Box(47, 47, 53, 53)], Box(0, 0, 100, 100))
    [Box(left=55.0, low=46.0, right=75.0, high=54.0)]
    """
    choices = [_around(point, size) for point, size in zip(points, sizes, strict=True)]
    boxes = [options[0][1] for options in choices]
    for _ in range(_ROUNDS):
        for number, options in enumerate(choices):
            others = [*taken, *boxes[:number], *boxes[number + 1 :]]
            boxes[number] = min(options, key=lambda option: _cost(option, others, frame))[1]
    return boxes


def _around(point: tuple[float, float], size: tuple[float, float]) -> list[tuple[float, Box]]:
    """Rectangles around a point, each with how gladly it is taken: the smaller the number, the more."""
    (x, y), (width, height) = point, size
    found = []
    for distance in _DISTANCES:
        for turn, angle in enumerate(_ANGLES):
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            # The edge or corner that faces the point lies at the distance from it
            left = x + distance * across - width * (1 - across) / 2
            low = y + distance * up - height * (1 - up) / 2
            if abs(across) < 1e-9:  # exactly above or below
                left = x - width / 2
            if abs(up) < 1e-9:
                low = y - height / 2
            found.append((distance + 0.4 * turn, Box(left, low, left + width, low + height)))
    return found


def _cost(option: tuple[float, Box], others: Sequence[Box], frame: Box) -> float:
    dislike, box = option
    outside = box.area - box.shared(frame)
    return dislike + 20 * outside + 10 * sum(box.shared(other) for other in others)
