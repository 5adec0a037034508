import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.make_images import (
    SETTINGS,
    assert_same_batches,
    by_index,
    imagenet_rows,
    real_data,
    save_coco,
    save_imagenet_lt,
    save_list,
    save_pictures,
    training_batches,
)
from torchvision import transforms as v1

from mllt.data.images import FileSource, load_rgb
from mllt.data.lists import (
    ImageNetLT,
    INaturalist2018,
    PlacesLT,
    absent_files,
    blob_id,
    check_disjoint,
    folder_names,
    read_class_names,
    read_coco,
    read_list,
)
from mllt.data.order import Draws
from mllt.errors import ArgumentError, DataError
from mllt.longtail import shot_groups


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    return save_imagenet_lt(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def own_imagenet(imagenet, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(imagenet, tmp_path / "imagenet"))


# ------------------------------------------------------------------------------------------------------ reading lists


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_list_gives_paths_and_labels_in_order(tmp_path):
    source = read_list(write(tmp_path / "list.txt", "b/2.jpg 1\na/1.jpg 0\n"), "/data")
    assert source.labels.tolist() == [1, 0]
    assert source.labels.dtype == np.int64
    assert [source.name_of(0), source.name_of(1)] == ["/data/b/2.jpg", "/data/a/1.jpg"]


@pytest.mark.parametrize(
    ("content", "paths", "labels"),
    [
        ("a dog/my dog.jpg 3\n", [b"a dog/my dog.jpg"], [3]),
        ("a.jpg 3", [b"a.jpg"], [3]),
        ("a.jpg 3\r\nb.jpg 4\r\n", [b"a.jpg", b"b.jpg"], [3, 4]),
        ("a.jpg\t  3  \n\n\nb.jpg 004\n", [b"a.jpg", b"b.jpg"], [3, 4]),
        ("\ufeffa.jpg 3\n", [b"a.jpg"], [3]),
        ("./a//x/../b.jpg 3\n", [b"a/b.jpg"], [3]),
        (b"caf\xe9.jpg 3\n", [b"caf\xe9.jpg"], [3]),
        ("...jpg 3\n..a/b 4\n", [b"...jpg", b"..a/b"], [3, 4]),
    ],
    ids=["spaces", "no last newline", "windows", "blanks", "byte order mark", "detours", "latin-1", "dots"],
)
def test_list_tolerates_what_is_harmless(tmp_path, content, paths, labels):
    source = read_list(write(tmp_path / "list.txt", content), tmp_path)
    assert source.paths.tolist() == paths
    assert source.labels.tolist() == labels


@pytest.mark.parametrize("line", ["x.jpg", "x.jpg cat", "x.jpg -1", "x.jpg 1.0", "x.jpg 1_0", "x.jpg 12345678901", "7"])
def test_malformed_line_is_named_by_file_and_number(tmp_path, line):
    path = write(tmp_path / "list.txt", f"a.jpg 0\n\n{line}\n{line}\n")
    with pytest.raises(DataError, match="whole number") as caught:
        read_list(path, tmp_path)
    assert f"{path}:3: {line}" in str(caught.value)
    assert "2 lines" in str(caught.value)


@pytest.mark.parametrize("path", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..", "a/b/../../.."])
def test_path_that_leaves_the_root_is_refused(tmp_path, path):
    with pytest.raises(DataError, match=r"list\.txt:2: .*") as caught:
        read_list(write(tmp_path / "list.txt", f"a.jpg 0\n{path} 0\n"), tmp_path)
    assert path in str(caught.value)
    assert "1 leaves it" in str(caught.value)
    assert f"inside the data folder {tmp_path}," in str(caught.value)
    assert "Write paths from that folder on, or set data.root to one that holds all pictures." in str(caught.value)


def test_absolute_path_into_the_root_is_taken_as_relative_to_it(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    rows = f"{tmp_path}/data/a dog/1.jpg 0\n{tmp_path}/data/./b//2.jpg 1\n"
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "data", "data", tmp_path / "link"):
        assert read_list(write(tmp_path / "list.txt", rows), root).paths.tolist() == [b"a dog/1.jpg", b"b/2.jpg"]
    linked = write(tmp_path / "list.txt", f"{tmp_path}/link/1.jpg 0\n")
    assert read_list(linked, "link").paths.tolist() == [b"1.jpg"]
    with pytest.raises(DataError, match="1 leaves it"):  # another folder whose name begins alike
        read_list(write(tmp_path / "list.txt", f"{tmp_path}/data2/1.jpg 0\n"), "data")


def test_path_that_comes_twice_is_refused_with_both_lines(tmp_path):
    with pytest.raises(DataError, match=r"1 comes again: '.*list\.txt:3: \./a\.jpg, as .*list\.txt:1'"):
        read_list(write(tmp_path / "list.txt", "a.jpg 0\nb.jpg 0\n./a.jpg 1\n"), tmp_path)


def test_many_problems_are_counted_and_a_few_named(tmp_path):
    with pytest.raises(DataError, match=r"40 lines are not.*and 35 more"):
        read_list(write(tmp_path / "list.txt", "x\n" * 40), tmp_path)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_list_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="is empty"):
        read_list(write(tmp_path / "list.txt", content), tmp_path)


def test_absent_list_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt: No such file"):
        read_list(tmp_path / "nowhere.txt", tmp_path)


def test_absent_files_are_found_also_in_absent_folders(tmp_path):
    save_pictures(tmp_path, ["a/1.jpg", "top.jpg"])
    source = FileSource(["a/1.jpg", "a/2.jpg", "b/1.jpg", "top.jpg", "gone.jpg", "top.jpg/x.jpg"], [0] * 6, tmp_path)
    assert sorted(absent_files(source)) == ["a/2.jpg", "b/1.jpg", "gone.jpg", "top.jpg/x.jpg"]


def test_unlistable_folder_is_refused_by_name(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder.decode())

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=f"Cannot list '{tmp_path}/a': Permission denied"):
        absent_files(FileSource(["a/1.jpg"], [0], tmp_path))


