import csv
import gc
import os
import pickle
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from tests.data.make_images import picture, real_data, save_pictures
from tests.data.reference_png import over_white
from torchvision import transforms as v1
from torchvision.transforms import v2

from mllt.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    FileSource,
    PaddedCropFlip,
    RandomResizedCropFlip,
    damaged_files,
    eval_pipeline,
    load_rgb,
    to_rgb,
)
from mllt.data.order import Draws
from mllt.errors import ArgumentError, DataError

PREPROCESSING = {"size": 20, "resize": 24, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}


def manifest() -> list[dict[str, str]]:
    path = Path(os.environ.get("MLLT_DATA", "")) / "odd-images" / "MANIFEST.tsv"
    if not os.environ.get("MLLT_DATA") or not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


LOAD = "Pillow-13.0.0: load()"
ODD = [row["file"] for row in manifest() if row[LOAD] == "ok"]
BROKEN = {row["file"]: row[LOAD] for row in manifest() if row[LOAD] != "ok"}
needs_odd_images = pytest.mark.skipif(not ODD, reason="needs the folder odd-images of the real data: set MLLT_DATA")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def independently_decoded(path: Path) -> np.ndarray:
    """PNG by a decoder from the specification, JPEG by torchvision's; float `(H, W, 3)` in 0 .. 255, upright."""
    if path.suffix == ".png":
        # The one picture whose text chunk holds an orientation: 3, upside down
        return over_white(path)[::-1, ::-1] if path.name == "exif_imagemagick_orientation.png" else over_white(path)
    decode_image = getattr(pytest.importorskip("torchvision.io"), "decode_image", None)
    if decode_image is None:
        pytest.skip("this torchvision decodes no pictures")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated since torchvision 0.29
        return decode_image(str(path), "RGB", apply_exif_orientation=True).permute(1, 2, 0).double().numpy()


# ---------------------------------------------------------------------------------------------------------- decoding


@needs_odd_images
@pytest.mark.parametrize("name", ODD)
def test_odd_image_loads_as_upright_rgb_without_a_warning(name):
    path = real_data("odd-images") / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_rgb(path)
    assert image.mode == "RGB"
    assert type(image) is Image.Image
    assert image.info == {}
    row = next(row for row in manifest() if row["file"] == name)
    size = (int(row["width"]), int(row["height"]))
    assert image.size == (size[::-1] if row["exif_orientation"] in "5678" else size)
    expected = independently_decoded(path)
    assert pixels(image).shape == expected.shape
    assert np.abs(pixels(image) - expected).max() <= 1


@needs_odd_images
@pytest.mark.parametrize("name", BROKEN)
def test_broken_image_is_refused_by_name_and_cause(name):
    path = real_data("odd-images") / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError) as caught:
            load_rgb(path)
    assert str(path) in str(caught.value)
    kind, _, cause = BROKEN[name].partition(": ")
    assert ("no picture" if "Unidentified" in kind else cause) in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_odd_images
def test_damaged_files_are_those_that_cannot_be_loaded_and_warnings_come_back():
    filters = list(warnings.filters)
    source = FileSource([*ODD, *BROKEN], [0] * (len(ODD) + len(BROKEN)), real_data("odd-images"))
    found = dict(problem.split(": ", 1) for problem in damaged_files(source))
    assert sorted(found) == sorted(BROKEN)
    for name, problem in BROKEN.items():
        kind, _, cause = problem.partition(": ")
        assert ("no picture" if "Unidentified" in kind else cause) in found[name]
    assert warnings.filters == filters


def test_all_82_odd_images_are_looked_at():
    real_data("odd-images")
    assert (len(ODD), len(BROKEN)) == (74, 8)


