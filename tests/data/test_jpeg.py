"""The fast pipeline against torchvision's, picture by picture."""

from __future__ import annotations

import io
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.make_images import picture, real_data, save_pictures, training_batches
from torchvision.transforms import v2

from mllt.data import images as images_module
from mllt.data.broken import SkippingSource
from mllt.data.folder import ImageFolderLT
from mllt.data.images import IMAGENET_MEAN, IMAGENET_STD, FileSource, RandomResizedCropFlip, load_rgb, read_picture
from mllt.data.order import BatchRequest, Draws
from mllt.data.sources import ImageDataset
from mllt.errors import ArgumentError, DataError

pytest.importorskip("simplejpeg", reason="needs the extra jpeg")
from mllt.data.jpeg import FastRandomResizedCropFlip, Scratch, decode_plain, jitter

SIZE = 48


def textured(seed: int, width: int, height: int) -> Image.Image:
    """A picture with structure of all sizes, down to single pixels."""
    rng = np.random.default_rng(seed)
    levels = np.asarray(picture(seed, width, height), np.float64) + rng.normal(0, 25, (height, width, 3))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def save_jpegs(folder: Path, count: int, longest: int = 300) -> FileSource:
    """JPEG files of many sizes, each way of storing colour, and grey."""
    rng = np.random.default_rng(0)
    for number in range(count):
        width, height = rng.integers(10, longest, 2).tolist()
        image = textured(number, width, height)
        if number % 5 == 4:
            image = image.convert("L")
        options = {"subsampling": number % 3} if image.mode == "RGB" else {}
        image.save(folder / f"{number}.jpg", quality=int(rng.integers(50, 98)), progressive=number % 7 == 0, **options)
    return FileSource([f"{number}.jpg" for number in range(count)], [0] * count, folder)


def both(source, color_jitter=0.0, hue=0.0, epoch=0, **more) -> tuple[torch.Tensor, torch.Tensor]:
    """What torchvision and the fast pipeline make of all pictures of a source, in 8-bit levels."""
    settings = (SIZE, IMAGENET_MEAN, IMAGENET_STD, color_jitter, hue)
    rows = np.arange(len(source))
    request = BatchRequest(epoch, rows, rows, 1.0)
    transforms = (RandomResizedCropFlip(*settings), FastRandomResizedCropFlip(*settings, **more))
    std, mean = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_STD, IMAGENET_MEAN))
    plain, fast = (ImageDataset(source, transform, 0)[request].images * std + mean for transform in transforms)
    return plain * 255, fast * 255


# ------------------------------------------------------------------------------------------------- the same pictures


@pytest.mark.parametrize(("color_jitter", "largest", "mean"), [(0.0, 2, 0.05), (0.4, 8, 0.15)])
def test_a_pixel_is_off_by_no_more_than_documented(tmp_path, color_jitter, largest, mean):
    source = save_jpegs(tmp_path, 60)
    for epoch in range(4):
        plain, fast = both(source, color_jitter, epoch=epoch)
        off = (plain - fast).abs()
        assert off.max() < largest + 0.01
        assert off.mean() < mean
        assert not torch.equal(plain[0], plain[1])


def test_pictures_decoded_at_a_fraction_of_their_size_show_the_same_part(tmp_path):
    for number in range(6):
        picture(number, 700, 500 + number).save(tmp_path / f"{number}.jpg", quality=95)
    source = FileSource([f"{number}.jpg" for number in range(6)], [0] * 6, tmp_path)
    for epoch in range(3):
        plain, scaled = both(source, epoch=epoch, scaled=True)
        off = (plain - scaled).abs()
        assert 0.01 < off.mean() < 3
        assert off.max() < 40


def test_plain_jpeg_files_are_decoded_as_by_pillow_to_the_bit(tmp_path):
    source, scratch = save_jpegs(tmp_path, 30), Scratch()
    for row in range(30):
        found = read_picture(source.name_of(row), partial(source.open, row), partial(decode_plain, smaller=1, scratch=scratch))
        assert np.array_equal(found, np.asarray(load_rgb(source.name_of(row))))


@pytest.mark.parametrize("hue", [0.0, 0.3])
def test_jitter_is_torchvisions_to_the_bit(hue):
    transform = v2.ColorJitter(0.6, 1.2, 0.9, hue)
    luma = torch.empty(23, 31)
    for seed in range(60):
        image = textured(seed, 31, 23)
        torch.manual_seed(seed)
        factors = transform.make_params([image])
        torch.manual_seed(seed)
        expected = v2.functional.pil_to_tensor(transform(image))
        pixels = v2.functional.pil_to_tensor(image).float()
        jitter(pixels, luma, factors)
        assert torch.equal(pixels, expected.float()), factors


def save_others(folder: Path) -> list[str]:
    """Pictures that are no plain JPEG files."""
    image = textured(1, 60, 40)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(folder / f"turned{orientation}.jpg", exif=exif, quality=95)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.save(folder / "named.jpg", format="PNG")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("P").save(folder / "palette.gif")
    image.save(folder / "x.webp")
    return sorted(path.name for path in folder.iterdir())


def test_what_is_no_plain_jpeg_comes_as_always(tmp_path):
    names = save_others(tmp_path)
    for scaled in (False, True):
        plain, fast = both(FileSource(names, [0] * len(names), tmp_path), scaled=scaled)
        assert (plain - fast).abs().max() < 2.01


# --------------------------------------------------------------------------------------------------- broken pictures


