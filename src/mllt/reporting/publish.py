"""Copies of runs to publish: what a report is made of, a few kilobytes a run, and without the folders of the machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mllt.errors import ArgumentError, DataError
from mllt.files import written_whole
from mllt.reporting.groups import Experiment
from mllt.reporting.runs import MOST_RESULTS, Run
from mllt.results import read_text


def publish(experiments: Iterable[Experiment], folder: Path, above: Path) -> list[str]:
    """Copy the settings and results of finished runs: `config.yaml`, `results.json`, `probes/*.json`.

    A report of the copies says what a report of the runs says, but for the curves of training. Of a path in full that is the
    value of a setting or a result, the copy has what lies below `above`, else its last name: `./NAME`. Names of folders stay.

    Args:
        experiments: with their groups; runs that count in a table are copied.
        folder: where to; a run lies there as it lies below `above`.
        above: a folder that holds all runs.

    Returns:
        A sentence for each run that was not copied, with the reason.

    Raises:
        ArgumentError: the folder of the copies is one of the runs', or lies in one.
        DataError: a file there differs from what would be written: nothing is written then; or a file cannot be read.
    """
    experiments = list(experiments)
    groups = [group for experiment in experiments for group in experiment.groups]
    files: dict[Path, str] = {}
    for run in (run for group in groups for run in group.runs):
        root = run.folder.root
        if folder == above or folder.is_relative_to(root):
            raise ArgumentError(f"Expected a folder for the copies beside the runs, but {folder} holds them. Name another one.")
        for path, text in _copies(run, above).items():
            files[folder / root.relative_to(above) / path] = text
    odd = [path for path, text in files.items() if path.exists() and _differs(path, text)]
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise DataError(
            f"Expected nothing else in the place of the copies, but {odd[0]}{more} differs from what would be written. "
            "Remove it, or name another folder. Nothing was written."
        )
    for path, text in files.items():
        with written_whole(path) as file:
            file.write(text)
    return [f"Not published, {run.problem}: {run.folder.shown}." for group in groups for run in group.incomplete]


def _differs(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_bytes() != text.encode()


def _copies(run: Run, above: Path) -> dict[Path, str]:
    """What is published of a run: paths within its folder, and texts."""
    root = run.folder.root
    texts = {Path("config.yaml"): yaml.safe_dump(without_folders(run.config, above), sort_keys=False, allow_unicode=True)}
    for path in [run.folder.results, *sorted(root.glob("probes/*.json"))]:
        try:
            content = json.loads(read_text(path, MOST_RESULTS))
        except ValueError as error:
            raise DataError(
                f"Expected results in {path}, but they are damaged ({error}). Remove the file, or mend it."
            ) from error
        texts[path.relative_to(root)] = (
            json.dumps(without_folders(content, above), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )
    return texts


def without_folders(value: Any, above: Path) -> Any:
    """Settings or results, with every path in full cut down to what tells nothing of the machine.

    >>> without_folders({"root": "/home/me/birds", "from": ["/runs/plain/last.ckpt"], "lr": 0.1}, Path("/runs"))
    {'root': './birds', 'from': ['./plain/last.ckpt'], 'lr': 0.1}
    """
    if isinstance(value, Mapping):
        return {key: without_folders(one, above) for key, one in value.items()}
    if isinstance(value, list):
        return [without_folders(one, above) for one in value]
    if not isinstance(value, str) or not (os.path.isabs(value) or value.startswith(("~/", "file:"))):
        return value
    path = Path(os.path.normpath(value))
    return f"./{path.relative_to(above) if path.is_relative_to(above) else path.name}"
