"""The figures, as SVG that takes its colours and its font from the page around it.

Each figure is a set of small panels, so that a page can set them side by side or below each other. Nothing is told by colour
alone: what is compared differs in the kind of line, and panels and groups are named in words.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mllt.longtail import SHOT_GROUPS
from mllt.reporting import costs, labels
from mllt.reporting.checks import groups_of
from mllt.reporting.groups import Experiment, Group
from mllt.reporting.layout import Layout, Row, Stat, findings
from mllt.reporting.published import GROUPS

# Stand-ins for the page's colours: an SVG cannot be told of them while it is drawn.
INK, MUTED, GRID, PAPER, FIRST, SECOND, BAND = (f"#0{n}0{n}0{n}" for n in range(1, 8))
_COLOURS = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", FIRST: "first", SECOND: "second", BAND: "band"}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.6,
}
_SHORT = {"many": "many", "medium": "med.", "few": "few"}
WIDTH = 4.2  # inches, at 72 units to the inch
MOST_BARS = 120  # classes in a panel that are drawn one by one; of more, neighbours are averaged
NAME_WIDTH = 30  # characters in a line beside a bar
MOST_PANELS = 24  # in a figure with one for each group of runs
#: Units of time by name, in seconds, each for costs below a limit in seconds.
_UNITS = (("seconds", 1, 600), ("minutes", 60, 6 * 3600), ("hours", 3600, math.inf))
_WIDE = 12  # the highest cost is so many times the lowest where the scale is logarithmic
_APART = 9  # points of print between a mark and its name, from which on a line joins them


@dataclass(frozen=True)
class Panel:
    """A drawing: its title, what it shows in words, and the SVG element."""

    title: str
    description: str
    svg: str


@dataclass(frozen=True)
class Chart:
    """A figure of the report.

    Args:
        key: unique within the experiment.
        title: what it is called.
        caption: what there is to see and how to read it.
        panels: its drawings; none where the runs do not tell, as the caption says then.
    """

    key: str
    title: str
    caption: str
    panels: list[Panel]


def charts(layout: Layout) -> list[Chart]:
    """The figures of an experiment; none where no run has finished."""
    experiment = layout.experiment
    if not experiment.finished:
        return []
    prefix = experiment.slug
    return [
        class_profile(experiment, prefix),
        group_bars(layout, prefix),
        *cost_chart(layout, prefix),
        per_class(experiment, prefix),
        reliability(experiment, prefix),
        *curves(experiment, prefix),
        *own_findings(experiment, prefix),
    ]


def _drawn(experiment: Experiment) -> list[Group]:
    """The groups that figures with a panel for each have one of: all, as long as a page can hold them."""
    return experiment.finished[:MOST_PANELS]


def _rest(experiment: Experiment) -> str:
    """What a caption says where not all groups are drawn."""
    total = len(experiment.finished)
    return f" Of {total} rows the first {MOST_PANELS} are drawn; a report of fewer runs draws the others." * (
        total > MOST_PANELS
    )


@contextlib.contextmanager
def _any_glyph() -> Iterator[None]:
    """A context in which characters that the font lacks are no matter: the page's own font will have them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


class _Canvas:
    """A drawing under way: `ax` to draw on, and then `panel()`."""

    def __init__(self, key: str, height: float, width: float = WIDTH) -> None:
        self.key = key
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.ax: Axes = self.figure.add_subplot()

    def panel(self, title: str, description: str) -> Panel:
        """The finished drawing."""
        file = io.StringIO()
        # The salt makes the names inside unique in the page, and the same in every report of the same runs.
        with mpl.rc_context({"svg.hashsalt": self.key}), _any_glyph():
            self.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return Panel(title, description, _inline(file.getvalue(), self.key))


def _inline(text: str, key: str) -> str:
    """A file's SVG as an element of a page: its colours the page's, its font the page's, its names unique."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    return re.sub(r"<[^<>]+>", lambda tag: _themed(tag[0], key), svg).strip()


def _themed(tag: str, key: str) -> str:
    """A tag of an SVG with the page's colours, font and names; what is written between tags stays what it is."""
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\g<1>"', tag)
    tag = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{key}-", tag)
    tag = re.sub(r"font: (?:(\d+) )?([\d.]+px) [^;\"]*", r"font-size: \2", tag)
    for colour, name in _COLOURS.items():
        tag = tag.replace(colour, f"var(--{name})")
    return tag


# ---------------------------------------------------------------------------------------------------------------
# The tail


