import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.make_images import (
    SETTINGS,
    assert_same_batches,
    by_index,
    picture,
    real_data,
    save_list,
    save_pictures,
    training_batches,
)

from mllt.data.folder import ImageFolderLT, cut_profile, hold_out_test, largest_profile, read_csv, scan_classes
from mllt.errors import ArgumentError, DataError
from mllt.longtail import profile_counts

COUNTS = {"cat": 9, "dog": 5, "eel": 2}


def class_paths(prefix: str = "", counts: dict[str, int] = COUNTS) -> list[str]:
    return [f"{prefix}{name}/{i}.jpg" for name, count in counts.items() for i in range(count)]


@pytest.fixture
def classes(tmp_path) -> Path:
    save_pictures(tmp_path, class_paths())
    return tmp_path


@pytest.fixture
def splits(tmp_path) -> Path:
    save_pictures(tmp_path, class_paths("train/") + class_paths("test/", {"cat": 2, "dog": 2, "eel": 2}))
    return tmp_path


def names(source) -> list[str]:
    return [path.decode() for path in source.paths.tolist()]


# -------------------------------------------------------------------------------------------------- class folders


def test_splits_layout_is_read(splits):
    module = ImageFolderLT(splits, **SETTINGS)
    assert module.class_names == ["cat", "dog", "eel"]
    assert module.class_counts.tolist() == [9, 5, 2]
    assert names(module.splits.test) == class_paths("test/", {"cat": 2, "dog": 2, "eel": 2})
    assert module.splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert module.splits.val is None
    assert module.notes == []


def test_val_folder_is_the_validation_split(splits):
    save_pictures(splits, class_paths("val/", {"dog": 1, "eel": 1}))
    module = ImageFolderLT(splits, **SETTINGS)
    assert names(module.splits.val) == ["val/dog/0.jpg", "val/eel/0.jpg"]
    assert module.splits.val.labels.tolist() == [1, 2]


def test_without_test_folder_val_is_the_test_set_and_a_note_says_so(splits):
    (splits / "test").rename(splits / "val")
    module = ImageFolderLT(splits, **SETTINGS)
    assert len(module.splits.test) == 6
    assert module.splits.val is None
    assert "Note: there is no folder test: val is the test set" in module.summary()


def test_train_folder_alone_gives_a_held_out_test_set(splits):
    (splits / "test").rename(splits / ".put-away")
    module = ImageFolderLT(splits, **SETTINGS)
    assert module.class_names == ["cat", "dog", "eel"]
    assert len(module.splits.train) + len(module.splits.test) == 16


def test_folders_beside_the_splits_are_noted(splits):
    save_pictures(splits, ["extra/cat/1.jpg"])
    assert "beside train, val and test, 1 folder is not read: 'extra'" in ImageFolderLT(splits, **SETTINGS).summary()


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "Val", "Test"), ("TRAINING", "valid", "TESTING"), ("training", "Validation", "testing")],
)
def test_split_folders_may_be_called_otherwise(tmp_path, train, val, test):
    save_pictures(tmp_path, [f"{split}/{path}" for split in (train, val, test) for path in class_paths()])
    module = ImageFolderLT(tmp_path, **SETTINGS)
    assert module.class_names == ["cat", "dog", "eel"]
    assert [names(source)[0] for source in (module.splits.train, module.splits.val, module.splits.test)] == [
        f"{split}/cat/0.jpg" for split in (train, val, test)
    ]
    assert module.notes == []


@pytest.mark.parametrize(
    ("pair", "split"), [(("Train", "train"), "training"), (("val", "valid"), "validation"), (("test", "testing"), "test")]
)
def test_two_folders_of_one_split_are_refused_by_name(tmp_path, pair, split):
    for name in {"train", "test", *pair}:
        save_pictures(tmp_path, class_paths(f"{name}/"))
    with pytest.raises(DataError, match=f"one folder of {split} images .* got 2: '{pair[0]}', '{pair[1]}'"):
        ImageFolderLT(tmp_path, **SETTINGS).setup()


def test_class_may_be_called_train(tmp_path):
    save_pictures(tmp_path, class_paths("", {"bus": 3, "train": 3}))
    assert ImageFolderLT(tmp_path, **SETTINGS).class_names == ["bus", "train"]


