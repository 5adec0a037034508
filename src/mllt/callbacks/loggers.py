"""Loggers that write into a run's folder."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mllt.errors import ArgumentError, check_choice
from mllt.files import written_whole


class EpochLearningRate(LearningRateMonitor):
    """Logs the learning rate of each epoch, also of one that a run goes on within."""

    def __init__(self) -> None:
        super().__init__("epoch")

    def on_train_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        super().on_train_start(trainer, *args, **kwargs)
        if trainer.fit_loop.restarted_mid_epoch:  # begun before the break
            self.on_train_epoch_start(trainer, *args, **kwargs)


class MetricsCSV(Logger):
    """`metrics.csv`: one row per epoch, numbered from 1, with everything that was logged in it.

    The file is whole after every epoch. A run that goes on keeps the rows of the epochs before it (Lightning's own
    `CSVLogger` starts the file anew). What is logged more than once in an epoch stands there by its last value; the test's
    figures stand in the row of the last epoch.

    Args:
        folder: the run's folder.
        earlier: the `metrics.csv` of the run that this one goes on from; None for a new run.
    """

    def __init__(self, folder: str | Path, earlier: str | Path | None = None) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._rows = {} if earlier is None else read_rows(Path(earlier))
        self._pending: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Nothing: the folder has a name."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the folder has a name."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of the epoch that the metrics name; those that name none (learning rates) wait for the next."""
        self._pending.update({name: float(value) for name, value in metrics.items() if name != "epoch"})
        if "epoch" not in metrics:
            return
        # In training Lightning counts the epoch that runs from 0; after it, in the test, those that are done.
        done = any(name.startswith("test/") for name in metrics)
        epoch = max(int(metrics["epoch"]) + (0 if done else 1), 1)
        row = self._rows.setdefault(epoch, {"epoch": epoch})
        row.update({"step": step} if not done else {}, **self._pending)
        self._pending = {}
        self._rows = {number: self._rows[number] for number in sorted(self._rows) if number <= epoch}
        self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the file, once there is something to write."""
        if not self._rows:
            return
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        with written_whole(self.path) as file:
            writer = csv.DictWriter(file, list(names))
            writer.writeheader()
            writer.writerows(self._rows.values())


def read_rows(path: Path) -> dict[int, dict[str, Any]]:
    """The rows of a `metrics.csv` by epoch, without the test of the last; none where there is no such file."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if v and not k.startswith("test/")} for row in csv.DictReader(file)]
    return {int(row["epoch"]): {**row, "epoch": int(row["epoch"])} for row in rows}


def wandb_logger(
    folder: str | Path,
    config: Mapping[str, Any],
    project: str = "mllt",
    entity: str | None = None,
    group: str | None = None,
    mode: str = "auto",
) -> Logger:
    """A run of Weights & Biases with the whole resolved config; files under `folder`.

    Args:
        mode: "online", "offline", "disabled", or "auto": online where a key is at hand (`wandb login` or
            `WANDB_API_KEY`), else offline; `WANDB_MODE` goes before.

    Raises:
        ArgumentError: wandb is not installed, or the mode is unknown.
    """
    check_choice("logger.mode", mode, ("auto", "online", "offline", "disabled"))
    try:
        import wandb
        from lightning.pytorch.loggers import WandbLogger
    except ImportError as error:
        raise ArgumentError("logger=wandb needs wandb, which is not installed. Type: pip install wandb") from error
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(verify=False, prompt=False) else "offline")
    logger = WandbLogger(
        name=Path(folder).name,
        save_dir=str(folder),
        project=project,
        entity=entity,
        group=group,
        mode=mode,
        reinit="finish_previous",
    )
    logger.experiment.config.update(dict(config), allow_val_change=True)
    return logger


def tensorboard_logger(folder: str | Path, config: Mapping[str, Any]) -> Logger:
    """TensorBoard event files under `folder/tensorboard`."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(save_dir=str(folder), name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise ArgumentError(
            "logger=tensorboard needs tensorboard, which is not installed. Type: pip install 'mllt[tensorboard]'"
        ) from error


def finish_loggers(loggers: list[Logger]) -> None:
    """Close what is open, so that the next job of a sweep starts a run of its own; while an error passes, as failed."""
    failed = sys.exc_info()[0] is not None
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if type(logger).__name__ == "WandbLogger":
            import wandb

            wandb.finish(exit_code=int(failed))
