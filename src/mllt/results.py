"""A run's folder: what lies in it, `results.json`, and the table that is printed.

config.yaml      every setting of the run, resolved
checkpoints/     last.ckpt, previous.ckpt (the one before), and best.ckpt where there is a validation split; of a finished
                 run model.ckpt, what predicts, with its SHA-256
stages/NAME/     checkpoints and metrics of the stages before the last, where a method has several
metrics.csv      losses and accuracies by epoch
probes/          what probes of its features found, where they were asked for
results.json     what the run showed, and how it came about
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mllt.errors import DataError
from mllt.files import written_whole
from mllt.methods.evaluation import GROUPS, KINDS

#: Bytes of a `config.yaml`: a list of numbers for every class of the largest data sets is a tenth of it.
MOST_SETTINGS = 4 * 2**20


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run, or of one of its stages.

    Args:
        root: the folder.
        whole: for a stage, the folder of the run that it belongs to.
    """

    root: Path
    whole: Path | None = None

    @property
    def config(self) -> Path:
        """Every setting of the run, resolved."""
        return self.run / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        """The newest checkpoint, in the end that of the last epoch."""
        return self.checkpoints / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last one."""
        return self.checkpoints / "previous.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch on validation, where there is a validation split."""
        return self.checkpoints / "best.ckpt"

    @property
    def model(self) -> Path:
        """What predicts, of a finished run: the last checkpoint without what only training needs."""
        return self.checkpoints / "model.ckpt"

    @property
    def metrics(self) -> Path:
        """Losses and accuracies by epoch."""
        return self.root / "metrics.csv"

    @property
    def results(self) -> Path:
        """What the run showed."""
        return self.root / "results.json"

    def of_stages(self, names: Sequence[str]) -> list[RunFolder]:
        """The folder of each stage of a run: `stages/NAME`, and for the last one the run's own."""
        return [RunFolder(self.root / "stages" / name, self.root) for name in names[:-1]] + [self]

    @property
    def run(self) -> Path:
        """The folder of the run that this one, perhaps of a stage, belongs to."""
        return self.root if self.whole is None else self.whole

    @property
    def shown(self) -> Path:
        """The folder as a person at the prompt would type it: from where they are, if it lies below."""
        here = Path.cwd()
        return self.root.relative_to(here) if self.root.is_relative_to(here) else self.root

    def relative(self, path: Path) -> Path:
        """A path within the folder, as seen from it."""
        return path.relative_to(self.root)

    def write_config(self, config: DictConfig) -> None:
        """Keep the resolved settings."""
        with written_whole(self.config) as file:
            file.write(OmegaConf.to_yaml(config, resolve=True))

    def read_config(self) -> DictConfig:
        """The settings the run was made with: plain values, as `write_config` writes them.

        Raises:
            DataError: they are not there, unreadable, or refer to other things, such as variables of the environment.
        """
        text = read_text(self.config, MOST_SETTINGS)
        try:
            reference = next(filter(None, map(_alias_or_tag, yaml.parse(text, yaml.SafeLoader))), "")
            config = OmegaConf.create({} if reference else OmegaConf.load(io.StringIO(text)))
            reference = reference or _interpolation(OmegaConf.to_container(config))
        except RecursionError:
            raise DataError(f"Expected the settings of the run in {self.config}, but they are nested too deeply.") from None
        except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"Expected the settings of the run in {self.config}, but reading them failed: {error!s:.500}"
            ) from error
        if reference:
            raise DataError(
                f"Expected {self.config} to hold the settings of the run themselves, but it refers to {reference[:60]!r}: no "
                "run wrote it, or somebody changed it. Use the file that the run wrote."
            )
        if not isinstance(config, DictConfig):
            raise DataError(f"Expected {self.config} to hold settings by name, but it does not.")
        return config

    @classmethod
    def of_checkpoint(cls, checkpoint: str | Path) -> RunFolder:
        """The run, or stage of a run, that a checkpoint belongs to: the folder above `checkpoints/`."""
        root = Path(checkpoint).expanduser().resolve().parent.parent
        of_stage = root.parent.name == "stages" and not (root / "config.yaml").exists()
        return cls(root, root.parent.parent if of_stage else None)


