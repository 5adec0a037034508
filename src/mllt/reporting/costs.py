"""How the runs were made: epochs, time, device, commit, and the commands that repeat them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from mllt.reporting.groups import Experiment, Group, commit
from mllt.reporting.layout import Layout, Row, Stat

TITLE = "How the runs were made"
COLUMNS = ("method", "seeds", "epochs", "seconds", "processor seconds", "images/s", "device", "code")
LEDE = (
    "Of training: epochs of all stages, seconds of all stages by the clock, mean ± standard deviation over seeds. On a machine "
    "that does other work the clock says little; processor seconds, of all threads together, tell the cost there, but on a "
    "processor only: a GPU's work is not in them."
)
#: A cost that can be drawn: some ten thousand years.
MOST_SECONDS = 1e12
COMMANDS = "The commands that repeat the runs; where the data lie, and where the results go, is left out."


def lines(experiment: Experiment) -> list[list[str]]:
    """A line of texts for each group, fitting `COLUMNS`; "n/a" where the runs do not tell."""
    return [_line(group) for group in experiment.finished]


def _line(group: Group) -> list[str]:
    stats = [Stat.of(results.get(name) for results in group.results) for name in ("train_seconds", "cpu_seconds")]
    if len([one for one in group.results if one.get("cpu_seconds") is not None]) < len(group.results):
        stats[1] = None  # not of all seeds
    speed = Stat.of(results.get("images_per_second") for results in group.results)
    return [
        group.title,
        ", ".join(str(run.seed) for run in group.runs),
        group.settings["epochs"],
        *map(_amount, [*stats, speed]),
        " | ".join(devices(group)) or "n/a",
        commit(group.settings["code"]),
    ]


def _amount(stat: Stat | None) -> str:
    """Whole numbers with their deviation; below a hundred one more digit."""
    if stat is None:
        return "n/a"
    digits = 0 if stat.mean >= 100 else 1
    return f"{stat.mean:,.{digits}f}" + ("" if stat.std is None else f" ± {stat.std:,.{digits}f}")


def devices(group: Group) -> list[str]:
    """What the runs of a group were trained on, each device once."""
    return list(dict.fromkeys(str(results["device"]) for results in group.results if results.get("device")))


def commands(group: Group) -> list[str]:
    """The commands that repeat the runs of a group: one for all seeds where they differ in nothing else.

    Returns:
        None for a run that an earlier version of mllt made, which did not write it down.
    """
    told = [(run.seed, str(run.results["command"])) for run in group.runs if run.results and run.results.get("command")]
    together = _of_all_seeds(told)
    return [together] if together else list(dict.fromkeys(command for _, command in told))


def _of_all_seeds(told: Sequence[tuple[int, str]]) -> str:
    """One command for several that differ in the seed alone; "" where they are not such."""
    try:
        split = [shlex.split(command) for _, command in told]
    except ValueError:  # quotes without an end: no run wrote it
        return ""
    rests = [[word for word in words if not word.startswith("seed=")] for words in split]
    seeded = all(f"seed={seed}" in words for (seed, _), words in zip(told, split, strict=True))
    if len(told) < 2 or not seeded or any(rest != rests[0] or rest[:2] != ["python", "-m"] for rest in rests):
        return ""
    seeds = ",".join(str(seed) for seed, _ in told)
    return shlex.join([*rests[0][:3], "-m", *rests[0][3:], f"seed={seeds}"])


# ---------------------------------------------------------------------------------------------------------------
# Accuracy against cost


@dataclass(frozen=True)
class Point:
    """A row of the table against what it cost.

    Args:
        name: of the row.
        cost: mean over seeds, in seconds.
        accuracy: over all classes, mean over seeds, in percent.
        each: the mean over the experts, each alone; None for a single network.
    """

    name: str
    cost: float
    accuracy: float
    each: float | None


@dataclass(frozen=True)
class Plane:
    """The rows whose costs may be compared: of runs on one kind and number of devices.

    Args:
        device: what they were trained on.
        processor: whether the cost is processor seconds, else seconds by the clock.
        points: by rising cost.
    """

    device: str
    processor: bool
    points: list[Point]


def planes(layout: Layout) -> tuple[list[Plane], list[str]]:
    """The rows by device, and the names of those that cannot be placed.

    The cost is processor seconds where all runs on a device tell them and it is a processor; else seconds by the clock.
    """
    rows = [row for row in layout.rows if row.group and row.group.runs]
    by_device: dict[str, list[Row]] = {}
    for row in rows:
        assert row.group is not None  # as above
        by_device.setdefault(" | ".join(devices(row.group)) or "device not recorded", []).append(row)
    found = [_plane(device, members) for device, members in by_device.items()]
    placed = {point.name for plane in found for point in plane.points}
    return [plane for plane in found if plane.points], [row.name for row in rows if not row.part and row.name not in placed]


def _plane(device: str, rows: Sequence[Row]) -> Plane:
    results = [one for row in rows if row.group for one in row.group.results]
    processor = re.match(r"\d+ x cpu\b", device) is not None and all(one.get("cpu_seconds") for one in results)
    each = {id(row.group): row.own[3] for row in rows if row.part}
    points = [_point(row, each.get(id(row.group)), processor=processor) for row in rows if not row.part]
    return Plane(device, processor, sorted(filter(None, points), key=lambda point: (point.cost, point.name)))


def _point(row: Row, each: Stat | None, *, processor: bool) -> Point | None:
    """None for a row that has no place: its runs do not tell, or tell what cannot be."""
    assert row.group is not None  # of runs
    name = "cpu_seconds" if processor else "train_seconds"
    cost, accuracy = Stat.of(results.get(name) for results in row.group.results), row.own[3]
    if cost is None or accuracy is None or not 0 < cost.mean < MOST_SECONDS or not 0 <= accuracy.mean <= 100:
        return None
    alone = each.mean if each is not None and 0 <= each.mean <= 100 and row.method == row.group.method else None
    return Point(row.name, cost.mean, accuracy.mean, alone)
