"""From a composed configuration to objects: the only place that knows how the groups of `conf/` map to arguments."""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any

import lightning as L
from hydra.utils import get_method, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from mllt.callbacks import MetricsCSV
from mllt.checkpoint import read_checkpoint
from mllt.data import LongTailedDataModule
from mllt.errors import ArgumentError, check_integer, check_seed
from mllt.methods import LongTailedModule
from mllt.optim import milestone_epochs
from mllt.results import RunFolder


def plain(config: DictConfig) -> dict[str, Any]:
    """A section of a configuration as plain containers, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def build_data(section: dict[str, Any], **common: Any) -> LongTailedDataModule:
    """The data module that a `data` section describes; `common` goes before what the section says."""
    arguments = {**section, **common}
    return _build("data", LongTailedDataModule, arguments)


def build_module(config: DictConfig, data: LongTailedDataModule) -> LongTailedModule:
    """The method that the configuration describes, for the classes of `data`."""
    network, schedule, evaluation = plain(config.network), plain(config.schedule), plain(config.evaluation)
    arguments = {
        **plain(config.method),
        "network": network.pop("name"),
        **network,
        **plain(config.optimizer),
        "schedule": schedule.pop("name"),
        **schedule,
        **evaluation,
        "class_counts": data.class_counts,
        "class_names": data.class_names,
        "preprocessing": data.preprocessing,
    }
    return _build("method", LongTailedModule, arguments)


def _build(section: str, base: type, arguments: dict[str, Any]) -> Any:
    target = arguments.pop("_target_", None)
    if not isinstance(target, str):
        raise ArgumentError(f"Expected `{section}._target_` to name a class, but got {target!r}.")
    package, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(package), name)
    except Exception as error:  # whatever importing somebody's module may raise
        raise ArgumentError(
            f"Expected `{section}._target_` to name a class, but importing {target!r} failed: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ArgumentError(f"Expected `{section}._target_` to be a {base.__name__}, but {target} is not.")
    try:
        return cls(**arguments)
    except TypeError as error:  # an argument that the class does not have
        raise ArgumentError(f"The settings of `{section}` do not fit {target}: {error}") from error


def build_loggers(config: DictConfig, folder: RunFolder) -> list[Logger]:
    """`metrics.csv`, and the logger that was asked for."""
    loggers: list[Logger] = [MetricsCSV(folder.root)]
    if config.logger:
        section = plain(config.logger)
        make = get_method(section.pop("_target_"))
        loggers.append(make(folder=str(folder.root), config=plain(config), **section))
    return loggers


def build_trainer(config: DictConfig, folder: RunFolder, data: LongTailedDataModule, loggers: list[Logger]) -> L.Trainer:
    """Lightning's trainer, with checkpoints, progress and loggers."""
    quiet_lightning()
    arguments = plain(config.trainer)
    check_integer("trainer.max_epochs", arguments["max_epochs"], 1)
    check_integer("trainer.accumulate_grad_batches", arguments["accumulate_grad_batches"], 1)
    callbacks: list[Callback] = [LearningRateMonitor("epoch"), *checkpoint_callbacks(folder, data)]
    callbacks += [instantiate(callback) for callback in config.callbacks.values()] if config.callbacks else []
    try:
        return L.Trainer(
            **arguments,
            default_root_dir=folder.root,
            callbacks=callbacks,
            logger=loggers,
            enable_progress_bar=any("RunProgress" in type(callback).__name__ for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise ArgumentError(f"The settings of `trainer` do not fit: {' '.join(str(error).split())}") from error


def checkpoint_callbacks(folder: RunFolder, data: LongTailedDataModule) -> list[ModelCheckpoint]:
    """The last epoch always; the best one on validation where there is a validation split."""
    common: dict[str, Any] = {"dirpath": folder.checkpoints, "enable_version_counter": False}
    last = ModelCheckpoint(**common, filename=folder.last.stem, save_on_train_epoch_end=True)
    if data.splits.val is None:
        return [last]
    return [last, ModelCheckpoint(**common, filename=folder.best.stem, monitor="val/compensated/all", mode="max")]


def check_start(config: DictConfig, folder: RunFolder) -> None:
    """Look at what no object below checks, before anything is built.

    Raises:
        ArgumentError: a bad seed, or the output folder holds a run already.
        CheckpointError: there is no checkpoint to go on from, or it is damaged.
    """
    check_seed("seed", config.seed)
    if config.resume:
        read_checkpoint(config.resume)
    elif not config.overwrite and (folder.results.exists() or any(folder.checkpoints.glob("*.ckpt"))):
        raise ArgumentError(
            f"{folder.root} holds a run already. Choose another output_dir, go on from it with resume={folder.last}, or write "
            "over it with overwrite=true."
        )


def remarks(config: DictConfig) -> list[str]:
    """The experiment's own warning, and settings that will have no effect."""
    said = [str(config.warning)] if config.warning else []
    epochs = config.trainer.max_epochs
    late = [m for m in milestone_epochs(config.schedule.get("milestones", []), epochs) if m >= epochs]
    if late:
        said.append(f"schedule.milestones {late} lie at or after the end of the run (trainer.max_epochs={epochs}).")
    if config.schedule.warmup_epochs >= epochs:
        said.append(
            f"schedule.warmup_epochs={config.schedule.warmup_epochs} covers the whole run (trainer.max_epochs={epochs}): the "
            "learning rate only rises."
        )
    return said


def quiet_lightning() -> None:
    """Leave out what Lightning says on every run and what does not apply to our loaders; warnings of substance stay."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are augmented as tensors
        ".*is smaller than the logging interval.*",
        ".*Experiment logs directory .* exists and is not empty.*",  # it is the run's own folder
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*isinstance\\(treespec, LeafSpec\\).* is deprecated.*",  # between lightning and torch
        ".*Total length of `list` across ranks is zero.*",  # no validation split
    ):
        warnings.filterwarnings("ignore", message=message)
