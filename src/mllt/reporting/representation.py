"""What `python -m mllt.probe` found of runs, as a table of the report: `probes/probe.json` in their folders.

The file is looked at as a whole where it is read: one that no probe writes costs its run's row and is told, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mllt.errors import DataError
from mllt.reporting.checks import is_number
from mllt.reporting.groups import Experiment, Group
from mllt.reporting.layout import Stat
from mllt.reporting.runs import Run
from mllt.results import plural, read_text

TITLE = "Representation"
#: Bytes of a `probe.json`; one of 100 experts has a tenth of it.
_MOST = 2**21
_SHOWN = ("all", "few")
#: Learned from which set, judged how, and what it is called.
_ACCURACIES = (
    ("balanced", "linear", "linear, balanced"),
    ("long_tailed", "linear", "linear, long-tailed"),
    ("balanced", "neighbours", "kNN, balanced"),
    ("long_tailed", "neighbours_by_count", "kNN, long-tailed"),
)
_GEOMETRY = ("spread", "separation")
HEAD = [
    "method, features",
    *(f"{title}: {group}" for title in (*(title for _, _, title in _ACCURACIES), *_GEOMETRY) for group in _SHOWN),
    "seeds",
]
_PARTS = {"expert": "expert", "trunk": "trunk", "concatenation": "all experts"}


@dataclass(frozen=True)
class Representation:
    """The table of an experiment.

    Args:
        lede: what the columns mean.
        lines: fitting `HEAD`.
        remarks: sentences on what was left out, or is to be known.
    """

    lede: str
    lines: list[list[str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def representation(experiment: Experiment) -> Representation | None:
    """The table of an experiment, a line for each group of runs and kind of features; None where nothing was probed."""
    lines: list[list[str]] = []
    remarks: list[str] = []
    seen: set[tuple[int, float]] = set()
    for group in experiment.finished:
        probes = list(_probes(group, remarks))
        settings = dict.fromkeys(_settings(probe) for probe in probes)
        seen |= set(settings)
        for one in settings:
            alike = [probe for probe in probes if _settings(probe) == one]
            name = group.title + (f" (k {one[0]}, l2 {one[1]:g})" if len(settings) > 1 else "")
            lines += _lines(name, alike)
            remarks += _unfinished(name, alike)
    if not lines and not remarks:
        return None
    return Representation(_lede(seen), lines, remarks)


def _lede(settings: set[tuple[int, float]]) -> str:
    words = " or ".join(f"k = {k} and l2 = {l2:g}" for k, l2 in sorted(settings))
    return (
        "Frozen features on the test images. Linear probe and nearest neighbours (kNN, by cosine) learn from the whole "
        "balanced training set or from the run's own long-tailed one; there, neighbours' votes are divided by class counts. "
        "Top-1 in percent, classes alike. Of features of unit length: spread, the mean squared distance to the class mean; "
        "separation, the distance from there to the nearest other class mean. An expert is the mean over the experts, each "
        "alone." + (f" {words}." if words else "")
    )


def _probes(group: Group, remarks: list[str]) -> Iterable[dict[str, Any]]:
    """What was found of each run of a group that was probed; what could not be read is put into `remarks`."""
    for run in group.runs:
        try:
            probe = read_probe(run)
        except DataError as error:
            remarks.append(
                f"{group.title}, seed {run.seed}: its probes/probe.json is left out: {' '.join(str(error).split())}."
            )
            continue
        if probe is not None:
            yield probe


def read_probe(run: Run) -> dict[str, Any] | None:
    """`probes/probe.json` of a run, looked at; None where there is none.

    Raises:
        DataError: it is damaged, holds something else than a probe writes, or is of other images or another method.
    """
    path = run.folder.root / "probes" / "probe.json"
    if not path.exists():
        return None
    try:
        probe = json.loads(read_text(path, _MOST), parse_constant=_no_number)
        _check(probe)
    except RecursionError:
        raise DataError("it is nested too deeply") from None
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"it is damaged, or no probe wrote it ({type(error).__name__}: {error!s:.100})") from error
    results = run.results or {}
    for name in ("data_digest", "method", "seed"):
        if name in results and probe.get(name) != results[name]:
            raise DataError(f"its {name} is not that of results.json: probe the run again")
    return probe


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number that JSON has")


def _check(probe: Any) -> None:
    """Raise one of the errors that `read_probe` takes for damage unless all that is shown of a probe is there and fits."""
    settings = probe["settings"]
    if type(settings["neighbours"]) is not int or not all(is_number(settings[name]) for name in ("neighbours", "l2")):
        raise ValueError("settings: expected numbers")
    features, learned = probe["features"], probe["trained_on"]
    if not features or not set(learned) <= {which for which, _, _ in _ACCURACIES}:
        raise ValueError("expected features, and what learned from them")
    for name, row in features.items():
        _kind(name)
        for quantity in _GEOMETRY:
            _check_groups(row[quantity])
    for which, rows in learned.items():
        if set(rows) != set(features):
            raise ValueError(f"{which}: expected a row for each of the features")
        for row in rows.values():
            for how in (how for its, how, _ in _ACCURACIES if its == which):
                _check_groups(row[how])
            if not isinstance(row["converged"], bool):
                raise ValueError("converged: expected true or false")


def _check_groups(row: Mapping[str, Any]) -> None:
    for group in _SHOWN:
        if row[group] is not None and not (is_number(row[group]) and abs(row[group]) <= 100):
            raise ValueError(f"expected a number of at most 100, but got {row[group]!r:.40}")


def _kind(name: str) -> str:
    """Of which kind features are: "expert" of each of the experts."""
    kind = name.partition(" ")[0]
    if kind not in _PARTS:
        raise ValueError(f"unknown features {name!r:.40}")
    return kind


def _settings(probe: Mapping[str, Any]) -> tuple[int, float]:
    return probe["settings"]["neighbours"], float(probe["settings"]["l2"])


def _lines(title: str, probes: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each kind of features, mean over seeds."""
    kinds = dict.fromkeys(_kind(name) for probe in probes for name in probe["features"])
    return [[f"{title}: {_PARTS[kind]}", *_cells(probes, kind), str(len(probes))] for kind in kinds]


