"""Files that mean harm, made from good ones: what the tests of malicious checkpoints, settings and results share."""

from __future__ import annotations

import copy
import io
import os
import pickle
import re
import struct
import timeit
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils import collect_env


class Payload:
    """When a pickle of it is loaded the unsafe way, `function(*arguments)` is called."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


#: Ways to make a file, the canary, once a pickle is loaded without protection.
GADGETS: dict[str, Callable[[Path], Payload]] = {
    "os.system": lambda canary: Payload(os.system, f"touch {canary}"),
    "builtins.exec": lambda canary: Payload(exec, f"open({str(canary)!r}, 'w')"),
    "builtins.eval": lambda canary: Payload(eval, f"open({str(canary)!r}, 'w').close()"),
    "a method": lambda canary: Payload(Path.write_text, canary, "ran"),
    "the standard library": lambda canary: Payload(
        timeit.timeit, f"open({str(canary)!r}, 'w')", "pass", timeit.default_timer, 1
    ),
    "torch itself": lambda canary: Payload(collect_env.run, f"touch {canary}"),
}


def put(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy of a checkpoint's content with a value at a dotted place; "" puts it in the place of everything."""
    if place == "":
        return value
    changed = copy.copy(content)
    section: Any = changed
    *above, key = place.split(".")
    for part in above:
        inner = section[int(part)] if isinstance(section, list) else section[part]
        inner = copy.copy(inner)
        if isinstance(section, list):
            section[int(part)] = inner
        else:
            section[part] = inner
        section = inner
    if isinstance(section, list):
        section[int(key)] = value
    else:
        section[key] = value
    return changed


def rezip(source: Path, target: Path, pickled: Callable[[bytes], bytes] = bytes, **more: bytes) -> Path:
    """A checkpoint's archive written again, with another pickle and more entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry.filename)
            new.writestr(entry.filename, pickled(content) if entry.filename.endswith("/data.pkl") else content)
        root = old.namelist()[0].partition("/")[0]
        for name, content in more.items():
            new.writestr(f"{root}/{name}", content)
    return target


def claim_more_numbers(content: dict[str, Any], target: Path, factor: int = 10**6) -> Path:
    """A checkpoint whose pickle says of its first storage that it has far more numbers than are in the file."""
    whole = io.BytesIO()
    torch.save({**content, "state_dict": {"weight": torch.arange(1000, dtype=torch.float32)}}, whole)
    target.with_suffix(".whole").write_bytes(whole.getvalue())

    def claim(pickled: bytes) -> bytes:
        thousand = b"M" + struct.pack("<H", 1000)
        assert thousand in pickled
        return pickled.replace(thousand, b"J" + struct.pack("<i", 1000 * factor))

    return rezip(target.with_suffix(".whole"), target, claim)


def zip_bomb(content: dict[str, Any], target: Path, size: int) -> Path:
    """A checkpoint of a few bytes with an entry that is `size` bytes when it is unpacked."""
    torch.save(content, target.with_suffix(".whole"))
    with zipfile.ZipFile(target.with_suffix(".whole")) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith("/data/0"):
                new.writestr(entry.filename, old.read(entry.filename))
        root = old.namelist()[0].partition("/")[0]
        bomb = zipfile.ZipInfo(f"{root}/data/0")
        bomb.compress_type = zipfile.ZIP_DEFLATED
        with new.open(bomb, "w", force_zip64=True) as file:
            for _ in range(size // 2**20):
                file.write(bytes(2**20))
    return target


def overlapping(content: dict[str, Any], target: Path) -> Path:
    """A checkpoint whose directory lists one large entry many times over."""
    torch.save({**content, "extra": torch.zeros(2**20)}, target)
    whole = bytearray(target.read_bytes())
    end = whole.rindex(b"PK\x05\x06")
    start = struct.unpack_from("<I", whole, end + 16)[0]
    if start == 0xFFFFFFFF:  # in zip64, elsewhere
        start = whole.index(b"PK\x01\x02")
    listed = bytes(whole[start : whole.index(b"PK\x06\x06") if b"PK\x06\x06" in whole else end])
    entries = re.split(rb"(?=PK\x01\x02)", listed)[1:]
    largest = max(entries, key=lambda entry: struct.unpack_from("<I", entry, 24)[0])
    name = struct.unpack_from("<H", largest, 28)[0]
    copies = b"".join(largest[: 46 + name - 4] + f"{number:04d}".encode() + largest[46 + name :] for number in range(1000))
    tail = struct.pack(
        "<4sHHHHIIH", b"PK\x05\x06", 0, 0, len(entries) + 1000, len(entries) + 1000, len(listed + copies), start, 0
    )
    target.write_bytes(bytes(whole[:start]) + listed + copies + tail)
    return target


def laughs(levels: int = 30, width: int = 10) -> list[Any]:
    """A few lists that refer to each other so often that going through them would never end."""
    value: list[Any] = ["ha"]
    for _ in range(levels):
        value = [value] * width
    return value


def circle() -> list[Any]:
    """A list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def deep_pickle(depth: int) -> bytes:
    """The pickle of lists in lists, deeper than Python would write it."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def legacy(content: Any, target: Path) -> Path:
    """As PyTorch wrote files before version 1.6: one pickle after the other, no archive."""
    torch.save(content, target, _use_new_zipfile_serialization=False)
    return target


def bare_pickle(content: Any, target: Path) -> Path:
    """A pickle and nothing else."""
    target.write_bytes(pickle.dumps(content))
    return target


def newer_protocol(content: Any, target: Path) -> Path:
    """An archive as usual, pickled by another protocol, which names functions in another way."""
    torch.save(content, target, pickle_protocol=4)
    return target


def archive(content: Any, target: Path) -> Path:
    """As usual."""
    torch.save(content, target)
    return target


FORMS = {"archive": archive, "newer protocol": newer_protocol, "legacy": legacy, "bare pickle": bare_pickle}
