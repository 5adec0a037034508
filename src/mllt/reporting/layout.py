"""The paper's table of an experiment: own rows and published figures side by side, and every note a reader needs.

What is here knows of no output format; `tables.py` and `page.py` write it down.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mllt.reporting.checks import SHOT_RULE, is_number, shot_rule
from mllt.reporting.groups import NAMES, NOT_RECORDED, Experiment, Group, commit, differences, letter_of
from mllt.reporting.published import GROUPS, TRAINING_IMAGES, Published, published
from mllt.results import plural

#: In what the rows of a table may differ although they stand in one: worth a remark where they do.
_UNLIKE = ("code", "mllt", "recipe", "training images", "trainer.max_epochs", "trainer.precision", "data.", "evaluation.")


@dataclass(frozen=True)
class Stat:
    """Mean over seeds, and the sample standard deviation (n - 1), None for one seed; in percent where it is an accuracy."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Stat | None:
        """Of those that are numbers; None where none is: a shot group without classes.

        >>> Stat.of([90.0, 92.0]), Stat.of([None])
        (Stat(mean=91.0, std=1.41..., count=2), None)
        """
        numbers = [float(value) for value in values if value is not None]
        if not numbers:
            return None
        return cls(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))

    def text(self, digits: int = 1) -> str:
        """As in the paper, with the deviation where there is one.

        >>> Stat(57.66, 0.31, 3).text(), Stat(57.66, None, 1).text()
        ('57.7 ± 0.3', '57.7')
        """
        return f"{self.mean:.{digits}f}" + ("" if self.std is None else f" ± {self.std:.{digits}f}")


@dataclass
class Row:
    """A line of the table.

    Args:
        name: what stands in the first column.
        method: its key.
        part: "each" for the mean over the experts, each alone; "" for the network or ensemble.
        own: many, medium, few, all of the runs; None where there are no classes in a group, or no runs.
        group: whose runs; None for a row that is only published.
        kind: "raw" or "compensated": which of the runs' accuracies these are.
        beside: the published figures beside it.
        marks: numbers of the notes below the table.
    """

    name: str
    method: str
    part: str
    own: tuple[Stat | None, ...] = (None,) * 4
    group: Group | None = None
    kind: str = ""
    beside: Published | None = None
    flags: list[str] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        """Of the runs."""
        return [run.seed for run in self.group.runs] if self.group else []

    @property
    def status(self) -> str:
        """ "" for a row of runs, "incomplete" for one whose runs have no results, "published" for one without runs."""
        if self.group is None:
            return "published"
        return "" if self.group.runs else "incomplete"


@dataclass
class Layout:
    """An experiment as it is shown.

    Args:
        experiment: what it is of.
        rows: of the table, top down.
        notes: what the marks of the rows refer to, from 1.
        remarks: what holds for the whole table.
        others: published figures of systems that mllt does not have.
        common: what is to be said of every group alike, and so is said once.
        letters: of the methods whose groups have letters: the method's name, and for each letter what it stands for.
    """

    experiment: Experiment
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    others: list[Published] = field(default_factory=list)
    common: list[str] = field(default_factory=list)
    letters: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)

    @property
    def with_table_a2(self) -> bool:
        """Whether a figure of the paper's Table A2 stands in it."""
        return any(row.beside.source.endswith("Table A2") for row in self.rows if row.beside)

    @property
    def with_published(self) -> bool:
        """Whether there are published figures for the right half."""
        return any(row.beside for row in self.rows)

    def mark(self, row: Row, note: str) -> None:
        """Put a note below the table, once, and its number on the row."""
        if note not in self.notes:
            self.notes.append(note)
        number = self.notes.index(note) + 1
        if number not in row.marks:
            row.marks.append(number)


def lay_out(experiment: Experiment) -> Layout:
    """The table of an experiment.

    Methods stand in the paper's order; the experts' mean before the ensemble; a method's groups each in a row of its own.
    Beside them stands the published figure that was trained most like them, further ones below. Published methods of the
    library that were not run have a row, too.
    """
    layout = Layout(experiment)
    known = published(experiment.dataset, _whole(experiment.imbalance_factor), experiment.network) if experiment.uniform else []
    layout.others = [row for row in known if not row.method]
    if len(experiment.finished) > 1:
        alike = [group.remarks for group in experiment.finished]
        layout.common = [remark for remark in alike[0] if all(remark in other for other in alike)]
    own = {group.method for group in experiment.groups}
    for method in [*NAMES, *sorted(own - set(NAMES))]:
        _method(layout, method, [row for row in known if row.method == method])
    _remarks(layout)
    return layout