def _order(experiment: Experiment) -> tuple[list[int], list[int]]:
    """Classes by falling number of training images (ties by number), and those numbers in that order."""
    counts = list(experiment.finished[0].first["class_counts"])
    order = sorted(range(len(counts)), key=lambda number: (-counts[number], number))
    return order, [counts[number] for number in order]


def _bands(experiment: Experiment) -> list[tuple[str, int, int]]:
    """The shot groups that have classes, as (name, first rank, last rank + 1), by the rule of the runs."""
    _, counts = _order(experiment)
    groups = groups_of(counts, experiment.finished[0].config)
    found, start = [], 0
    for name in SHOT_GROUPS:
        size = int(groups[name].sum())
        found += [(name, start, start + size)] if size else []
        start += size
    return found


def _draw_bands(ax: Axes, experiment: Experiment) -> None:
    """Every other shot group shaded, each named at the top."""
    total = len(_order(experiment)[1])
    for number, (name, start, end) in enumerate(_bands(experiment)):
        if number % 2:
            ax.axvspan(start - 0.5, end - 0.5, color=BAND, linewidth=0, zorder=0)
        room = (end - start) / total
        short = name if room > 0.16 else _SHORT[name] if room > 0.07 else name[0]
        middle, above = (start + end - 1) / 2, ax.get_xaxis_transform()
        ax.text(middle, 1.01, short, transform=above, ha="center", va="bottom", fontsize=9, color=MUTED)
    ax.set_xlim(-0.5, total - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value + 1:.0f}" if 0 <= value < total else ""))


def class_profile(experiment: Experiment, prefix: str) -> Chart:
    """How many training images each class has."""
    _, counts = _order(experiment)
    with mpl.rc_context(_STYLE):
        canvas = _Canvas(f"{prefix}-profile", 2.4, 5.6)
        ax = canvas.ax
        _draw_bands(ax, experiment)
        _fall(ax, [float(count) for count in counts])
        if min(counts) > 0:
            ax.set_yscale("log")
            ax.set_ylim(min(counts) / 1.6, max(counts) * 1.4)
            ax.yaxis.set_major_locator(LogLocator(numticks=6))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(axis="y")
        ax.set_xlabel("class, by number of training images")
        ax.set_ylabel("training images")
        bands = ", ".join(f"{end - start} {name}" for name, start, end in _bands(experiment))
        told = f"{sum(counts):,} images in {len(counts):,} classes ({bands}): from {counts[0]:,} to {counts[-1]:,} in a class."
        panel = canvas.panel("Training images per class", told)
    return Chart("profile", "Class counts", told + " The scale is logarithmic." * (min(counts) > 0), [panel])


def _fall(ax: Axes, values: Sequence[float]) -> None:
    """One value per class: bars, or of many classes a filled outline."""
    ranks = list(range(len(values)))
    if len(values) <= 30:
        ax.bar(ranks, values, width=0.82, color=FIRST, linewidth=0)
    else:
        ax.fill_between(ranks, values, step="mid", color=FIRST, linewidth=0)


# ---------------------------------------------------------------------------------------------------------------
# Accuracies


def group_bars(layout: Layout, prefix: str) -> Chart:
    """A panel per shot group, a bar per row of the table."""
    rows = [row for row in layout.rows if row.group and row.group.runs]
    with mpl.rc_context(_STYLE):
        panels = [_bars_of(rows, column, f"{prefix}-bars-{GROUPS[column]}") for column in range(len(GROUPS))]
    whiskers = " A whisker is a standard deviation over seeds." if any(len(row.seeds) > 1 for row in rows) else ""
    diamonds = " A diamond is the published figure beside the row." if any(row.beside for row in rows) else ""
    caption = f"Top-1 accuracy by shot group, in percent.{whiskers}{diamonds}"
    return Chart("bars", "Shot groups", caption, [panel for panel in panels if panel])


