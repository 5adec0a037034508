"""The report as one HTML page: nothing is loaded from elsewhere and no script runs, so it opens anywhere, also years later."""

from __future__ import annotations

import importlib.resources
import re
import textwrap
from collections.abc import Iterable, Sequence
from html import escape

from mllt.reporting import costs, tables
from mllt.reporting.figures import Chart, Panel
from mllt.reporting.groups import Experiment, Group, slug_of
from mllt.reporting.layout import MORE, MORE_TITLE, Layout, Row, Stat, caption, findings, more
from mllt.reporting.published import GROUPS, Check
from mllt.reporting.representation import HEAD, TITLE, representation
from mllt.reporting.tables import CHECK, CHECK_COLUMNS, OTHERS

_EDGE, _ABOVE = 8, 26  # around a drawing that stands alone, and above it, where its title is; in its own units
_LONGEST = 80  # characters of an experiment or a panel in the name of a file
_LAYOUTS = {"profile": "wide", "bars": "half", "cost": "broad"}
# The empty icon keeps a browser from asking a server for one.
_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Report</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
_MORE = "raw: as trained; PC: post-compensated to the test prior. ECE: expected calibration error in percent."
_OTHERS = "Trained as their sources say: compare within one number of epochs and one augmentation only."


def to_html(
    layouts: Sequence[Layout],
    figures: Sequence[Sequence[Chart]],
    checks: Sequence[Check],
    opening: Sequence[str],
    problems: Sequence[str],
) -> str:
    """The whole report, figures included.

    Args:
        layouts: the experiments.
        figures: those of each.
        checks: of the published table, shown where a published figure is.
        opening: sentences below the title.
        problems: what could not be read, shown first.
    """
    with_check = any(layout.with_table_a2 for layout in layouts)
    body = [
        '<a class="skip" href="#main">To the tables</a>',
        '<div class="shell">',
        f"<header><h1>Report</h1>{''.join(f'<p>{escape(text)}</p>' for text in opening)}</header>",
        _problems(problems),
        _contents(layouts, figures, with_check),
        '<main id="main">',
        *map(_section, layouts, figures),
        _check(checks) if with_check else "",
        "</main>",
        "<footer>Written by <code>python -m mllt.report</code>. Runs are averaged over seeds only where everything else that "
        "bears on the result is the same: settings, images and labels, version and commit of mllt, epochs.</footer>",
        "</div>",
    ]
    return _FRAME.format(style=stylesheet(), body="\n".join(filter(None, body)))


def stylesheet() -> str:
    """The page's style."""
    return importlib.resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")


def standalone(chart: Chart, panel: Panel) -> str:
    """A panel as a file of its own: with the page's light colours, a ground and a title of its own it shows on any page.

    Returns:
        The text of an SVG file.
    """
    colours = dict(re.findall(r"--(\w+): (#\w+);", stylesheet().partition("}")[0]))
    opening, _, drawing = panel.svg.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', opening)
    assert box is not None  # as matplotlib writes it
    width, height = float(box[1]) + 2 * _EDGE, float(box[2]) + _EDGE + _ABOVE
    opening = re.sub(r'viewBox="[^"]*"', f'viewBox="{-_EDGE} {-_ABOVE} {width:g} {height:g}"', opening)
    size = f'width="{1.4 * width:.0f}" height="{1.4 * height:.0f}" font-family="system-ui, sans-serif" role="img"'
    name = f"{chart.title}: {panel.title}"
    told = f"<title>{escape(name)}</title><desc>{escape(panel.description)}</desc>"
    ground = f'<rect x="{-_EDGE}" y="{-_ABOVE}" width="{width:g}" height="{height:g}" rx="6" fill="{colours["paper"]}"/>'
    words = textwrap.shorten(name, round(width / 6.5), placeholder=" …")
    title = f'<text x="4" y="-8" font-size="11" font-weight="600" fill="{colours["ink"]}">{escape(words)}</text>'
    drawing = re.sub(r"var\(--(\w+)\)", lambda name: colours[name[1]], drawing)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{opening} {size}>{told}{ground}{title}{drawing}\n'


def figure_files(layouts: Sequence[Layout], figures: Sequence[Sequence[Chart]]) -> dict[str, str]:
    """Every panel as a file of its own, by a name that says what it is of: EXPERIMENT-CHART-PANEL.svg."""
    found: dict[str, str] = {}
    for layout, its in zip(layouts, figures, strict=True):
        for drawn, panel in ((chart, panel) for chart in its for panel in chart.panels):
            name = slug_of(f"{layout.experiment.slug[:_LONGEST]} {drawn.key} {panel.title[:_LONGEST]}", found)
            found[name] = standalone(drawn, panel)
    return {f"{name}.svg": text for name, text in found.items()}


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    return f'<div class="warning" role="note"><h2>Not everything could be read</h2>{_list(problems)}</div>'