def test_no_file_stays_open(tmp_path):
    picture(1).save(tmp_path / "x.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:-200])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_rgb(tmp_path / "x.png")
        with pytest.raises(DataError, match="truncated"):
            load_rgb(tmp_path / "cut.png")
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once_in_every_format(tmp_path, extension, orientation):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8] = 255  # a white corner, top left as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"x.{extension}", exif=exif, quality=95)
    image = load_rgb(tmp_path / f"x.{extension}")
    # Where the EXIF standard says that row 0 and column 0 of the stored picture are to be seen
    corner = ["top left", "top right", "bottom right", "bottom left", "top left", "top right", "bottom right", "bottom left"]
    grey = pixels(image).mean(axis=2)
    corners = {"top left": grey[3, 3], "top right": grey[3, -4], "bottom left": grey[-4, 3], "bottom right": grey[-4, -4]}
    assert max(corners, key=corners.get) == corner[orientation - 1]
    assert image.size == ((32, 16) if orientation < 5 else (16, 32))


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_meaningless_exif_orientation_changes_nothing(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(1).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(pixels(load_rgb(tmp_path / "x.png")), pixels(picture(1)))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert pixels(load_rgb(tmp_path / "x.png"))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 128.0, 200.0]], np.float32), [0, 128, 200]),
        (np.array([[-1.0, np.nan, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[0, 1_000_000, 2_000_000]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.0]], np.float32), [0, 0]),
    ],
)
def test_32_bit_grey_is_scaled_to_the_first_customary_white(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "x.tif")
    found = pixels(load_rgb(tmp_path / "x.tif"))
    assert found[0, :, 0].tolist() == expected
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "I;16"])
def test_every_mode_becomes_rgb(mode):
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_transparency_is_laid_over_white():
    half = Image.new("RGBA", (1, 1), (0, 100, 200, 128))
    assert np.abs(pixels(to_rgb(half))[0, 0] - [127, 177, 227]).max() <= 1
    keyed = Image.new("RGB", (2, 1), (10, 20, 30))
    keyed.putpixel((1, 0), (1, 2, 3))
    keyed.info["transparency"] = (10, 20, 30)
    assert pixels(to_rgb(keyed))[0].tolist() == [[255, 255, 255], [1, 2, 3]]
    deep = Image.fromarray(np.array([[300, 301]], np.uint16))
    deep.info["transparency"] = 300
    assert pixels(to_rgb(deep))[0, :, 0].tolist() == [255, 1]


def test_16_bit_colour_is_read(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">3H", 65535, 0, 25700)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert pixels(load_rgb(tmp_path / "x.png")).tolist() == [[[255, 0, 100]]]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("absent.jpg", "no such file"),
        ("empty.jpg", "empty"),
        ("text.jpg", "no picture"),
        ("folder", "it is a folder"),
        ("pipe", "a pipe"),
    ],
)
def test_what_is_no_picture_is_refused_by_name_and_cause(tmp_path, name, cause):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # opening it would wait forever
    with pytest.raises(DataError, match=cause) as caught:
        load_rgb(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    picture(1).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 // 2 - 1)
    with pytest.raises(DataError, match=r"x\.png: DecompressionBombError"):
        load_rgb(tmp_path / "x.png")


def test_pillow_and_warnings_are_left_as_they_were(tmp_path):
    picture(1).save(tmp_path / "x.png")
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    load_rgb(tmp_path / "x.png")
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


# -------------------------------------------------------------------------------------------------------- the source


@pytest.fixture
def source(tmp_path) -> FileSource:
    paths = [f"class {i % 2}/{i}.jpg" for i in range(6)]
    save_pictures(tmp_path, paths)
    return FileSource(paths, [i % 2 for i in range(6)], tmp_path)


def test_source_loads_what_the_indices_name(source, tmp_path):
    found = source.load(np.array([4, 1]))
    assert np.array_equal(pixels(found[0]), pixels(Image.open(tmp_path / "class 0" / "4.jpg")))
    assert np.array_equal(pixels(found[1]), pixels(Image.open(tmp_path / "class 1" / "1.jpg")))


def test_subset_keeps_order_labels_and_names(source, tmp_path):
    part = source.subset(np.array([5, 2]))
    assert len(part) == 2
    assert part.labels.tolist() == [1, 0]
    assert part.labels.dtype == np.int64
    assert part.name_of(0) == str(tmp_path / "class 1" / "5.jpg")


def test_source_holds_no_python_object_per_path():
    source = FileSource([f"train_val2018/Plantae/{i}/{i:032x}.jpg" for i in range(1000)], [0] * 1000)
    assert source.paths.dtype.kind == "S"
    assert source.paths.nbytes < 70 * 1000


def test_source_keeps_file_names_that_are_no_utf8(tmp_path):
    picture(3).save(os.fsencode(tmp_path) + b"/caf\xe9.png", format="PNG")
    source = FileSource([b"caf\xe9.png"], [0], tmp_path)
    assert np.array_equal(pixels(source.load(np.array([0]))[0]), pixels(picture(3)))


def test_source_needs_one_label_per_file():
    with pytest.raises(DataError, match="2 files and 1 labels"):
        FileSource(["a.jpg", "b.jpg"], [0])


# ---------------------------------------------------------------------------------------------------- augmentation


def draws(positions, seed=0, epoch=0) -> Draws:
    return Draws(seed, epoch, np.asarray(positions))


AUGMENTATIONS = {
    "resized crop": RandomResizedCropFlip(16, IMAGENET_MEAN, IMAGENET_STD, 0.4, 0.1),
    "padded crop": PaddedCropFlip(PREPROCESSING, 4),
}
augmentations = pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)