def _bars_of(rows: Sequence[Row], column: int, key: str) -> Panel | None:
    name = GROUPS[column]
    stats = [row.own[column] for row in rows]
    if all(stat is None for stat in stats):
        return None
    names = [textwrap.fill(row.name, NAME_WIDTH, max_lines=3, placeholder=" …") for row in rows]
    lines = max(name.count("\n") + 1 for name in names)
    canvas = _Canvas(key, 0.75 + (0.27 if lines == 1 else 0.19 * lines) * len(rows))
    ax = canvas.ax
    for place, (row, stat) in enumerate(zip(rows, stats, strict=True)):
        if stat is not None:
            colour = FIRST if row.part == "" else SECOND
            ax.barh(place, stat.mean, height=0.68, color=colour, linewidth=0, xerr=stat.std, ecolor=INK)
            ax.text(103, place, f"{stat.mean:.1f}", va="center", ha="left", fontsize=9.5, color=INK, clip_on=False)
        printed = row.beside.accuracies[column] if row.beside else None
        if printed is not None:
            ax.plot(printed, place, marker="D", markersize=5.5, color=PAPER, markeredgecolor=INK, linestyle="none", zorder=4)
    ax.set_yticks(range(len(rows)), names, color=INK)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, 112)
    ax.set_xticks([0, 25, 50, 75, 100])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    told = ", ".join(f"{row.name} {'n/a' if stat is None else stat.text()}" for row, stat in zip(rows, stats, strict=True))
    return canvas.panel({"all": "All classes"}.get(name, f"{name.capitalize()}-shot classes"), f"Accuracy in percent: {told}.")


def cost_chart(layout: Layout, prefix: str) -> list[Chart]:
    """A panel per device: the accuracy of each row of the table, by what its training cost; no chart where no run tells."""
    found, unplaced = costs.planes(layout)
    if not found:
        return []
    with mpl.rc_context(_STYLE):
        panels = [_cost_panel(plane, f"{prefix}-cost-{number}") for number, plane in enumerate(found)]
    return [Chart("cost", "Accuracy against training cost", _told_of_costs(layout, found, unplaced), panels)]


def _told_of_costs(layout: Layout, found: Sequence[costs.Plane], unplaced: Sequence[str]) -> str:
    """The caption: what the axes are, and what is not in them."""
    by_processor = [plane for plane in found if plane.processor]
    words = "processor time (of all threads together)" if by_processor else "seconds by the clock"
    if by_processor and len(by_processor) < len(found):
        words = "processor time (of all threads together) for runs on a processor that tell it, else time by the clock"
    texts = [f"Top-1 accuracy over all classes in percent, by the cost of training one seed: {words}; means over seeds."]
    if any(point.each is not None for plane in found for point in plane.points):
        texts.append("A ring is the mean of the experts, each alone, below or above its ensemble's dot.")
    texts += ["Runs on different devices stand in panels of their own."] * (len(found) > 1)
    given = [g.title for g in layout.experiment.finished if any(g.config["method"].get(n) for n in ("teacher", "features"))]
    texts += [f"Without the cost of the checkpoints that were given to {', '.join(given)}."] * bool(given)
    texts += [f"Not drawn, since their runs tell no cost: {', '.join(unplaced)}."] * bool(unplaced)
    return " ".join(texts)


def _cost_panel(plane: costs.Plane, key: str) -> Panel:
    most = max(point.cost for point in plane.points)
    unit, seconds = next((name, size) for name, size, limit in _UNITS if most < limit)
    canvas = _Canvas(key, 4.0, 6.0)
    ax = canvas.ax
    for point in plane.points:
        if point.each is not None:
            ax.plot([point.cost / seconds] * 2, [point.each, point.accuracy], color=MUTED, linewidth=1.0, zorder=2)
            ax.plot(point.cost / seconds, point.each, marker="o", markersize=5, color=PAPER, markeredgecolor=FIRST, zorder=3)
        ax.plot(point.cost / seconds, point.accuracy, marker="o", markersize=6.5, color=FIRST, zorder=4)
    least = min(point.cost for point in plane.points)
    if most / least > _WIDE:
        ax.set_xscale("log")
        ax.set_xlim(least / seconds / 1.6, most / seconds * 2.2)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_xlim(0, most / seconds * 1.22)
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.margins(y=0.12)
    ax.grid()
    ax.set_xlabel(f"{'processor time' if plane.processor else 'time'} of training, {unit}")
    ax.set_ylabel("accuracy over all classes, %")
    with _any_glyph():
        _write_names(canvas, [(point.cost / seconds, point.accuracy) for point in plane.points], plane.points)
    told = "; ".join(
        f"{point.name} {point.accuracy:.1f}{'' if point.each is None else f' (each expert {point.each:.1f})'} at "
        f"{point.cost / seconds:.3g}"
        for point in plane.points
    )
    return canvas.panel(plane.device, f"Accuracy in percent at {unit}: {told}.")


