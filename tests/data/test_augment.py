import math

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from tests.reference import augment as reference
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from mllt.data.augment import CropFlip, Cutout, Normalize, rotate
from mllt.data.order import Draws
from mllt.errors import ArgumentError

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]


def random_images(count, height=32, width=32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=draw, dtype=torch.uint8)


def draws(count, epoch=0, seed=0, first=0):
    return Draws(seed, epoch, np.arange(first, first + count))


def raw() -> Normalize:
    """A normalisation that changes nothing, so that results are pixel values."""
    return Normalize([0, 0, 0], [1 / 255] * 3)


def crop_and_flip_of(augmented, reference_results):
    """Which of the possible results an image is; exactly one, for random pixels."""
    matches = [key for key, other in reference_results.items() if torch.allclose(augmented, other, rtol=0, atol=1e-5)]
    assert len(matches) == 1
    return matches[0]


# ------------------------------------------------------------------------------------------------------- normalisation


def test_normalize_equals_torchvision():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    before = images.clone()
    result = Normalize(MEAN, STD)(images, draws(2))
    one_by_one = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([one_by_one(reference.as_picture(image)) for image in images])
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    exact = (images.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).double().view(3, 1, 1)
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-6)
    assert torch.equal(images, before)


def test_normalize_rounds_after_the_product_and_after_the_sum():
    # So it is the same bits on every device: a product and a sum that are fused round but once
    levels = np.arange(256, dtype=np.float32)
    scale, shift = 1 / (255 * np.array(STD)), -np.array(MEAN) / np.array(STD)
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    for channel, result in enumerate(Normalize(MEAN, STD)(images, draws(1))[0]):
        product = levels * np.float32(scale[channel])
        assert np.array_equal(result.flatten().numpy(), product + np.float32(shift[channel]))
        once = (levels.astype(np.float64) * np.float32(scale[channel]) + np.float32(shift[channel])).astype(np.float32)
        assert not np.array_equal(product + np.float32(shift[channel]), once), "there is a difference to be seen"


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5, 0.5], STD, "`mean` and `std` to hold 3 numbers each, but got 2 and 3"),
        (MEAN, [0.2], "to hold 3 numbers each, but got 3 and 1"),
        (MEAN, [0.2, 0, 0.2], "`std` to be a number above 0, but got 0"),
        (MEAN, [0.2, -1, 0.2], "`std` to be a number above 0, but got -1"),
        ([0.5, math.nan, 0.5], STD, "`mean` to be a number, but got nan"),
        (MEAN, [0.2, math.inf, 0.2], "`std`"),
        (["a", 0, 0], STD, "`mean` to be a number, but got 'a'"),
    ],
)
def test_wrong_statistics_are_refused(mean, std, message):
    with pytest.raises(ArgumentError, match=message):
        Normalize(mean, std)


# -------------------------------------------------------------------------------------------------------- crop and flip


@pytest.mark.parametrize(("height", "width", "padding", "flip"), [(32, 32, 4, True), (12, 20, 2, True), (9, 8, 1, False)])
def test_every_result_is_one_of_torchvisions(height, width, padding, flip):
    images = random_images(24, height, width)
    result = CropFlip(Normalize(MEAN, STD), padding, flip=flip)(images, draws(24))
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    seen = [crop_and_flip_of(result[i], reference.every_crop(image, padding, MEAN, STD)) for i, image in enumerate(images)]
    assert len(set(seen)) > 5
    assert {flipped for _, _, flipped in seen} == ({True, False} if flip else {False})


def test_padding_is_black_before_normalisation():
    white = torch.full((200, 3, 16, 16), 255, dtype=torch.uint8)
    result = CropFlip(Normalize(MEAN, STD), 4)(white, draws(200))
    black = transforms.Normalize(MEAN, STD)(torch.zeros(3, 1, 1)).view(3)
    bright = transforms.Normalize(MEAN, STD)(torch.ones(3, 1, 1)).view(3)
    for channel in range(3):
        is_black = (result[:, channel] - black[channel]).abs() < 1e-5
        is_bright = (result[:, channel] - bright[channel]).abs() < 1e-5
        assert (is_black ^ is_bright).all()  # nothing else, zero above all
        assert is_black.any()
        assert is_bright[:, 4:12, 4:12].all()