def _whole(factor: float | None) -> float | None:
    """An imbalance factor as the published figures have it."""
    return None if factor is None else round(factor) if factor == round(factor) else factor


def _method(layout: Layout, method: str, known: list[Published]) -> None:
    """The rows of one method: those of each group, and then the published figures that stand beside none of them."""
    groups = layout.experiment.groups
    own = [(group, "") for group in groups if group.method == method]
    if method == "pc_softmax" and not any(group.runs for group, _ in own):
        own += [(group, "compensated") for group in groups if group.method == "cross_entropy" and group.runs]
    told = set()
    for group, kind in own:
        for part in ("each", "") if _has_experts(group) else ("",):
            row = own_row(layout, group, part, kind)
            fitting = [one for one in known if one.part == part]
            if fitting:
                nearest = min(fitting, key=lambda one, group=group: _distance(one, [group]))  # type: ignore[misc]
                _set_beside(layout, row, nearest, [group])
                told.add(nearest)
            layout.rows.append(row)
    for one in sorted(known, key=lambda one: one.part == ""):
        if one not in told:
            variant = one.name[one.name.index("(") :] if "(" in one.name and not one.part else ""
            row = Row(f"{_title(method, one.part)} {variant}".strip(), method, one.part)
            _set_beside(layout, row, one, [group for group, _ in own] or groups)
            layout.rows.append(row)


def _has_experts(group: Group) -> bool:
    return bool(group.runs) and len(group.first["test"].get("experts", [])) > 1


def _title(method: str, part: str, label: str = "") -> str:
    extra = ", ".join(["each expert"] * bool(part) + [label] * bool(label))
    return NAMES.get(method, method) + (f" ({extra})" if extra else "")


def own_row(layout: Layout, group: Group, part: str, kind: str = "") -> Row:
    """The row of a group.

    Args:
        layout: takes the notes.
        group: its runs.
        part: "each" or "".
        kind: "compensated" for the PC Softmax of cross-entropy runs; "": what the method's authors report.
    """
    method = "pc_softmax" if kind else group.method
    row = Row(_title(method, part, group.label), method, part, group=group)
    if group.runs:
        row.kind = kind or str(group.first.get("reported", "compensated"))
        row.own = tuple(Stat.of(accuracy(results, row.kind, column, part) for results in group.results) for column in GROUPS)
    if kind:
        layout.mark(row, "The Cross Entropy runs once more, post-compensated: PC Softmax trains alike.")
    for remark in [] if kind else group.remarks:
        if remark not in layout.common:
            layout.mark(row, f"{group.title}: {remark}")
    return row


def accuracy(results: Mapping[str, Any], kind: str, column: str, part: str = "") -> float | None:
    """An accuracy of a run in percent: the ensemble's, or the mean over its experts; None for a group without classes."""
    if part == "":
        return results["test"]["ensemble"][kind][column]
    values = [expert[kind][column] for expert in results["test"]["experts"]]
    return None if any(value is None for value in values) else statistics.fmean(values)


def _distance(one: Published, groups: Sequence[Group]) -> tuple[int, int, int]:
    """How unlike the runs a published figure was trained; the paper's own before others that are as like."""
    stated = (one.epochs is None) + (one.augmentation == "")
    return len(_flags(one, groups)), one.trust != "paper", stated


def _flags(one: Published, groups: Sequence[Group]) -> list[str]:
    """How a published figure differs from runs; what a method alone has is compared with runs of that method only."""
    others = (replace(group.training, experts=None, distilled=None) for group in groups if group.method != one.method)
    return one.differences([*(group.training for group in groups if group.method == one.method), *others])


def _set_beside(layout: Layout, row: Row, one: Published, groups: Sequence[Group]) -> None:
    """Put a published figure into a row, with the note of its source, and flagged where it was trained otherwise."""
    row.beside, row.flags = one, _flags(one, groups)
    flag = f" Differs from the runs: {', '.join(row.flags)}." if row.flags else ""
    weak = " Not a source to cite." if one.trust in ("list", "aggregator") else ""
    layout.mark(row, f"Published: {one.described()}.{flag}{weak}")