def _write_names(canvas: _Canvas, places: Sequence[tuple[float, float]], points: Sequence[costs.Point]) -> None:
    """The name of each point beside it, with a line to it where it stands apart."""
    ax, figure = canvas.ax, canvas.figure
    figure.draw_without_rendering()  # from now on it is known where everything lies
    figure.set_layout_engine("none")
    size = 72 / figure.dpi  # points of print to a pixel
    texts = [
        ax.annotate(textwrap.shorten(point.name, NAME_WIDTH, placeholder=" …"), place, (0, 0), textcoords="offset points")
        for point, place in zip(points, places, strict=True)
    ]
    spots = [tuple(size * value for value in ax.transData.transform(place)) for place in places]
    taken = [labels.Box(x - 4, y - 4, x + 4, y + 4) for x, y in spots]
    for point, (at, _), (x, y) in zip(points, places, spots, strict=True):
        if point.each is not None:
            end = size * ax.transData.transform((at, point.each))[1]
            taken.append(labels.Box(x - 2, min(y, end), x + 2, max(y, end)))
            taken.append(labels.Box(x - 4, end - 4, x + 4, end + 4))
    extents = [text.get_window_extent() for text in texts]
    sizes = [(extent.width * size, extent.height * size) for extent in extents]
    inside = ax.get_window_extent()
    frame = labels.Box(*(size * value for value in (inside.x0 + 2, inside.y0 + 2, inside.x1, inside.y1)))
    boxes = labels.place(spots, sizes, taken, frame)
    for text, extent, (x, y), box in zip(texts, extents, spots, boxes, strict=True):
        text.set_position((box.left - extent.x0 * size, box.low - extent.y0 * size))
        near = box.nearest(x, y)
        if math.dist(near, (x, y)) > _APART:
            ends = ax.transData.inverted().transform([[x / size, y / size], [near[0] / size, near[1] / size]])
            ax.plot(*zip(*ends, strict=True), color=MUTED, linewidth=0.6, zorder=1, scalex=False, scaley=False)


def per_class(experiment: Experiment, prefix: str) -> Chart:
    """A panel per group of runs: accuracy over the classes, from the most to the least frequent."""
    order, _ = _order(experiment)
    lines = {id(group): _thin(_per_class(group, order)) for group in experiment.finished}
    reference = next((group for group in experiment.finished if group.method == "cross_entropy"), experiment.finished[0])
    with mpl.rc_context(_STYLE):
        panels = []
        for number, group in enumerate(_drawn(experiment)):
            canvas = _Canvas(f"{prefix}-class-{number}", 2.3)
            _draw_bands(canvas.ax, experiment)
            _steps(canvas.ax, lines[id(group)], color=FIRST)
            if group is not reference:
                _steps(canvas.ax, lines[id(reference)], color=MUTED, linestyle=(0, (3, 2)), linewidth=1.1)
            canvas.ax.set_ylim(-2, 104)
            canvas.ax.set_yticks([0, 25, 50, 75, 100])
            canvas.ax.grid(axis="y")
            canvas.ax.set_xlabel("class, by number of training images")
            canvas.ax.set_ylabel("accuracy, %")
            panels.append(canvas.panel(group.title, _told_by_band(experiment, group, order)))
    caption = "The most frequent class is on the left; means over seeds."
    caption += f" Dashed: {reference.title}." if len(experiment.finished) > 1 else ""
    caption += f" Neighbouring classes are averaged, {len(order):,} in {MOST_BARS} steps." if len(order) > MOST_BARS else ""
    return Chart("classes", "Accuracy by class", caption + _rest(experiment), panels)


def _per_class(group: Group, order: Sequence[int]) -> list[float]:
    """Mean over seeds of each class's accuracy in percent, in the order given; NaN for a class without test images."""
    kind = str(group.first.get("reported", "compensated"))
    columns = zip(*(results["test"]["per_class"][kind] for results in group.results), strict=True)
    stats = [Stat.of(column) for column in columns]
    return [float("nan") if stats[number] is None else stats[number].mean for number in order]  # type: ignore[union-attr]


def _thin(values: Sequence[float]) -> list[tuple[float, float]]:
    """Ranks and values, averaged over neighbours where there are more than a panel can show."""
    parts = min(len(values), MOST_BARS)
    edges = [round(part * len(values) / parts) for part in range(parts + 1)]
    found = []
    for start, end in itertools.pairwise(edges):
        stat = Stat.of(value for value in values[start:end] if value == value)
        found.append(((start + end - 1) / 2, float("nan") if stat is None else stat.mean))
    return found


