"""Files made to take the memory, or the patience, of who opens them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features
from tests.data.make_images import picture

from mllt.data.images import MAX_BYTES, MAX_PIXELS, FileSource, damaged_files, load_rgb
from mllt.errors import DataError


def png(width: int, height: int, *chunks: tuple[bytes, bytes], after: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A whole black PNG of one bit per pixel, with more chunks before or after its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    every = [(b"IHDR", header), *chunks, (b"IDAT", zeros((width // 8 + 1) * height)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in every)


def zeros(count: int) -> bytes:
    """So many zeros, deflated a million at a time."""
    deflate, part = zlib.compressobj(), bytes(1_000_000)
    parts = [deflate.compress(part) for _ in range(count // len(part))]
    return b"".join([*parts, deflate.compress(part[: count % len(part)]), deflate.flush()])


def tiled_tiff(tile: int) -> bytes:
    """A whole TIFF of 16 x 16 grey pixels in one deflated tile of `tile` x `tile`."""
    data = zeros(tile * tile)
    short = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 284: 1, 322: tile, 323: tile}
    entries = [struct.pack("<HHIHxx", tag, 3, 1, value) for tag, value in short.items()]
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries += [struct.pack("<HHII", tag, 4, 1, value) for tag, value in ((324, start), (325, len(data)))]
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(4) + data


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small picture whose header tells of a large one."""
    buffer = io.BytesIO()
    picture(1, 16, 16).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    content, real = buffer.getvalue(), 16

    def put(old: bytes, new: bytes) -> bytes:
        assert content.count(old) == 1, f"{kind} is not laid out as this test thinks"
        return content.replace(old, new)

    if kind == "JPEG":
        start = b"\xff\xc0\x00\x11\x08"
        return put(start + struct.pack(">HH", real, real), start + struct.pack(">HH", height, width))
    if kind == "GIF":
        return put(b"GIF87a" + struct.pack("<HH", real, real), b"GIF87a" + struct.pack("<HH", width, height))
    if kind == "BMP":
        return put(struct.pack("<III", 40, real, real), struct.pack("<III", 40, width, height))
    if kind == "PPM":
        return put(b"P6\n16 16\n", f"P6\n{width} {height}\n".encode())
    if kind == "TIFF":
        for tag, value in ((256, width), (257, height)):
            old = re.compile(struct.pack("<H", tag) + rb"[\x03\x04]\x00\x01\x00\x00\x00\x10\x00\x00\x00")
            (found,) = old.findall(content)
            content = put(found, struct.pack("<HHII", tag, 4, 1, value))
        return content
    if kind == "WEBP":
        place = content.index(b"VP8L") + 9
        bits = int.from_bytes(content[place : place + 4], "little") >> 28
        return content[:place] + (bits << 28 | (height - 1) << 14 | (width - 1)).to_bytes(4, "little") + content[place + 4 :]
    return put(b"ispe" + struct.pack(">III", 0, real, real), b"ispe" + struct.pack(">III", 0, width, height))


@pytest.fixture(params=["Pillow's default", "no limit of Pillow's", "warnings are errors"])
def pillow(request, monkeypatch):
    """However the process has set Pillow and the warnings, a bomb is refused."""
    with warnings.catch_warnings():
        if request.param == "no limit of Pillow's":
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        if request.param == "warnings are errors":
            warnings.simplefilter("error")
        yield request.param


# ------------------------------------------------------------------------------------------------------- its pixels


def test_a_small_file_of_many_pixels_is_refused_by_its_header(tmp_path, pillow):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(12_000, 12_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"bomb\.png: its header tells of 12,000 x 12,000 pixels, and no more than 100,000,000"):
        load_rgb(path)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF"])
