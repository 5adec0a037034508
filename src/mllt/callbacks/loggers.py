"""Loggers that write into a run's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger

from mllt.errors import ArgumentError, check_choice


class MetricsCSV(CSVLogger):
    """`metrics.csv` in the run's folder itself; the settings are in `config.yaml`, not in a second file."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(save_dir=str(folder), name="", version="")

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: `config.yaml` holds them."""


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
        name=Path(folder).name, save_dir=str(folder), project=project, entity=entity, group=group, mode=mode, reinit=True
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
    """Close what is open, so that the next job of a sweep starts a run of its own."""
    for logger in loggers:
        logger.finalize("success")
        if type(logger).__name__ == "WandbLogger":
            import wandb

            wandb.finish()