def test_splits_that_share_a_picture_are_refused():
    sources = {"training": FileSource(["a", "b", "c"], [0] * 3), "test": FileSource(["c", "b", "d"], [0] * 3)}
    with pytest.raises(DataError, match="2 are in both the training and the test split: 'b', 'c'"):
        check_disjoint(sources)
    check_disjoint({"training": FileSource(["a"], [0]), "test": FileSource(["a longer path"], [0])})


def test_blob_id_is_what_git_prints(tmp_path):
    path = write(tmp_path / "x", b"train/a.jpg 0\n")
    if shutil.which("git") is None:
        pytest.skip("needs git")
    printed = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True)
    assert blob_id(path) == printed.stdout.strip()


# ------------------------------------------------------------------------------------------------------- class names


def test_names_come_from_classnames_line_by_line(tmp_path):
    write(tmp_path / "classnames.txt", "red cell\r\nwhite cell\n\n")
    assert read_class_names([tmp_path / "nowhere", tmp_path]) == ["red cell", "white cell"]
    assert read_class_names([tmp_path], drop_first_word=True) == ["cell", "cell"]


def test_names_come_from_categories_by_identifier(tmp_path):
    write(tmp_path / "categories.json", json.dumps([{"id": 1, "name": "newt"}, {"id": 0, "name": "frog"}]))
    assert read_class_names([tmp_path]) == ["frog", "newt"]


@pytest.mark.parametrize("content", ["{", '{"id": 0}', '[{"id": 0}]', '[{"id": 0, "name": "a"}, {"id": 2, "name": "b"}]'])
def test_broken_categories_are_refused_by_name(tmp_path, content):
    write(tmp_path / "categories.json", content)
    with pytest.raises(DataError, match=r"categories\.json"):
        read_class_names([tmp_path])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["train/cat/1", "train/dog/1", "train/cat/2"], ["cat", "dog"]),
        (["a/house/indoor/1", "a/barn/indoor/1", "a/house/indoor/2"], ["a/house/indoor", "a/barn/indoor"]),
        (["all/1", "all/2", "all/3"], ["0", "1"]),
        (["cat/1", "dog/1", "kitten/1"], ["0", "1"]),
    ],
    ids=["last part", "whole folder", "one folder for all", "a class of two folders"],
)
def test_names_come_from_folders_where_each_class_has_one(paths, names):
    assert folder_names(FileSource(paths, [0, 1, 0])) == names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2], "go up to 2 and 1 of them has none, first 1. Number the classes from 0"),
        ([1, 2, 3], "from 0 on, but they go from 1 to 3. Number the classes from 0"),
        ([0, 2, 4], "go up to 4 and 2 of them have none, first 1, 3"),
        ([0, 999_999_999], "999,999,998 of them have none, first 1, 2"),
    ],
)
def test_gap_in_the_labels_is_refused(labels, message):
    with pytest.raises(DataError, match=message):
        folder_names(FileSource([str(i) for i in range(len(labels))], labels))


