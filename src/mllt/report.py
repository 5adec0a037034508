"""`python -m mllt.report RUNS...`: set the results of many runs side by side, beside the published figures.

In your own code: `from mllt.report import report`.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mllt.errors import DataError, MlltError, printable

if TYPE_CHECKING:
    from mllt.reporting.layout import Layout

_DESCRIPTION = """\
Set results side by side: a table for each data set, network and test prior; a row for each method, averaged over its seeds,
beside the published figures. Runs are averaged only where they differ in nothing but the seed; what stands apart, is unfinished
or was published under other conditions is said below the table. Writes report.html (with figures), report.md, report.tex and
report.csv.
"""
_EXAMPLES = """\
  python -m mllt.report runs                           every run below runs/
  python -m mllt.report sweeps/digits_lt/* --output comparison
  python -m mllt.report runs --figures                 each figure as a file, too, to show on other pages
  python -m mllt.report runs --publish results         settings and results, without folders of this machine
"""


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Args:
        layouts: its tables, one for each experiment.
        problems: what could not be read, or was not published, in words.
        folder: where it lies: report.html, report.md, report.tex, report.csv, and perhaps figures/.
        published: where copies of the runs lie; None where none were asked for.
    """

    layouts: list[Layout]
    problems: list[str]
    folder: Path
    published: Path | None = None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m mllt.report",
        description=_DESCRIPTION,
        epilog=f"examples:\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUNS", help="folders of runs, or folders that hold such at any depth, or patterns"
    )
    parser.add_argument("--output", metavar="FOLDER", help="where to write (default: a folder report beside the runs)")
    parser.add_argument("--figures", action="store_true", help="write each figure as an SVG file, too, into its folder figures")
    parser.add_argument(
        "--publish",
        metavar="FOLDER",
        help="copy settings and results of the finished runs there, without folders of this machine",
    )
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that has not every character
    try:
        show(report(arguments.runs, arguments.output, figures=arguments.figures, publish=arguments.publish))
    except MlltError as error:
        if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
            raise
        print(f"Error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


def report(
    paths: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    figures: bool = False,
    publish: str | Path | None = None,
) -> Report:
    """Read result folders and write the report of them.

    Args:
        paths: folders of runs, or folders that hold such at any depth, or patterns such as "runs/*/mutual".
        output: the folder to write; None: `report` in the folder that holds all runs, or in the current one.
        figures: whether to write each panel of each figure as `figures/EXPERIMENT-CHART-PANEL.svg`, too, the same bytes for the
            same runs.
        publish: a folder to copy the settings and results of the finished runs to (`mllt.reporting.publish`).

    Returns:
        The tables, what could not be read, and where the report lies.

    Raises:
        ArgumentError: a path is not there, or no run lies in any.
        DataError: a folder cannot be read, the report cannot be written, or other files lie in the place of the copies.
    """
    from mllt.reporting import publish as publishing
    from mllt.reporting.figures import charts
    from mllt.reporting.groups import experiments
    from mllt.reporting.layout import lay_out, plain_summary
    from mllt.reporting.page import figure_files, to_html
    from mllt.reporting.published import check_table
    from mllt.reporting.runs import find_runs
    from mllt.reporting.tables import to_csv, to_latex, to_markdown

    found = find_runs([paths] if isinstance(paths, (str, Path)) else paths)
    layouts = [lay_out(experiment) for experiment in experiments(found.runs)]
    roots = [run.folder.root for run in found.runs]
    folder = _beside(roots) if output is None else Path(output).expanduser().resolve()
    opening = [f"{layout.experiment.title}: {plain_summary(layout)}." for layout in layouts]
    checks = check_table()
    drawn = [charts(layout) for layout in layouts]
    texts = {
        "report.html": to_html(layouts, drawn, checks, opening, found.problems),
        "report.md": to_markdown(layouts, checks, [*opening, *(f"Not read: {problem}" for problem in found.problems)]),
        "report.tex": to_latex(layouts),
        "report.csv": to_csv(layouts),
    }
    if figures:
        texts |= {f"figures/{name}": text for name, text in figure_files(layouts, drawn).items()}
    try:
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(printable(text), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(
            f"Cannot write the report to {folder}: {error.strerror or error}. Name another folder by --output FOLDER."
        ) from error
    copies = None if publish is None else Path(publish).expanduser().resolve()
    if copies is not None:
        left_out = publishing.publish([layout.experiment for layout in layouts], copies, _above(roots))
        return Report(layouts, [*found.problems, *left_out], folder, copies)
    return Report(layouts, found.problems, folder)


def _beside(roots: Sequence[Path]) -> Path:
    """The default place: `report` in the deepest folder that holds all runs; in the current one where only the root does."""
    above = _above(roots)
    return (Path.cwd() if above == Path(above.anchor) else above) / "report"


def _above(roots: Sequence[Path]) -> Path:
    """The deepest folder that holds all runs."""
    return Path(os.path.commonpath([root.parent for root in roots]))


def show(written: Report) -> None:
    """Print the tables, their notes, and where the report lies."""
    from mllt.reporting.published import check_table
    from mllt.reporting.tables import notes_as_lines, say, to_terminal
    from mllt.results import RunFolder

    for layout in written.layouts:
        say(to_terminal(layout), *notes_as_lines(layout), "")
    if any(layout.with_table_a2 for layout in written.layouts):
        odd = [
            f"{check.name} {check.network} {check.difference:+.2f}: {check.why}" for check in check_table() if not check.agrees
        ]
        say(f"Table A2 checked against its own group columns: every “all” agrees within 0.1 but {'; '.join(odd)}.")
    say(*(problem if problem.startswith("Not ") else f"Not read: {problem}" for problem in written.problems))
    place = RunFolder(written.folder).shown
    say(f"Written to {place}: report.html (figures, too), report.md, report.tex, report.csv")
    if written.published is not None:
        say(f"Settings and results, to publish: {RunFolder(written.published).shown}")


if __name__ == "__main__":
    main()