def _list(texts: Iterable[str], kind: str = "") -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul{f' class={kind!r}' if kind else ''}>{items}</ul>" if items else ""


def _contents(layouts: Sequence[Layout], figures: Sequence[Sequence[Chart]], with_check: bool) -> str:
    items = []
    for layout, its in zip(layouts, figures, strict=True):
        slug = layout.experiment.slug
        parts = [(f"{slug}-table", "Table")] + [(f"{slug}-{chart.key}", chart.title) for chart in its]
        parts += [(f"{slug}-others", "Other systems")] if layout.others else []
        inner = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in parts)
        items.append(f'<li><a href="#{slug}">{escape(layout.experiment.title)}</a><ul>{inner}</ul></li>')
    items += ['<li><a href="#check">Check of the published table</a></li>'] if with_check else []
    return f'<nav aria-label="Contents"><h2>Contents</h2><ul>{"".join(items)}</ul></nav>'


def _section(layout: Layout, figures: Sequence[Chart]) -> str:
    experiment = layout.experiment
    slug = experiment.slug
    parts = [
        f'<section id="{slug}" aria-labelledby="{slug}-title">',
        f'<h2 id="{slug}-title">{escape(experiment.title)}</h2>',
        f'<p class="lede" id="{slug}-table">{escape(caption(experiment))}</p>',
        _main_table(layout),
        _list(layout.remarks, "remarks"),
        *(_letters(name, meanings) for name, meanings in layout.letters),
        _notes(layout),
        *(_figure(slug, chart) for chart in figures),
    ]
    if experiment.finished:
        lines = [[title, *texts] for title, texts in more(experiment)]
        parts += [_heading(MORE_TITLE, _MORE), _table(MORE_TITLE, ["method", *MORE], lines)]
        parts += [_heading(costs.TITLE, costs.LEDE), _table(costs.TITLE, costs.COLUMNS, costs.lines(experiment), text_from=6)]
        parts += _commands(experiment)
        parts += _representation(experiment)
    for group in experiment.finished:
        parts += _findings(group)
    if layout.others:
        title = "Published systems that mllt does not have"
        parts += [_heading(title, _OTHERS, f"{slug}-others"), _table(title, OTHERS, tables.others(layout), text_from=6)]
    return "\n".join([*filter(None, parts), "</section>"])


def _commands(experiment: Experiment) -> list[str]:
    """The commands that repeat the runs of each group, as far as the runs tell."""
    told = [(group.title, costs.commands(group)) for group in experiment.finished]
    items = [
        f"<dt>{escape(title)}</dt>" + "".join(f"<dd><code>{escape(command)}</code></dd>" for command in commands)
        for title, commands in told
        if commands
    ]
    return [f'<p class="lede grid">{escape(costs.COMMANDS)}</p><dl class="commands">{"".join(items)}</dl>'] * bool(items)


def _representation(experiment: Experiment) -> list[str]:
    told = representation(experiment)
    if told is None:
        return []
    table = [_table(TITLE, HEAD, told.lines)] if told.lines else []
    return [_heading(TITLE, told.lede, f"{experiment.slug}-representation"), *table, _list(told.remarks, "remarks")]


def _findings(group: Group) -> list[str]:
    """What a method tells of itself, but for the figures."""
    told = findings(group)
    title = f"What {group.title} tells of itself"
    parts = [_heading(title)] if told.texts or told.grids else []
    parts += [_table(title, ["finding", "value"], told.texts, narrow=True)] if told.texts else []
    for grid in told.grids:
        parts += [f'<p class="lede grid">{escape(_sentence(grid.title))}</p>']
        parts += [_table(grid.title, [grid.first, *grid.columns], grid.lines, narrow=True)]
    return parts


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _letters(name: str, meanings: Sequence[tuple[str, str]]) -> str:
    """What the letters of a method's rows stand for."""
    return _table(f"The rows of {name}", [f"{name}, row", "settings"], meanings, text_from=1, narrow=True)


def _heading(title: str, lede: str = "", name: str = "") -> str:
    anchor = f' id="{name}"' if name else ""
    return f"<h3{anchor}>{escape(title)}</h3>" + (f'<p class="lede">{escape(lede)}</p>' if lede else "")


