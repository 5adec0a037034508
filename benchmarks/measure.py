"""Comparing two ways of doing the same, on a machine that others use, too.

Both run in one process, in turns: ours, baseline, ours, baseline. What else the machine does then falls on both alike, and
the figure to trust is the ratio of neighbours: its median, and the spread of its middle half.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

Clock = Callable[[], float]
Work = Callable[[], object]


def wall() -> float:
    """Seconds that passed; what a GPU was given to do is done by then."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def cpu() -> float:
    """Seconds of processor time of this process, over all its threads."""
    return time.process_time()


@dataclass(frozen=True)
class Row:
    """One line of the table.

    baseline, ours: medians, in `unit`; smaller is better. None where there is nothing to compare with.
    ratio: median over neighbours of baseline / ours; more is better. low, high: the middle half of the ratios.
    floor: what no program could go below here, in `unit`, and why it is known (`floor_is`).
    target: the ratio that was asked for.
    """

    what: str
    unit: str
    baseline: float | None
    ours: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    floor_is: str = ""
    target: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def tells_seconds() -> float:
    """In place of a clock: every call returns the seconds that count, such as those of its last steps."""
    raise RuntimeError("The calls tell their seconds themselves.")


def once(work: Work, clock: Clock = wall, repeats: int = 1) -> float:
    """Seconds of one call, the mean of `repeats` of them; the garbage collector waits meanwhile."""
    if clock is tells_seconds:
        return sum(float(work()) for _ in range(repeats)) / repeats  # type: ignore[arg-type]
    was_on = gc.isenabled()
    gc.disable()
    try:
        began = clock()
        for _ in range(repeats):
            work()
        return (clock() - began) / repeats
    finally:
        if was_on:
            gc.enable()


def middle_half(values: list[float]) -> tuple[float, float]:
    """The first and the third quartile, of the values themselves."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return low, high


def compare(
    what: str,
    baseline: Work,
    ours: Work,
    *,
    rounds: int = 7,
    repeats: int = 1,
    clock: Clock = wall,
    unit: str = "ms",
    per: float = 1.0,
    warm_up: int = 1,
    floor: float | None = None,
    floor_is: str = "",
    target: float | None = None,
    note: str = "",
) -> Row:
    """Run both in turns, `rounds` times.

    Args:
        what: the name of the line.
        baseline, ours: calls that do the same work.
        repeats: calls per turn, for work that is short.
        clock: `wall`, `cpu` or `tells_seconds`.
        unit: "s", "ms" or "us".
        per: how many things a call does, such as the images of a batch; figures are of one of them.
        warm_up: calls of each beforehand, not timed.
        floor: in seconds, of one call.
    """
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit] / per
    for _ in range(warm_up):
        baseline()
        ours()
    pairs = [(once(baseline, clock, repeats), once(ours, clock, repeats)) for _ in range(rounds)]
    ratios = [theirs / own for theirs, own in pairs]
    low, high = middle_half(ratios)
    return Row(
        what=what,
        unit=unit,
        baseline=median(pair[0] for pair in pairs) * scale,
        ours=median(pair[1] for pair in pairs) * scale,
        ratio=median(ratios),
        low=low,
        high=high,
        floor=None if floor is None else floor * scale,
        floor_is=floor_is,
        target=target,
        note=note,
    )


def peak_memory(work: Work) -> float:
    """Megabytes (10^6 bytes) that one call needs at most beside what there was before it.

    On a GPU, what PyTorch's allocator handed out. Else what the process had resident (Linux only), all that was free given
    back before, so that memory of an earlier call is not used for nothing; temporaries within kernels count, too.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024 / 1e6


def compare_memory(
    what: str,
    baseline: Work | None,
    ours: Work,
    *,
    rounds: int = 3,
    floor: float | None = None,
    floor_is: str = "",
    target: float | None = None,
    note: str = "",
) -> Row:
    """As `compare`, of what both need at most, in megabytes; `floor` in these. Without a baseline, ours alone."""
    for work in (baseline, ours):
        if work is not None:
            work()  # what a library sets up at its first use
    measured = [(None if baseline is None else peak_memory(baseline), peak_memory(ours)) for _ in range(rounds)]
    mine = median(own for _, own in measured)
    row = Row(what=what, unit="MB", baseline=None, ours=mine, floor=floor, floor_is=floor_is, target=target, note=note)
    if baseline is None:
        return row
    theirs = [their for their, _ in measured if their is not None]
    ratios = [their / own for their, own in measured if their is not None]
    low, _, high = quantiles(ratios, n=4) if rounds > 1 else (ratios[0],) * 3
    return replace(row, baseline=median(theirs), ratio=median(ratios), low=low, high=high)
