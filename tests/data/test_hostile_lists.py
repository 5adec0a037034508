"""Lists, JSON files and stored settings made to read what is not in the data folder, or to end in a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from tests.data.make_images import SETTINGS, imagenet_rows, save_imagenet_lt, save_list, save_pictures

from mllt.build import stored_data
from mllt.data.folder import read_csv
from mllt.data.images import FileSource
from mllt.data.lists import ImageNetLT, absent_files, read_class_names, read_coco, read_list
from mllt.errors import DataError
from mllt.results import RunFolder

#: Ways out of the folder, or to what is no file in it; backslashes are a way on some systems only.
WAYS_OUT = {
    "up": "../secret.jpg",
    "down and up": "a/../../secret.jpg",
    "many slashes": "a//..//..///secret.jpg",
    "dots between": "./.././secret.jpg",
    "absolute": "/etc/secret.jpg",
    "two slashes": "//etc/secret.jpg",
    "the folder itself": "a/..",
    "backslashes": "..\\secret.jpg",
    "a drive": "C:\\secret.jpg",
    "a zero": "a.jpg\0.png",
    "a zero at the end": "a.jpg\0",
    "a way behind a zero": "a\0/../../secret.jpg",
    "up to a zero": "..\0",
    "a new line": "a\rb.jpg",
    "an escape": "a\x1b[2J.jpg",
}


def as_list(folder: Path, path: str) -> FileSource:
    (folder / "list.txt").write_bytes(b"a.jpg 0\n" + os.fsencode(path) + b" 0\n")
    return read_list(folder / "list.txt", folder / "data")


def as_csv(folder: Path, path: str) -> FileSource:
    quoted = b'"' + os.fsencode(path) + b'"'
    (folder / "list.csv").write_bytes(b"path,label\na.jpg,0\n" + quoted + b",0\n")
    table = read_csv(folder / "list.csv", folder / "data")
    return FileSource(table.paths, table.labels.astype(np.int64), folder / "data")


def as_coco(folder: Path, path: str) -> FileSource:
    content = {
        "images": [{"id": 0, "file_name": "a.jpg"}, {"id": 1, "file_name": path}],
        "annotations": [{"image_id": i, "category_id": 0} for i in (0, 1)],
        "categories": [{"id": 0, "name": "a"}],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return read_coco(folder / "train.json", folder / "data")[0]


readers = pytest.mark.parametrize("read", [as_list, as_csv, as_coco])


@readers
@pytest.mark.parametrize("path", WAYS_OUT.values(), ids=WAYS_OUT)
def test_no_path_leaves_the_data_folder(tmp_path, read, path):
    with pytest.raises(DataError, match=r"(leaves it|is odd): '.*") as caught:
        read(tmp_path, path)
    assert "\0" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@readers
@pytest.mark.parametrize(
    "path",
    [
        "~/x.jpg",
        "%2e%2e/x.jpg",
        "\udcc0\udcae\udcc0\udcae/x.jpg",
        "\uff0e\uff0e/x.jpg",
        "$HOME/x.jpg",
        "..x/y.jpg",
        "x../y.jpg",
    ],
    ids=["home", "percent", "overlong", "wide dots", "variable", "dots first", "dots last"],
)
def test_what_other_programs_would_unfold_is_a_plain_name_within_the_folder(tmp_path, read, path):
    source = read(tmp_path, path)
    assert source.name_of(1) == os.path.join(tmp_path, "data", path)
    assert absent_files(source) == ["a.jpg", path]


def test_links_that_the_owner_put_into_the_folder_are_followed(tmp_path):
    rows = imagenet_rows()
    save_pictures(tmp_path / "elsewhere", [path for entries in rows.values() for path, _ in entries])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere" / "train")
    (tmp_path / "data" / "val").symlink_to(tmp_path / "elsewhere" / "val")
    for split, entries in rows.items():
        save_list(tmp_path / "data" / f"ImageNet_LT_{split}.txt", entries)
    module = ImageNetLT(tmp_path / "data", **SETTINGS)
    assert len(list(module.test_dataloader())) == 2


def test_a_way_up_from_a_link_is_the_way_that_is_written(tmp_path):
    """`link/../x.jpg` is `x.jpg` of the folder, not a neighbour of what the link leads to."""
    (tmp_path / "elsewhere" / "pictures").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere" / "pictures")
    source = as_list(tmp_path, "link/../x.jpg")
    assert source.name_of(1) == str(tmp_path / "data" / "x.jpg")


def test_a_stored_run_reads_no_picture_outside_its_folder(tmp_path):
    """A run's folder may come from elsewhere; its settings name the folder of the data, and what is read lies in it."""
    save_imagenet_lt(tmp_path / "data")
    save_pictures(tmp_path, ["secret.jpg"])
    save_list(tmp_path / "data" / "ImageNet_LT_test.txt", [("../secret.jpg", 0)])
    run = RunFolder(tmp_path / "run")
    data = {"_target_": "mllt.data.ImageNetLT", "root": str(tmp_path / "data"), **SETTINGS}
    run.write_config(OmegaConf.create({"data": data, "batch_size": 4, "seed": 0}))
    config = OmegaConf.create({"data_root": None, "eval_batch_size": None, "num_workers": None})
    with pytest.raises(DataError, match=r"1 leaves it: '.*ImageNet_LT_test\.txt:1: \.\./secret\.jpg'"):
        stored_data(config, run)


# ---------------------------------------------------------------------------------------- files that are hard to read

DEEP = "[" * 200_000


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        '{"images": ' + DEEP,
        '{"images": [{"id": 1, "file_name": "\\ud800.jpg"}], "annotations": [], "categories": []}',
        '{"images": [{"id": [1], "file_name": "a"}], "annotations": [], "categories": []}',
        '{"images": {"id": 1}, "annotations": [], "categories": []}',
        '{"images": [], "annotations": [{"image_id": 1, "category_id": Infinity}], "categories": []}',
        '{"images": [], "annotations": [{"image_id": 1, "category_id": 1e300}], "categories": []}',
        '{"images": [], "annotations": [], "categories": [{"id": ' + "9" * 40 + "}]}",
        '{"images": [], "annotations": [], "categories": [{"id": ' + "9" * 5000 + "}]}",
        '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "category_id": 1e30}],'
        ' "categories": [{"id": 1e30, "name": "a"}]}',
        "\0" * 100,
        "null",
    ],
    ids=[
        "deep",
        "deeper",
        "surrogate",
        "list",
        "dict",
        "infinite",
        "huge",
        "large",
        "many digits",
        "no int64",
        "zeros",
        "null",
    ],
)
def test_json_that_is_hard_to_read_is_refused_by_name(tmp_path, content):
    for name, read in (("train.json", lambda path: read_coco(path, tmp_path)), ("categories.json", lambda path: names(path))):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read(tmp_path / name)


def names(path: Path) -> list[str] | None:
    return read_class_names([path.parent])
