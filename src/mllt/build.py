"""From a composed configuration to objects: the only place that knows how the groups of `conf/` map to arguments."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method, instantiate
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf

from mllt import launch
from mllt.callbacks import BestEpoch, EpochLearningRate, MetricsCSV, NonFiniteGuard, SaveAndStop, Speed, WholeCheckpoints
from mllt.checkpoint import read_checkpoint
from mllt.checkpoint_parts import GIVEN_BY_PATH
from mllt.data import LongTailedDataModule
from mllt.data.shards import is_url
from mllt.errors import ArgumentError, CheckpointError, DataError, check_choice, check_integer, check_number, check_seed
from mllt.methods import LongTailedModule, load_checkpoint
from mllt.optim import milestone_epochs
from mllt.recipes import borrowed_values
from mllt.results import RunFolder, plural
from mllt.sharding import ShardedStrategy

_PROFILERS: dict[Any, type] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}


def absolute_paths(section: DictConfig) -> None:
    """Make the paths of a section (`data`, `method`) absolute: `config.yaml` must mean the same from another folder."""
    folders = ("root", "list_dir", "shard_cache")
    for name in (*folders, "train_list", "test_list", "val_list", *GIVEN_BY_PATH):
        value = OmegaConf.select(section, name, throw_on_missing=False)
        if isinstance(value, str) and not is_url(value) and (name in folders or Path(value).expanduser().exists()):
            section[name] = str(Path(value).expanduser().absolute())


def plain(config: DictConfig) -> dict[str, Any]:
    """A section of a configuration as plain containers, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def build_data(section: dict[str, Any], **common: Any) -> LongTailedDataModule:
    """The data module that a `data` section describes; `common` goes before what the section says."""
    arguments = {**section, **common}
    return _build("data", LongTailedDataModule, arguments)


