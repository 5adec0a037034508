"""`on_error=skip`: which picture stands in for a broken one, what is told of it, and when it is too many."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.make_images import SETTINGS, assert_same_batches, by_index, save_pictures, training_batches

from mllt.data import ImageFolderLT
from mllt.data.broken import SkippingSource
from mllt.data.images import FileSource, PictureError, load_rgb
from mllt.errors import ArgumentError, CheckpointError, DataError

COUNTS = {"ant": 8, "bee": 5, "cat": 3}
CUT, EMPTY, GONE = "train/ant/2.jpg", "train/ant/7.jpg", "train/bee/1.jpg"


@pytest.fixture
def whole(tmp_path) -> Path:
    """Sixteen training and six test pictures, all readable."""
    save_pictures(tmp_path, [f"train/{name}/{i}.jpg" for name, count in COUNTS.items() for i in range(count)])
    save_pictures(tmp_path, [f"test/{name}/{i}.jpg" for name in COUNTS for i in range(2)])
    return tmp_path


@pytest.fixture
def broken(whole) -> Path:
    """The same, with one cut off, one empty, one no picture."""
    (whole / CUT).write_bytes((whole / CUT).read_bytes()[:-200])
    (whole / EMPTY).write_bytes(b"")
    (whole / GONE).write_text("<html>404</html>")
    return whole


def skipping(root: Path, **settings) -> ImageFolderLT:
    return ImageFolderLT(root, **{**SETTINGS, "on_error": "skip", "max_broken": 0.5, **settings})


@pytest.fixture(autouse=True)
def told():
    """Warnings of this file's broken pictures are what is tested, not a failure."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def test_the_next_readable_picture_of_the_class_stands_in(broken):
    module = skipping(broken, augment=False)
    images = by_index(training_batches(module))
    # by index: ant 0 .. 7, bee 8 .. 12, cat 13 .. 15; after ant/7, the last one, comes ant/0
    for row, instead in {2: 3, 7: 0, 9: 10}.items():
        assert torch.equal(images[row], images[instead])
    readable = [row for row in images if row not in (2, 7, 9)]
    source = FileSource([f"train/{n}/{i}.jpg" for n, count in COUNTS.items() for i in range(count)], [0] * 16, broken)
    expected = module.eval_transform()(source.load(np.array(readable)), None)
    assert torch.equal(torch.stack([images[row] for row in readable]), expected)


def test_what_stands_in_may_itself_be_broken(broken):
    (broken / "train/ant/3.jpg").write_bytes(b"")
    images = by_index(training_batches(skipping(broken, augment=False)))
    assert torch.equal(images[2], images[4])
    assert torch.equal(images[3], images[4])


def test_classes_come_as_often_as_if_nothing_were_broken(broken):
    module = skipping(broken)
    targets = Counter(int(target) for batch in training_batches(module) for target in batch.targets)
    assert targets == {0: 8, 1: 5, 2: 3}
    assert module.class_counts.tolist() == [8, 5, 3]


@pytest.mark.parametrize("epoch", [0, 1])
def test_batches_are_the_same_for_0_and_2_workers_and_after_a_break(broken, epoch):
    alone, helped, later = skipping(broken), skipping(broken, num_workers=2), skipping(broken)
    training_batches(later, epoch=5)
    later.load_state_dict(later.state_dict())
    expected = training_batches(alone, epoch)
    assert_same_batches(expected, training_batches(helped, epoch))
    assert_same_batches(expected, training_batches(later, epoch))
    assert alone.broken_images() == helped.broken_images() == later.broken_images()


@pytest.mark.parametrize("workers", [0, 2])
def test_without_broken_pictures_nothing_changes(whole, workers, told):
    plain, guarded = ImageFolderLT(whole, **SETTINGS), skipping(whole, num_workers=workers, max_broken=0.01)
    assert_same_batches(training_batches(plain), training_batches(guarded))
    assert guarded.broken_images() is None
    assert guarded.state_dict() == plain.state_dict() == {}
    assert guarded.fingerprint == plain.fingerprint
    assert [str(warning.message) for warning in told] == []