def _steps(ax: Axes, points: Sequence[tuple[float, float]], **how: Any) -> None:
    ranks, values = zip(*points, strict=True)
    ax.plot(ranks, values, drawstyle="steps-mid", marker="o" if len(points) <= 30 else None, markersize=3.5, **how)


def _told_by_band(experiment: Experiment, group: Group, order: Sequence[int]) -> str:
    values = _per_class(group, order)
    told = []
    for name, start, end in _bands(experiment):
        stat = Stat.of(value for value in values[start:end] if value == value)
        told.append(f"{name} {'n/a' if stat is None else f'{stat.mean:.1f}'}")
    return f"Accuracy of each class in percent; means of the groups: {', '.join(told)}."


# ---------------------------------------------------------------------------------------------------------------
# Calibration


def reliability(experiment: Experiment, prefix: str) -> Chart:
    """A panel per group of runs: how often it is right, by how sure it is."""
    panels = []
    missing = []
    with mpl.rc_context(_STYLE):
        for number, group in enumerate(_drawn(experiment)):
            bins = reliability_bins(group)
            if bins is None:
                missing.append(group.title)
            else:
                panels.append(_reliability_panel(group, bins, f"{prefix}-reliability-{number}"))
    caption = (
        "How often the network or ensemble is right, by how sure it is; on the dashed line both are alike, below it lies too "
        "much confidence. The pale bars are the share of the images. All seeds together; ECE is the expected calibration error."
    )
    untold = f"The results of {', '.join(missing)} hold no bins of confidence: an earlier version of mllt wrote them."
    texts = [caption + _rest(experiment)] * bool(panels) + [untold] * bool(missing)
    return Chart("reliability", "Reliability", " ".join(texts), panels)


def reliability_bins(group: Group) -> list[tuple[int, float, float]] | None:
    """Images, accuracy and confidence (in percent) of each bin over all seeds; NaN for an empty bin.

    Returns:
        None where a run does not tell.
    """
    kind = str(group.first.get("reported", "compensated"))
    seeds = [(results["test"].get("reliability") or {}).get(kind) for results in group.results]
    if any(seed is None for seed in seeds) or len({len(seed["count"]) for seed in seeds if seed}) != 1:
        return None
    found = []
    for place in range(len(seeds[0]["count"])):  # type: ignore[index]
        counts = [int(seed["count"][place]) for seed in seeds if seed]
        sums = [
            sum(count * float(seed[name][place]) for count, seed in zip(counts, seeds, strict=True) if seed and count)
            for name in ("accuracy", "confidence")
        ]
        total = sum(counts)
        found.append((total, sums[0] / total if total else float("nan"), sums[1] / total if total else float("nan")))
    return found


def _reliability_panel(group: Group, bins: Sequence[tuple[int, float, float]], key: str) -> Panel:
    canvas = _Canvas(key, 2.7)
    ax = canvas.ax
    total = sum(count for count, _, _ in bins) or 1
    width = 100 / len(bins)
    ax.bar(
        [(place + 0.5) * width for place in range(len(bins))],
        [100 * count / total for count, _, _ in bins],
        width=0.86 * width,
        color=BAND,
        edgecolor=MUTED,
        linewidth=0.5,
    )
    ax.plot([0, 100], [0, 100], color=INK, linestyle=(0, (3, 2)), linewidth=1.2)
    filled = [(confidence, accuracy) for count, accuracy, confidence in bins if count]
    ax.plot(*zip(*filled, strict=True), color=FIRST, marker="o", markersize=4.5, clip_on=False, zorder=3)
    kind = str(group.first.get("reported", "compensated"))
    ece = Stat.of(results["test"]["ensemble"][kind].get("ece") for results in group.results)
    error = "" if ece is None else f"ECE {ece.text()}"
    ax.text(4, 95, error, va="top", fontsize=10, color=INK)
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 100)
    ax.set_xticks([0, 25, 50, 75, 100])
    ax.set_yticks([0, 25, 50, 75, 100])
    ax.grid()
    ax.set_xlabel("confidence, %")
    ax.set_ylabel("accuracy, %")
    told = "; ".join(f"{confidence:.0f} sure, {accuracy:.0f} right" for confidence, accuracy in filled)
    return canvas.panel(group.title, f"{error}. In percent, by bin: {told}.")


# ---------------------------------------------------------------------------------------------------------------
# Training