def _remarks(layout: Layout) -> None:
    """What holds for the table as a whole: why groups are apart, and what its rows do not have in common."""
    experiment = layout.experiment
    finished = experiment.finished
    for method in dict.fromkeys(group.method for group in experiment.groups):
        groups = [group for group in experiment.groups if group.method == method]
        if len(groups) > 1:
            _set_apart(layout, NAMES.get(method, method), groups)
    unlike = differences(finished, _UNLIKE) if len({group.method for group in finished}) > 1 else []
    for name, values in unlike:
        by_value = {
            value: [g.title for g, v in zip(finished, values, strict=True) if v == value] for value in dict.fromkeys(values)
        }
        listed = "; ".join(f"{value} ({', '.join(titles)})" for value, titles in by_value.items())
        layout.remarks.append(f"The rows are not alike in {name}: {listed}.")
    layout.remarks += [f"All runs: {remark}" for remark in layout.common]
    layout.remarks += [*_data_remark(finished), *_images_remark(layout), *_rule_remark(layout)]
    if any(row.kind for row in layout.rows):
        layout.remarks.append(_kinds(layout.rows))


def _set_apart(layout: Layout, name: str, groups: Sequence[Group]) -> None:
    """Say in what a method's groups differ: in a remark where they are named by it, else letter by letter."""
    unfinished = [group for group in groups if not group.runs]
    known = set.intersection(*(set(group.settings) for group in groups)) if unfinished else None
    told = differences(groups, known)
    why = f"{name} stands in {len(groups)} rows, since its runs are not of one kind and must not be averaged."
    open_runs = f" No results yet: {', '.join(group.label for group in unfinished)}." if unfinished else ""
    order = [group.label for group in groups]
    if order == [letter_of(number) for number in range(len(groups))]:
        meanings = [", ".join(f"{setting} {values[number]}" for setting, values in told) for number in range(len(groups))]
        layout.letters.append(
            (name, [(a, b or "what unfinished runs do not tell") for a, b in zip(order, meanings, strict=True)])
        )
        layout.remarks.append(f"{why} What the letters stand for is listed below.{open_runs}")
    else:
        layout.remarks.append(f"{why} They differ in {', '.join(setting for setting, _ in told)}.{open_runs}")


def _data_remark(finished: Sequence[Group]) -> list[str]:
    """Whether all rows are of the same images."""
    found = differences(finished, ["images"]) if finished else []
    told = []
    for _, values in found:
        titles: dict[str, list[str]] = {}
        for value, group in zip(values, finished, strict=True):
            place = f", {group.places}" if group.places not in ("", value) else ""
            titles.setdefault(f"{value}{place}", []).append(group.title)
        listed = "; ".join(f"{value} ({', '.join(names)})" for value, names in titles.items())
        if len(set(values) - {NOT_RECORDED}) > 1:
            sentence = (
                "The rows are not of the same images with the same labels in training, validation and test, and cannot be"
            )
        else:
            sentence = "Not all rows tell which images they are of in training, validation and test: they may not be"
        told.append(f"{sentence} compared: {listed}.")
    return told


def _rule_remark(layout: Layout) -> list[str]:
    """Whether the runs' shot groups can be those of the published figures."""
    beside = [row for row in layout.rows if row.beside and any(value is not None for value in row.beside.accuracies[:3])]
    rules = dict.fromkeys(shot_rule(group.config) for group in layout.experiment.finished)
    words = {False: "many above {}, few below {}", True: "many from {}, few up to {}"}
    odd = [words[inclusive].format(above, below) for above, below, inclusive in rules if (above, below, inclusive) != SHOT_RULE]
    return [
        f"The runs' shot groups are of another rule ({'; '.join(odd)} images) than the published ones (many above 100, few "
        "below 20): published many, medium and few cannot be compared with them."
    ] * bool(beside and odd)


