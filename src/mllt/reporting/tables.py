"""The tables written down: for the terminal, and as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from html import escape
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mllt.errors import printable
from mllt.reporting import costs
from mllt.reporting.groups import Experiment, Group, network_title
from mllt.reporting.layout import MORE, MORE_TITLE, Layout, Row, Stat, caption, findings, more
from mllt.reporting.published import GROUPS, Check, Published
from mllt.reporting.representation import HEAD, TITLE, representation

CSV_COLUMNS = (
    *("experiment", "origin", "name", "method", "part", "group", "kind", "status", "seeds", "num_seeds"),
    *(f"{column}_{what}" for column in GROUPS for what in ("mean", "std")),
    *("epochs", "augmentation", "source", "trust", "differs", "notes"),
)


def cells(row: Row) -> list[str]:
    """many, medium, few, all of the runs, as text: "n/a" for a group without classes, "-" without results, "" without runs."""
    if row.status:
        return ["-" if row.group else ""] * 4
    return ["n/a" if stat is None else stat.text() for stat in row.own]


def published_cells(one: Published | None) -> list[str]:
    """many, medium, few, all as printed; "" for what is not."""
    if one is None:
        return [""] * 4
    return [
        "-" if value is None else f"{value:.4g}" if round(value, 1) != value else f"{value:.1f}" for value in one.accuracies
    ]


def seeds(row: Row) -> str:
    """How many seeds a row averages; "incomplete" where its runs have no results."""
    return row.status if row.status == "incomplete" else str(len(row.seeds) or "")


def marks(row: Row) -> str:
    """The numbers of its notes."""
    return ", ".join(str(mark) for mark in row.marks)


def header(layout: Layout, *, sources: bool = False) -> list[str]:
    """The names of the columns; `sources` adds where a published figure stands and in what it differs."""
    beside = [f"published {column}" for column in GROUPS] + ["source", "differs in"] * sources
    return ["method", *GROUPS, "seeds", *(beside if layout.with_published else []), *(["notes"] if layout.notes else [])]


def line(layout: Layout, row: Row, *, sources: bool = False) -> list[str]:
    """A row as texts, fitting `header`; without sources a published figure that was trained otherwise has a star."""
    beside = published_cells(row.beside)
    if sources:
        beside += [row.beside.source if row.beside else "", ", ".join(row.flags)]
    elif layout.with_published:
        beside[-1] += "*" if row.flags else " "
    own = [row.name, *cells(row), seeds(row)]
    return [*own, *(beside if layout.with_published else []), *([marks(row)] if layout.notes else [])]


# ---------------------------------------------------------------------------------------------------------------
# The terminal


def to_terminal(layout: Layout) -> Table:
    """The table for a terminal."""
    # Text as such: a plain string would be read as rich's own markup
    title = Text(printable(layout.experiment.title), style="bold")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for number, name in enumerate(header(layout)):
        table.add_column(name.replace(" ", "\n"), justify="left" if number == 0 else "right", no_wrap=True, vertical="bottom")
    for before, row in zip([None, *layout.rows], layout.rows, strict=False):
        if before is not None and before.method != row.method and (before.part or row.part):
            table.add_section()
        table.add_row(*(Text(printable(text)) for text in line(layout, row)), style="" if row.group else "dim")
    return table


def say(*things: Any) -> None:
    """Print tables and lines on standard output; as wide as a table is, also where that is no terminal."""
    for thing in things:
        console = Console()
        if isinstance(thing, Table):
            console.width = max(console.width, console.measure(thing, options=console.options.update(max_width=1000)).maximum)
        whole = isinstance(thing, str)
        console.print(Text(printable(thing)) if whole else thing, highlight=False, soft_wrap=whole)


def notes_as_lines(layout: Layout) -> list[str]:
    """Caption, remarks, the meaning of letters, and notes, a line each."""
    letters = [f"{name} ({letter}): {meaning}" for name, meanings in layout.letters for letter, meaning in meanings]
    notes = [f"[{number}] {note}" for number, note in enumerate(layout.notes, start=1)]
    return [caption(layout.experiment), *_star(layout), *layout.remarks, *letters, *notes]


def _star(layout: Layout) -> list[str]:
    flagged = any(row.flags for row in layout.rows)
    return ["* trained otherwise than these runs: see its note."] if flagged else []


# ---------------------------------------------------------------------------------------------------------------
# Markdown


def markdown(text: str) -> str:
    """Text that stays text: no tag, no entity, no picture, link or emphasis, on one line.

    >>> print(markdown("<b>R&D ![x](y)"))
    &lt;b&gt;R&amp;D !\\[x\\](y)
    """
    return re.sub(r"([\\`*_~#\[\]])", r"\\\1", escape(" ".join(text.split()), quote=False))


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column to the left, the others to the right.

    >>> print(markdown_table(["method", "all"], [["a|b", "57.7"]]))
    | method | all |
    |---|---:|
    | a\\|b | 57.7 |
    """
    lines = [head, *rows]
    written = ["| " + " | ".join(markdown(str(cell)).replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([written[0], "|---" + "|---:" * (len(head) - 1) + "|", *written[1:]])


def _markdown_main(layout: Layout) -> str:
    return markdown_table(header(layout, sources=True), [line(layout, row, sources=True) for row in layout.rows])


def to_markdown(layouts: Sequence[Layout], checks: Sequence[Check], opening: Sequence[str]) -> str:
    """The whole report but its figures."""
    parts = ["# Report", *map(markdown, opening)]
    for layout in layouts:
        experiment = layout.experiment
        parts += [f"## {markdown(experiment.title)}", _markdown_main(layout)]
        parts += [markdown(caption(experiment)), *map(markdown, layout.remarks)]
        parts += [markdown_table([f"{name}: row", "settings"], meanings) for name, meanings in layout.letters]
        parts += ["\n".join(f"- [{number}] {markdown(note)}" for number, note in enumerate(layout.notes, start=1))]
        if experiment.finished:
            parts += [f"### {MORE_TITLE}"]
            parts += [markdown_table(["method", *MORE], [[title, *texts] for title, texts in more(experiment)])]
            parts += [f"### {costs.TITLE}", costs.LEDE, markdown_table(costs.COLUMNS, costs.lines(experiment))]
            parts += _markdown_commands(experiment)
            parts += _markdown_representation(experiment)
        for group in experiment.finished:
            parts += _markdown_findings(group)
        if layout.others:
            parts += ["### Published systems that mllt does not have", markdown_table(OTHERS, others(layout))]
    if any(layout.with_table_a2 for layout in layouts):
        parts += ["## Does the published table agree with itself?", CHECK, markdown_table(CHECK_COLUMNS, check_lines(checks))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_commands(experiment: Experiment) -> list[str]:
    """The commands that repeat the runs, set as code; one with signs that could be more than code, as text."""
    told = [(group.title, costs.commands(group)) for group in experiment.finished]
    parts = [costs.COMMANDS] * any(commands for _, commands in told)
    for title, commands in told:
        parts += [f"{markdown(title)}:"] * bool(commands)
        parts += [
            f"    {command}" if re.fullmatch(r"python [\w ./=,+:@'\"(){}\[\]-]*", command) else markdown(command)
            for command in commands
        ]
    return parts


def _markdown_representation(experiment: Experiment) -> list[str]:
    told = representation(experiment)
    if told is None:
        return []
    table = [markdown_table(HEAD, told.lines)] if told.lines else []
    return [f"### {TITLE}", markdown(told.lede), *table, *map(markdown, told.remarks)]


def _markdown_findings(group: Group) -> list[str]:
    told = findings(group)
    if not told.texts and not told.grids:
        return []
    parts = [f"### What {markdown(group.title)} tells of itself"]
    parts += [markdown_table(["finding", "value"], told.texts)] if told.texts else []
    for grid in told.grids:
        parts += [f"{markdown(grid.title)}:", markdown_table([grid.first, *grid.columns], grid.lines)]
    return parts


OTHERS = ("system", "network", "many", "medium", "few", "all", "epochs", "augmentation", "source", "remarks")


def others(layout: Layout) -> list[list[str]]:
    """The lines of the published systems that mllt does not have, fitting `OTHERS`."""
    return [
        [
            *(one.name, network_title(one.network), *published_cells(one)),
            *(str(one.epochs or "-"), one.augmentation or "-", one.source, one.note),
        ]
        for one in layout.others
    ]


CHECK = (
    "“All” of Table A2 (ImageNet-LT), computed again from its group columns and the 385, 479 and 136 classes of the groups. "
    "Rounding explains up to 0.1."
)
CHECK_COLUMNS = ("method", "network", "printed", "recomputed", "difference", "verdict")


def check_lines(checks: Sequence[Check]) -> list[list[str]]:
    """The lines of the check, fitting `CHECK_COLUMNS`."""
    return [
        [
            *(check.name, network_title(check.network), f"{check.printed:.1f}", f"{check.recomputed:.2f}"),
            *(f"{check.difference:+.2f}", "agrees" if check.agrees else f"differs: {check.why or 'unexplained'}"),
        ]
        for check in checks
    ]


# ---------------------------------------------------------------------------------------------------------------
# LaTeX

_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": "$\\pm$",
    "τ": "$\\tau$",
    "“": "``",
    "”": "''",
}


def latex(text: str) -> str:
    """Text with LaTeX's special characters escaped.

    >>> print(latex("50 % of tau_norm ± 0.1"))
    50 \\% of tau\\_norm $\\pm$ 0.1
    """
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def to_latex(layouts: Sequence[Layout]) -> str:
    """A `table` per experiment, with its notes below; needs the package booktabs."""
    tables = "\n".join(map(_latex_table, layouts))
    foreign = any(ord(one) > 127 and not unicodedata.name(one, "").startswith("LATIN") for one in tables)
    engine = "% Compile with lualatex, and a font that has the characters of all names.\n" if foreign else ""
    return "% Needs \\usepackage{booktabs}.\n" + engine + tables


def _latex_table(layout: Layout) -> str:
    head = header(layout)
    beside = layout.with_published
    columns = "l" + "r" * 5 + "r" * 4 * beside
    names = [name.removeprefix("published ") for name in head if name != "notes"]
    lines = [
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex(layout.experiment.title)}. {latex(caption(layout.experiment))}}}",
    ]
    lines += [f"\\label{{tab:{layout.experiment.slug}}}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    if beside:
        lines += [" & \\multicolumn{5}{c}{these runs} & \\multicolumn{4}{c}{published} \\\\"]
        lines += ["\\cmidrule(lr){2-6} \\cmidrule(lr){7-10}"]
    lines += [" & ".join(names) + " \\\\", "\\midrule"]
    for row in layout.rows:
        texts = [latex(text) for text in line(layout, row)]
        if layout.notes:
            number = texts.pop()
            texts[0] += f"$^{{{number.replace(' ', '')}}}$" if number else ""
        lines.append(" & ".join(texts) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}", ""]
    notes = [f"$^{{{number}}}$ {latex(note)}" for number, note in enumerate(layout.notes, start=1)]
    letters = [f"{latex(name)} ({letter}): {latex(text)}" for name, meanings in layout.letters for letter, text in meanings]
    below = [latex(remark) for remark in [*_star(layout), *layout.remarks]] + letters + notes
    lines += ["\\par\\footnotesize\\raggedright", " \\par\n".join(below)] if below else []
    return "\n".join([*lines, "\\end{table}", ""])


# ---------------------------------------------------------------------------------------------------------------
# CSV


def to_csv(layouts: Sequence[Layout]) -> str:
    """All rows, one per line: `origin` says whether of these runs or published. Numbers are not rounded."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for layout in layouts:
        for row in layout.rows:
            common = {"experiment": layout.experiment.title, "method": row.method, "part": row.part}
            if row.group is not None:
                writer.writerow(_as_text({**common, **_csv_of_runs(layout, row)}))
            if row.beside is not None:
                writer.writerow(_as_text({**common, **_csv_of_published(row.beside), "differs": ", ".join(row.flags)}))
        for one in layout.others:
            writer.writerow(_as_text({"experiment": layout.experiment.title, **_csv_of_published(one)}))
    return file.getvalue()


def _as_text(cells: dict[str, Any]) -> dict[str, Any]:
    """Cells that a spreadsheet takes for what they are: a text that it would run as a formula begins with an apostrophe.

    >>> _as_text({"name": "=1+1", "all_mean": "57.7", "epochs": 200})
    {'name': "'=1+1", 'all_mean': '57.7', 'epochs': 200}
    """
    return {
        name: f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
        for name, value in cells.items()
    }


def _csv_of_runs(layout: Layout, row: Row) -> dict[str, Any]:
    assert row.group is not None  # of runs
    found: dict[str, Any] = {
        "origin": "runs",
        "name": row.name,
        "group": row.group.label,
        "kind": row.kind,
        "status": row.status or "complete",
        "seeds": " ".join(map(str, row.seeds)),
        "num_seeds": len(row.seeds),
        "epochs": row.group.epochs,
        "augmentation": row.group.augmentation,
        "notes": " ".join(layout.notes[mark - 1] for mark in row.marks),
    }
    for column, stat in zip(GROUPS, row.own, strict=True):
        found |= _csv_of_stat(column, stat)
    return found


def _csv_of_stat(column: str, stat: Stat | None) -> dict[str, Any]:
    if stat is None:
        return {}
    return {f"{column}_mean": repr(stat.mean), f"{column}_std": "" if stat.std is None else repr(stat.std)}


def _csv_of_published(one: Published) -> dict[str, Any]:
    means = {f"{column}_mean": value for column, value in zip(GROUPS, one.accuracies, strict=True) if value is not None}
    return means | {
        "origin": "published",
        "name": f"{one.name} ({network_title(one.network)})",
        "part": one.part,
        "status": "published",
        "epochs": one.epochs or "",
        "augmentation": one.augmentation,
        "source": one.source,
        "trust": one.trust,
        "notes": one.note,
    }