@augmentations
def test_augmentation_of_a_picture_does_not_depend_on_its_batch(augment):
    images = [picture(i) for i in range(6)]
    together = augment(images, draws(range(10, 16)))
    assert together.dtype == torch.float32
    assert torch.equal(together[:2], augment(images[:2], draws([10, 11])))
    assert torch.equal(together[[5, 3]], augment([images[5], images[3]], draws([15, 13])))


@augmentations
@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"positions": range(8, 16)}])
def test_augmentation_changes_with_seed_epoch_and_position(augment, other):
    images = [picture(0)] * 8
    first = augment(images, draws(range(8)))
    again = augment(images, draws(range(8)))
    changed = augment(images, draws(**{"positions": range(8), **other}))
    assert torch.equal(first, again)
    assert sum(torch.equal(one, two) for one, two in zip(first, changed, strict=True)) <= 1
    assert not torch.equal(first[0], first[1])


@augmentations
def test_augmentation_leaves_all_generators_as_they_were(augment):
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    augment([picture(0), picture(1)], draws([0, 1]))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_augmentation_does_not_depend_on_the_generators_state():
    augment = AUGMENTATIONS["resized crop"]
    torch.manual_seed(1)
    first = augment([picture(0)], draws([3]))
    torch.manual_seed(2)
    assert torch.equal(augment([picture(0)], draws([3])), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_augmentation_leaves_the_gpus_generator_as_it_was():
    torch.cuda.manual_seed_all(1)
    torch.rand(1, device="cuda")
    before = torch.cuda.get_rng_state()
    AUGMENTATIONS["resized crop"]([picture(0)], draws([0]))
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_resized_crop_is_torchvisions_under_the_pictures_seed():
    where = draws([7])
    found = RandomResizedCropFlip(16, IMAGENET_MEAN, IMAGENET_STD, 0.4)([picture(0)], where)[0]
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(16, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4, 0),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD)),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(where.seeds(32)[0])
        expected = reference(picture(0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_half_of_the_pictures_are_flipped():
    gradient = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 1, 3)))
    found = RandomResizedCropFlip(32, [0, 0, 0], [1, 1, 1], scale=(0.99, 1))([gradient] * 400, draws(range(400)))
    flipped = (found[..., :8].mean((1, 2, 3)) > found[..., -8:].mean((1, 2, 3))).float().mean()
    assert 0.43 < flipped < 0.57


def test_jitter_changes_brightness_by_its_strength_and_no_further():
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    found = RandomResizedCropFlip(4, [0, 0, 0], [1, 1, 1], 0.4)([grey] * 200, draws(range(200))) * 255
    assert 59 <= found.min() < 65
    assert 135 < found.max() <= 141
    plain = RandomResizedCropFlip(4, [0, 0, 0], [1, 1, 1])([grey] * 20, draws(range(20))) * 255
    assert (plain.round() == 100).all()


def test_crop_scale_bounds_the_area_kept():
    columns = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (100, 1, 3)))
    found = RandomResizedCropFlip(50, [0, 0, 0], [1, 1, 1], scale=(0.25, 0.25))([columns] * 50, draws(range(50))) * 255
    widths = found.amax((1, 2, 3)) - found.amin((1, 2, 3))
    assert widths.min() >= 100 * (0.25 * 3 / 4) ** 0.5 - 3
    assert widths.max() <= 100 * (0.25 * 4 / 3) ** 0.5 + 1


