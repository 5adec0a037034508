"""AutoAugment of batches against torchvision's of one image at a time."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import AutoAugment as TorchvisionAutoAugment
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from mllt.data import CIFAR10LT, CIFAR100LT
from mllt.data.augment import CropFlip, Normalize
from mllt.data.autoaugment import AutoAugment, Operation, Operations, policy
from mllt.data.order import Draws
from mllt.errors import ArgumentError

REFERENCE = TorchvisionAutoAugment(AutoAugmentPolicy.CIFAR10)


def draws(count, seed=0, epoch=0):
    return Draws(seed, epoch, np.arange(count))


def pictures(size=32):
    """Of many kinds: random, dark, of a single level, of two levels, a ramp, nearly black with a bright dot, grey."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, size, size), generator=draw, dtype=torch.uint8)
    images[1] //= 4
    images[2, 1] = 7
    images[3] = images[3] // 128 * 100 + 3
    images[4] = (torch.arange(size) * (256 // size)).to(torch.uint8)
    images[5], images[5, 0, 0, 0] = 1, 255
    images[6] = images[6, :1]
    images[7] = torch.tensor([0, 255, 128], dtype=torch.uint8)[:, None, None]
    return images


def by_torchvision(images, operation):
    strengths, signed = REFERENCE._augmentation_space(10, tuple(images.shape[2:]))[operation.name]
    strength = 0.0 if operation.level is None else float(strengths[operation.level])
    assert signed or operation.sign == 1
    return torch.stack(
        [_apply_op(image, operation.name, operation.sign * strength, InterpolationMode.NEAREST, None) for image in images]
    )


def every_operation():
    for name, (strengths, signed) in REFERENCE._augmentation_space(10, (32, 32)).items():
        levels = range(10) if strengths.ndim else [None]
        yield from (Operation(name, *rest) for rest in itertools.product(levels, (1, -1) if signed else (1,)))


EVERY = list(every_operation())


def test_the_policy_is_torchvisions():
    assert policy("cifar10") == REFERENCE._get_policies(AutoAugmentPolicy.CIFAR10)


@pytest.mark.parametrize("name", sorted({operation.name for operation in EVERY}))
def test_every_operation_at_every_level_is_torchvisions_bit_for_bit(name):
    images, untouched = pictures(), pictures()
    for operation in (each for each in EVERY if each.name == name):
        done = Operations([operation])(images, np.zeros(len(images), dtype=np.int64))
        assert (done.dtype, done.shape) == (torch.uint8, images.shape)
        assert torch.equal(done, by_torchvision(images, operation)), operation
    assert torch.equal(images, untouched)


def test_images_of_another_size_differ_from_torchvisions_by_a_level_of_contrast_at_most():
    # The mean grey is a sum times 1 / pixels, which is rounded where that is no power of two; a GPU would not divide
    images = pictures(24)[..., :23]
    for operation in EVERY:
        done = Operations([operation])(images, np.zeros(len(images), dtype=np.int64))
        apart = (done.int() - by_torchvision(images, operation).int()).abs()
        if operation.name in ("ShearX", "ShearY", "Rotate"):
            assert (apart > 0).float().mean() < 0.01  # between two pixels, which is decided by rounding
        else:
            assert apart.max() <= (operation.name == "Contrast"), operation


def test_each_image_has_its_own_operation_whatever_stands_beside_it():
    numbers = np.random.default_rng(0).integers(-1, len(EVERY), 400)
    images = pictures()[np.arange(400) % 8]
    together = Operations(EVERY)(images, numbers)
    for image, done, number in zip(images, together, numbers, strict=True):
        assert torch.equal(done, image if number < 0 else by_torchvision(image[None], EVERY[number])[0])


def test_an_image_is_augmented_by_its_position_alone():
    images, augment = pictures().repeat(16, 1, 1, 1), AutoAugment()
    positions = np.arange(500, 628)
    whole = augment(images, Draws(3, 7, positions))
    assert not torch.equal(whole, images)
    order = np.random.default_rng(0).permutation(128)
    assert torch.equal(augment(images[order], Draws(3, 7, positions[order])), whole[order])
    for i in range(0, 128, 9):
        assert torch.equal(augment(images[i : i + 1], Draws(3, 7, positions[i : i + 1]))[0], whole[i])


@pytest.mark.parametrize("other", [draws(128, seed=1), draws(128, epoch=1), Draws(0, 0, np.arange(128, 256))])
def test_another_seed_epoch_or_position_draws_other_operations(other):
    same = np.all(np.equal(AutoAugment().drawn(draws(128)), AutoAugment().drawn(other)), axis=0)
    assert same.mean() < 0.3


DRAWN = [
    [("Rotate", 2, 1), None],
    [("Brightness", 3, -1), ("Color", 0, -1)],
    [("Sharpness", 1, 1), ("Sharpness", 3, -1)],
    [None, None],
    [None, None],
    [("Equalize", None, 1), ("Equalize", None, 1)],
]


def test_the_draws_never_change():
    # The format by which runs are repeated and resumed
    augment = AutoAugment()
    first, second = augment.drawn(Draws(2, 3, np.arange(6)))
    told = [[None if n < 0 else tuple(augment.operations[n]) for n in pair] for pair in zip(first, second, strict=True)]
    assert told == DRAWN


def test_pairs_come_equally_often_and_their_steps_with_their_probability_and_both_signs():
    count, augment = 100_000, AutoAugment()
    first, second = augment.drawn(draws(count))

    def named(number):
        return None if number < 0 else augment.operations[number]

    seen = Counter((named(a), named(b)) for a, b in zip(first, second, strict=True))
    expected = Counter()
    for pair in policy("cifar10"):
        ways = []
        for name, probability, level in pair:
            signs = (1, -1) if REFERENCE._augmentation_space(10, (32, 32))[name][1] else (1,)
            ways.append([(None, 1 - probability), *((Operation(name, level, s), probability / len(signs)) for s in signs)])
        for (one, p), (other, q) in itertools.product(*ways):
            expected[one, other] += p * q / 25
    assert set(seen) <= {pair for pair, share in expected.items() if share}
    assert len(seen) > 80
    for pair, share in expected.items():
        assert abs(seen[pair] - count * share) <= 5 * (count * share * (1 - share)) ** 0.5, pair


def test_autoaugment_comes_after_crop_flip_and_rotation_and_leaves_their_draws_alone():
    images, place = pictures().repeat(8, 1, 1, 1), draws(64)
    raw, normalize = Normalize([0, 0, 0], [1 / 255] * 3), Normalize([0.5] * 3, [0.2] * 3)
    before = CropFlip(raw, 4, rotation=15)(images, place).round().to(torch.uint8)
    together = CropFlip(normalize, 4, rotation=15, then=[AutoAugment()])(images, place)
    assert torch.equal(together, normalize(AutoAugment()(before, place), place))


# ---------------------------------------------------------------------------------------------------------- the settings


@pytest.mark.parametrize("cls", [CIFAR10LT, CIFAR100LT])
def test_cifar_is_augmented_as_the_settings_say(cls):
    images, place = pictures(), draws(8)
    plain, strong = cls("nowhere"), cls("nowhere", autoaugment="cifar10", cutout=16)
    assert plain.train_transform().then == ()
    first, second = strong.train_transform().then
    before = CropFlip(Normalize([0, 0, 0], [1 / 255] * 3), 4)(images, place).round().to(torch.uint8)
    normalize = Normalize(cls.mean, cls.std)
    assert torch.equal(plain.train_transform()(images, place), normalize(before, place))
    expected = normalize(second(AutoAugment()(before, place), place), place)
    assert second.pixels == 16
    assert type(first) is AutoAugment
    assert torch.equal(strong.train_transform()(images, place), expected)
    assert torch.equal(strong.eval_transform()(images, place), normalize(images, place))
    assert strong.view_transform()(images, place).shape == images.shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"autoaugment": "cifar"}, "`autoaugment` to be one of cifar10, but got 'cifar'. Did you mean 'cifar10'"),
        ({"autoaugment": True}, "`autoaugment` to be one of cifar10, but got True"),
        ({"cutout": -1}, "`cutout` to be a whole number of at least 0 and of at most 32, but got -1"),
        ({"cutout": 33}, "`cutout` to be a whole number of at least 0 and of at most 32, but got 33"),
        ({"cutout": 1.5}, "`cutout`"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        CIFAR100LT("nowhere", **settings)
