"""Compares the tables of two commits, as `make bench` writes them, and fails where something became slower.

    python -m benchmarks.regression old.json new.json

Rows are compared by their ratio to the baseline, which other machines and other load change less than seconds. A row has
become worse when its ratio is lower by more than the tolerance and lies outside the middle half of the other run's. Rows
without a ratio are compared by their figure, with twice the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def changes(old: list[dict[str, Any]], new: list[dict[str, Any]], tolerance: float) -> tuple[list[str], list[str]]:
    """What became worse, and what is in one of the tables alone, in words."""
    before, after = {row["what"]: row for row in old}, {row["what"]: row for row in new}
    worse = [told for name in after if name in before and (told := _worse(before[name], after[name], tolerance))]
    alone = [f"only in the old table: {name}" for name in before if name not in after]
    alone += [f"only in the new table: {name}" for name in after if name not in before]
    return worse, alone


def _worse(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> str | None:
    if before["ratio"] is not None and after["ratio"] is not None:
        lower = after["ratio"] < before["ratio"] * (1 - tolerance)
        outside = before["low"] is None or after["ratio"] < before["low"]
        shown = f"{after['what']}: ratio {before['ratio']:.2f} -> {after['ratio']:.2f}"
    else:
        lower, outside = after["ours"] > before["ours"] * (1 + 2 * tolerance), True
        shown = f"{after['what']}: {before['ours']:.3g} -> {after['ours']:.3g} {after['unit']}"
    return shown if lower and outside else None


def main() -> None:
    """The command; its exit status is 1 where something became slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regression", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.1, help="share of a ratio that may be lost (0.1)")
    arguments = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (arguments.old, arguments.new))
    for name in ("processor", "threads", "cifar100"):
        if old.get(name) != new.get(name):
            print(f"Note: {name} was {old.get(name)}, and is {new.get(name)}.")
    worse, alone = changes(old["rows"], new["rows"], arguments.tolerance)
    print(*alone, *(f"slower: {told}" for told in worse), sep="\n")
    compared = len({row["what"] for row in old["rows"]} & {row["what"] for row in new["rows"]})
    print(
        f"{compared} rows compared ({old.get('commit')} -> {new.get('commit')}), {len(worse)} slower by more than "
        f"{arguments.tolerance:.0%}."
    )
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
