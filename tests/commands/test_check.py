"""`python -m mllt.check`: what it finds in a data set, what it prints and writes, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.commands.conftest import read_json
from tests.data.make_images import imagenet_rows, picture, real_data, save_list, save_pictures

from mllt.data import CIFAR10LT, CIFAR100LT, DigitsLT, FileSource, ImageNetLT, INaturalist2018, PlacesLT
from mllt.data import scan as scanning
from mllt.data.scan import examine, repeated
from mllt.errors import DataError

COUNTS = {"ant": 5, "bee": 3, "cat": 2}


@pytest.fixture
def photos(tmp_path) -> Path:
    root = tmp_path / "photos"
    save_pictures(root, [f"train/{name}/{i}.jpg" for name, count in COUNTS.items() for i in range(count)])
    save_pictures(root, [f"test/{name}/{i}.jpg" for name in COUNTS for i in range(2)])
    return root


@pytest.fixture
def look(mllt_command, tmp_path):
    """`look("experiment=...", ...)`: how the command ended, and the report it wrote."""

    def command(*arguments):
        output = tmp_path / "report.json"
        done = mllt_command("check", *arguments, "processes=2", f"output={output}")
        assert "Traceback" not in done.err
        return done, read_json(output) if output.exists() else None

    return command


def folder(root, *more):
    return ("experiment=folder_lt", f"data.root={root}", "data.image_size=16", *more)


def texts(remarks):
    return [remark["text"] for remark in remarks]


# ----------------------------------------------------------------------------------------------------- what it finds


def test_a_data_set_without_faults_ends_with_0_and_its_figures(look, photos):
    picture(1, 12, 50).convert("L").save(photos / "train" / "cat" / "9.png")
    done, report = look(*folder(photos))
    assert done.status == 0, done.err
    assert report["faults"] == report["warnings"] == []
    training = report["splits"]["training"]
    assert (training["images"], training["readable"], training["classes"]) == (11, 11, 3)
    assert (training["largest_class"], training["smallest_class"]) == (5, 3)
    assert (training["smallest_image"], training["largest_image"]) == ([12, 50], [40, 30])
    assert training["modes"] == {"RGB": 10, "L": 1}
    assert training["smaller_than_the_network_sees"] == 1
    assert report["splits"]["test"]["images"] == 6
    assert report["images"] == 17
    assert "11" in done.out
    assert "5 to 3" in done.out
    assert "12 x 50 to 40 x 30" in done.out
    assert "All is well. Looked at 17 images" in done.out


def test_pictures_that_cannot_be_read_are_all_found_with_their_causes(look, photos):
    (photos / "train/ant/0.jpg").write_bytes((photos / "train/ant/0.jpg").read_bytes()[:-200])
    (photos / "train/cat/1.jpg").write_bytes(b"")
    (photos / "test/bee/0.jpg").write_text("<html>")
    done, report = look(*folder(photos))
    assert done.status == 1
    training, test = report["faults"]
    assert training["text"] == "2 training images cannot be read"
    assert training["which"][0].startswith(f"{photos}/train/ant/0.jpg: OSError: image file is truncated")
    assert training["which"][1] == f"{photos}/train/cat/1.jpg: the file is empty"
    assert test["text"] == "1 test image cannot be read"
    assert report["splits"]["training"]["readable"] == 8
    assert "Fault: 2 training images cannot be read: " in done.out
    assert "2 faults. Looked at 16 images" in done.out


def test_listed_pictures_that_are_not_there_are_found(look, photos):
    rows = [(f"train/{n}/{i}.jpg", k) for k, (n, count) in enumerate(COUNTS.items()) for i in range(count)]
    save_list(photos / "train.txt", [*rows, ("train/ant/gone.jpg", 0)])
    save_list(photos / "test.txt", [("test/ant/0.jpg", 0), ("test/bee/0.jpg", 7)])
    done, report = look(*folder(photos, "data.train_list=train.txt", "data.test_list=test.txt"))
    assert done.status == 1
    labels, gone = report["faults"]
    assert "labels in 0 .. 2 (3 class names), but 1 test label is outside" in labels["text"]
    assert gone["which"] == [f"{photos}/train/ant/gone.jpg: there is no such file"]


def test_a_list_that_cannot_be_used_is_a_fault(look, photos):
    save_list(photos / "train.txt", [("../x.jpg", 0)])
    done, report = look(*folder(photos, "data.train_list=train.txt"))
    assert done.status == 1
    assert "leaves it" in report["faults"][0]["text"]


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("train", "val"), ("val", "test")])
def test_the_same_bytes_in_two_splits_are_a_fault(look, photos, one, other):
    save_pictures(photos, [f"val/{name}/{i}.jpg" for name in COUNTS for i in range(2)])
    shutil.copy(photos / one / "ant/0.jpg", photos / other / "ant/copy.jpg")
    done, report = look(*folder(photos))
    assert done.status == 1
    (fault,) = report["faults"]
    name = {"train": "training", "val": "validation", "test": "test"}
    assert fault["text"] == f"1 image of the {name[other]} split is in the {name[one]} split, too"
    assert fault["which"] == [
        " = ".join(f"{name[s]} {photos}/{s}/ant/{f}.jpg" for s, f in sorted([(one, "0"), (other, "copy")], key=order))
    ]
    done, report = look(*folder(photos, "max_shared=1"))
    assert done.status == 0
    assert "up to 1 are known of, or allowed" in report["warnings"][0]["text"]


def order(place):
    return ["train", "val", "test"].index(place[0])


def test_the_same_bytes_within_a_split_and_under_two_labels_are_warnings(look, photos):
    shutil.copy(photos / "train/ant/0.jpg", photos / "train/ant/copy.jpg")
    shutil.copy(photos / "train/ant/1.jpg", photos / "train/bee/copy.jpg")
    done, report = look(*folder(photos))
    assert done.status == 0
    assert texts(report["warnings"]) == ["2 images come more than once in a split", "1 image comes under several labels"]
    assert report["warnings"][1]["which"] == [
        f"training {photos}/train/ant/1.jpg (label 0) = training {photos}/train/bee/copy.jpg (label 1)"
    ]
    assert "All is well, 2 warnings" in done.out


def test_many_copies_of_one_image_are_counted_and_a_few_named(look, photos):
    for i in range(20):
        shutil.copy(photos / "train/ant/0.jpg", photos / f"train/ant/copy{i}.jpg")
    shutil.copy(photos / "train/ant/0.jpg", photos / "test/ant/copy.jpg")
    _, report = look(*folder(photos))
    (which,) = report["faults"][0]["which"]
    assert which.count("training ") == 5
    assert which.endswith(f"test {photos}/test/ant/copy.jpg = 16 more")


# ---------------------------------------------------------------------------------------------------- every experiment


def test_digits_are_what_is_known_of_them(look):
    done, report = look("experiment=digits_lt")
    assert done.status == 0
    assert report["official"]["train"] == 321
    assert "images and classes are as many as the official Digits-LT" in done.out
    done, report = look("experiment=digits_lt", "data.imbalance_factor=20")
    assert done.status == 0
    assert report["official"] is None


@pytest.mark.parametrize(
    ("experiment", "module"), [("imagenet_lt", ImageNetLT), ("places_lt", PlacesLT), ("inat2018", INaturalist2018)]
)
def test_lists_that_are_not_the_official_ones_are_a_fault_told_in_figures(look, tmp_path, experiment, module):
    rows = imagenet_rows()
    save_pictures(tmp_path / "data", [path for entries in rows.values() for path, _ in entries])
    save_list(tmp_path / "data" / module.train_list, rows["train"])
    save_list(tmp_path / "data" / module.test_list, rows["test"])
    if module.val_list:
        save_list(tmp_path / "data" / module.val_list, rows["val"])
    done, report = look(f"experiment={experiment}", f"data.root={tmp_path / 'data'}")
    assert done.status == 1
    (fault,) = report["faults"]
    assert f"10 training images, not {module.figures.train:,}; 3 classes, not {module.figures.classes:,}" in fault["text"]
    assert (f"6 validation images, not {module.figures.val or 0:,}" in fault["text"]) == (module.val_list is not None)
    assert any("is not the official list" in note for note in texts(report["notes"]))


def test_cifar_is_what_is_known_of_it_and_its_own_copies_are_told(look):
    root = real_data("cifar-100-python").parent
    done, report = look("experiment=cifar100_lt", f"data.root={root}")
    assert done.status == 0, done.out
    shared, within, unlike = report["warnings"]
    assert shared["text"].startswith("4 images of the test split are in the training split, too (up to 10 are known of")
    assert within["text"] == "7 images come more than once in a split"
    assert len(unlike["which"]) == 2


@pytest.mark.slow
def test_ten_test_images_of_cifar_100_are_training_images_too():
    root = real_data("cifar-100-python").parent
    whole = CIFAR100LT(root, imbalance_factor=1)
    splits = whole.load_splits()
    found = {"training": examine(splits.train, 1), "test": examine(splits.test, 1)}
    assert sum(len({split for split, _ in group}) == 2 for group in repeated(found)) == CIFAR100LT.shared


@pytest.mark.parametrize("module", [CIFAR10LT, CIFAR100LT])
def test_the_known_sizes_are_those_of_the_reference_lists(module):
    lists = real_data("cifar-lt-reference")
    name = module.__name__.removesuffix("LT").lower()
    for profile, sizes in module.known_sizes.items():
        for factor, size in sizes.items():
            path = lists / f"{name}_{profile[:3] if profile == 'exponential' else profile}_if{factor}_seed0_indices.txt"
            assert len(path.read_text().splitlines()) == size
            figures = module("data", profile, factor).official_figures()
            counts = module("data", profile, factor).counts
            assert (figures.largest, figures.smallest, figures.train) == (counts[0], counts[-1], sum(counts))


def test_a_real_folder_of_pictures_is_well(look):
    root = real_data("bccd-cells")
    lists = (f"data.{split}_list=bccd_{split}.txt" for split in ("train", "val", "test"))
    done, report = look("experiment=folder_lt", f"data.root={root}", *lists)
    assert done.status == 0, done.out
    assert report["splits"]["training"]["images"] == 2381 + 214 + 209
    assert report["splits"]["training"]["modes"] == {"RGB": 2804}
    assert report["warnings"] == []


def test_what_is_known_of_a_data_module_of_ones_own_is_nothing():
    assert DigitsLT(profile="step").official_figures() is None


# -------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["experiment=folder_lt"], "`data.root` has no default"),
        (["experiment=folder_lt", "data.root=/nowhere"], "in a folder /nowhere, but there is none. Type data.root=FOLDER."),
        (["experiment=folderlt"], "There is no experiment=folderlt. Did you mean 'folder_lt'?"),
        (["processes=0"], "`processes` to be a whole number of at least 1"),
        (["max_shared=-1"], "`max_shared`"),
        (["outptu=x"], "Did you mean 'output'?"),
        (["output=/"], "`output` to be a file, but / is a folder"),
    ],
)
def test_a_mistake_in_the_command_ends_with_2_and_one_line(mllt_command, arguments, said):
    done = mllt_command("check", *arguments)
    assert done.status == 2
    (line,) = done.err.strip().splitlines()
    assert said in line


# ------------------------------------------------------------------------------------------------ processes, progress


def test_progress_is_plain_lines_where_there_is_no_terminal(mllt_command, photos, monkeypatch):
    monkeypatch.setattr("mllt.check._PLAIN_EVERY", 0)
    done = mllt_command("check", *folder(photos))
    assert "training: 10 of 10 images, " in done.err
    assert "\x1b" not in done.err


def test_a_picture_that_ends_the_process_is_found_and_the_others_are_read(tmp_path, monkeypatch):
    save_pictures(tmp_path, [f"{i}.jpg" for i in range(100)])
    real = scanning.inspect_picture

    def crash(path):
        if path.endswith(("/40.jpg", "/41.jpg")):
            os.kill(os.getpid(), signal.SIGKILL)  # as a crash of the decoder, or a lack of memory, would
        return real(path)

    monkeypatch.setattr(scanning, "inspect_picture", crash)
    found = examine(FileSource([f"{i}.jpg" for i in range(100)], [0] * 100, tmp_path), processes=2)
    assert list(found.broken) == [40, 41]
    assert "ends the process" in found.broken[40]
    assert int(found.readable.sum()) == 98


def test_images_come_in_order_for_any_number_of_processes(tmp_path):
    names = [f"{i}.jpg" for i in range(80)]
    for i, name in enumerate(names):
        picture(i).save(tmp_path / name)
    source = FileSource(names, [0] * 80, tmp_path)
    one, three = examine(source, 1), examine(source, 3)
    assert one.digests.tolist() == three.digests.tolist()
    assert len(set(one.digests.tolist())) == 80


def test_sources_of_ones_own_are_looked_at_as_they_load():
    class Own:
        labels = (0, 0, 0)

        def __len__(self):
            return 3

        def load(self, indices):
            if indices[0] == 1:
                raise DataError("cannot")
            return [picture(1)]

    found = examine(Own(), processes=1)
    assert found.broken == {1: "cannot"}
    assert repeated({"training": found}) == [[("training", 0), ("training", 2)]]


@pytest.fixture
def long_look(tmp_path):
    """A command that takes minutes, its processes at work: (command, their numbers)."""
    picture(1, 4000, 4000).save(tmp_path / "large.png")
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(300):
            os.link(tmp_path / "large.png", tmp_path / "photos" / name / f"{i}.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "mllt.check", *folder(tmp_path / "photos"), "processes=2"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("needs /proc to look at processes")
    deadline = time.monotonic() + 60
    while len(children.read_text().split()) < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield process, [int(number) for number in children.read_text().split()]
    process.kill()


def gone(numbers, seconds=10):
    """Whether all processes end within some seconds."""
    deadline = time.monotonic() + seconds
    while any(alive(number) for number in numbers):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def alive(number):
    try:
        return " Z " not in Path(f"/proc/{number}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_control_c_ends_it_and_its_processes_in_one_line(long_look):
    process, children = long_look
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip().splitlines() == ["Interrupted."]
    assert gone(children)


@pytest.mark.slow
def test_its_processes_do_not_outlive_it(long_look):
    process, children = long_look
    process.kill()
    process.wait()
    assert gone(children)