def test_padded_crop_moves_the_picture_by_no_more_than_the_padding():
    white = Image.new("RGB", (20, 20), "white")
    settings = {"size": 20, "resize": None, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    found = PaddedCropFlip(settings, 4)([white] * 100, draws(range(100)))
    assert (found[:, :, 4:16, 4:16] == 1).all()
    assert (found[:, :, 0] == 0).any()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"size": 0}, "size"),
        ({"color_jitter": -0.1}, "color_jitter"),
        ({"hue": 0.6}, "hue"),
        ({"scale": (0.5, 0.1)}, "scale"),
        ({"scale": (0, 1)}, "scale"),
        ({"scale": (0.5, 1, 2)}, "scale"),
        ({"std": (1, 1, 0)}, "std"),
        ({"mean": (1, 1)}, "mean"),
    ],
)
def test_senseless_augmentation_is_refused(arguments, named):
    with pytest.raises(ArgumentError, match=named):
        RandomResizedCropFlip(**{"size": 8, "mean": (0, 0, 0), "std": (1, 1, 1), **arguments})


# ------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (24, 24), (7, 13), (90, 3), (1, 1)])
def test_evaluation_is_resize_and_central_crop(size):
    reference = v1.Compose(
        [v1.Resize(24), v1.CenterCrop(20), v1.ToTensor(), v1.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))]
    )
    found = eval_pipeline(PREPROCESSING)(picture(2, *size))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference(picture(2, *size)), rtol=0, atol=1e-5)


def test_evaluation_without_resize_scales_straight_to_the_square():
    reference = v1.Compose([v1.Resize((20, 20)), v1.ToTensor(), v1.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))])
    found = eval_pipeline({**PREPROCESSING, "resize": None})(picture(2, 50, 21))
    torch.testing.assert_close(found, reference(picture(2, 50, 21)), rtol=0, atol=1e-5)


def test_small_picture_of_the_right_size_is_only_normalised():
    settings = {"size": 32, "resize": None, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    found = eval_pipeline(settings)(picture(5, 32, 32)) * 255
    assert np.array_equal(found.round().int().permute(1, 2, 0).numpy(), pixels(picture(5, 32, 32)))


def test_evaluation_takes_pictures_of_any_mode():
    grey = picture(1).convert("L")
    assert torch.equal(eval_pipeline(PREPROCESSING)(grey), eval_pipeline(PREPROCESSING)(grey.convert("RGB")))


def test_evaluation_of_a_batch_is_that_of_its_pictures():
    images = [picture(i, 30 + i, 40 - i) for i in range(3)]
    found = EvalTransform(PREPROCESSING)(images, draws([0, 1, 2]))
    assert torch.equal(found, torch.stack([eval_pipeline(PREPROCESSING)(image) for image in images]))


def test_evaluation_pipeline_survives_pickling():
    prepare = eval_pipeline(PREPROCESSING)
    assert torch.equal(pickle.loads(pickle.dumps(prepare))(picture(0)), prepare(picture(0)))


@needs_odd_images
def test_every_odd_image_goes_through_both_transforms():
    images = [load_rgb(real_data("odd-images") / name) for name in ODD]
    for transform in (EvalTransform(PREPROCESSING), RandomResizedCropFlip(20, IMAGENET_MEAN, IMAGENET_STD, 0.4)):
        found = transform(images, draws(range(len(images))))
        assert found.shape == (len(images), 3, 20, 20)
        assert found.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "`size`"),
        ({"size": 20.0}, "`size`"),
        ({"resize": 19}, "`resize`"),
        ({"resize": "256"}, "`resize`"),
        ({"mean": [0.5]}, "`mean`"),
        ({"std": [1, 1, 0]}, "`std`"),
        ({"resise": 24}, "Did you mean 'resize'"),
    ],
)
def test_senseless_preprocessing_is_refused(change, message):
    with pytest.raises(ArgumentError, match=message):
        eval_pipeline({**PREPROCESSING, **change})


@pytest.mark.parametrize("key", PREPROCESSING)
def test_incomplete_preprocessing_is_refused_by_key(key):
    with pytest.raises(ArgumentError, match=f"'{key}'.* missing"):
        eval_pipeline({name: value for name, value in PREPROCESSING.items() if name != key})