def _images_remark(layout: Layout) -> list[str]:
    """Whether the runs' training images can be those of the published figures."""
    experiment = layout.experiment
    expected = TRAINING_IMAGES.get((experiment.dataset, _whole(experiment.imbalance_factor)))
    totals = sorted({sum(group.first["class_counts"]) for group in experiment.finished})
    if not layout.with_published or expected is None or set(totals) <= {expected}:
        return []
    listed = ", ".join(f"{total:,}" for total in totals)
    return [f"The published figures are of {expected:,} training images, the runs of {listed}: they are not comparable."]


def _kinds(rows: Sequence[Row]) -> str:
    """Which methods are shown raw and which compensated, and where that is the same."""
    names: dict[str, list[str]] = {"raw": [], "compensated": [], "alike": []}
    for row in rows:
        if row.group and row.group.runs and not row.part:
            names["alike" if all(map(_fits, row.group.results)) else row.kind].append(row.name)
    words = {
        "raw": "the raw outputs of",
        "compensated": "the outputs, post-compensated to the test prior, of",
        "alike": "the outputs, which fit the test prior as they are, of",
    }
    told = "; ".join(f"{words[kind]} {', '.join(found)}" for kind, found in names.items() if found)
    return f"As the methods' authors report them: {told}."


def _fits(results: Mapping[str, Any]) -> bool:
    """Whether a run's raw outputs are of the test prior already; where it does not tell, whether nothing was compensated."""
    if "fitted_prior" in results and "test_prior" in results:
        return bool(results["fitted_prior"] == (results["test_prior"] or "uniform"))
    return bool(results["test"]["ensemble"]["raw"] == results["test"]["ensemble"]["compensated"])


def caption(experiment: Experiment) -> str:
    """What the columns mean, and of how many classes."""
    text = "Top-1 accuracy in percent, means over classes, mean ± standard deviation over seeds."
    if experiment.finished:
        first = experiment.finished[0].first
        groups = first.get("shot_groups") or {}
        classes = ", ".join(f"{count:,} {name}" for name, count in groups.items())
        text += f" {sum(first['class_counts']):,} training images in {len(first['class_counts']):,} classes ({classes})."
    return text


# ---------------------------------------------------------------------------------------------------------------
# The second table, and a method's own findings

MORE_TITLE = "Compensation, calibration, size"
MORE = ("few, raw", "few, PC", "all, raw", "all, PC", "ECE, raw", "ECE, PC", "parameters")


def more(experiment: Experiment) -> list[tuple[str, list[str]]]:
    """Each group's network or ensemble before and after compensation, how well it is calibrated, and how large it is.

    Returns:
        A title and the texts of `MORE` per group; "n/a" where the runs do not tell.
    """
    table = []
    for group in experiment.finished:
        columns = [(column, kind) for column in ("few", "all", "ece") for kind in ("raw", "compensated")]
        cells = [Stat.of(r["test"]["ensemble"][kind].get(column) for r in group.results) for column, kind in columns]
        size = group.first.get("parameters")
        texts = ["n/a" if cell is None else cell.text() for cell in cells]
        texts.append("n/a" if size is None else f"{size:,}")
        table.append((group.title, texts))
    return table


@dataclass(frozen=True)
class Grid:
    """A small table of numbers: its title, what its first column names, its other columns, and its lines."""

    title: str
    first: str
    columns: list[str]
    lines: list[list[str]]


@dataclass(frozen=True)
class Findings:
    """What a method tells of itself, over its seeds.

    Args:
        texts: names and texts.
        grids: what is told by two names, such as shot group and temperature.
        by_class: by name the lists of one number per class.
    """

    texts: list[tuple[str, str]] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    by_class: dict[str, list[float]] = field(default_factory=dict)


#: Findings whose names do not say enough: in words, and for a grid what its lines are by.
_WORDS = {
    "virtual_examples": ("virtual examples per class", ""),
    "virtual_examples_at": ("virtual examples per class by effective temperature", "effective temperature"),
    "virtual_examples_per_class": ("virtual examples per class by effective temperature", "effective temperature"),
    "mean_experts": ("experts asked per image, mean", ""),
    "images_by_experts": ("images by experts asked, from one to all", ""),
    "flops_saved": ("FLOPs saved, percent", ""),
    "flops_per_image": ("FLOPs per image", ""),
    "flops_all_experts": ("FLOPs of all experts", ""),
    "classes_per_expert": ("classes of each expert", ""),
    "image_shares": ("share of the images of each expert", ""),
}