def test_layout_can_be_set(tmp_path):
    save_pictures(tmp_path, class_paths("", {"test": 3, "train": 3}))
    assert ImageFolderLT(tmp_path, layout="classes", **SETTINGS).class_names == ["test", "train"]
    with pytest.raises(DataError, match="at least two class folders"):
        ImageFolderLT(tmp_path, **SETTINGS).setup()


def test_classes_and_paths_come_in_alphabetical_order(tmp_path):
    save_pictures(tmp_path, ["b/2.jpg", "b/10.jpg", "B/1.jpg", "a/deep/er/1.jpg", "a/z.jpg"])
    found = scan_classes(tmp_path)
    assert found.pictures == {"B": [b"B/1.jpg"], "a": [b"a/deep/er/1.jpg", b"a/z.jpg"], "b": [b"b/10.jpg", b"b/2.jpg"]}
    assert list(found.pictures) == ["B", "a", "b"]


def test_extensions_count_in_upper_and_lower_case(tmp_path):
    save_pictures(tmp_path, ["a/1.JPG", "a/2.Jpeg", "a/3.PNG", "a/4.tiff", "a/5.webp"])
    assert len(scan_classes(tmp_path).pictures["a"]) == 5


def test_what_is_ignored_is_counted_and_told(classes):
    for name in ("notes.txt", "cat/Thumbs.db", "cat/README", "dog/a.csv", "dog/b.csv", ".DS_Store", "cat/.hidden.jpg"):
        (classes / name).write_text("x")
    picture(1).save(classes / "stray.jpg")
    (classes / "dog" / "gone.jpg").symlink_to(classes / "nowhere.jpg")
    module = ImageFolderLT(classes, **SETTINGS)
    expected = {
        "hidden": 2,
        ".txt files": 1,
        ".db files": 1,
        ".csv files": 2,
        "files without extension": 1,
        "outside class folders": 1,
        "broken links": 1,
    }
    assert scan_classes(classes).ignored == expected
    note = next(line for line in module.summary().splitlines() if line.startswith("Note: ignored"))
    for kind, count in expected.items():
        assert f"{count} {kind}" in note
    assert len(module.splits.train) + len(module.splits.test) == 16