def build_module(config: DictConfig, data: LongTailedDataModule, earlier: Sequence[Path] = ()) -> LongTailedModule:
    """The method that the configuration describes, for the classes of `data`.

    `earlier` are checkpoints of the run that goes on: of files that have gone since, such as a teacher's, they hold what is
    needed.
    """
    network, schedule, evaluation = plain(config.network), plain(config.schedule), plain(config.evaluation)
    arguments = {
        **plain(config.method),
        **_kept_of_files_gone(config.method, earlier),
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


def _kept_of_files_gone(method: DictConfig, earlier: Sequence[Path]) -> dict[str, Any]:
    """What a run remembers of the checkpoints that it was given by path and that are no longer there."""
    paths = {name: value for name in GIVEN_BY_PATH if isinstance(value := method.get(name), str)}
    gone = [name for name, path in paths.items() if not Path(path).expanduser().exists()]
    for path in earlier if gone else ():
        with contextlib.suppress(CheckpointError):  # of damaged ones, going on tells
            remembered = read_checkpoint(path)[LongTailedModule.CHECKPOINT_HYPER_PARAMS_KEY]
            return {name: remembered[name] for name in gone if remembered.get(name) is not None}
    return {}


def _build(section: str, base: type, arguments: dict[str, Any]) -> Any:
    target = arguments.pop("_target_", None)
    cls = import_class(f"{section}._target_", target, base)
    try:
        return cls(**arguments)
    except TypeError as error:  # an argument that the class does not have
        hint = "" if section != "method" else " (A method of your own: method=own/class method._target_=my_package.MyMethod.)"
        raise ArgumentError(f"The settings of `{section}` do not fit {target}: {error}.{hint}") from error


def import_class(setting: str, target: Any, base: type) -> type:
    """The class that a setting names, such as "my_package.MyMethod"; it must be a `base`."""
    if not isinstance(target, str):
        raise ArgumentError(f"Expected `{setting}` to name a class, but got {target!r}.")
    package, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(package), name)
    except Exception as error:  # whatever importing somebody's module may raise
        raise ArgumentError(f"Expected `{setting}` to name a class, but importing {target!r} failed: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ArgumentError(f"Expected `{setting}` to be a {base.__name__}, but {target} is not.")
    return cls


def load_method(config: DictConfig) -> LongTailedModule:
    """The checkpoint that a command was given, with the test prior and temperature that it was told, where it takes them."""
    if config.method_class is not None:
        import_class("method_class", config.method_class, LongTailedModule)
    module = load_checkpoint(config.checkpoint)
    given: Any = OmegaConf.to_container(config)
    prior, factor = given.get("test_prior"), given.get("test_prior_factor")
    if prior is not None or factor is not None:
        hp = module.hparams
        factor = hp["test_prior_factor"] if factor is None else factor
        module.set_test_prior(hp["test_prior"] if prior is None else prior, factor)
    if given.get("temperature") is not None:
        module.set_temperature(given["temperature"])
    return module


def stored_data(config: DictConfig, folder: RunFolder) -> LongTailedDataModule:
    """The data module of a run, from the settings in its folder.

    Raises:
        DataError: there are no settings, or they are none that a run can have.
        ArgumentError: they name a class that is not one of ours: a folder from elsewhere must not choose what is run.
    """
    stored: Any = OmegaConf.to_container(folder.read_config())
    section, seed = stored.get("data"), stored.get("seed")
    if not isinstance(section, dict) or not isinstance(seed, int):
        raise DataError(f"Expected {folder.config} to hold the run's seed and its settings of `data`, but it does not.")
    section = {str(name): value for name, value in section.items()}
    if not str(section.get("_target_")).startswith("mllt.data."):
        raise ArgumentError(
            f"Expected {folder.config} to name a data module of mllt.data, but it names {section.get('_target_')!r:.100}. Use "
            "Trainer.test with that data module and mllt.load_checkpoint instead."
        )
    if isinstance(section.get("num_workers"), int):  # of the machine that it was trained on
        section["num_workers"] = min(section["num_workers"], os.cpu_count() or 1)
    changes = {"root": config.data_root, "eval_batch_size": config.eval_batch_size, "num_workers": config.num_workers}
    changes = {name: value for name, value in changes.items() if value is not None}
    if "root" in changes and "root" not in section:
        raise ArgumentError(f"{section['_target_']} reads no folder: leave data_root out.")
    try:
        data = build_data(section, batch_size=stored.get("batch_size"), seed=seed, **changes)
        data.setup()
    except DataError as error:
        raise DataError(f"{error} (If the data lies elsewhere now, type data_root=FOLDER here.)") from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise DataError(f"Expected {folder.config} to hold settings of `data` that fit, but they do not: {error}") from error
    return data


def pick_device(accelerator: str) -> str:
    """The device that an `accelerator` setting means.

    Raises:
        ArgumentError: it is unknown, or not there.
    """
    available: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if check_choice("accelerator", accelerator, ("auto", *available)) == "auto":
        return next(name for name, is_there in available.items() if is_there())
    if not available[accelerator]():
        raise ArgumentError(f"Expected a {accelerator} device, but this machine has none. Set accelerator=auto.")
    return accelerator


def build_loggers(config: DictConfig, folder: RunFolder, resume: Path | None) -> list[Logger]:
    """`metrics.csv`, and the logger that was asked for; `resume` is the checkpoint that is gone on from."""
    earlier = None if resume is None else RunFolder.of_checkpoint(resume).metrics
    loggers: list[Logger] = [MetricsCSV(folder.root, earlier)]
    if config.logger:
        section = plain(config.logger)
        make = get_method(section.pop("_target_"))
        loggers.append(make(folder=str(folder.root), config=plain(config), **section))
    return loggers


def build_trainer(
    config: DictConfig,
    folder: RunFolder,
    data: LongTailedDataModule,
    loggers: list[Logger],
    more: Sequence[Callback] = (),
    epochs: int | None = None,
) -> L.Trainer:
    """Lightning's trainer, with checkpoints, progress, loggers and `more`; `epochs` in place of `trainer.max_epochs`."""
    arguments = plain(config.trainer)
    arguments["max_epochs"] = arguments["max_epochs"] if epochs is None else epochs
    check_trainer(arguments)
    check_folder(config)
    if arguments["sync_batchnorm"] == "auto":  # has no effect on a single device
        arguments["sync_batchnorm"] = torch.cuda.is_available() and arguments["accelerator"] in ("auto", "gpu", "cuda")
    if arguments["profiler"] in _PROFILERS:  # into the run's folder, not across the screen
        arguments["profiler"] = _PROFILERS[arguments["profiler"]](dirpath=folder.root, filename="profile")
    if arguments["strategy"] == "fsdp":
        arguments["strategy"] = sharded(arguments)
    guard = NonFiniteGuard(folder.root, arguments.pop("on_nonfinite"), arguments.pop("max_nonfinite"))
    speed = Speed(arguments.pop("compile"), arguments.pop("tf32"))
    own = [instantiate(callback) for callback in config.callbacks.values()] if config.callbacks else []
    callbacks = [speed, EpochLearningRate(), *more, *own, guard, *checkpoint_callbacks(config, folder, data)]
    return make_trainer(
        "The settings of `trainer`",
        **arguments,
        default_root_dir=folder.root,
        callbacks=callbacks,
        # Of Slurm's notice, `SaveAndStop` takes care
        plugins=[WholeCheckpoints(), *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else [])],
        logger=loggers,
        enable_progress_bar=any("RunProgress" in type(callback).__name__ for callback in callbacks),
        num_sanity_val_steps=0,
    )


