"""Reads the file that wandb writes offline: records of Protocol Buffers in the log format of LevelDB."""

from __future__ import annotations

import json
import struct
from pathlib import Path

BLOCK = 32768
HEADER = 7  # of the file: ":W&B", a magic number, a version; of a piece: checksum (4), length (2), kind (1)
WHOLE, FIRST, MIDDLE, LAST = range(1, 5)


def read_records(path: Path) -> list:
    """Every record of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content.startswith(b":W&B"), f"{path} is no file of wandb's"
    records, start, parts = [], HEADER, b""
    while start + HEADER <= len(content):
        left = BLOCK - start % BLOCK
        if left < HEADER:  # a header does not cross the edge of a block
            start += left
            continue
        _, length, kind = struct.unpack("<IHB", content[start : start + HEADER])
        assert kind in (WHOLE, FIRST, MIDDLE, LAST), f"{path}: unknown piece at byte {start}"
        parts += content[start + HEADER : start + HEADER + length]
        start += HEADER + length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def settings(records: list) -> dict:
    """The config that was uploaded."""
    found = {}
    for record in records:
        for update in (*record.run.config.update, *record.config.update):
            found[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
    return found


def logged(records: list) -> set[str]:
    """Names of what was logged."""
    return {item.key or "/".join(item.nested_key) for record in records for item in record.history.item}
