"""How rows of benchmarks are printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from benchmarks.measure import Row
from rich.console import Console
from rich.table import Table

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
    print_table(taken)
    for row in taken:
        if row.note or row.floor_is:
            notes = "; ".join(text for text in (row.note, f"floor: {row.floor_is}" if row.floor_is else "") if text)
            print(f"{row.what}: {notes}")
    return taken


def print_table(rows: list[Row]) -> None:
    """The table alone."""
    table = Table(*HEADS)
    for row in rows:
        table.add_row(*cells(row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
