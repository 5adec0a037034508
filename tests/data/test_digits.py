import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mllt.data import DigitsLT
from mllt.data.order import SUBSET
from mllt.errors import ArgumentError
from mllt.longtail import profile_counts


def digits(**settings) -> DigitsLT:
    module = DigitsLT(**settings)
    module.setup()
    return module


def rows(source) -> list[int]:
    """Which of scikit-learn's images a split holds."""
    return source.rows.tolist()


def test_the_images_and_labels_are_scikit_learns():
    module, digits_set = digits(), load_digits()
    for source in (module.splits.train, module.splits.test):
        images = source.load(np.arange(len(source)))
        assert images.dtype == torch.uint8
        assert images.shape == (len(source), 3, 8, 8)
        original = torch.from_numpy(digits_set.images[source.rows])
        for channel in range(3):
            assert (images[:, channel].double() / 255 * 16 - original).abs().max() <= 16 / 255 / 2 + 1e-9
        assert images.min() == 0
        assert images.max() == 255
        assert source.labels.tolist() == digits_set.target[source.rows].tolist()
    assert module.class_names == [str(digit) for digit in range(10)]
    assert module.num_classes == 10


def test_training_and_test_images_are_disjoint_and_the_test_set_balanced():
    splits = digits(imbalance_factor=1).splits
    assert len(set(rows(splits.train))) == len(splits.train) == 1200
    assert len(set(rows(splits.test))) == len(splits.test) == 500
    assert not set(rows(splits.train)) & set(rows(splits.test))
    assert np.bincount(splits.test.labels).tolist() == [50] * 10
    assert splits.val is None


def test_the_same_images_every_time_and_the_same_test_set_for_all():
    reference = digits().splits
    for settings in ({}, {"seed": 5}, {"batch_size": 7, "num_workers": 1}):
        assert rows(digits(**settings).splits.train) == rows(reference.train)
    for settings in ({"subset_seed": 3}, {"profile": "step"}, {"imbalance_factor": 10}, {"seed": 9, "val_fraction": 0.2}):
        assert rows(digits(**settings).splits.test) == rows(reference.test)


TRAIN_START = [1620, 1099, 292, 1059, 824, 1078, 286, 1128]
TRAIN_END = [81, 1432, 764, 508, 1280, 1401, 1176, 1612]
TEST_START = [965, 807, 449, 1707, 708, 158, 775, 489]


def test_the_subset_never_changes():
    # Numbers in the documentation and in old runs are of these images.
    splits = digits().splits
    assert SUBSET == 3
    assert rows(splits.train)[:8] == TRAIN_START
    assert rows(splits.train)[-8:] == TRAIN_END
    assert rows(splits.test)[:8] == TEST_START


def test_another_subset_seed_keeps_other_images_of_the_same_number():
    first, second = digits(), digits(subset_seed=1)
    assert first.class_counts.tolist() == second.class_counts.tolist()
    assert set(rows(first.splits.train)) != set(rows(second.splits.train))


@pytest.mark.parametrize("profile", ["exponential", "step"])
@pytest.mark.parametrize("factor", [1, 7.5, 60, 120])
def test_class_counts_follow_the_profile(profile, factor):
    module = digits(profile=profile, imbalance_factor=factor)
    expected = profile_counts(profile, 10, 120, factor)
    assert module.class_counts.dtype == torch.int64
    assert module.class_counts.tolist() == expected == np.bincount(module.splits.train.labels, minlength=10).tolist()
    assert (expected[0], expected[-1]) == (120, int(120 / factor))


def test_a_higher_imbalance_keeps_a_part_of_the_same_images():
    mild, strong = digits(imbalance_factor=10), digits(imbalance_factor=100)
    assert set(rows(strong.splits.train)) < set(rows(mild.splits.train))


GROUPS = [(101, 10_000), (20, 100), (0, 19)]  # many, medium, few


def test_the_summary_tells_the_counts():
    module = digits()
    text = module.summary()
    assert [int(number) for number in re.findall(r"\d+(?= training| classes|-shot| many| medium| few| test)", text)] == [
        int(module.class_counts.sum()),
        10,
        *(int(((low <= module.class_counts) & (module.class_counts <= high)).sum()) for low, high in GROUPS),
        500,
    ]
    assert "120 to 2 per class (imbalance factor 60)" in text
    assert "no validation split" in text
    assert "9 many / 0 medium / 1 few" in module.summary(many_above=2, few_below=3)
    assert f"{len(digits(val_fraction=0.2).splits.val)} validation images" in digits(val_fraction=0.2).summary()


def test_digits_are_cropped_by_one_pixel_and_never_flipped():
    module = digits(shuffle=False)
    batch = next(iter(module.train_dataloader()))
    plain = next(iter(digits(shuffle=False, augment=False).train_dataloader()))
    assert torch.equal(batch.indices, plain.indices)
    black = plain.images.min()
    padded = torch.nn.functional.pad(plain.images, [1] * 4, value=float(black))
    shifts = [padded[:, :, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    matches = torch.stack([(batch.images - shifted).abs().amax(dim=(1, 2, 3)) < 1e-5 for shifted in shifts])
    assert matches.any(dim=0).all()
    assert matches.any(dim=1).all()  # all nine shifts are there


def test_the_normalisation_is_that_of_the_whole_set():
    module, everything = digits(), load_digits().images / 16
    assert module.preprocessing["size"] == 8
    assert module.preprocessing["resize"] is None
    assert module.preprocessing["mean"] == pytest.approx([everything.mean()] * 3, abs=1e-3)
    assert module.preprocessing["std"] == pytest.approx([everything.std()] * 3, abs=1e-3)
    images = torch.cat([batch.images for batch in module.test_dataloader()])
    assert abs(float(images.mean())) < 0.05
    assert float(images.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile": "linear"}, "`profile` to be one of exponential, step, but got 'linear'"),
        ({"imbalance_factor": 0.5}, "`imbalance_factor` to be a number of at least 1"),
        ({"imbalance_factor": 121}, "Set `imbalance_factor` to at most 120"),
        ({"padding": -1}, "`padding`"),
        ({"rotation": 181}, "`rotation`"),
        ({"batch_size": 0}, "`batch_size` to be a whole number of at least 1, but got 0"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, message):
    with pytest.raises(ArgumentError, match=message):
        DigitsLT(**settings)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_a_wrong_subset_seed_is_refused(seed):
    with pytest.raises(ArgumentError, match="`subset_seed` to be a whole number of at least 0 and of at most 4294967295"):
        digits(subset_seed=seed)