@pytest.mark.parametrize("workers", [0, 2])
def test_results_tell_which_are_broken_why_and_what_is_left_of_the_classes(broken, workers):
    module = skipping(broken, num_workers=workers)
    training_batches(module)
    told = module.broken_images()
    assert [file["path"] for file in told["files"]] == [CUT, EMPTY, GONE]
    causes = [file["cause"] for file in told["files"]]
    assert "truncated" in causes[0]
    assert causes[1] == "the file is empty"
    assert "it is no picture" in causes[2]
    assert str(broken) not in "".join(causes)
    assert told["count"] == 3
    assert told["by_class"] == {"ant": 2, "bee": 1}
    assert told["readable"] == [6, 4, 3]


def test_each_broken_picture_is_warned_of_once_by_name_and_cause(broken, told):
    module = skipping(broken)
    for epoch in range(3):
        training_batches(module, epoch)
    said = sorted(str(warning.message) for warning in told)
    assert len(said) == 3
    assert f"{broken / CUT}: OSError: image file is truncated" in said[0]
    assert "In its place stands another one of its class" in said[0]


def test_what_was_found_before_a_break_is_still_told_though_it_is_mended(broken, told):
    module = skipping(broken)
    training_batches(module)
    state, before = module.state_dict(), module.broken_images()
    torch.save(state, broken / "state.ckpt")
    for path in (CUT, EMPTY, GONE):
        (broken / path).write_bytes((broken / "train/ant/0.jpg").read_bytes())
    later = skipping(broken)
    later.load_state_dict(torch.load(broken / "state.ckpt", weights_only=True))
    told.clear()
    training_batches(later)
    assert later.broken_images() == before
    assert [str(warning.message) for warning in told] == []


def test_a_folder_that_was_moved_is_the_same_data(broken, tmp_path_factory):
    module = skipping(broken)
    training_batches(module)
    moved = tmp_path_factory.mktemp("elsewhere") / "data"
    state, before = module.state_dict(), module.broken_images()
    broken.rename(moved)
    later = skipping(moved)
    later.load_state_dict(state)
    assert later.broken_images() == before
    moved.rename(broken)


def test_names_that_are_no_utf8_can_be_told(whole):
    (whole / "train/ant/caf\udce9.jpg").write_bytes(b"")
    module = skipping(whole)
    training_batches(module)
    (file,) = module.broken_images()["files"]
    assert file["path"] == r"train/ant/caf\udce9.jpg"
    later = skipping(whole)
    later.load_state_dict(module.state_dict())
    assert later.broken_images() == module.broken_images()


def test_a_picture_that_can_be_read_after_all_is_told_as_such(broken):
    module = skipping(broken)
    training_batches(module)
    (broken / CUT).write_bytes((broken / "train/ant/0.jpg").read_bytes())
    assert module.broken_images()["files"][0]["cause"] == "it could not be read when it was needed; now it can"


def test_a_checkpoint_that_tells_nonsense_is_refused(whole):
    with pytest.raises(CheckpointError, match="path: cause"):
        skipping(whole).load_state_dict({"broken": ["train/ant/0.jpg"]})
    module = skipping(whole)
    module.load_state_dict({"broken": {"../../etc/passwd": "cause"}})
    assert module.broken_images() is None


# ------------------------------------------------------------------------------------------------------- too many


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_the_share_is_an_error_that_lists_them(broken, workers):
    module = skipping(broken, num_workers=workers, max_broken=2 / 16)
    with pytest.raises(DataError, match=r"at most 0\.125 of the 16 training pictures .* 3 are") as caught:
        training_batches(module)
    for path in (CUT, EMPTY, GONE):
        assert str(broken / path) in str(caught.value)
    assert len(training_batches(skipping(broken, max_broken=3 / 16))) == 4


def test_by_default_a_hundredth_may_be_broken(broken):
    with pytest.raises(DataError, match=r"at most 0\.01 of the 16 training pictures"):
        training_batches(ImageFolderLT(broken, on_error="skip", **SETTINGS))