def test_links_are_followed_but_not_in_circles(classes, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save_pictures(elsewhere, ["fox/1.jpg", "fox/2.jpg"])
    (classes / "fox").symlink_to(elsewhere / "fox")
    (classes / "cat" / "again").symlink_to(classes / "cat")
    found = scan_classes(classes)
    assert found.pictures["fox"] == [b"fox/1.jpg", b"fox/2.jpg"]
    assert len(found.pictures["cat"]) == 9
    assert found.ignored == {"links in a circle": 1}


def test_class_only_in_test_is_refused_by_name(splits):
    save_pictures(splits, ["test/fox/1.jpg", "test/gnu/1.jpg"])
    with pytest.raises(DataError, match="2 are among the test images only: 'fox', 'gnu'"):
        ImageFolderLT(splits, **SETTINGS).setup()


def test_class_missing_from_test_is_noted_by_name(splits):
    for path in (splits / "test" / "eel").iterdir():
        path.unlink()
    assert "Note: 1 of 3 classes has no test image: 'eel'" in ImageFolderLT(splits, **SETTINGS).summary()


def test_class_folder_without_picture_is_refused_by_name(classes):
    (classes / "fox").mkdir()
    (classes / "fox" / "readme.txt").touch()
    for settings in ({}, {"profile": "exponential", "imbalance_factor": 2}):
        with pytest.raises(DataError, match="1 of 4 has none: 'fox'"):
            ImageFolderLT(classes, **settings, **SETTINGS).setup()


@pytest.mark.parametrize("content", [[], ["cat/1.jpg"], ["1.jpg", "2.jpg"]])
def test_folder_without_classes_is_refused_with_the_layouts(tmp_path, content):
    save_pictures(tmp_path, content)
    with pytest.raises(DataError, match=r"at least two class folders .* train/<class>/ and test/<class>/"):
        ImageFolderLT(tmp_path, **SETTINGS).setup()


def test_pictures_without_class_folders_are_counted(tmp_path):
    save_pictures(tmp_path, ["1.jpg"])
    with pytest.raises(DataError, match=r"found 0\. 1 picture lies in no class folder: each class needs one of its own"):
        ImageFolderLT(tmp_path, **SETTINGS).setup()
    save_pictures(tmp_path, ["2.jpg", "cat/3.jpg"])
    with pytest.raises(DataError, match=r"found 1 \(cat\)\. 2 pictures lie in no class folder: each"):
        ImageFolderLT(tmp_path, **SETTINGS).setup()


@pytest.mark.parametrize("inner", [["cat/1.jpg", "dog/1.jpg"], ["Train/cat/1.jpg", "Test/cat/1.jpg"]])
def test_folder_around_the_data_is_pointed_out(tmp_path, inner):
    save_pictures(tmp_path / "images", inner)
    with pytest.raises(DataError, match=rf"found 1 \(images\)\. Did you mean data\.root={tmp_path}/images\?"):
        ImageFolderLT(tmp_path, **SETTINGS).setup()


def test_one_class_in_the_train_folder_is_refused_with_the_layouts(tmp_path):
    save_pictures(tmp_path, ["train/cat/1.jpg", "test/cat/2.jpg"])
    with pytest.raises(DataError, match=r"but found 1 \(cat\)\. The folder must hold train/<class>/"):
        ImageFolderLT(tmp_path, **SETTINGS).setup()


def test_absent_folder_is_refused_with_the_layouts(tmp_path):
    with pytest.raises(DataError, match=r"expected a folder .*nowhere, but there is none\. .* train/<class>/"):
        ImageFolderLT(tmp_path / "nowhere", **SETTINGS).setup()


def test_splits_layout_needs_a_train_folder(classes):
    with pytest.raises(DataError, match=r"expected a folder \S+/train"):
        ImageFolderLT(classes, layout="splits", **SETTINGS).setup()


# --------------------------------------------------------------------------------------------------- held-out test


def test_held_out_share_is_that_of_every_class(classes):
    module = ImageFolderLT(classes, test_fraction=0.4, **SETTINGS)
    assert np.bincount(module.splits.test.labels).tolist() == [4, 2, 1]
    assert module.class_counts.tolist() == [5, 3, 1]
    assert not set(names(module.splits.test)) & set(names(module.splits.train))
    assert "7 test images are held out of the others (0.4 of each class, split_seed=0)" in module.summary()


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.9])
def test_every_class_of_three_gives_a_test_image_and_none_its_last(fraction):
    sizes = np.arange(1, 40)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(39), sizes))
    kept, held_out = hold_out_test(labels, fraction, 0)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    in_test = np.bincount(labels[held_out], minlength=39)
    assert (in_test[2:] >= 1).all()
    assert (in_test < sizes).all()
    assert np.abs(in_test - sizes * fraction)[2:].max() <= 1


def test_classes_too_small_for_a_test_image_are_told(classes):
    assert "Note: 1 of 3 classes has no test image: 'eel'" in ImageFolderLT(classes, **SETTINGS).summary()


def test_held_out_images_follow_split_seed_and_not_seed(classes):
    held_out = [
        names(ImageFolderLT(classes, **settings, **SETTINGS).splits.test)
        for settings in ({}, {"seed": 7}, {"split_seed": 1}, {"split_seed": 2})
    ]
    assert held_out[0] == held_out[1]
    assert len({tuple(paths) for paths in held_out}) > 1


def test_validation_share_is_taken_from_the_training_images_only(classes):
    plain, validated = ImageFolderLT(classes, **SETTINGS), ImageFolderLT(classes, val_fraction=0.3, **SETTINGS)
    assert names(plain.splits.test) == names(validated.splits.test)
    assert sorted(names(validated.splits.train) + names(validated.splits.val)) == sorted(names(plain.splits.train))


# ----------------------------------------------------------------------------------------------- broken pictures


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("split", ["val", "test"])
def test_broken_pictures_of_evaluation_are_found_before_the_training(splits, split):
    save_pictures(splits, class_paths(f"{split}/", {"cat": 2, "dog": 2, "eel": 2}))
    damage(splits / split / "dog" / "1.jpg")
    (splits / split / "eel" / "0.jpg").write_text("no picture")
    (splits / split / "eel" / "1.jpg").write_bytes(b"")
    picture(1).save(splits / split / "cat" / "fine.png")
    name = {"val": "validation", "test": "test"}[split]
    message = (
        rf"{name} pictures that can be decoded, but 3 cannot be: '{split}/dog/1\.jpg: OSError: image file is truncated.*', "
        rf"'{split}/eel/0\.jpg: it is no picture.*', '{split}/eel/1\.jpg: the file is empty'"
    )
    with pytest.raises(DataError, match=message):
        ImageFolderLT(splits, **SETTINGS).setup()
    assert ImageFolderLT(splits, verify_files=False, **SETTINGS).num_classes == 3