def findings(group: Group) -> Findings:
    """What a method tells of itself (`details` of its results): numbers as means over the seeds."""
    found = Findings()
    seeds = [dict(_details(results.get("details") or {})) for results in group.results]
    for key in dict.fromkeys(key for seed in seeds for key in seed):
        values = [seed[key] for seed in seeds if seed.get(key) is not None]
        if values:
            _find(found, key, values, len(group.first["class_counts"]))
    return found


def _find(found: Findings, key: str, values: Sequence[Any], classes: int) -> None:
    """Sort a finding, one value for each seed, into what it can be shown as."""
    top, comma, case = key.partition(", ")
    words, by = _WORDS.get(top, (top.replace("_", " "), ""))
    name = f"{words}{comma}{case.replace('_', ' ')}"
    first = values[0]
    same_length = all(isinstance(value, (list, tuple)) and len(value) == len(first) for value in values)
    if same_length and first and all(is_number(item) for value in values for item in value):
        means = [statistics.fmean(items) for items in zip(*values, strict=True)]
        if len(means) == classes:
            found.by_class[name] = means
        else:
            found.texts.append((name, ", ".join(map(_number, means))))
    elif all(map(_is_grid, values)):
        found.grids.append(_grid(name, by, values))
    elif all(map(_is_row, values)):
        means_by_name = {part: Stat.of(value.get(part) for value in values) for part in _keys(values)}
        found.texts.append((name, ", ".join(f"{part} {_number(stat.mean)}" for part, stat in means_by_name.items() if stat)))
    elif all(map(is_number, values)):
        stat = Stat.of(values)
        assert stat is not None  # there are values
        found.texts.append((name, _number(stat.mean) + (f" ± {_number(stat.std)}" if stat.std else "")))
    else:
        found.texts.append((name, " | ".join(dict.fromkeys(str(value) for value in values))))


def _grid(name: str, by: str, values: Sequence[Mapping[str, Mapping[str, float | None]]]) -> Grid:
    rows, columns = _keys(values), _keys([row for value in values for row in value.values()])
    stats = [[Stat.of(value.get(row, {}).get(column) for value in values) for column in columns] for row in rows]
    whole = all(stat is None or stat.mean.is_integer() for line in stats for stat in line)
    lines = [
        [row, *("n/a" if stat is None else f"{stat.mean:,.{0 if whole else 1}f}" for stat in line)]
        for row, line in zip(rows, stats, strict=True)
    ]
    return Grid(name, by, columns, lines)


def _keys(values: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for value in values for key in value))


def _is_row(value: Any) -> bool:
    """Whether a finding is numbers by name."""
    return isinstance(value, Mapping) and all(item is None or is_number(item) for item in value.values())


def _is_grid(value: Any) -> bool:
    """Whether a finding is numbers by two names."""
    return isinstance(value, Mapping) and bool(value) and all(map(_is_row, value.values()))


def _details(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested findings by the names on their way; numbers by name, and by two names, stay together.

    >>> list(_details({"macs": {"saved": 0.5, "all": 9}, "by_class": {"1": [2], "2": [3]}}))
    [('macs', {'saved': 0.5, 'all': 9}), ('by_class, 1', [2]), ('by_class, 2', [3])]
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and not _is_row(value) and not _is_grid(value):
            yield from _details(value, f"{above}{key}, ")
        else:
            yield f"{above}{key}", value


def _number(value: float) -> str:
    """Whole numbers as such, others to four digits.

    >>> _number(3.0), _number(0.312345)
    ('3', '0.3123')
    """
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def plain_summary(layout: Layout) -> str:
    """One line on what the table holds.

    >>> plain_summary(Layout(Experiment("Digits", "", None, "resnet20", True, [])))
    '0 runs of 0 methods'
    """
    groups = layout.experiment.groups
    runs, open_runs = sum(len(group.runs) for group in groups), sum(len(group.incomplete) for group in groups)
    methods = len({group.method for group in groups})
    told = f"{plural(runs, 'run')} of {plural(methods, 'method')}"
    commits = sorted({commit(results.get("git_commit")) for group in groups for results in group.results})
    return told + (f", {open_runs} incomplete" if open_runs else "") + (f"; code {', '.join(commits)}" if commits else "")