# ----------------------------------------------------------------------------------------------- the official layouts


def test_imagenet_lt_is_read_from_its_layout(imagenet):
    module = ImageNetLT(imagenet, **SETTINGS)
    assert module.class_counts.tolist() == [6, 3, 1]
    assert module.class_names == ["n01440764", "n01443537", "n01484850"]
    assert (len(module.splits.train), len(module.splits.val), len(module.splits.test)) == (10, 6, 6)
    assert module.splits.train.name_of(0) == str(imagenet / "train/n01440764/n01440764_0.JPEG")
    assert "ImageNet-LT: 10 training images in 3 classes, 6 to 1 per class" in module.summary()


def test_imagenet_lt_takes_names_after_the_wnid(own_imagenet):
    write(own_imagenet / "classnames.txt", "n01440764 tench\nn01443537 goldfish\nn01484850 great white shark\n")
    assert ImageNetLT(own_imagenet, **SETTINGS).class_names == ["tench", "goldfish", "great white shark"]


def test_lists_may_lie_in_a_folder_of_their_own(own_imagenet, tmp_path):
    (tmp_path / "lists").mkdir()
    for path in own_imagenet.glob("*.txt"):
        shutil.move(path, tmp_path / "lists")
    assert ImageNetLT(own_imagenet, tmp_path / "lists", **SETTINGS).num_classes == 3


def test_without_validation_list_there_is_none_and_a_note(own_imagenet):
    (own_imagenet / "ImageNet_LT_val.txt").unlink()
    module = ImageNetLT(own_imagenet, **SETTINGS)
    assert module.splits.val is None
    assert "no ImageNet_LT_val.txt" in module.summary()


def test_changed_list_is_noted_or_refused(imagenet):
    found = blob_id(imagenet / "ImageNet_LT_train.txt")
    module = ImageNetLT(imagenet, **SETTINGS)
    assert f"Note: ImageNet_LT_train.txt is not the official list (`git hash-object` prints {found}" in module.summary()
    with pytest.raises(DataError, match=r"ImageNet_LT_train\.txt is not the official list"):
        ImageNetLT(imagenet, verify_lists=True, **SETTINGS).setup()


def test_setup_twice_notes_once(imagenet):
    module = ImageNetLT(imagenet, **SETTINGS)
    module.setup()
    module.setup("fit")
    assert len(module.notes) == len(set(module.notes)) == 3


def test_setup_after_a_failed_one_notes_once(own_imagenet):
    picture = own_imagenet / "val/n01440764/ILSVRC2012_val_00.JPEG"
    picture.rename(own_imagenet / "aside.jpg")
    module = ImageNetLT(own_imagenet, **SETTINGS)
    with pytest.raises(DataError, match="1 is not there"):
        module.setup()
    (own_imagenet / "aside.jpg").rename(picture)
    module.setup()
    assert len(module.notes) == len(set(module.notes)) == 3


@pytest.mark.parametrize(
    "rows",
    [
        {"train": "train/{}/0000{}.jpg", "val": "train/{}/1000{}.jpg", "test": "val/{}/Places365_val_0{}.jpg"},
        {"train": "data_256/a/{}/0000{}.jpg", "val": "data_256/a/{}/1000{}.jpg", "test": "val_256/{}_Places365_val_{}.jpg"},
    ],
    ids=["large", "256 pixels"],
)
def test_places_lt_is_read_from_both_layouts(tmp_path, rows):
    for split, template in rows.items():
        entries = [(template.format(name, i), k) for k, name in enumerate(["airfield", "alcove"]) for i in range(3 - k)]
        save_pictures(tmp_path, [path for path, _ in entries])
        save_list(tmp_path / f"Places_LT_{split}.txt", entries)
    module = PlacesLT(tmp_path, **SETTINGS)
    assert module.class_counts.tolist() == [3, 2]
    assert module.class_names == ["airfield", "alcove"]
    assert module.color_jitter == 0.4
    assert next(iter(module.test_dataloader())).images.shape == (4, 3, 16, 16)


