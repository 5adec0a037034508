"""Reading result folders: where runs lie, what they are of, and how far the unfinished ones came."""

from __future__ import annotations

import csv
import glob
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
from mllt.reporting.checks import check_config, read_results
from mllt.results import MOST_SETTINGS, RunFolder, plural, read_text

#: The sections that make a `config.yaml` one of ours: other programs keep files of that name, too.
_OURS = {"data", "method", "network", "trainer", "seed"}
#: What lies in a run's folder beside further runs: nothing in these is a run of its own.
_OF_A_RUN = {"stages", "checkpoints", "evaluations", "probes", "report", "wandb", "tensorboard", "lightning_logs"}
#: What can go wrong with a `metrics.csv` that something else wrote, or that was cut or overwritten.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, csv.Error)
#: Bytes of a `results.json` or a `metrics.csv`; those of the largest data sets and the longest runs have a few million.
MOST_RESULTS = 2**26
Curves = list[tuple[str, dict[int, dict[str, float]]]]


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Args:
        folder: its place.
        config: its settings, as plain containers.
        results: `results.json`; None where the run has not finished.
        problem: why there are no results; "" for a finished run.
        known_as: the method's name where only others can tell it: an unfinished run knows its class alone.
    """

    folder: RunFolder
    config: dict[str, Any]
    results: dict[str, Any] | None
    problem: str = ""
    known_as: str = ""

    @property
    def finished(self) -> bool:
        """Whether it was tested."""
        return self.results is not None

    @property
    def seed(self) -> int:
        """Of its initial weights, order and augmentation."""
        return int(self.config["seed"])

    @property
    def target(self) -> str:
        """The method's class, as the settings name it."""
        return str(self.config["method"]["_target_"])

    @property
    def method(self) -> str:
        """The method's name; the name of its class where nothing tells that."""
        return str(self.results["method"]) if self.results is not None else self.known_as or method_of(self.target)

    @cached_property
    def written(self) -> float:
        """When its results were written, in seconds since 1970."""
        return self.folder.results.stat().st_mtime

    @property
    def curves(self) -> Curves:
        """Name and rows of `metrics.csv` by epoch of each stage, in the order in which they ran; "" names the only one."""
        return self._read_curves[0]

    @property
    def curves_problem(self) -> str:
        """Why there are no curves although there are files of them, in words; else ""."""
        return self._read_curves[1]

    @cached_property
    def _read_curves(self) -> tuple[Curves, str]:
        try:
            names = [stage["name"] for stage in (self.results or {}).get("stages", [])] or self._stages_begun()
            stages = [("", self.folder)]
            if len(names) > 1:
                stages = list(zip(names, self.folder.of_stages(names), strict=True))
            return [(name, _numbers(place.metrics)) for name, place in stages], ""
        except _UNREADABLE as error:
            return [], f"its metrics.csv cannot be read ({type(error).__name__}: {error})"

    def _stages_begun(self) -> list[str]:
        """Of an unfinished run of several stages: those that left a folder, the oldest first, and the one without its own."""
        folders = sorted((path.stat().st_mtime, path.name) for path in (self.folder.root / "stages").glob("*") if path.is_dir())
        return [*(name for _, name in folders), "the last stage"] if folders else []

    def progress(self) -> str:
        """How far an unfinished run came, by its `metrics.csv`.

        Returns:
            Such as "after epoch 7 of 20" or "after epoch 3 of its stage features".
        """
        if self.curves_problem:
            return f"at a point that is not known: {self.curves_problem}"
        begun = [(name, max(rows)) for name, rows in self.curves if rows]
        if not begun:
            return "before the end of its first epoch"
        name, epoch = begun[-1]
        epochs = int(self.config["trainer"]["max_epochs"])
        if name:
            return f"after epoch {epoch} of {name if name.startswith('the ') else f'its stage {name}'}"
        return f"after epoch {epoch} of {epochs}" if epoch < epochs else f"after its {plural(epochs, 'epoch')}, before the test"


def _numbers(path: Path) -> dict[int, dict[str, float]]:
    """The rows of a `metrics.csv`, every value a number; raises one of `_UNREADABLE` where it holds anything else."""
    if path.exists():
        read_text(path, MOST_RESULTS)
    rows = {epoch: {name: float(value) for name, value in row.items()} for epoch, row in read_rows(path).items()}
    if any(1e100 < abs(number) < float("inf") for epoch, row in rows.items() for number in (epoch, *row.values())):
        raise ValueError("numbers beyond what can be drawn")
    return rows


