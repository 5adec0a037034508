"""A PNG decoder written from the specification (W3C, Portable Network Graphics, 3rd edition): slow, independent of Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def over_white(path: Path) -> np.ndarray:
    """The picture laid over white, float64 `(H, W, 3)` in 0 .. 255."""
    chunks = list(_chunks(path.read_bytes()))
    named = dict(reversed(chunks))  # the first of a kind
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", named[b"IHDR"])
    data = zlib.decompressobj().decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))
    samples = np.zeros((height, width, _CHANNELS[colour]), np.int64)
    at = 0
    for top, left, down, right in _ADAM7 if interlace else [(0, 0, 1, 1)]:
        part = samples[top::down, left::right]
        if part.size:
            part[:], at = _rows(data, at, *part.shape, depth)
    return _composite(samples, depth, colour, named.get(b"PLTE", b""), named.get(b"tRNS"))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, data[at + 8 : at + 8 + length]
        at += length + 12


def _rows(data: bytes, at: int, height: int, width: int, channels: int, depth: int) -> tuple[np.ndarray, int]:
    """Undo the filters of one pass; samples as integers, and where the next pass begins."""
    length, step = (width * channels * depth + 7) // 8, max(channels * depth // 8, 1)
    above, rows = bytearray(length), []
    for _ in range(height):
        kind, row = data[at], bytearray(data[at + 1 : at + 1 + length])
        for i in range(length if kind else 0):
            a, b, c = (row[i - step] if i >= step else 0), above[i], (above[i - step] if i >= step else 0)
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            row[i] = (row[i] + [0, a, b, (a + b) // 2, paeth][kind]) & 255
        rows.append(row)
        above, at = row, at + 1 + length
    packed = np.array(rows, np.uint8)
    if depth == 16:
        return packed.view(">u2").reshape(height, width, channels).astype(np.int64), at
    bits = np.unpackbits(packed, axis=1)[:, : width * channels * depth].reshape(height, width, channels, depth)
    return bits.astype(np.int64) @ (1 << np.arange(depth)[::-1]), at


def _composite(samples: np.ndarray, depth: int, colour: int, palette: bytes, key: bytes | None) -> np.ndarray:
    white = 2**depth - 1
    alpha = np.ones(samples.shape[:2])
    if colour == 3:
        opacity = np.full(256, 255)
        opacity[: len(key or b"")] = list(key or b"")
        alpha = opacity[samples[..., 0]] / 255
        rgb = np.frombuffer(palette, np.uint8).reshape(-1, 3)[samples[..., 0]] / 255
    else:
        if colour in (4, 6):
            samples, alpha = samples[..., :-1], samples[..., -1] / white
        elif key is not None:
            alpha = 1.0 - (samples == np.frombuffer(key, ">u2").astype(int) % (white + 1)).all(axis=2)
        rgb = np.broadcast_to(samples / white, (*alpha.shape, 3))
    return (rgb * alpha[..., None] + (1 - alpha[..., None])) * 255