INAT_TRAIN = [(f"train_val2018/Aves/{c}/{c}{i}.jpg", c) for c, n in ((0, 5), (1, 2), (2, 2)) for i in range(n)]
INAT_TEST = [(f"train_val2018/Aves/{c}/{c}t{i}.jpg", c) for c in (2, 0, 1) for i in range(3)]


@pytest.fixture
def inaturalist(tmp_path) -> Path:
    save_pictures(tmp_path, [path for path, _ in INAT_TRAIN + INAT_TEST])
    return tmp_path


def test_inaturalist_validation_list_is_the_test_set(inaturalist):
    save_list(inaturalist / "iNaturalist18_train.txt", INAT_TRAIN)
    save_list(inaturalist / "iNaturalist18_val.txt", INAT_TEST)
    module = INaturalist2018(inaturalist, **SETTINGS)
    assert module.class_counts.tolist() == [5, 2, 2]
    assert module.splits.val is None
    assert module.val_dataloader() == []
    assert module.splits.test.labels.tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1]
    assert module.class_names == ["0", "1", "2"]
    assert (module.color_jitter, module.mean, module.std) == (0, [0.466, 0.471, 0.38], [0.195, 0.194, 0.192])


def test_inaturalist_json_gives_what_the_lists_give(inaturalist):
    names = {0: "finch", 1: "wren", 2: "crow"}
    save_coco(inaturalist / "train2018.json", INAT_TRAIN, names)
    save_coco(inaturalist / "val2018.json", INAT_TEST, names)
    from_json = INaturalist2018(inaturalist, **SETTINGS)
    assert from_json.class_names == ["finch", "wren", "crow"]
    save_list(inaturalist / "iNaturalist18_train.txt", INAT_TRAIN)
    save_list(inaturalist / "iNaturalist18_val.txt", INAT_TEST)
    from_lists = INaturalist2018(inaturalist, **SETTINGS)
    for split in ("train", "test"):
        one, other = getattr(from_json.splits, split), getattr(from_lists.splits, split)
        assert one.paths.tolist() == other.paths.tolist()
        assert one.labels.tolist() == other.labels.tolist()


def test_json_categories_are_ranked_by_identifier(inaturalist):
    identifier = {0: 30, 1: 7, 2: 12}
    names = {30: "finch", 7: "wren", 12: "crow"}
    save_coco(inaturalist / "train2018.json", [(path, identifier[c]) for path, c in INAT_TRAIN], names)
    save_coco(inaturalist / "val2018.json", [(path, identifier[c]) for path, c in INAT_TEST], names)
    module = INaturalist2018(inaturalist, **SETTINGS)
    assert module.class_names == ["wren", "crow", "finch"]
    assert module.class_counts.tolist() == [2, 2, 5]
    assert module.splits.test.labels.tolist() == [1, 1, 1, 2, 2, 2, 0, 0, 0]


