"""All benchmarks of the processor, as one table; JSON beside it.

python -m benchmarks [--only training data ...] [--json runs/bench.json] [--threads 2]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.measure import Row
from benchmarks.peak import float32_flops
from rich.console import Console
from rich.table import Table

from mllt.results import git_commit, versions

PARTS = ("training", "data", "jpeg", "loss", "devices", "startup")
HEADS = ("what", "unit", "baseline", "ours", "ratio (middle half)", "asked for", "floor", "share of the floor")


def figure(value: float | None) -> str:
    """A number in three digits.

    >>> figure(0.12345), figure(1234.5), figure(None)
    ('0.123', '1,234', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table as text."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    if row.low is not None and row.high is not None:
        ratio += f" ({row.low:.2f} .. {row.high:.2f})"
    share = "" if row.floor is None or not row.ours else f"{100 * row.floor / row.ours:.0f} %"
    target = "" if row.target is None else f"{row.target:.2f}"
    return (row.what, row.unit, figure(row.baseline), figure(row.ours), ratio, target, figure(row.floor), share)


def show(rows: Iterable[Row]) -> list[Row]:
    """Print rows as they come, then the table."""
    taken = []
    for row in rows:
        taken.append(row)
        print(" | ".join(cells(row)), file=sys.stderr, flush=True)
    table = Table(*HEADS, show_lines=False)
    for row in taken:
        table.add_row(*cells(row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for row in taken:
        if row.note or row.floor_is:
            notes = "; ".join(text for text in (row.note, f"floor: {row.floor_is}" if row.floor_is else "") if text)
            print(f"{row.what}: {notes}")
    return taken


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was."""
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    return {
        "processor": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "float32_gflops": round(float32_flops(torch.get_num_threads()) / 1e9, 1),
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": versions(),
        "commit": git_commit(),
        "cifar100": (Path(os.environ.get("MLLT_DATA", "data")) / "cifar-100-python").is_dir(),
    }


def _cpuinfo() -> Iterator[str]:
    path = Path("/proc/cpuinfo")
    yield from path.read_text().splitlines() if path.exists() else ()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, default=Path("runs/bench.json"))
    parser.add_argument("--threads", type=int, help="processor threads; by default one per core")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    began, about = time.monotonic(), machine()
    taken: list[Row] = []
    for part in arguments.only:
        taken += show(importlib.import_module(f"benchmarks.{part}").rows())
    about["load_after"] = [round(load, 2) for load in os.getloadavg()]
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({**about, "rows": [row.as_dict() for row in taken]}, indent=2) + "\n")
    print(f"\nEverything in one table, on {about['processor']}, {about['threads']} threads, {about['float32_gflops']} GFLOP/s:")
    show_quietly(taken)
    print(f"Load before {about['load']}, after {about['load_after']}; {time.monotonic() - began:.0f} s.")
    print(f"Written to {arguments.json}")


def show_quietly(rows: list[Row]) -> None:
    """The table alone."""
    table = Table(*HEADS)
    for row in rows:
        table.add_row(*cells(row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    main()
