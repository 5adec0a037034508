"""Names beside the points of a chart."""

from __future__ import annotations

import itertools
import random

import pytest

from mllt.reporting.labels import Box, place

FRAME = Box(0, 0, 400, 250)


def marks(points):
    return [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]


def test_names_of_crowded_points_cover_neither_each_other_nor_a_mark_and_stay_inside():
    drawn = random.Random(0)
    points = [(drawn.gauss(120, 25), drawn.gauss(100, 30)) for _ in range(14)] + [(399, 249), (1, 1), (398, 2)]
    sizes = [(drawn.uniform(20, 80), 10) for _ in points]
    boxes = place(points, sizes, marks(points), FRAME)
    found = [length for box in boxes for length in (box.right - box.left, box.high - box.low)]
    assert found == pytest.approx([length for size in sizes for length in size])
    for one, other in itertools.combinations(boxes, 2):
        assert one.shared(other) == 0
    assert all(box.shared(mark) == 0 for box in boxes for mark in marks(points))
    assert all(abs(box.shared(FRAME) - box.area) < 1e-6 for box in boxes)


def test_a_name_that_has_room_stands_right_beside_its_point():
    (box,) = place([(200, 100)], [(50, 10)], marks([(200, 100)]), FRAME)
    assert (box.left, (box.low + box.high) / 2) == (205, 100)


def test_points_in_one_place_are_all_named():
    boxes = place([(200, 100)] * 6, [(60, 10)] * 6, marks([(200, 100)]), FRAME)
    assert all(one.shared(other) == 0 for one, other in itertools.combinations(boxes, 2))