def damaged(**changes):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 0}, {"image_id": 2, "category_id": 0}],
        "categories": [{"id": 0, "name": "newt"}],
    }
    return json.dumps({**content, **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        (damaged(images=[{"id": 1}]), "KeyError: 'file_name'"),
        (damaged(annotations=[{"image_id": 1, "category_id": 0}]), r"1 image has none, or several: 'b\.jpg: 0'"),
        (damaged(annotations=[{"image_id": i, "category_id": 0} for i in (1, 2, 2)]), r"several: 'b\.jpg: 2'"),
        (damaged(annotations=[{"image_id": i, "category_id": 0} for i in (1, 2, 3)]), "1 names no image: '3'"),
        (damaged(annotations=[{"image_id": i, "category_id": i} for i in (1, 2)]), "2 are not listed: '1', '2'"),
        (
            damaged(images=[{"id": i, "file_name": "a.jpg"} for i in (1, 2)]),
            r"picture once, but 1 comes again: '.*image 2: a\.jpg",
        ),
        (damaged(images=[{"id": i, "file_name": f"{i}{n}"} for n, i in enumerate((1, 2, 2))]), "identifier once .*: '2'"),
        (damaged(images=[{"id": i, "file_name": f"../{i}.jpg"} for i in (1, 2)]), "2 leave it"),
    ],
)
def test_damaged_json_is_refused_by_name_and_cause(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_coco(write(tmp_path / "train2018.json", content), tmp_path)
    assert str(tmp_path / "train2018.json") in str(caught.value)


def test_json_test_category_without_training_category_is_refused(inaturalist):
    save_coco(inaturalist / "train2018.json", INAT_TRAIN, {0: "a", 1: "b", 2: "c"})
    save_coco(inaturalist / "val2018.json", [(INAT_TEST[0][0], 5)], {5: "z"})
    with pytest.raises(DataError, match=r"categories of train2018\.json in val2018\.json, but 1 is not there: '5'"):
        INaturalist2018(inaturalist, **SETTINGS).setup()


# ---------------------------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (ImageNetLT, ["ILSVRC 2012", "ImageNet_LT_train.txt a063f095fcd475db4cf8b0658c4b73955535bbf9", "train/<wnid>/"]),
        (PlacesLT, ["Places365", "6392252f8ae867bc8a5e841cc1b29e5b8ef4b636", "data_256/a/<category>/"]),
        (
            INaturalist2018,
            [
                "visipedia/inat_comp",
                "4accdb7584d2f0a5106c40a33ed6afa392189bcc",
                "train_val2018/",
                "train2018.json",
                "no official identifier is known",
            ],
        ),
    ],
)
def test_missing_data_error_says_what_to_get_and_where_it_goes(tmp_path, module, words):
    with pytest.raises(DataError) as caught:
        module(tmp_path / "nothing").setup()
    for word in [*words, "git hash-object", str(tmp_path / "nothing"), module.train_list, module.test_list]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_list_is_named_though_pictures_are_there(own_imagenet):
    (own_imagenet / "ImageNet_LT_test.txt").unlink()
    with pytest.raises(DataError, match=r"data is missing: no \S+ImageNet_LT_test\.txt\."):
        ImageNetLT(own_imagenet).setup()


def test_absent_pictures_are_counted_and_named_unless_switched_off(own_imagenet):
    shutil.rmtree(own_imagenet / "val" / "n01440764")
    (own_imagenet / "val" / "n01484850" / "ILSVRC2012_val_20.JPEG").unlink()
    with pytest.raises(DataError, match=r"6 test pictures .* 3 are not there: 'val/n01440764/ILSVRC2012_val_00\.JPEG'"):
        ImageNetLT(own_imagenet, **SETTINGS).setup()
    module = ImageNetLT(own_imagenet, verify_files=False, **SETTINGS)
    assert module.num_classes == 3
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00\.JPEG: there is no such file"):
        next(iter(module.test_dataloader()))


def test_unreadable_picture_is_named_from_a_worker_process(own_imagenet):
    bad = own_imagenet / "val/n01443537/ILSVRC2012_val_10.JPEG"
    bad.write_bytes(bad.read_bytes()[:-100])
    module = ImageNetLT(own_imagenet, num_workers=1, **SETTINGS)
    with pytest.raises(DataError, match=r"ILSVRC2012_val_10\.JPEG: OSError: image file is truncated"):
        list(module.test_dataloader())


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", {2: 7}, "labels go up to 7 and 5 of them have none, first 2, 3, 4"),
        ("test", {1: 7}, r"labels in 0 \.\. 2 .* 2 test labels are outside: '.*ILSVRC2012_val_10\.JPEG: 7'"),
        ("val", {1: 3}, r"labels in 0 \.\. 2 .* 2 validation labels are outside"),
    ],
)
def test_label_out_of_range_is_refused(own_imagenet, split, change, message):
    rows = imagenet_rows()[split]
    save_list(own_imagenet / f"ImageNet_LT_{split}.txt", [(path, change.get(label, label)) for path, label in rows])
    with pytest.raises(DataError, match=message):
        ImageNetLT(own_imagenet, **SETTINGS).setup()