def _cells(probes: list[dict[str, Any]], kind: str) -> list[str]:
    cells = []
    for which, how, _ in _ACCURACIES:
        rows = [_members(probe["trained_on"].get(which, {}), kind, how) for probe in probes]
        cells += [_text(rows, group, 1) for group in _SHOWN]
    for quantity in _GEOMETRY:
        rows = [_members(probe["features"], kind, quantity) for probe in probes]
        cells += [_text(rows, group, 3) for group in _SHOWN]
    return cells


def _members(table: Mapping[str, Any], kind: str, column: str) -> list[Mapping[str, float | None]]:
    """The rows of one kind of features in a probe: as many as there are experts, else one."""
    return [row[column] for name, row in table.items() if _kind(name) == kind]


def _text(rows: list[list[Mapping[str, float | None]]], group: str, digits: int) -> str:
    """Mean and deviation over probes of the mean over each one's members; "n/a" where there is none."""
    means = [Stat.of(row[group] for row in members) for members in rows]
    whole = Stat.of(None if mean is None else mean.mean for mean in means)
    return "n/a" if whole is None else whole.text(digits)


def _unfinished(title: str, probes: list[dict[str, Any]]) -> list[str]:
    """Linear probes that did not converge."""
    fits = [row["converged"] for probe in probes for rows in probe["trained_on"].values() for row in rows.values()]
    lost = fits.count(False)
    return [f"{title}: {plural(lost, 'linear probe')} of {len(fits)} did not converge; see their probe.json."] if lost else []
