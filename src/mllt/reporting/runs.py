"""Reading result folders: where runs lie, what they are of, and how far the unfinished ones came."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mllt.callbacks.loggers import read_rows
from mllt.errors import ArgumentError, DataError
from mllt.methods.evaluation import GROUPS, KINDS
from mllt.results import RunFolder, plural

#: The sections that make a `config.yaml` one of ours: other programs keep files of that name, too.
_OURS = {"data", "method", "network", "trainer", "seed"}


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Args:
        folder: its place.
        config: its settings, as plain containers.
        results: `results.json`; None where the run has not finished.
        problem: why there are no results; "" for a finished run.
    """

    folder: RunFolder
    config: dict[str, Any]
    results: dict[str, Any] | None
    problem: str = ""

    @property
    def finished(self) -> bool:
        """Whether it was tested."""
        return self.results is not None

    @property
    def seed(self) -> int:
        """Of its initial weights, order and augmentation."""
        return int(self.config["seed"])

    @cached_property
    def method(self) -> str:
        """The method's name; of an unfinished run of a method that is not mllt's, the name of its class."""
        if self.results is not None:
            return str(self.results["method"])
        return method_of(str(self.config["method"].get("_target_")))

    @property
    def written(self) -> float:
        """When its results were written, in seconds since 1970."""
        return self.folder.results.stat().st_mtime

    def curves(self) -> list[tuple[str, dict[int, dict[str, Any]]]]:
        """Name and rows of `metrics.csv` by epoch of each stage, in the order in which they ran; "" names the only one."""
        names = [stage["name"] for stage in (self.results or {}).get("stages", [])] or self._stages_begun()
        if len(names) < 2:
            return [("", read_rows(self.folder.metrics))]
        return [(name, read_rows(place.metrics)) for name, place in zip(names, self.folder.of_stages(names), strict=True)]

    def _stages_begun(self) -> list[str]:
        """Of an unfinished run of several stages: those that left a folder, the oldest first, and the one without its own."""
        folders = sorted((path.stat().st_mtime, path.name) for path in (self.folder.root / "stages").glob("*") if path.is_dir())
        return [*(name for _, name in folders), "the last stage"] if folders else []

    def progress(self) -> str:
        """How far an unfinished run came, by its `metrics.csv`.

        Returns:
            Such as "after epoch 7 of 20" or "after epoch 3 of its stage features".
        """
        begun = [(name, max(rows)) for name, rows in self.curves() if rows]
        if not begun:
            return "before the end of its first epoch"
        name, epoch = begun[-1]
        epochs = int(self.config["trainer"]["max_epochs"])
        if name:
            return f"after epoch {epoch} of {name if name.startswith('the ') else f'its stage {name}'}"
        return f"after epoch {epoch} of {epochs}" if epoch < epochs else f"after its {plural(epochs, 'epoch')}, before the test"


@dataclass
class Found:
    """What lies in the folders that were given: runs, and what could not be taken for one."""

    runs: list[Run] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_runs(paths: Sequence[str | Path]) -> Found:
    """The runs in folders: a run's own folder, or any folder above it, each also as a pattern such as `runs/*/mutual`.

    A folder is a run's when its `config.yaml` is one of ours; what lies in it (stages, evaluations, a logger's files) is not
    searched. A run that is reached twice counts once.

    Raises:
        ArgumentError: a path is not there or no folder, or no run lies in any.
    """
    found = Found()
    seen: set[Path] = set()
    for path in _expand(paths):
        roots = [root.resolve() for root in _run_folders(path)]
        if not roots:
            found.problems.append(f"No run lies in {path}.")
        for root in roots:
            if root not in seen:
                seen.add(root)
                _read(root, found)
    if not found.runs:
        why = "".join(f" {text}" for text in found.problems if not text.startswith("No run"))
        raise ArgumentError(
            f"Expected folders of runs, but none of {', '.join(map(str, paths))} holds one: a run's folder has the config.yaml "
            f"that python -m mllt.train writes.{why}"
        )
    return found