def read_text(path: Path, most: int) -> str:
    """A file of the run's as text.

    Raises:
        DataError: it is not there, no file, larger than `most` bytes, or no UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"Expected {path} to be a file, but it is none.")
        if path.stat().st_size > most:
            raise DataError(f"Expected {path} to be of at most {most:,} bytes, but it has {path.stat().st_size:,}.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Expected a file of the run in {path}, but reading it failed: {error}") from error


def _alias_or_tag(event: yaml.Event) -> str:
    """What a piece of YAML refers to: another place, which a few of can make any size of, or a type; "" for what is plain."""
    return f"*{event.anchor}" if isinstance(event, yaml.AliasEvent) else getattr(event, "tag", None) or ""


def _interpolation(value: Any) -> str:
    """The first reference to something else among settings, such as "${oc.env:HOME}"; "" where there is none."""
    if isinstance(value, Mapping):
        return next(filter(None, map(_interpolation, [*value, *value.values()])), "")
    if isinstance(value, list):
        return next(filter(None, map(_interpolation, value)), "")
    return value if isinstance(value, str) and "${" in value else ""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with written_whole(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def table(test: Mapping[str, Any], title: str = "") -> Table:
    """The paper's table of one run: rows experts and ensemble, columns many / medium / few / all, raw and compensated.

    Args:
        test: `Evaluation.compute()`.
        title: printed above.
    """
    result = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
    )
    result.add_column("top-1, %", no_wrap=True)
    for kind in ("raw", "PC"):
        for group in GROUPS:
            result.add_column(f"{kind}\n{group}", justify="right", no_wrap=True)
    experts = test["experts"]
    for number, expert in enumerate(experts, start=1):
        if len(experts) > 1:
            result.add_row(f"expert {number}", *_cells(expert))
    result.add_section()
    result.add_row("ensemble" if len(experts) > 1 else "network", *_cells(test["ensemble"]), style="bold")
    return result


def _cells(row: Mapping[str, Any]) -> list[str]:
    values = [row[kind][group] for kind in KINDS for group in GROUPS]
    return ["n/a" if value is None else f"{value:.1f}" for value in values]


def caption(shot_groups: Mapping[str, int]) -> str:
    """What the columns of `table` mean."""
    groups = ", ".join(f"{count:,} {name}" for name, count in shot_groups.items())
    return f"raw: as trained; PC: post-compensated to the test prior. Classes: {groups}"


def say(*things: Any) -> None:
    """Print tables and lines on standard output; lines stay whole, for those who copy from them."""
    console = Console()
    for thing in things:
        console.print(thing, highlight=False, markup=False, soft_wrap=isinstance(thing, str))


def plural(count: int, noun: str) -> str:
    """A number and what it counts.

    >>> plural(1, "epoch"), plural(1200, "epoch")
    ('1 epoch', '1,200 epochs')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def device_name(device: torch.device, count: int) -> str:
    """What a run was made on: number and name of the devices."""
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}"
    return f"{count} x {device.type} ({torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    packages = ("mllt", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "omegaconf", "timm", "numpy")
    for package in (*packages, "pillow", "simplejpeg"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit this code was run from; None outside a repository of ours.

    Where files differ from it, "-dirty-" and eight digits follow that tell these differences from others.
    """
    here = Path(__file__).resolve().parent
    try:
        root = Path(_git(here, "rev-parse", "--show-toplevel"))
        if not (root / "src" / "mllt").samefile(here):  # installed into somebody else's repository
            return None
        changes = _changes(root)
        digits = hashlib.sha256(changes).hexdigest()[:8]
        return _git(root, "rev-parse", "HEAD") + (f"-dirty-{digits}" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _changes(root: Path) -> bytes:
    """How the code and its settings differ from the commit, new files included."""
    ours = ("--", "src", "conf")
    changes = _git(root, "diff", "HEAD", *ours).encode()
    new = _git(root, "ls-files", "--others", "--exclude-standard", *ours).splitlines()
    return changes + b"".join(name.encode() + (root / name).read_bytes() for name in new)


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
