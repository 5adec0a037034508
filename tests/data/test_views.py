"""`ContrastiveView`: what it does to a picture, how often, and that it depends on the picture's own random numbers alone."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.make_images import picture
from torchvision.transforms import functional as F

from mllt.data import CIFAR100LT, DigitsLT
from mllt.data.augment import Normalize
from mllt.data.order import Draws
from mllt.data.views import ContrastiveView
from mllt.errors import ArgumentError

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
RAW = ([0, 0, 0], [1 / 255] * 3)  # a normalisation that changes nothing, so that results are pixel values
STILL = {"scale": (1.0, 1.0), "jitter": 0.0, "grey": 0.0, "blur": 0.0, "flip": False}  # nothing left to chance


def noise(count, size=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=draw, dtype=torch.uint8)


def draws(count, epoch=0, seed=0, first=0):
    return Draws(seed, epoch, np.arange(first, first + count))


def assert_about(times, count, probability):
    """Five standard deviations off never happens by chance; none at all where it is certain."""
    assert abs(times - count * probability) <= 5 * math.sqrt(count * probability * (1 - probability))


# ------------------------------------------------------------------------------------------------------- what it takes


def test_pictures_of_any_size_and_tensors_become_squares():
    pictures = [picture(0, 40, 30), picture(1, 9, 50), picture(2, 16, 16)]
    for given in (pictures, noise(3)):
        views = ContrastiveView(12, MEAN, STD)(given, draws(3))
        assert (views.shape, views.dtype, type(views)) == ((3, 3, 12, 12), torch.float32, torch.Tensor)
        assert views.isfinite().all()


def test_a_picture_and_its_pixels_have_the_same_view():
    pixels = noise(6)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    view = ContrastiveView(16, MEAN, STD)
    assert torch.equal(view(pictures, draws(6)), view(pixels, draws(6)))


def test_images_are_left_as_they_were():
    images = noise(4)
    before = images.clone()
    ContrastiveView(16, MEAN, STD)(images, draws(4))
    assert torch.equal(images, before)


# ------------------------------------------------------------------------------------------------------- what it draws


def test_a_view_depends_on_seed_epoch_and_place_alone():
    view, images = ContrastiveView(16, MEAN, STD), noise(8)
    whole = view(images, draws(8))
    assert torch.equal(view(images, draws(8)), whole)
    parts = [view(images[:3], draws(3)), view(images[3:4], draws(1, first=3)), view(images[4:], draws(4, first=4))]
    assert torch.equal(torch.cat(parts), whole), "not of its neighbours"
    for other in (draws(8, epoch=1), draws(8, seed=1), draws(8, first=8)):
        changed = view(images, other)
        assert not any(torch.equal(one, two) for one, two in zip(changed, whole, strict=True))
    same = view(images[:1].repeat(8, 1, 1, 1), draws(8))
    assert len({image.numpy().tobytes() for image in same}) == 8


def test_global_generators_are_left_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    ContrastiveView(16, MEAN, STD)(noise(4), draws(4))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    first = ContrastiveView(16, MEAN, STD)(noise(4), draws(4))
    torch.manual_seed(99)
    assert torch.equal(ContrastiveView(16, MEAN, STD)(noise(4), draws(4)), first)


# -------------------------------------------------------------------------------------------------------- what it does


def test_with_everything_off_it_only_normalises():
    images = noise(5)
    assert torch.equal(ContrastiveView(16, MEAN, STD, **STILL)(images, draws(5)), Normalize(MEAN, STD)(images, draws(5)))


def test_half_of_the_views_are_mirrored():
    images = noise(400, size=4)
    views = ContrastiveView(4, *RAW, **{**STILL, "flip": True})(images, draws(400))
    mirrored = (views.round() == images.flip(-1)).flatten(1).all(dim=1)
    as_it_was = (views.round() == images).flatten(1).all(dim=1)
    assert (mirrored ^ as_it_was).all()
    assert_about(int(mirrored.sum()), 400, 0.5)


@pytest.mark.parametrize("share", [0.2, 1.0, 0.0])
def test_a_share_of_the_views_is_grey(share):
    images = noise(400, size=4)
    views = ContrastiveView(4, *RAW, **{**STILL, "grey": share})(images, draws(400)).round()
    grey = (views == views[:, :1]).flatten(1).all(dim=1)
    assert_about(int(grey.sum()), 400, share)  # none or all, where it is certain
    luminance = (0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]).unsqueeze(1).expand_as(views)
    torch.testing.assert_close(views[grey], luminance[grey], rtol=0, atol=1.1)  # fractions are cut off
    assert torch.equal(views[~grey], images[~grey].float())


def test_four_of_five_views_have_other_colours():
    images = noise(400, size=4)
    views = ContrastiveView(4, *RAW, **{**STILL, "jitter": 0.4})(images, draws(400)).round()
    changed = (views != images).flatten(1).any(dim=1)
    assert_about(int(changed.sum()), 400, 0.8)
    # brightness, contrast and saturation of a grey image leave it grey, and hue has nothing to turn
    plain = torch.full((200, 3, 4, 4), 100, dtype=torch.uint8)
    levels = ContrastiveView(4, *RAW, **{**STILL, "jitter": 0.4})(plain, draws(200)).round()
    assert levels.flatten(1).std(dim=1).max() == 0
    assert levels.min() >= 59  # 100 (1 - 0.4)
    assert 130 < levels.max() <= 141  # 100 (1 + 0.4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_views_is_blurred(share):
    images = noise(200, size=40)
    views = ContrastiveView(40, *RAW, **{**STILL, "blur": share})(images, draws(200)).round()
    smooth, rough = (pixels.float().flatten(1).std(dim=1) for pixels in (views, images))
    assert (smooth <= rough + 0.1).all()
    # Noise loses a quarter of its spread at sigma 0.45, which is even in 0.1 .. 2
    assert_about(int((smooth < 0.75 * rough).sum()), 200, share * (2 - 0.45) / 1.9)
    if share == 0:
        assert torch.equal(views, images.float())


@pytest.mark.parametrize(("smallest", "largest"), [(0.2, 0.2), (0.5, 0.5), (0.2, 1.0)])
def test_a_view_shows_so_much_of_the_area(smallest, largest):
    size = 128
    ramp = torch.arange(size, dtype=torch.uint8)
    image = torch.stack([ramp.repeat(size, 1), ramp.repeat(size, 1).T, torch.zeros(size, size, dtype=torch.uint8)])
    view = ContrastiveView(32, *RAW, **{**STILL, "scale": (smallest, largest)})
    views = view(image.repeat(60, 1, 1, 1), draws(60)).round()
    across = (views[:, 0].amax(dim=(1, 2)) - views[:, 0].amin(dim=(1, 2)) + 1) / size
    down = (views[:, 1].amax(dim=(1, 2)) - views[:, 1].amin(dim=(1, 2)) + 1) / size
    area, aspect = across * down, across / down
    assert area.min() > smallest - 0.04
    assert area.max() < largest + 0.04
    assert 0.68 < aspect.min() < 1 < aspect.max() < 1.48  # 3/4 .. 4/3, and whole pixels
    if smallest < largest:
        assert area.std() > 0.1


def test_normalisation_comes_last():
    images = noise(4)
    raw, normal = (ContrastiveView(16, *statistics)(images, draws(4)) for statistics in (RAW, (MEAN, STD)))
    expected = (raw / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(normal, expected, rtol=1e-5, atol=1e-5)


def test_scaling_is_bilinear_and_antialiased():
    image = picture(0, 64, 64)
    view = ContrastiveView(16, *RAW, **STILL)([image], draws(1))[0]
    expected = F.resize(F.pil_to_tensor(image), [16, 16], antialias=True).float()
    torch.testing.assert_close(view, expected, rtol=0, atol=1.0)


# ------------------------------------------------------------------------------------------------- of the data modules


def test_data_modules_flip_views_where_they_flip_images_and_do_not_blur_small_ones():
    images = noise(200, size=8)
    digits = DigitsLT().view_transform()
    steps = {type(step).__name__ for step in digits._augment.transforms}
    assert "RandomHorizontalFlip" not in steps
    assert "RandomHorizontalFlip" in {type(step).__name__ for step in CIFAR100LT(root=".").view_transform()._augment.transforms}
    assert digits(images, draws(200)).shape == (200, 3, 8, 8)


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 0}, "`size` to be a whole number of at least 1"),
        ({"scale": (0, 1)}, "`scale` to be two shares"),
        ({"scale": (0.9, 0.2)}, "`scale`"),
        ({"scale": 0.2}, "`scale`"),
        ({"jitter": -0.1}, "`jitter`"),
        ({"jitter": 1.5}, "`jitter`"),
        ({"grey": 1.2}, "`grey`"),
        ({"blur": -1}, "`blur`"),
        ({"flip": 1}, "`flip` to be true or false"),
        ({"std": [0.2, 0, 0.2]}, "`std`"),
        ({"mean": [0.5]}, "`mean` and `std` to hold 3 numbers"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(changed, message):
    with pytest.raises(ArgumentError, match=message):
        ContrastiveView(**{"size": 16, "mean": MEAN, "std": STD, **changed})