def test_a_header_that_tells_of_too_many_pixels_is_refused_in_every_format(tmp_path, monkeypatch, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "x"
    path.write_bytes(claiming(kind, 16_000, 16_000))
    assert "its header tells of 16,000 x 16,000 pixels" in str(refused(path))


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        load_rgb(path)
    return caught.value


def test_tiles_larger_than_the_picture_are_counted(tmp_path):
    (tmp_path / "small.tif").write_bytes(tiled_tiff(1024))
    assert load_rgb(tmp_path / "small.tif").size == (16, 16)
    (tmp_path / "bomb.tif").write_bytes(tiled_tiff(10_240))
    assert "its header tells of 10,240 x 10,240 pixels" in str(refused(tmp_path / "bomb.tif"))


def test_a_picture_of_the_largest_size_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("mllt.data.images.MAX_PIXELS", 1200)
    picture(1, 40, 30).save(tmp_path / "fits.png")
    picture(1, 40, 31).save(tmp_path / "too large.png")
    assert load_rgb(tmp_path / "fits.png").size == (40, 30)
    assert "40 x 31 pixels, and no more than 1,200 are decoded" in str(refused(tmp_path / "too large.png"))


def test_the_limit_is_what_is_documented():
    assert (MAX_PIXELS, MAX_BYTES) == (100_000_000, 536_870_912)


def test_a_look_for_damaged_files_finds_bombs_without_decoding_them(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(12_000, 12_000))
    picture(1).save(tmp_path / "x.png")
    (found,) = damaged_files(FileSource(["bomb.png", "x.png"], [0, 0], tmp_path))
    assert found.startswith("bomb.png: its header tells of 12,000 x 12,000 pixels")


# ----------------------------------------------------------------------------------------------------- its metadata

BOMB = zeros(300_000_000)
SMALLER = zeros(1_000_000)  # each allowed, all together not
METADATA = {
    "zTXt": ((b"zTXt", b"Comment\0\0" + BOMB),),
    "iTXt": ((b"iTXt", b"Comment\0\1\0\0\0" + BOMB),),
    "iCCP": ((b"iCCP", b"profile\0\0" + BOMB),),
    "many": tuple((b"zTXt", b"Comment\0\0" + SMALLER) for _ in range(300)),
}


@pytest.mark.parametrize("truncated", [False, True], ids=["", "truncated pictures are allowed"])
@pytest.mark.parametrize("kind", METADATA)
@pytest.mark.parametrize("place", ["before", "after"])
def test_metadata_that_unfolds_is_refused_or_left_folded(tmp_path, monkeypatch, kind, place, truncated):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated)
    chunks = METADATA[kind]
    path = tmp_path / "x.png"
    path.write_bytes(png(16, 16, *(chunks if place == "before" else ()), after=chunks if place == "after" else ()))
    tracemalloc.start()
    with contextlib.suppress(DataError):  # what Pillow leaves folded, such as metadata behind the pixels, does no harm
        assert load_rgb(path).size == (16, 16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150_000_000  # bytes; 300,000,000 would be all of it


# -------------------------------------------------------------------------------------------------------- its bytes


def test_a_file_without_end_is_refused(tmp_path):
    path = tmp_path / "sparse.png"
    path.write_bytes(png(16, 16))
    os.truncate(path, 2**40)
    assert "it is of 1,099,511,627,776 bytes, and no more than 536,870,912 are read" in str(refused(path))
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    assert "a device" in str(refused(tmp_path / "zero.png"))


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(x) print\n",
        struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, 200, 22) + png(30_000, 300),
    ],
    ids=["a program for Ghostscript", "an icon around a large picture"],
)
def test_formats_that_start_programs_or_hide_their_size_are_not_read(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    assert "it is no picture of a known format" in str(refused(tmp_path / "x.jpg"))


def test_a_name_that_a_terminal_would_obey_is_told_in_safe_letters(tmp_path):
    path = tmp_path / "\x1b[2J\udce9.jpg"
    path.write_bytes(b"no picture")
    assert r"\x1b[2J\udce9.jpg" in str(refused(path))
    assert "\x1b" not in str(refused(path))


def test_pictures_of_sixteen_bits_are_as_before(tmp_path):
    """Scaling them in place must not change the file's own pixels."""
    values = np.array([[0, 300, 65535]], np.uint16)
    image = Image.fromarray(values)
    image.save(tmp_path / "x.png")
    assert np.asarray(load_rgb(tmp_path / "x.png"))[0, :, 0].tolist() == [0, 1, 255]