def test_broken_pictures_of_a_held_out_test_set_and_of_lists_are_found_too(listed):
    held_out = names(ImageFolderLT(listed / "all", **SETTINGS).splits.test)[0]
    for path in (f"all/{held_out}", "all/eel/0.jpg"):
        damage(listed / path)
    with pytest.raises(DataError, match=f"[12] cannot be: '{held_out}"):
        ImageFolderLT(listed / "all", **SETTINGS).setup()
    with pytest.raises(DataError, match=r"cannot be: .*'all/eel/0\.jpg"):
        ImageFolderLT(listed, train_list="train.txt", test_list="test.txt", **SETTINGS).setup()


# ------------------------------------------------------------------------------------------------------- profile


@pytest.mark.parametrize("profile", ["exponential", "step"])
@pytest.mark.parametrize("factor", [1, 2.5, 10, 50])
def test_profile_is_the_largest_that_all_classes_carry(profile, factor):
    for seed in range(5):
        sizes = sorted(np.random.default_rng(seed).integers(60, 900, 7).tolist(), reverse=True)
        counts = largest_profile(sizes, profile, factor)
        assert all(count <= size for count, size in zip(counts, sizes, strict=True))
        assert counts == profile_counts(profile, 7, counts[0], factor)
        if counts[0] < sizes[0]:
            above = profile_counts(profile, 7, counts[0] + 1, factor)
            assert any(count > size for count, size in zip(above, sizes, strict=True))


def test_cut_ranks_classes_by_size_and_ties_by_label():
    labels = np.repeat([0, 1, 2, 3], [20, 100, 20, 50])
    # n, n / 2, n / 4, n / 8 for the classes 1, 3, 0, 2: class 0 carries n / 4 = 20.75 -> 20, hence n = 83
    assert np.bincount(labels[cut_profile(labels, "exponential", 8)]).tolist() == [20, 83, 10, 41]


def test_profile_cuts_the_training_images_only(classes):
    whole = ImageFolderLT(classes, test_fraction=0.3, **SETTINGS)
    cut = ImageFolderLT(classes, test_fraction=0.3, profile="step", imbalance_factor=2, **SETTINGS)
    assert whole.class_counts.tolist() == [6, 3, 1]
    assert cut.class_counts.tolist() == [3, 1, 1]
    assert names(cut.splits.test) == names(whole.splits.test)
    assert set(names(cut.splits.train)) < set(names(whole.splits.train))
    assert "Note: 5 of 10 training images are kept: step profile of imbalance factor 2, subset_seed=0" in cut.summary()


def test_profile_follows_subset_seed_and_not_seed(classes):
    kept = [
        names(ImageFolderLT(classes, profile="step", imbalance_factor=2, **settings, **SETTINGS).splits.train)
        for settings in ({}, {"seed": 7}, {"subset_seed": 1}, {"subset_seed": 2})
    ]
    assert kept[0] == kept[1]
    assert len({tuple(paths) for paths in kept}) > 1


def test_profile_that_would_empty_a_class_is_refused(classes):
    with pytest.raises(ArgumentError, match="leaves the smallest class of"):
        ImageFolderLT(classes, profile="exponential", imbalance_factor=100, **SETTINGS).setup()


# ----------------------------------------------------------------------------------------------------------- lists


def list_rows(prefix: str, labels: dict[str, int], counts: dict[str, int]) -> list[tuple[str, int]]:
    return [(path, labels[path.split("/")[-2]]) for path in class_paths(prefix, counts)]


NUMBERS = {"cat": 2, "dog": 0, "eel": 1}


@pytest.fixture
def listed(tmp_path) -> Path:
    save_pictures(tmp_path, class_paths("all/"))
    rows = list_rows("all/", NUMBERS, COUNTS)
    save_list(tmp_path / "train.txt", [row for row in rows if not row[0].endswith("/0.jpg")])
    save_list(tmp_path / "test.txt", [row for row in rows if row[0].endswith("/0.jpg")])
    return tmp_path