def test_class_name_without_training_picture_is_refused(own_imagenet):
    write(own_imagenet / "classnames.txt", "a tench\nb goldfish\nc shark\nd ray\n")
    with pytest.raises(DataError, match="1 of 4 has none: 'ray'"):
        ImageNetLT(own_imagenet, **SETTINGS).setup()


def test_label_beyond_the_class_names_is_refused(own_imagenet):
    write(own_imagenet / "classnames.txt", "a tench\nb goldfish\n")
    with pytest.raises(DataError, match=r"labels in 0 \.\. 1 \(2 class names\), but 1 training label is outside"):
        ImageNetLT(own_imagenet, **SETTINGS).setup()


@pytest.mark.parametrize("other", ["val", "test"])
def test_picture_in_train_and_another_split_is_refused(own_imagenet, other):
    rows = imagenet_rows()
    save_list(own_imagenet / f"ImageNet_LT_{other}.txt", [*rows[other], rows["train"][3]])
    name = {"val": "validation", "test": "test"}[other]
    with pytest.raises(DataError, match=f"1 is in both the training and the {name} split: 'train/n01440764/n01440764_3.JPEG'"):
        ImageNetLT(own_imagenet, **SETTINGS).setup()


def test_picture_in_val_and_test_is_refused(own_imagenet):
    rows = imagenet_rows()
    save_list(own_imagenet / "ImageNet_LT_test.txt", [*rows["test"], rows["val"][0]])
    with pytest.raises(DataError, match="1 is in both the test and the validation split"):
        ImageNetLT(own_imagenet, **SETTINGS).setup()


def test_class_without_test_image_is_noted(own_imagenet):
    save_list(own_imagenet / "ImageNet_LT_test.txt", imagenet_rows()["test"][:4])
    assert "Note: 1 of 3 classes has no test image: 'n01484850'" in ImageNetLT(own_imagenet, **SETTINGS).summary()


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 0},
        {"resize": 100},
        {"resize": "large"},
        {"color_jitter": -1},
        {"hue": 1},
        {"crop_scale": (0, 2)},
        {"crop_scale": None},
        {"crop_scale": ["small", 1]},
        {"padding": -1, "color_jitter": 0},
        {"padding": 4, "color_jitter": 0.4},
        {"mean": [0.5]},
        {"verify_files": "yes"},
        {"verify_lists": 1},
        {"batch_size": 0},
    ],
    ids=str,
)
def test_senseless_setting_is_refused_at_once(settings):
    with pytest.raises(ArgumentError, match=f"`{next(iter(settings))}`"):
        ImageNetLT("anywhere", **settings)


# -------------------------------------------------------------------------------------------------- batches


def test_batches_are_the_same_for_0_and_2_workers(imagenet):
    alone, helped = (ImageNetLT(imagenet, num_workers=n, seed=3, **SETTINGS) for n in (0, 2))
    assert_same_batches(training_batches(alone, epoch=1), training_batches(helped, epoch=1))
    assert_same_batches(list(alone.test_dataloader()), list(helped.test_dataloader()))


def test_training_picture_does_not_depend_on_the_batch_size(imagenet):
    small, large = (ImageNetLT(imagenet, **{**SETTINGS, "batch_size": size}) for size in (3, 10))
    one, other = by_index(training_batches(small)), by_index(training_batches(large))
    assert sorted(one) == sorted(other) == list(range(10))
    for row, image in one.items():
        assert torch.equal(image, other[row])


def test_every_epoch_augments_anew(imagenet):
    module = ImageNetLT(imagenet, **SETTINGS)
    one, other = by_index(training_batches(module, 0)), by_index(training_batches(module, 1))
    assert not any(torch.equal(one[row], other[row]) for row in one)