def test_a_class_without_a_readable_picture_is_an_error_that_lists_them(whole):
    for i in range(3):
        (whole / f"train/cat/{i}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="class 2 to have a picture that can be read, but it has none") as caught:
        training_batches(skipping(whole, max_broken=1))
    for i in range(3):
        assert str(whole / f"train/cat/{i}.jpg") in str(caught.value)


def test_those_of_all_devices_together_may_not_be_too_many():
    source = SkippingSource(FileSource([f"{i}.jpg" for i in range(100)], [0] * 100), 0.02)
    source.note([3, 5])
    with pytest.raises(DataError, match=r"3 are: '\./3\.jpg', '\./5\.jpg', '\./7\.jpg'"):
        source.note([7])


# ------------------------------------------------------------------------------------------------ what stays an error


def test_by_default_a_broken_training_picture_ends_the_run_by_name_and_cause(broken):
    with pytest.raises(DataError, match=r"train/(ant|bee)/\d\.jpg: (OSError|it is no picture|the file is empty)"):
        training_batches(ImageFolderLT(broken, **SETTINGS))


def test_a_broken_test_or_validation_picture_stays_an_error(whole):
    (whole / "test/bee/1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"test/bee/1\.jpg: the file is empty"):
        skipping(whole, max_broken=1).setup()
    module = skipping(whole, max_broken=1, verify_files=False)
    with pytest.raises(DataError, match=r"test/bee/1\.jpg: the file is empty"):
        list(module.test_dataloader())
    (whole / "test/bee/1.jpg").unlink()
    for path in whole.glob("train/ant/*.jpg"):
        path.write_bytes(b"")
    held_out = skipping(whole, max_broken=1, val_fraction=0.3)
    with pytest.raises(DataError, match=r"train/ant/\d\.jpg: the file is empty"):
        list(held_out.val_dataloader())


def test_a_training_picture_that_is_not_there_is_noted_and_replaced_up_to_the_share(whole):
    rows = [f"train/{n}/{i}.jpg {k}\n" for k, (n, count) in enumerate(COUNTS.items()) for i in range(count)]
    (whole / "train.txt").write_text("".join(rows))
    (whole / "test.txt").write_text("".join(f"test/{n}/0.jpg {k}\n" for k, n in enumerate(COUNTS)))
    (whole / CUT).unlink()
    lists = {"train_list": "train.txt", "test_list": "test.txt"}
    module = skipping(whole, **lists)
    assert f"Note: 1 training picture is not there: '{CUT}'" in module.summary()
    training_batches(module)
    assert module.broken_images()["files"] == [{"path": CUT, "cause": "there is no such file"}]
    with pytest.raises(DataError, match=r"training pictures .* 1 is not there"):
        skipping(whole, **lists, max_broken=0.01).setup()
    (whole / "test/ant/0.jpg").unlink()
    with pytest.raises(DataError, match=r"test pictures .* 1 is not there"):
        skipping(whole, **lists).setup()


@pytest.mark.parametrize("settings", [{"on_error": "ignore"}, {"on_error": True}, {"max_broken": -0.1}, {"max_broken": 1.1}])
def test_senseless_settings_are_refused(whole, settings):
    with pytest.raises(ArgumentError, match=f"`{next(iter(settings))}`"):
        skipping(whole, **settings)


def test_the_cause_is_told_without_the_file(broken):
    with pytest.raises(PictureError) as caught:
        load_rgb(broken / EMPTY)
    assert caught.value.cause == "the file is empty"
    assert isinstance(caught.value, DataError)


def test_a_part_of_the_images_keeps_what_is_known_of_them(broken):
    source = SkippingSource(FileSource([CUT, EMPTY, "train/ant/0.jpg"], [0, 0, 0], broken), 1)
    source.note([1])
    part = source.subset(np.array([2, 1]))
    assert part.broken == [1]
    assert part.name_of(0) == str(broken / "train/ant/0.jpg")