def check_trainer(arguments: dict[str, Any]) -> None:
    """Raise `ArgumentError` for what Lightning would take without a word, or answer with a traceback."""
    for name in ("max_epochs", "accumulate_grad_batches", "check_val_every_n_epoch", "num_nodes"):
        check_integer(f"trainer.{name}", arguments[name], 1)
    for name in ("limit_train_batches", "limit_test_batches"):
        check_number(f"trainer.{name}", arguments[name], above=0)
    if arguments["gradient_clip_val"] is not None:
        check_number("trainer.gradient_clip_val", arguments["gradient_clip_val"], above=0)
    for name, word in (("deterministic", "warn"), ("sync_batchnorm", "auto")):
        if arguments[name] not in (True, False, word):
            raise ArgumentError(f"Expected `trainer.{name}` to be true, false or {word}, but got {arguments[name]!r}.")
    strategy = str(arguments["strategy"])
    if strategy.startswith("fsdp_"):
        raise ArgumentError(f"Expected `trainer.strategy` to be fsdp, but got {strategy!r}. Type trainer=fsdp.")
    if any(word in strategy for word in ("spawn", "fork", "notebook")):
        raise ArgumentError(f"Expected `trainer.strategy` to start processes of its own, but got {strategy!r}. Set it to ddp.")


def sharded(arguments: dict[str, Any]) -> ShardedStrategy:
    """The strategy of trainer=fsdp; `ArgumentError` without GPUs, which Lightning and PyTorch ask of it."""
    accelerator = arguments["accelerator"]
    if accelerator not in ("gpu", "cuda") or not torch.cuda.is_available():
        raise ArgumentError(
            f"Expected GPUs for a sharded network (trainer=fsdp), but got trainer.accelerator={accelerator} and "
            f"{torch.cuda.device_count()} GPUs here. Set trainer=ddp."
        )
    return ShardedStrategy(arguments["precision"])


def make_trainer(what: str, **arguments: Any) -> L.Trainer:
    """Lightning's trainer, its own complaints as one line that begins with `what`.

    Within a command, the processes for the other devices of this machine are started, unless a launcher has done so.
    """
    quiet_lightning()
    try:
        trainer = L.Trainer(**arguments, enable_model_summary=False)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, MisconfigurationException) as error:
        raise ArgumentError(f"{what} do not fit: {' '.join(str(error).split())}") from error
    check_processes(what, trainer)
    if trainer.strategy.root_device.type == "cpu":
        check_cores(what, trainer.num_devices)
        if arguments.get("sync_batchnorm"):
            raise ArgumentError(f"{what} do not fit: sync_batchnorm works on GPUs only. Set trainer.sync_batchnorm=false.")
    if trainer.num_devices > 1 and launch.launched_by() is None:
        check_launcher(trainer.num_devices)
        launch.start_others(trainer.num_devices)
    return trainer


def check_cores(what: str, processes: int) -> None:
    """Warn of more processes on a CPU than it has cores, and raise `ArgumentError` for so many that it must be a mistake."""
    cores = os.cpu_count() or 1
    if processes > 4 * cores:
        raise ArgumentError(f"{what} ask for {processes} processes on {cores} cores. Lower `devices`.")
    if processes > cores:
        rank_zero_warn(f"{processes} processes on {cores} cores take turns: that tries out several devices, but gains no time.")