def test_test_batches_are_the_pictures_as_evaluation_prescribes(imagenet):
    module = ImageNetLT(imagenet, **{**SETTINGS, "image_size": 28})
    assert module.preprocessing == {
        "size": 28,
        "resize": 32,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    steps = [v1.Resize(32), v1.CenterCrop(28), v1.ToTensor(), v1.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    found = by_index(list(module.test_dataloader()))
    for row, (path, _) in enumerate(imagenet_rows()["test"]):
        torch.testing.assert_close(found[row], v1.Compose(steps)(load_rgb(imagenet / path)), rtol=0, atol=1e-5)


def test_default_sizes_are_those_of_the_literature():
    module = ImageNetLT("anywhere")
    assert (module.preprocessing["size"], module.preprocessing["resize"], module.color_jitter) == (224, 256, 0.4)
    assert (PlacesLT("anywhere").color_jitter, INaturalist2018("anywhere").color_jitter) == (0.4, 0)
    assert ImageNetLT("anywhere", resize=None).preprocessing["resize"] is None


def test_without_augmentation_training_pictures_are_prepared_as_test_pictures(imagenet):
    module = ImageNetLT(imagenet, augment=False, shuffle=False, **SETTINGS)
    batch = training_batches(module)[0]
    expected = module.eval_transform()(module.splits.train.load(batch.indices.numpy()), None)
    assert torch.equal(batch.images, expected)
    assert batch.targets.tolist() == module.splits.train.labels[batch.indices].tolist()


def test_padding_asks_for_padded_crops(imagenet):
    module = ImageNetLT(imagenet, padding=2, color_jitter=0, **SETTINGS)
    images = module.splits.train.load(np.arange(1))
    plain = module.eval_transform()(images, None)
    found = module.train_transform()(images * 50, Draws(0, 0, np.arange(50)))
    assert any(torch.equal(one, plain[0]) or torch.equal(one, plain[0].flip(-1)) for one in found)


# ---------------------------------------------------------------------------------------------------- the real lists


@pytest.mark.parametrize("release", ["Places_LT", "Places_LT_v2"])
def test_real_places_lists(release):
    lists = real_data("lt-splits") / release
    module = PlacesLT("no pictures here", lists, verify_files=False, verify_lists=True)
    counts = module.class_counts
    assert (int(counts.sum()), len(module.splits.val), len(module.splits.test)) == (62_500, 7_300, 36_500)
    assert (len(counts), int(counts.max()), int(counts.min())) == (365, 4980, 5)
    assert {name: int(mask.sum()) for name, mask in shot_groups(counts).items()} == {"many": 131, "medium": 163, "few": 71}
    assert set(np.bincount(module.splits.val.labels)) == {20}
    assert set(np.bincount(module.splits.test.labels)) == {100}
    assert module.notes == []
    if release == "Places_LT":
        assert module.class_names[:2] == ["airfield", "airplane_cabin"]
    else:
        assert len(set(module.class_names)) == 365
        assert module.class_names[0] == "data_256/a/airfield"  # ".../indoor" alone would not be unique


@pytest.mark.parametrize(("split", "per_class"), [("val", 20), ("test", 50)])
def test_real_imagenet_lists(split, per_class):
    path = real_data("lt-splits") / "ImageNet_LT" / f"ImageNet_LT_{split}.txt"
    source = read_list(path, "data")
    assert np.bincount(source.labels).tolist() == [per_class] * 1000
    assert blob_id(path) in ImageNetLT.blob_ids[path.name]


def test_real_imagenet_counts_give_the_published_groups(tmp_path):
    real = real_data("lt-splits") / "ImageNet_LT"
    counts = np.load(real / "class_count_train.npy")
    for name in ("ImageNet_LT_val.txt", "ImageNet_LT_test.txt", "classnames.txt"):
        (tmp_path / name).symlink_to(real / name)
    save_list(tmp_path / "ImageNet_LT_train.txt", [(f"train/{k}/x{i}.JPEG", k) for k in range(1000) for i in range(counts[k])])
    module = ImageNetLT(tmp_path, verify_files=False)
    assert int(module.class_counts.sum()) == 115_846
    summary = module.summary()
    assert "1,280 to 5 per class (imbalance factor 256); 385 many / 479 medium / 136 few-shot classes" in summary
    assert "50,000 test images, 20,000 validation images" in summary
    assert module.class_names[:3] == ["tench", "goldfish", "great white shark"]


def test_real_inaturalist_validation_list():
    folder = real_data("lt-splits") / "iNaturalist18"
    source = read_list(folder / "iNaturalist18_val.txt", "data")
    assert np.bincount(source.labels).tolist() == [3] * 8142
    assert blob_id(folder / "iNaturalist18_val.txt") in INaturalist2018.blob_ids["iNaturalist18_val.txt"]
    names = read_class_names([folder])
    assert len(names) == 8142
    assert names[0] == "Hermodice carunculata"
