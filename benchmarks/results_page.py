"""Fills the tables of docs/results.md with what `mllt.report` says of the published runs under docs/results/.

    python -m mllt.report runs/cifar100_lt --publish docs/results/cifar100_lt      a run is published: its settings and results
    python -m benchmarks.results_page                                             the page tells of it
    python -m benchmarks.results_page --check                                     whether it does already; changes nothing

Between `<!-- report FOLDER -->` and `<!-- end -->` stands the report of docs/results/FOLDER. What is around it is written
by hand. Figures that the page shows, by their paths below docs/results/, are drawn anew, too.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mllt.report import report

PAGE = Path(__file__).parent.parent / "docs/results.md"
_BLOCK = re.compile(r"(<!-- report (?P<folder>\S+) -->\n)(?:.*?\n)??(<!-- end -->)", re.DOTALL)


def filled(text: str, results: Path, figures: Path | None = None) -> str:
    """The page with its tables.

    Args:
        text: of the page as it is.
        results: the folder that holds the published runs.
        figures: a folder for the figures that the page shows; None: they are left as they are.
    """

    def tables(match: re.Match[str]) -> str:
        with tempfile.TemporaryDirectory() as folder:
            report(results / match["folder"], folder, figures=figures is not None)
            told = (Path(folder) / "report.md").read_text(encoding="utf-8")
            if figures is not None:
                for path in sorted((Path(folder) / "figures").glob("*.svg")):
                    place = figures / match["folder"] / path.name
                    if f"{place.parent.name}/{place.name}" in text:
                        place.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, place)
        # The page has its own title; what the report calls a chapter is a section here
        body = re.sub(r"^(#+) ", r"#\1 ", told.partition("\n\n")[2].strip(), flags=re.MULTILINE)
        return f"{match[1]}\n{body}\n\n{match[3]}"

    return _BLOCK.sub(tables, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; with --check, 1 where the page is not what it would be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results_page", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; the exit status tells whether there is a change")
    check = parser.parse_args(arguments).check
    before = PAGE.read_text(encoding="utf-8")
    after = filled(before, PAGE.with_suffix(""), None if check else PAGE.with_suffix("") / "figures")
    if check:
        return int(after != before)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