def test_lists_keep_their_numbers(listed):
    module = ImageFolderLT(listed, train_list="train.txt", test_list="test.txt", **SETTINGS)
    assert module.class_counts.tolist() == [4, 1, 8]
    assert module.class_names == ["dog", "eel", "cat"]
    assert names(module.splits.test) == ["all/cat/0.jpg", "all/dog/0.jpg", "all/eel/0.jpg"]


def test_lists_are_named_by_classnames(listed):
    (listed / "classnames.txt").write_text("Hund\nAal\nKatze\n", encoding="utf-8")
    assert ImageFolderLT(listed, train_list="train.txt", **SETTINGS).class_names == ["Hund", "Aal", "Katze"]


def test_list_without_test_list_gives_a_held_out_test_set(listed):
    module = ImageFolderLT(listed, train_list="train.txt", **SETTINGS)
    assert len(module.splits.train) + len(module.splits.test) == 13
    assert not set(names(module.splits.test)) & set(names(module.splits.train))


def test_lists_may_lie_outside_the_root(listed, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("lists")
    (listed / "train.txt").rename(elsewhere / "mine.txt")
    assert ImageFolderLT(listed, train_list=elsewhere / "mine.txt", **SETTINGS).num_classes == 3
    monkeypatch.chdir(elsewhere)
    assert ImageFolderLT(listed, train_list="mine.txt", **SETTINGS).num_classes == 3


def test_absent_list_is_refused_with_the_places_looked_at(listed):
    with pytest.raises(DataError, match=r"a list nowhere\.txt, but there is none at .*/nowhere\.txt or nowhere\.txt"):
        ImageFolderLT(listed, train_list="nowhere.txt", **SETTINGS).setup()


def test_list_of_absent_pictures_is_refused_unless_switched_off(listed):
    (listed / "all/eel/1.jpg").unlink()
    settings = {"train_list": "train.txt", "test_list": "test.txt", **SETTINGS}
    with pytest.raises(DataError, match=r"1 is not there: 'all/eel/1\.jpg'"):
        ImageFolderLT(listed, **settings).setup()
    assert ImageFolderLT(listed, verify_files=False, **settings).num_classes == 3


def test_lists_that_share_a_picture_are_refused(listed):
    with pytest.raises(DataError, match="13 are in both the training and the test split"):
        ImageFolderLT(listed, train_list="train.txt", test_list="train.txt", **SETTINGS).setup()


def test_label_only_in_the_test_list_is_refused(listed):
    save_list(listed / "test.txt", [("all/cat/0.jpg", 3)])
    with pytest.raises(DataError, match=r"labels in 0 \.\. 2 .*all/cat/0\.jpg: 3"):
        ImageFolderLT(listed, train_list="train.txt", test_list="test.txt", **SETTINGS).setup()


def save_csv(path: Path, header: str, rows: list[tuple[object, ...]]) -> None:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")


def test_csv_with_names_and_splits_does_for_all(listed):
    rows = [(path, path.split("/")[1], "test" if i % 3 == 0 else "train") for i, path in enumerate(class_paths("all/"))]
    save_csv(listed / "all.csv", "path,label,split", [*rows[:1], (rows[1][0], "cat", "val"), *rows[2:]])
    module = ImageFolderLT(listed, train_list="all.csv", **SETTINGS)
    assert module.class_names == ["cat", "dog", "eel"]
    assert names(module.splits.val) == ["all/cat/1.jpg"]
    assert names(module.splits.test) == [path for path, _, split in rows if split == "test"]
    assert (len(module.splits.train), len(module.splits.test)) == (9, 6)


def test_csv_with_numbers_is_read_as_the_list_is(listed):
    for split in ("train", "test"):
        lines = (listed / f"{split}.txt").read_text().splitlines()
        save_csv(listed / f"{split}.csv", "label, path", [line.split()[::-1] for line in lines])
    from_csv = ImageFolderLT(listed, train_list="train.csv", test_list="test.csv", **SETTINGS)
    from_lists = ImageFolderLT(listed, train_list="train.txt", test_list="test.txt", **SETTINGS)
    assert from_csv.class_names == from_lists.class_names
    assert from_csv.splits.train.labels.tolist() == from_lists.splits.train.labels.tolist()
    assert names(from_csv.splits.test) == names(from_lists.splits.test)


def test_csv_takes_quotes_spaces_and_byte_order_mark(tmp_path):
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbfpath,label,who\r\n"a, b.jpg",red cell,me\r\n c.jpg , x ,\r\n')
    table = read_csv(tmp_path / "x.csv", tmp_path)
    assert table.paths.tolist() == [b"a, b.jpg", b"c.jpg"]
    assert table.labels.tolist() == ["red cell", "x"]
    assert table.splits is None


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_may_be_separated_as_spreadsheets_do(tmp_path, separator):
    rows = [
        ["path", "label", "split"],
        ["a/1.jpg", "x y", "Train"],
        ["a/2,5.jpg", "z", "VALIDATION"],
        ["3.jpg", "z", "testing"],
    ]
    rows[2][0] = '"a/2,5.jpg"'
    (tmp_path / "x.csv").write_text("\r\n".join(separator.join(row) for row in rows))
    table = read_csv(tmp_path / "x.csv", tmp_path)
    assert table.paths.tolist() == [b"a/1.jpg", b"a/2,5.jpg", b"3.jpg"]
    assert table.labels.tolist() == ["x y", "z", "z"]
    assert table.splits.tolist() == ["training", "validation", "test"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a column 'path'"),
        (
            "path,labels\na.jpg,x\n",
            "a column 'label', but it does not. Did you mean 'labels'.* Rename the column, or write the header path,label",
        ),
        ("a.jpg;x\nb.jpg;x\n", "a column 'path', .* or write the header path;label"),
        ("path,label\n", "has no rows"),
        ("path,label\na.jpg,x\nb.jpg\n,y\n", r"2 rows lack one: '.*x\.csv:3: b\.jpg,', '.*x\.csv:4: ,y'"),
        ("path,label,split\na.jpg,x,train\nb.jpg,x,dev\n", r"1 is not: '.*x\.csv:3: dev'"),
        ("path,label\n../a.jpg,x\n", r"1 leaves it: .*x\.csv:2"),
        ("path,label\na.jpg,x\n./a.jpg,y\n", r"1 comes again: '.*x\.csv:3"),
        ('path,label\n"' + "a" * 200_000 + ".jpg,x\n", "as CSV: field larger"),
    ],
)
def test_damaged_csv_is_refused_by_file_and_line(tmp_path, content, message):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_csv(tmp_path / "x.csv", tmp_path)
    assert str(tmp_path / "x.csv") in str(caught.value)