@dataclass
class Found:
    """What lies in the folders that were given: runs, and what could not be taken for one."""

    runs: list[Run] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_runs(paths: Sequence[str | Path]) -> Found:
    """The runs in folders: a run's own folder, or any folder above it, each also as a pattern such as `runs/*/mutual`.

    A folder is a run's when its `config.yaml` is one of ours. Below it may lie further runs, but not in what a run leaves
    (stages, checkpoints, evaluations, a logger's files). A run that is reached twice counts once.

    Raises:
        ArgumentError: a path is not there or no folder, or no run lies in any.
    """
    found = Found()
    seen: set[Path] = set()
    for path in _expand(paths):
        roots = [root.resolve() for root in _run_folders(path)]
        if not roots and not _is_report(path):
            found.problems.append(f"No run lies in {path}.")
        for root in roots:
            if root not in seen:
                seen.add(root)
                _read(root, found)
    found.runs = _by_class(found.runs)
    if not found.runs:
        why = "".join(f" {text}" for text in found.problems if not text.startswith("No run"))
        raise ArgumentError(
            f"Expected folders of runs, but none of {', '.join(map(str, paths))} holds one that can be read: a run's folder "
            f"has the config.yaml that python -m mllt.train writes.{why}"
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
        folders += [match for match in matches if match.is_dir() or matches == [path]]
    beside = {folder.absolute().parent for folder in folders if folder.is_dir()}
    # A shell's star brings the files beside the runs, too, such as the multirun.yaml of a sweep.
    folders = [folder for folder in folders if folder.is_dir() or folder.absolute().parent not in beside]
    for folder in folders:
        if not folder.is_dir():
            raise ArgumentError(f"Expected a folder of runs, but {folder} is a file: name the folder that it lies in.")
    return folders


def _is_report(folder: Path) -> bool:
    """Whether a report was written there, which a shell's star brings as well."""
    return all((folder / f"report.{kind}").is_file() for kind in ("html", "md", "tex", "csv"))


def _run_folders(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The folders at and below a folder that hold a run, or the results of one, in the order of their names."""
    # Results without settings: told as a problem, not passed over.
    is_run = _has_settings(folder) or (folder / "results.json").is_file()
    if is_run:
        yield folder
    above = (*above, folder.resolve())
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise DataError(f"Cannot read {folder}: {error.strerror or error}. Make it readable, or leave it out.") from error
    for child in children:
        if child.resolve() not in above and not (is_run and child.name in _OF_A_RUN):  # nor a link that leads in circles
            yield from _run_folders(child, above)


def _by_class(runs: Sequence[Run]) -> list[Run]:
    """Runs as they are, the unfinished ones with the method's name that finished ones of the same class tell."""
    names = {run.target: run.method for run in reversed(runs) if run.finished}
    return [run if run.finished else replace(run, known_as=names.get(run.target, "")) for run in runs]


def _has_settings(folder: Path) -> bool:
    """Whether the `config.yaml` of a folder is one of ours."""
    path = folder / "config.yaml"
    try:
        if not path.is_file():  # nor a pipe, which would be waited for
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_SETTINGS)
    except OSError:
        return False
    tops = {line.split(":")[0] for line in text.splitlines() if line and not line[0].isspace()}
    return tops >= _OURS


def _read(root: Path, found: Found) -> None:
    """Read one run into `found`, or what is wrong with it."""
    folder = RunFolder(root)
    try:
        settings = _read_settings(folder)
        results = _read_results(folder)
    except DataError as error:
        found.problems.append(f"{folder.shown}: {' '.join(str(error).split()).rstrip('.')}; the run is left out.")
        return
    run = Run(folder, settings, results)
    if results is None:
        run = replace(run, problem=f"no results yet: it is still running, or it stopped {run.progress()}")
    found.runs.append(run)


def _read_settings(folder: RunFolder) -> dict[str, Any]:
    """`config.yaml`, looked at.

    Raises:
        DataError: it is not there, damaged, or does not hold what every run's has.
    """
    if not folder.config.exists():
        raise DataError("it has results.json but no config.yaml")
    try:
        config = OmegaConf.to_container(folder.read_config(), resolve=True)
        missing = sorted(_OURS - set(config)) if isinstance(config, dict) else sorted(_OURS)
        if missing or not isinstance(config, dict):
            raise DataError(f"it has no {', '.join(missing)}")
        settings = {str(name): value for name, value in config.items()}
        check_config(settings)
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"its config.yaml cannot be read: {error}") from error
    return settings


def _read_results(folder: RunFolder) -> dict[str, Any] | None:
    """`results.json`, looked at, or None where there is none.

    Raises:
        DataError: it is damaged, or lacks what every run has.
    """
    if not folder.results.exists():
        return None
    try:
        return read_results(read_text(folder.results, MOST_RESULTS))
    except ValueError as error:
        raise DataError(f"its results.json cannot be read: {error}") from error


def method_of(target: str) -> str:
    """The method's name of a class as settings name it.

    >>> method_of("mllt.methods.MutualLTModule"), method_of("my_package.MyMethod")
    ('mutual', 'MyMethod')
    """
    from mllt.methods import LongTailedModule

    names = {f"mllt.methods.{cls.__name__}": name for name, cls in LongTailedModule.registry.items()}
    return names.get(target, target.rpartition(".")[2])