def _expand(paths: Sequence[str | Path]) -> list[Path]:
    """The folders that were given, patterns put out."""
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    folders = []
    for text in map(str, paths):
        path = Path(text).expanduser()
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            hint = f" (The report's folder is typed --output {text[7:]}.)" if text.startswith("output=") else ""
            raise ArgumentError(f"Expected folders of runs, but there is no {text}.{hint}")
        of_pattern = matches != [path]
        folders += [match for match in matches if match.is_dir() or not of_pattern]
    for folder in folders:
        if not folder.is_dir():
            raise ArgumentError(f"Expected a folder of runs, but {folder} is a file: name the folder that it lies in.")
    return folders


def _run_folders(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The folders at and below a folder that hold a run, or the results of one, in the order of their names."""
    if _has_settings(folder):
        yield folder
        return
    if (folder / "results.json").is_file():  # without settings: told as a problem, not passed over
        yield folder
    above = (*above, folder.resolve())
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise DataError(f"Cannot read {folder}: {error.strerror or error}. Make it readable, or leave it out.") from error
    for child in children:
        if child.resolve() not in above:  # a link that leads in circles
            yield from _run_folders(child, above)


def _has_settings(folder: Path) -> bool:
    """Whether the `config.yaml` of a folder is one of ours, or damaged beside results."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    tops = {line.split(":")[0] for line in text.splitlines() if line and not line[0].isspace()}
    return tops >= _OURS or (folder / "results.json").is_file()


def _read(root: Path, found: Found) -> None:
    """Read one run into `found`, or what is wrong with it."""
    folder = RunFolder(root)
    try:
        config = OmegaConf.to_container(folder.read_config(), resolve=True)
    except (DataError, OmegaConfBaseException) as error:
        found.problems.append(f"{folder.shown} is left out: {' '.join(str(error).split())}")
        return
    missing = sorted(_OURS - set(config)) if isinstance(config, dict) else sorted(_OURS)
    if missing or not isinstance(config, dict):
        found.problems.append(f"{folder.shown} is left out: its config.yaml has no {', '.join(missing)}.")
        return
    settings = {str(name): value for name, value in config.items()}
    try:
        results, problem = _read_results(folder), ""
    except DataError as error:
        results, problem = None, str(error)
    run = Run(folder, settings, results, problem)
    if results is None and not problem:
        run = replace(run, problem=f"no results yet: it is still running, or it stopped {_progress(run)}")
    found.runs.append(run)


def _progress(run: Run) -> str:
    try:
        return run.progress()
    except (OSError, ValueError, KeyError) as error:
        return f"at a point that its metrics.csv does not tell ({type(error).__name__}: {error})"


def _read_results(folder: RunFolder) -> dict[str, Any] | None:
    """`results.json`, or None where there is none.

    Raises:
        DataError: it is damaged, or lacks what every run has.
    """
    if not folder.results.exists():
        return None
    try:
        results = json.loads(folder.results.read_text(encoding="utf-8"))
        ensemble = results["test"]["ensemble"]
        complete = all(group in ensemble[kind] for kind in KINDS for group in GROUPS)
        if not complete or not {"method", "epochs"} <= set(results):
            raise KeyError("accuracies, method or epochs")
        counts, per_class = results["class_counts"], results["test"]["per_class"]
        if min(counts) < 0 or max(counts) == 0 or any(len(per_class[kind]) != len(counts) for kind in KINDS):
            raise ValueError("class_counts and per_class do not fit")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"its results.json cannot be used ({type(error).__name__}: {error})") from error
    return results


def method_of(target: str) -> str:
    """The method's name of a class as settings name it.

    >>> method_of("mllt.methods.MutualLTModule"), method_of("my_package.MyMethod")
    ('mutual', 'MyMethod')
    """
    from mllt.methods import LongTailedModule

    names = {f"mllt.methods.{cls.__name__}": name for name, cls in LongTailedModule.registry.items()}
    return names.get(target, target.rpartition(".")[2])