def _scroll(label: str, table: str) -> str:
    """A table that scrolls by itself where the page is narrower; reachable by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def _table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, text_from: int = 99, narrow: bool = False) -> str:
    """A plain table; columns from `text_from` on hold text, the last two of them sentences."""

    def kind(number: int) -> str:
        wrap = " wrap" if number >= max(text_from, len(head) - 2) else ""
        return f' class="text{wrap}"' if number >= text_from else ""

    names = "".join(f'<th scope="col"{kind(number)}>{escape(name)}</th>' for number, name in enumerate(head))
    lines = [
        f'<tr class="method"><th scope="row">{escape(first)}</th>'
        + "".join(f"<td{kind(number)}>{escape(text)}</td>" for number, text in enumerate(rest, start=1))
        + "</tr>"
        for first, *rest in rows
    ]
    opening = '<table class="narrow">' if narrow else "<table>"
    return _scroll(label, f"{opening}<thead><tr>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table>")


def _main_table(layout: Layout) -> str:
    columns = "".join(f'<th scope="col"{_kind(name)}>{name}</th>' for name in GROUPS)
    over = ""
    head = f'<th scope="col">method</th>{columns}<th scope="col">seeds</th>'
    if layout.with_published:
        over = (
            '<tr><td></td><th class="over" colspan="5" scope="colgroup">these runs</th>'
            '<th class="over beside" colspan="5" scope="colgroup">published</th></tr>'
        )
        head += columns.replace("<th", '<th class="beside"', 1)
        head += '<th scope="col" class="text">source, and what differs</th>'
    lines = [
        _main_line(layout, row, first=before is None or before.method != row.method)
        for before, row in zip([None, *layout.rows], layout.rows, strict=False)
    ]
    table = f"<table><thead>{over}<tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return _scroll(layout.experiment.title, table)


def _kind(name: str) -> str:
    return ' class="all"' if name == "all" else ""


def _main_line(layout: Layout, row: Row, *, first: bool) -> str:
    marks = ", ".join(f'<a href="#{_note_name(layout, mark)}">{mark}</a>' for mark in row.marks)
    cells = [f"<td{_kind(name)}>{_own(row, stat)}</td>" for name, stat in zip(GROUPS, row.own, strict=True)]
    cells.append(f'<td class="seeds">{tables.seeds(row)}</td>')
    if layout.with_published:
        printed = zip(GROUPS, tables.published_cells(row.beside), strict=True)
        cells += [f"<td{_kind(name) if name != 'many' else ' class=beside'}>{text}</td>" for name, text in printed]
        source = escape(row.beside.source) if row.beside else ""
        flag = f'<span class="flag">{escape(", ".join(row.flags))}</span>' if row.flags else ""
        cells.append(f'<td class="text wrap">{source}{flag}</td>')
    kinds = " ".join(["method"] * first + [row.status] * bool(row.status))
    mark = f"<sup>{marks}</sup>" if marks else ""
    return f'<tr class="{kinds}"><th scope="row">{escape(row.name)}{mark}</th>{"".join(cells)}</tr>'


def _own(row: Row, stat: Stat | None) -> str:
    if row.status:
        return "-" if row.group else ""
    if stat is None:
        return "n/a"
    mean, _, std = stat.text().partition(" ± ")
    return mean + (f' <span class="std">± {std}</span>' if std else "")


def _note_name(layout: Layout, mark: int) -> str:
    return f"{layout.experiment.slug}-note-{mark}"


def _notes(layout: Layout) -> str:
    items = [f'<li id="{_note_name(layout, number)}">{escape(note)}</li>' for number, note in enumerate(layout.notes, start=1)]
    long = " long" if len(items) > 6 else ""
    return f'<ol class="notes{long}">{"".join(items)}</ol>' if items else ""


def _figure(slug: str, chart: Chart) -> str:
    """A figure: title, caption, and panels; each an image with a title and a description for those who do not see it."""
    panels = []
    for number, panel in enumerate(chart.panels):
        name = f"{slug}-{chart.key}-{number}"
        told = (
            f'<title id="{name}-t">{escape(f"{chart.title}: {panel.title}")}</title>'
            f'<desc id="{name}-d">{escape(panel.description)}</desc>'
        )
        opening, _, drawing = panel.svg.partition(">")
        named = f'{opening} role="img" aria-labelledby="{name}-t {name}-d">{told}{drawing}'
        panels.append(f'<div class="panel"><h4>{escape(panel.title)}</h4>{named}</div>')
    kind = f"panels {_LAYOUTS.get(chart.key, '')}".strip()
    drawn = f'<div class="{kind}">{"".join(panels)}</div>' if panels else ""
    return (
        f'<figure id="{slug}-{chart.key}"><figcaption><h3>{escape(chart.title)}</h3><p>{escape(chart.caption)}</p></figcaption>'
        f"{drawn}</figure>"
    )


def _check(checks: Sequence[Check]) -> str:
    title = "Does the published table agree with itself?"
    table = _table(title, CHECK_COLUMNS, tables.check_lines(checks), text_from=5)
    return (
        f'<section id="check" aria-labelledby="check-title"><h2 id="check-title">{title}</h2>'
        f'<p class="lede">{escape(CHECK)}</p>{table}</section>'
    )
