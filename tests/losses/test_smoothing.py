"""`label_aware_smoothing_loss` against PyTorch's label smoothing, class by class."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.losses import SMOOTHINGS, label_aware_smoothing_loss

COUNTS = torch.tensor([101, 51, 1, 1, 101])
TARGET = torch.tensor([0, 4, 1, 3, 2, 0])

#: each shape with what it needs
every_shape = pytest.mark.parametrize("shape", [(name, 3.0) if name == "exp" else (name,) for name in SMOOTHINGS], ids=str)


def random_logits(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_shape
@pytest.mark.parametrize(("head", "tail"), [(0.4, 0.1), (0.3, 0.0), (0.1, 0.4), (1.0, 0.0)])
def test_the_largest_class_is_smoothed_as_the_head_and_the_smallest_as_the_tail(shape, head, tail):
    logits = random_logits(1, 5)
    for label, smoothing in ((0, head), (4, head), (2, tail), (3, tail)):
        target = torch.tensor([label])
        expected = F.cross_entropy(logits, target, label_smoothing=smoothing)
        assert_close(label_aware_smoothing_loss(logits, target, COUNTS, head, tail, *shape), expected)


@pytest.mark.parametrize(
    ("shape", "rise"),
    [
        (("concave",), math.sin(math.pi / 4)),
        (("linear",), 0.5),
        (("convex",), 1 - math.sin(math.pi / 4)),
        (("exp", 3.0), 0.125),
        (("exp", 0.5), math.sqrt(0.5)),
    ],
    ids=str,
)
def test_between_them_the_shape_decides(shape, rise):
    logits, target = random_logits(1, 5), torch.tensor([1])  # just between the smallest and the largest
    expected = F.cross_entropy(logits, target, label_smoothing=0.1 + 0.3 * rise)
    assert_close(label_aware_smoothing_loss(logits, target, COUNTS, 0.4, 0.1, *shape), expected)


def test_concave_is_the_default():
    logits = random_logits(6, 5)
    expected = label_aware_smoothing_loss(logits, TARGET, COUNTS, 0.4, 0.1, "concave")
    assert label_aware_smoothing_loss(logits, TARGET, COUNTS, 0.4, 0.1) == expected


@every_shape
def test_equal_counts_are_all_smoothed_as_the_head(shape):
    logits = random_logits(6, 5)
    expected = F.cross_entropy(logits, TARGET, label_smoothing=0.4)
    assert_close(label_aware_smoothing_loss(logits, TARGET, torch.full((5,), 7), 0.4, 0.1, *shape), expected)
    seen = torch.tensor([7, 7, 7, 7, 0])
    target = torch.tensor([0, 3, 1, 3, 2, 0])
    expected = F.cross_entropy(logits, target, label_smoothing=0.4)
    assert_close(label_aware_smoothing_loss(logits, target, seen, 0.4, 0.1, *shape), expected)


@every_shape
def test_equal_ends_are_plain_label_smoothing_and_zero_is_cross_entropy(shape):
    logits = random_logits(6, 5)
    for smoothing in (0.0, 0.25):
        expected = F.cross_entropy(logits, TARGET, label_smoothing=smoothing)
        assert_close(label_aware_smoothing_loss(logits, TARGET, COUNTS, smoothing, smoothing, *shape), expected)


@every_shape
def test_a_class_without_images_is_not_the_smallest(shape):
    logits, target = random_logits(1, 5), torch.tensor([1])
    expected = F.cross_entropy(logits, target, label_smoothing=0.1)
    assert_close(label_aware_smoothing_loss(logits, target, [101, 51, 0, 60, 101], 0.4, 0.1, *shape), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((1.1, 0.1), "Expected `smooth_head` to be a number of at least 0 and of at most 1"),
        ((-0.1, 0.1), "Expected `smooth_head`"),
        ((0.4, -0.1), "Expected `smooth_tail`"),
        ((0.4, math.nan), "Expected `smooth_tail`"),
        (("0.4", 0.1), "Expected `smooth_head`"),
        ((0.4, 0.1, "concav"), r"Expected `shape` to be one of .* but got 'concav'. Did you mean 'concave'\?"),
        ((0.4, 0.1, "exp"), "Expected `power` to be a number above 0, but got None"),
        ((0.4, 0.1, "exp", 0.0), "Expected `power` to be a number above 0"),
        ((0.4, 0.1, "linear", 2.0), "Expected `power` with shape='exp' only"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        label_aware_smoothing_loss(torch.zeros(6, 5), TARGET, COUNTS, *settings)