def test_csv_without_training_row_is_refused(listed):
    save_csv(listed / "all.csv", "path,label,split", [("all/cat/0.jpg", "cat", "test")])
    with pytest.raises(DataError, match=r"no row has split train"):
        ImageFolderLT(listed, train_list="all.csv", **SETTINGS).setup()


def test_csv_class_only_in_test_is_refused_by_name(listed):
    save_csv(listed / "train.csv", "path,label", [("all/cat/0.jpg", "cat"), ("all/dog/0.jpg", "dog")])
    save_csv(listed / "test.csv", "path,label", [("all/eel/0.jpg", "eel")])
    with pytest.raises(DataError, match="1 is among the test images only: 'eel'"):
        ImageFolderLT(listed, train_list="train.csv", test_list="test.csv", **SETTINGS).setup()


def test_names_in_one_list_and_numbers_in_another_are_refused(listed):
    save_csv(listed / "test.csv", "path,label", [("all/eel/0.jpg", "eel")])
    with pytest.raises(DataError, match="1 is among the test images only: 'eel'"):
        ImageFolderLT(listed, train_list="train.txt", test_list="test.csv", **SETTINGS).setup()


def test_split_column_beside_a_test_list_is_refused(listed):
    save_csv(listed / "all.csv", "path,label,split", [("all/cat/1.jpg", 0, "train")])
    with pytest.raises(DataError, match="column `split`"):
        ImageFolderLT(listed, train_list="all.csv", test_list="test.txt", **SETTINGS).setup()