def outcome(source, index, transform) -> str:
    """What comes of reading a picture: its shape, or the error."""
    readers = transform.readers(Draws(0, 0, np.array([index]))) if hasattr(transform, "readers") else None
    try:
        loaded = source.load(np.array([index]), readers)
    except DataError as error:
        return str(error)
    return str(tuple(transform(loaded, Draws(0, 0, np.array([index]))).shape))


def assert_same_outcomes(source) -> list[str]:
    settings = (SIZE, IMAGENET_MEAN, IMAGENET_STD)
    plain = [outcome(source, index, RandomResizedCropFlip(*settings)) for index in range(len(source))]
    fast = [outcome(source, index, FastRandomResizedCropFlip(*settings)) for index in range(len(source))]
    assert plain == fast
    return fast


def test_broken_pictures_are_refused_by_the_same_words(tmp_path, monkeypatch):
    content = io.BytesIO()
    textured(0, 80, 60).save(content, "JPEG", quality=90)
    whole = content.getvalue()
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 40] = bytes(40)  # Pillow can use it
    monkeypatch.setattr(images_module, "MAX_PIXELS", 90 * 90)
    files = {
        "cut.jpg": whole[: len(whole) // 2],
        "head.jpg": whole[:300],
        "empty.jpg": b"",
        "text.jpg": b"no picture",
        "damaged.jpg": bytes(damaged),
        "longer.jpg": whole + b"more",
    }
    for name, held in files.items():
        (tmp_path / name).write_bytes(held)
    textured(0, 100, 100).save(tmp_path / "large.jpg")
    names = [*files, "large.jpg", "absent.jpg"]
    found = dict(zip(names, assert_same_outcomes(FileSource(names, [0] * len(names), tmp_path)), strict=True))
    assert "truncated" in found["cut.jpg"]
    assert str(tmp_path / "cut.jpg") in found["cut.jpg"]
    assert "no more than 8,100 are decoded" in found["large.jpg"]
    assert found["damaged.jpg"] == found["longer.jpg"] == f"(1, 3, {SIZE}, {SIZE})"


def test_damaged_pictures_that_pillow_can_use_look_the_same(tmp_path):
    content = io.BytesIO()
    textured(0, 80, 60).save(content, "JPEG", quality=90)
    for number in range(20):
        damaged = bytearray(content.getvalue())
        place = 700 + number * (len(damaged) - 800) // 20
        damaged[place : place + 3] = bytes(3)
        (tmp_path / f"{number}.jpg").write_bytes(damaged)
    source = FileSource([f"{number}.jpg" for number in range(20)], [0] * 20, tmp_path)
    if set(assert_same_outcomes(source)) == {f"(1, 3, {SIZE}, {SIZE})"}:
        plain, fast = both(source)
        assert (plain - fast).abs().max() < 2.01


def test_odd_pictures_come_or_are_refused_as_always():
    folder = real_data("odd-images")
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = assert_same_outcomes(FileSource(names, [0] * len(names), folder))
    good = [name for name, told in zip(names, found, strict=True) if told.startswith("(")]
    assert len(good) > 50
    plain, fast = both(FileSource(good, [0] * len(good), folder))
    assert (plain - fast).abs().max() < 2.01


def test_what_stands_in_for_a_broken_picture_has_the_crop_of_its_place(tmp_path):
    source = save_jpegs(tmp_path, 6)
    (tmp_path / "2.jpg").write_bytes((tmp_path / "2.jpg").read_bytes()[:200])
    with pytest.warns(UserWarning, match=r"2\.jpg"):
        plain, fast = both(SkippingSource(source, 1.0))
    assert (plain - fast).abs().max() < 2.01


# ------------------------------------------------------------------------------------------------- the data module


@pytest.fixture
def module(tmp_path):
    names = ("cat", "dog")
    save_pictures(tmp_path, [f"{split}/{name}/{i}.jpg" for split in ("train", "test") for name in names for i in range(5)])
    return partial(ImageFolderLT, tmp_path, image_size=16, batch_size=4, color_jitter=0.4)


def test_batches_do_not_depend_on_processes_nor_touch_the_generator(module):
    state = torch.get_rng_state()
    alone = training_batches(module(pipeline="fast"), epoch=3)
    assert torch.equal(torch.get_rng_state(), state)
    helped = training_batches(module(pipeline="fast", num_workers=1), epoch=3)
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
    usual = training_batches(module(), epoch=3)
    assert 0 < max(float((one.images - other.images).abs().max()) for one, other in zip(alone, usual, strict=True)) < 0.15


def test_evaluation_is_the_same_to_the_bit(module):
    fast, usual = (list(module(pipeline=name).test_dataloader()) for name in ("scaled", "torchvision"))
    assert all(torch.equal(one.images, other.images) for one, other in zip(fast, usual, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pipeline": "fats"}, "Did you mean 'fast'"),
        ({"pipeline": "fast", "padding": 2, "color_jitter": 0}, "Padded crops have one pipeline only"),
    ],
)
def test_settings_that_make_no_sense_are_refused(module, settings, message):
    with pytest.raises(ArgumentError, match=message):
        module(**settings)


def test_without_simplejpeg_fast_training_is_refused_and_its_evaluation_works(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    data = module(pipeline="fast")
    with pytest.raises(ArgumentError, match=r"pip install 'mllt\[jpeg\]'"):
        data.train_dataloader()
    assert len(list(data.test_dataloader())) == 3
    assert len(training_batches(module())) == 3