def test_an_images_augmentation_depends_on_its_position_only():
    images, augment = random_images(20), CropFlip(Normalize(MEAN, STD), 4, rotation=15)
    positions = np.arange(100, 120)
    whole = augment(images, Draws(3, 7, positions))
    for i in range(20):
        assert torch.equal(augment(images[i : i + 1], Draws(3, 7, positions[i : i + 1]))[0], whole[i])
    shuffled = np.random.default_rng(0).permutation(20)
    assert torch.equal(augment(images[shuffled], Draws(3, 7, positions[shuffled])), whole[shuffled])
    # another neighbour, same position
    images[1:] = 0
    assert torch.equal(augment(images, Draws(3, 7, positions))[0], whole[0])


@pytest.mark.parametrize("other", [Draws(4, 7, np.arange(20)), Draws(3, 8, np.arange(20)), Draws(3, 7, np.arange(20) + 20)])
def test_another_seed_epoch_or_position_is_another_augmentation(other):
    images, augment = random_images(1).repeat(20, 1, 1, 1), CropFlip(Normalize(MEAN, STD), 4)
    first, second = augment(images, Draws(3, 7, np.arange(20))), augment(images, other)
    assert sum(torch.equal(a, b) for a, b in zip(first, second, strict=True)) < 5


def decode(augmented, padding):
    """Top, left and flip of crops of an image whose channels are row + 1 and column + 1, read off the two middle pixels."""
    middle = augmented.shape[-1] // 2
    rows = augmented[:, 0, middle, middle].round().long() - 1
    here, right = (augmented[:, 1, middle, column].round().long() - 1 for column in (middle, middle + 1))
    flipped = right < here
    column = torch.where(flipped, augmented.shape[-1] - 1 - middle, middle)
    return rows - middle + padding, here - column + padding, flipped


def test_every_offset_and_flip_comes_equally_often():
    padding, count = 4, 162 * 200
    size = 12
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    image[0], image[1] = torch.arange(1, size + 1).view(size, 1), torch.arange(1, size + 1)
    augmented = CropFlip(raw(), padding)(image.expand(count, -1, -1, -1), draws(count))
    top, left, flipped = decode(augmented, padding)
    assert (top.min(), top.max(), left.min(), left.max()) == (0, 8, 0, 8)
    cells = torch.bincount(top * 18 + left * 2 + flipped, minlength=162).double()
    assert len(cells) == 162
    chi_square = float(((cells - 200) ** 2 / 200).sum())
    assert chi_square < 161 + 6 * math.sqrt(2 * 161)
    # and the decisions of one image tell nothing of the next
    for decision in (top, left, flipped):
        pair = torch.stack([decision[:-1], decision[1:]]).double()
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.03


TOPS, LEFTS = [7, 4, 5, 6, 2, 1], [0, 3, 4, 6, 3, 8]
FLIPS = [True, True, True, True, False, True]


def test_the_decisions_never_change():
    # With the order of the images this is the format by which runs are repeated and resumed.
    size = 12
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    image[0], image[1] = torch.arange(1, size + 1).view(size, 1), torch.arange(1, size + 1)
    augmented = CropFlip(raw(), 4)(image.expand(6, -1, -1, -1), Draws(2, 3, np.arange(6)))
    assert [decision.tolist() for decision in decode(augmented, 4)] == [TOPS, LEFTS, FLIPS]


def test_without_padding_flip_and_rotation_nothing_is_left_to_chance():
    images = random_images(8)
    result = CropFlip(Normalize(MEAN, STD), 0, flip=False)(images, draws(8))
    assert torch.equal(result, Normalize(MEAN, STD)(images, draws(8)))


