"""All benchmarks of the processor, as one table; JSON beside it.

python -m benchmarks [--only training data ...] [--json runs/bench.json] [--threads 2]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.measure import Row
from benchmarks.peak import float32_flops
from benchmarks.table import print_table, show

from mllt.results import git_commit, versions

PARTS = ("training", "data", "jpeg", "loss", "devices", "startup")


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
        torch.set_num_threads(about["threads"])  # some parts are of one thread, and leave it at that
        taken += show(importlib.import_module(f"benchmarks.{part}").rows())
    about["load_after"] = [round(load, 2) for load in os.getloadavg()]
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({**about, "rows": [row.as_dict() for row in taken]}, indent=2) + "\n")
    print(f"\nEverything in one table, on {about['processor']}, {about['threads']} threads, {about['float32_gflops']} GFLOP/s:")
    print_table(taken)
    print(f"Load before {about['load']}, after {about['load_after']}; {time.monotonic() - began:.0f} s.")
    print(f"Written to {arguments.json}")


if __name__ == "__main__":
    main()
