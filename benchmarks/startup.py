"""How long a command and the package take to start, in processes of their own.

python -m benchmarks.startup
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from benchmarks.measure import Row, middle_half, once
from benchmarks.table import show


def seconds_of(*arguments: str) -> float:
    """Seconds of a Python process."""
    return once(lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL))


def rows(rounds: int = 5) -> Iterator[Row]:
    """The command's help, and what importing a method adds to the imports that it cannot do without."""
    helps = [seconds_of("-m", "mllt.train", "--help") for _ in range(rounds + 1)][1:]
    low, high = middle_half([3 / seconds for seconds in helps])
    yield Row(
        what="python -m mllt.train --help, warm; baseline: the 3 s it may take",
        unit="s",
        baseline=3.0,
        ours=median(helps),
        ratio=median(3 / seconds for seconds in helps),
        low=low,
        high=high,
        target=1.0,
    )
    alone, with_mllt = "import torch, lightning", "import torch, lightning; from mllt import MutualLTModule"
    pairs = [(seconds_of("-c", alone), seconds_of("-c", with_mllt)) for _ in range(rounds + 1)][1:]
    added = median(both - least for least, both in pairs)
    yield Row(
        what="from mllt import MutualLTModule, on top of torch and lightning; baseline: the 0.5 s it may take",
        unit="s",
        baseline=0.5,
        ours=added,
        ratio=0.5 / added if added > 0 else None,
        target=1.0,
        note=f"torch and lightning: {median(least for least, _ in pairs):.2f} s",
    )


if __name__ == "__main__":
    show(rows())