def check_processes(what: str, trainer: L.Trainer) -> None:
    """Raise `ArgumentError` unless as many processes as there are devices were started, or can be."""
    by, started, wanted = launch.launched_by(), launch.launched_processes(), trainer.num_devices * trainer.num_nodes
    if by is not None and started != wanted:
        how = "--ntasks-per-node" if by == "srun" else "--nproc_per_node"
        raise ArgumentError(
            f"{what} make it {plural(wanted, 'device')} ({trainer.num_devices} on each of {trainer.num_nodes}), but {by} has "
            f"started {started} of the processes, where each device needs one. Let {by} start as many ({how}), and set "
            "trainer=ddp, trainer.devices (of one machine) and trainer.num_nodes to fit."
        )
    if by is None and trainer.num_nodes > 1 and "LOCAL_RANK" not in os.environ:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
        if missing:
            raise ArgumentError(
                f"{what} ask for {trainer.num_nodes} machines, but the environment does not say where the others are: it lacks "
                f"{', '.join(missing)}. Start the command by torchrun or srun, or set these (see docs/devices.md)."
            )


def check_launcher(devices: int) -> None:
    """Raise `ArgumentError` for several devices in a job whose process cannot start others."""
    launcher = HydraConfig.get().runtime.choices.get("hydra/launcher") if HydraConfig.initialized() else None
    if launcher == "joblib":
        raise ArgumentError(
            f"Expected one device per run with the launcher {launcher}, but there are {devices}. Set trainer.devices=1, or "
            "leave the launcher out: the runs then take turns, each on all of its devices."
        )


def check_folder(config: DictConfig) -> None:
    """Raise `ArgumentError` where each machine would make a folder of its own for the run."""
    if config.trainer.num_nodes > 1 and launch.launched_by() is None and config.output_dir is None:
        raise ArgumentError(
            f"Expected an output_dir for a run on {config.trainer.num_nodes} machines, or each would make a folder of its own. "
            "Type output_dir=..., a folder that all of them see, the same on each."
        )


def checkpoint_callbacks(config: DictConfig, folder: RunFolder, data: LongTailedDataModule) -> list[Callback]:
    """The last checkpoint always; the best epoch on validation where there is a validation split.

    The last one is written after the best one, of which it tells.
    """
    last = SaveAndStop(folder.checkpoints, **plain(config.checkpoints), requeue=config.output_dir is not None)
    if data.splits.val is None:
        return [last]
    return [BestEpoch(folder.checkpoints, folder.best.stem), last]


def check_start(config: DictConfig) -> None:
    """Look at what no object below checks, before anything is built.

    Raises:
        ArgumentError: a group is missing, a bad seed, or far too many threads.
    """
    needed = ("data", "network", "method", "optimizer", "schedule", "trainer", "evaluation", "recipe", "checkpoints")
    missing = [name for name in needed if not config.get(name)]
    if missing:
        raise ArgumentError(f"Expected a choice for `{missing[0]}`, but there is none. Type {missing[0]}=... (see --help).")
    check_seed("seed", config.seed)
    check_integer("trainer.max_epochs", config.trainer.max_epochs, 1)
    if config.threads is not None:
        check_threads(config.threads)


def check_threads(threads: Any) -> None:
    """Raise `ArgumentError` for so many threads that the process could end without a word.

    More than there are cores may be asked for: bits depend on their number, and a run may go on on a smaller machine.
    """
    cores = os.cpu_count() or 1
    most = max(64, 4 * cores)
    if check_integer("threads", threads, 1) > most:
        raise ArgumentError(
            f"Expected at most {most} `threads` on {plural(cores, 'core')}, but got {threads}. Type threads={cores}."
        )


def remarks(config: DictConfig) -> list[str]:
    """The experiment's own warning, settings that are published for other data, and those that will have no effect."""
    said = ([str(config.warning)] if config.warning else []) + borrowed_values(config)
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
        ".*in eval mode at the start of training.*",  # a method freezes what it means to
        ".*The dirpath has changed from.*",  # a run that goes on in another folder
    ):
        warnings.filterwarnings("ignore", message=message)