def test_augmenting_leaves_the_source_and_all_global_generators_alone():
    images = random_images(8)
    before, torch_state, numpy_state = images.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    first = CropFlip(Normalize(MEAN, STD), 4, rotation=15)(images, draws(8))
    torch.manual_seed(torch.initial_seed() + 1)
    assert torch.equal(CropFlip(Normalize(MEAN, STD), 4, rotation=15)(images, draws(8)), first)
    torch.set_rng_state(torch_state)
    assert torch.equal(images, before)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": -1}, "`padding` to be a whole number of at least 0, but got -1"),
        ({"padding": 1.5}, "`padding`"),
        ({"flip": 0.5}, "`flip` to be true or false, but got 0.5"),
        ({"rotation": -15}, "`rotation` to be a number of at least 0 and of at most 180, but got -15"),
        ({"rotation": 360}, "`rotation`"),
        ({"rotation": math.nan}, "`rotation`"),
    ],
)
def test_wrong_settings_of_the_augmentation_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        CropFlip(Normalize(MEAN, STD), **arguments)


# ------------------------------------------------------------------------------------------------------------ rotation

ANGLES = [0.0, 0.4, 7.3, -15.0, 15.0, 33.0, -88.0, 178.0]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (15, 24), (8, 8)])
def test_rotate_equals_the_slow_reference(height, width):
    images = random_images(len(ANGLES), height, width)
    result = rotate(images, np.array(ANGLES))
    assert result.dtype == torch.uint8
    compared = 0
    for image, turned, angle in zip(images, result, ANGLES, strict=True):
        expected, close = reference.rotate(image.numpy(), angle)
        assert np.array_equal(turned.numpy()[:, ~close], expected[:, ~close]), angle
        compared += int((~close).sum())
    assert compared > 0.95 * len(ANGLES) * height * width


@pytest.mark.parametrize(("height", "width"), [(32, 32), (15, 24)])
def test_rotate_samples_at_pytorchs_places(height, width):
    images, degrees = random_images(500, height, width), np.random.default_rng(0).uniform(-180, 180, 500)
    angle, aspect, zero = torch.from_numpy(np.deg2rad(degrees)).float(), width / height, torch.zeros(500)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack([cos, -sin / aspect, zero, sin * aspect, cos, zero], dim=1).view(500, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    sampled = functional.grid_sample(images.float(), grid, mode="nearest", align_corners=False)
    # Its products of matrices may be rounded in another way, which decides between two pixels now and then
    assert (rotate(images, degrees) != sampled).float().mean() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(32, 32), (15, 24)])
def test_pixels_are_found_by_rotating_their_numbers(height, width):
    images, position = random_images(500, height, width), draws(500)
    cropped = CropFlip(raw(), 4)(images, position).round().to(torch.uint8)
    degrees = (position.uniform(3) * 2 - 1) * 180
    both = CropFlip(raw(), 4, rotation=180)(images, position).round().to(torch.uint8)
    assert torch.equal(both, rotate(cropped, degrees))


@pytest.mark.parametrize("angle", ANGLES)
def test_rotate_equals_torchvision_on_tensors_and_on_pictures(angle):
    image = random_images(1)[0]
    result = rotate(image[None], np.array([angle]))[0]
    tensor = F.rotate(image, angle, InterpolationMode.NEAREST)
    picture = torch.from_numpy(np.array(F.rotate(reference.as_picture(image), angle, InterpolationMode.NEAREST)))
    # Sources that fall between two pixels are rounded this way or that
    assert (result != tensor).any(dim=0).float().mean() < 0.01
    assert (result != picture.permute(2, 0, 1)).any(dim=0).float().mean() < 0.01


def test_a_quarter_turn_is_counter_clockwise():
    image = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    assert torch.equal(rotate(image, np.array([90.0])), torch.rot90(image, 1, dims=(2, 3)))
    assert torch.equal(rotate(image, np.array([0.0])), image)


def test_corners_are_black_before_normalisation():
    white = torch.full((1, 3, 33, 33), 255, dtype=torch.uint8)
    turned = rotate(white, np.array([45.0]))
    assert (turned[..., 0, 0] == 0).all()
    assert (turned[..., -1, -1] == 0).all()
    assert set(turned.unique().tolist()) == {0, 255}