def curves(experiment: Experiment, prefix: str) -> list[Chart]:
    """Training loss, and accuracy on validation where there was a validation split, by epoch."""
    found = []
    for name, key, title, caption in (
        ("train/loss", "loss", "Training loss", "Each panel has a scale of its own: the methods' losses are not of one kind."),
        ("val/compensated/all", "validation", "Accuracy on validation", "Compensated, in percent, over all classes."),
    ):
        panels = []
        with mpl.rc_context(_STYLE):
            for number, group in enumerate(_drawn(experiment)):
                lines = [(run.seed, list(_curve(run.curves, name))) for run in group.runs]
                lines = [(seed, points) for seed, points in lines if points]
                if lines:
                    panels.append(_curve_panel(group, lines, title, f"{prefix}-{key}-{number}"))
        if panels:
            seeds = "A line per seed. " if any(len(group.runs) > 1 for group in experiment.finished) else ""
            staged = any(len(group.runs[0].curves) > 1 for group in experiment.finished)
            stages = "A dotted line is where a new stage begins. " if staged else ""
            found.append(Chart(key, title, f"By epoch. {seeds}{stages}{caption}{_rest(experiment)}", panels))
    return found


def _curve(stages: Sequence[tuple[str, Mapping[int, Mapping[str, Any]]]], name: str) -> Iterator[tuple[float, float, str]]:
    """Epoch (counted over all stages), value and stage of one curve."""
    before = 0
    for stage, rows in stages:
        for epoch, row in sorted(rows.items()):
            if row.get(name) not in (None, ""):
                yield before + epoch, float(row[name]), stage
        before += max(rows, default=0)


def _curve_panel(group: Group, lines: Sequence[tuple[int, list[tuple[float, float, str]]]], title: str, key: str) -> Panel:
    canvas = _Canvas(key, 2.2)
    ax = canvas.ax
    styles = ["-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5))]
    for number, (_, points) in enumerate(lines):
        epochs, values, _ = zip(*points, strict=True)
        marker = "o" if len(points) < 3 else None
        ax.plot(epochs, values, color=FIRST, linestyle=styles[number % 4], linewidth=1.4, marker=marker)
    longest = max((points for _, points in lines), key=len)
    _draw_stages(ax, longest)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.margins(x=0.02)
    ax.grid(axis="y")
    ax.set_xlabel("epoch")
    ends = ", ".join(f"seed {seed} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for seed, points in lines)
    return canvas.panel(group.title, f"{title}: {ends}.")


def _draw_stages(ax: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """A line where a new stage begins, and its name on the side where there is room."""
    begins = [(x, stage) for (_, _, before), (x, _, stage) in itertools.pairwise(points) if stage != before]
    ends = [*(x for x, _ in begins[1:]), points[-1][0]]
    for (x, stage), end in zip(begins, ends, strict=False):  # the one end beyond them where there is one stage
        ax.axvline(x - 0.5, color=MUTED, linestyle=":", linewidth=1.2)
        room = (end - x) / points[-1][0] > 0.25
        where, side = (x - 0.2, "left") if room else (x - 0.8, "right")
        ax.text(where, 1.01, stage, transform=ax.get_xaxis_transform(), fontsize=9, color=MUTED, va="bottom", ha=side)


# ---------------------------------------------------------------------------------------------------------------
# What a method tells of itself


def own_findings(experiment: Experiment, prefix: str) -> list[Chart]:
    """A figure for each finding of a method that is one number per class, and a panel for each of its cases."""
    order, _ = _order(experiment)
    found: dict[str, list[Panel]] = {}
    with mpl.rc_context(_STYLE):
        for group in _drawn(experiment):
            for name, values in findings(group).by_class.items():
                finding, _, case = name.partition(", ")
                panels = found.setdefault(finding, [])
                place = f"{prefix}-finding-{list(found).index(finding)}-{len(panels)}"
                panels.append(_finding_panel(experiment, [values[number] for number in order], place, group.title, name, case))
    caption = "What the method tells of each class, the most frequent on the left; means over seeds." + _rest(experiment)
    return [Chart(f"finding-{n}", name.capitalize(), caption, panels) for n, (name, panels) in enumerate(found.items())]


def _finding_panel(experiment: Experiment, values: Sequence[float], key: str, title: str, name: str, case: str) -> Panel:
    canvas = _Canvas(f"{key}-drawing", 2.3)
    _draw_bands(canvas.ax, experiment)
    _fall(canvas.ax, values)
    canvas.ax.grid(axis="y")
    canvas.ax.set_xlabel("class, by number of training images")
    told = f"{name} of each class: from {min(values):.4g} to {max(values):.4g}."
    return canvas.panel(f"{title}, {case}" if case else title, told)