# -------------------------------------------------------------------------------------------------- settings, batches


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "class"}, "Did you mean 'classes'"),
        ({"test_fraction": 0}, "`test_fraction`"),
        ({"test_fraction": 0.95}, "`test_fraction`"),
        ({"split_seed": 0.5}, "`split_seed`"),
        ({"subset_seed": -1}, "`subset_seed`"),
        ({"profile": "exponental", "imbalance_factor": 10}, "Did you mean 'exponential'"),
        ({"profile": "step", "imbalance_factor": 0.5}, "`imbalance_factor`"),
        ({"profile": "step"}, "go together"),
        ({"imbalance_factor": 10}, "go together"),
        ({"test_list": "test.txt"}, "`train_list`"),
        ({"train_list": "train.txt", "layout": "splits"}, "`layout`"),
        ({"num_workers": -1}, "`num_workers`"),
    ],
)
def test_senseless_setting_is_refused_at_once(settings, message):
    with pytest.raises(ArgumentError, match=message):
        ImageFolderLT("anywhere", **settings)


def test_default_sizes_are_those_of_imagenet():
    assert ImageFolderLT("anywhere").preprocessing == {
        "size": 224,
        "resize": 256,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert ImageFolderLT("anywhere", image_size=64).preprocessing["resize"] == 73


def test_batches_are_the_same_for_0_and_2_workers_and_any_batch_size(classes):
    alone, helped = (ImageFolderLT(classes, num_workers=n, color_jitter=0.4, **SETTINGS) for n in (0, 2))
    batches = training_batches(alone, epoch=2)
    assert_same_batches(batches, training_batches(helped, epoch=2))
    larger = ImageFolderLT(classes, color_jitter=0.4, **{**SETTINGS, "batch_size": 7})
    one, other = by_index(batches), by_index(training_batches(larger, epoch=2))
    assert all(torch.equal(image, other[row]) for row, image in one.items())


def test_folder_found_from_a_relative_path_has_a_title(classes, monkeypatch):
    monkeypatch.chdir(classes)
    assert ImageFolderLT(".", **SETTINGS).summary().startswith(f"folder {classes.name}: ")


def test_unlistable_folder_is_refused_by_name(classes, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"Cannot list the folder {classes}: Permission denied"):
        scan_classes(classes)


# -------------------------------------------------------------------------------------------------- real blood cells


def test_blood_cells_from_lists():
    module = ImageFolderLT(
        real_data("bccd-cells"),
        train_list="bccd_train.txt",
        val_list="bccd_val.txt",
        test_list="bccd_test.txt",
        image_size=32,
        batch_size=8,
    )
    assert dict(zip(module.class_names, module.class_counts.tolist(), strict=True)) == {
        "Platelets": 209,
        "RBC": 2381,
        "WBC": 214,
    }
    assert np.bincount(module.splits.val.labels).tolist() == [83, 967, 87]
    assert np.bincount(module.splits.test.labels).tolist() == [69, 805, 71]
    assert module.notes == []
    batch = next(iter(module.train_dataloader()))
    assert batch.images.shape == (7, 3, 32, 32)  # 2,804 images in 351 batches of 7 or 8
    assert batch.images.isfinite().all()


def test_blood_cells_from_class_folders():
    module = ImageFolderLT(real_data("bccd-cells") / "images", image_size=32, batch_size=8)
    assert module.class_names == ["Platelets", "RBC", "WBC"]
    assert (module.class_counts + torch.from_numpy(np.bincount(module.splits.test.labels))).tolist() == [361, 4153, 372]
    assert np.bincount(module.splits.test.labels).tolist() == [72, 831, 74]
    assert next(iter(module.test_dataloader())).images.shape == (8, 3, 32, 32)


def test_blood_cells_cut_to_a_profile():
    module = ImageFolderLT(
        real_data("bccd-cells"),
        train_list="bccd_train.txt",
        test_list="bccd_test.txt",
        profile="exponential",
        imbalance_factor=10,
    )
    # RBC, WBC, Platelets by size; n_max * 10 ** -0.5 must not exceed 214: n_max = 679 gives 679, 214, 67
    assert module.class_counts.tolist() == [67, 679, 214]


def test_the_fingerprint_tells_other_pictures_of_the_same_names_but_not_another_place(tmp_path):
    def folder(name, size):
        for label, count in (("a", 4), ("b", 2)):
            for number in range(count):
                path = tmp_path / name / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (size + number, size), (10 * number, 50, 90)).save(path)
        return ImageFolderLT(tmp_path / name, image_size=8)

    first, moved, other = folder("first", 20), folder("moved", 20), folder("other", 25)
    assert first.fingerprint == moved.fingerprint
    assert first.fingerprint != other.fingerprint
    assert first.fingerprint != ImageFolderLT(tmp_path / "first", image_size=8, test_fraction=0.5).fingerprint