def test_random_angles_fill_their_range_evenly():
    # A dot far right of the centre: its height after the turn tells the angle to a degree.
    size, count, radius = 65, 2000, 30
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    image[:, 31:34, 32 + radius] = 255
    augmented = CropFlip(raw(), 0, flip=False, rotation=15)(image.expand(count, -1, -1, -1), draws(count))
    weight = augmented[:, 0].double()
    rows = (weight * (32 - torch.arange(size).double()).view(size, 1)).sum(dim=(1, 2)) / weight.sum(dim=(1, 2))
    columns = (weight * (torch.arange(size).double() - 32)).sum(dim=(1, 2)) / weight.sum(dim=(1, 2))
    angles = torch.atan2(rows, columns).rad2deg()
    assert 14 < float(angles.max()) < 16.5
    assert -16.5 < float(angles.min()) < -14
    quarters = torch.histc(angles.float(), bins=4, min=-15.01, max=15.01)
    assert (quarters / count - 0.25).abs().max() < 0.06
    assert abs(float(angles.mean())) < 1


def test_rotation_comes_after_crop_and_flip_and_before_normalisation():
    images = random_images(6)
    together = CropFlip(Normalize(MEAN, STD), 4, rotation=20)(images, draws(6))
    plain = CropFlip(raw(), 4)(images, draws(6)).round().to(torch.uint8)
    for i in range(6):
        found = []
        for angle in np.arange(-20, 20.01, 0.05):
            turned = Normalize(MEAN, STD)(rotate(plain[i : i + 1], np.array([angle])), draws(1))[0]
            found.append(float(((turned - together[i]).abs() < 1e-5).all(dim=0).float().mean()))
        assert max(found) > 0.97  # within a twentieth of a degree the very same pixels


# -------------------------------------------------------------------------------------------------------------- cutout


def holes(pixels, count, height=32, width=32):
    """Top, left, bottom and right of what is black in white images, the last two behind it; nothing else may be."""
    cut = Cutout(pixels)(torch.full((count, 3, height, width), 255, dtype=torch.uint8), draws(count))
    assert cut.dtype == torch.uint8
    black = cut == 0
    assert torch.equal(black, cut != 255)
    assert torch.equal(black.all(dim=1), black.any(dim=1)), "of all three colours"
    found = []
    for image in black[:, 0]:
        rows, columns = image.any(dim=1).nonzero().flatten(), image.any(dim=0).nonzero().flatten()
        top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
        assert image.sum() == (bottom - top) * (right - left)
        found.append((top, left, bottom, right))
    return torch.tensor(found)


@pytest.mark.parametrize(("pixels", "height", "width"), [(16, 32, 32), (8, 32, 32), (3, 12, 20), (1, 8, 8)])
def test_one_square_is_cut_out_whose_middle_is_any_pixel_as_often(pixels, height, width):
    top, left, bottom, right = holes(pixels, 4000, height, width).T
    for first, behind, size in ((top, bottom, height), (left, right, width)):
        # where the square lies within the image it is whole; at an edge what is outside is lost
        middle = torch.where(first > 0, first + pixels // 2, behind - pixels + pixels // 2)
        assert ((behind == size) | (behind - middle == pixels - pixels // 2)).all()
        assert (middle.min(), middle.max()) == (0, size - 1)
        counts = torch.bincount(middle, minlength=size).double()
        assert float(((counts - 4000 / size) ** 2 / (4000 / size)).sum()) < size - 1 + 6 * math.sqrt(2 * (size - 1))
    assert abs(float(torch.corrcoef(torch.stack([top, left]).double())[0, 1])) < 0.1


def test_cutout_comes_last_and_is_black_before_normalisation():
    images, place = random_images(30), draws(30)
    cut = CropFlip(Normalize(MEAN, STD), 4, then=[Cutout(16)])(images, place)
    plain = CropFlip(raw(), 4)(images, place).round().to(torch.uint8)
    assert torch.equal(cut, Normalize(MEAN, STD)(Cutout(16)(plain, place), place))
    assert not torch.equal(cut, CropFlip(Normalize(MEAN, STD), 4)(images, place))


SQUARES = [[10, 15, 26, 31], [0, 23, 14, 32], [18, 11, 32, 27], [2, 11, 18, 27]]


def test_the_squares_never_change():
    # The format by which runs are repeated and resumed
    assert holes(16, 4).tolist() == SQUARES


@pytest.mark.parametrize("pixels", [0, -1, 1.5, True])
def test_a_wrong_size_of_the_square_is_refused(pixels):
    with pytest.raises(ArgumentError, match="`pixels` to be a whole number"):
        Cutout(pixels)
