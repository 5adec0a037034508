"""The frame around the commands: Hydra, and errors as one line that says what to type instead.

Light to import: `--help` and shell completion must not wait for torch.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import os
import re
import shlex
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import hydra
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mllt import launch, recipes
from mllt.errors import ArgumentError, MlltError, did_you_mean, printable

CONFIG_MODULE = "mllt.conf"
_TRACE = "HYDRA_FULL_ERROR"
_WANTS_TRACE = "MLLT_FULL_ERROR"
#: What an error is given on its way out of a job: the job's process and traceback, which do not come along to another process.
_JOB = "mllt_job"
#: What is told in one line. `OSError`: a folder that cannot be written, a full disk.
_USERS_MISTAKES = (MlltError, HydraException, OmegaConfBaseException, OSError)
#: Settings of the machine and the moment, which the command that repeats a run goes without.
_OF_THE_PLACE = ("output_dir", "resume", "overwrite", "launcher", "sweep", "data.root")
#: The extras that bring launchers, by the first word of their names.
_LAUNCHERS = {"joblib": "sweep", "submitit": "slurm"}


def run(task: Callable[[DictConfig], Any], config_name: str) -> Any:
    """Run a command under Hydra; a user's mistake becomes one line on standard error and exit status 2.

    `HYDRA_FULL_ERROR=1` shows the whole traceback instead. Errors that are not the user's keep theirs.

    Returns:
        What the task returned; None for a sweep, `--help` and the like.
    """
    # One for the whole command: the jobs of a sweep that run in other processes inherit it, and so share the folder
    os.environ.setdefault(launch.STAMP, launch.run_stamp())
    sys.argv[1:] = [_expand_home(argument) for argument in sys.argv[1:]]
    # What the user set, not what we set below and other processes of the run inherit
    wants_trace = os.environ.setdefault(_WANTS_TRACE, os.environ.get(_TRACE, "0")) not in ("", "0")
    os.environ[_TRACE] = "1"  # or Hydra prints its own message and exits before we can say anything better
    outcome = _Outcome()
    wrapped = _checked(task, config_name, outcome)
    try:
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=config_name)(wrapped)()
        if outcome.error is not None:
            raise outcome.error
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if getattr(end, "where", None):  # asked to end: `callbacks.Stopped`, which is not imported for this
            if launch.is_first():
                print(f"Stopped {end}.", file=sys.stderr)
            sys.exit(end.code)
        raise
    except launch.ProcessLostError as lost:
        print(lost, file=sys.stderr)
        sys.exit(lost.status)
    except Exception as error:
        job = getattr(error, _JOB, None)
        if 'detect "srun"' in str(error):
            error = ArgumentError(
                "There is no Slurm on this machine (no `srun`). Type launcher=slurm where jobs can be submitted, or here "
                "launcher=submitit_local or launcher=joblib."
            )
        # Hydra's own complaints may be plain ValueErrors
        hydras = isinstance(error, (ValueError, TypeError)) and job is None
        if wants_trace or not (hydras or isinstance(error, _USERS_MISTAKES)):
            if job is not None and job[0] != os.getpid():
                print(f"In a job of the sweep:\n{job[1]}", file=sys.stderr)
            raise
        print(f"Error: {printable(_explain(error, config_name))}", file=sys.stderr)
        sys.exit(2)
    finally:
        if not wants_trace:
            os.environ.pop(_TRACE, None)
    return outcome.value


def repeating_command(config_name: str, seed: int) -> str:
    """The command that repeats the run under way, for a shell.

    Of a sweep it is that of the one job. It goes without what does not bear on the result: where the run lies (`output_dir`,
    `resume`, `overwrite`), where its data do (`data.root`), and what started it (`sweep`, `launcher`, `hydra...`). No folder of
    this machine is in it: of another path that is typed in full, such as a teacher's, the last name is left, and the folder of
    own settings is called FOLDER. The seed is in it also where nobody typed it.

    Args:
        config_name: of the command: "train".
        seed: of the run.
    """
    settings = HydraConfig.get()
    typed = OverridesParser.create().parse_overrides(list(settings.overrides.task))
    kept = [override for override in typed if override.key_or_group not in _OF_THE_PLACE]
    words = [_without_folder(override) for override in kept]
    words += [f"seed={seed}"] * all(override.key_or_group != "seed" for override in kept)
    own = any(source.provider == "command-line" for source in settings.runtime.config_sources)
    return shlex.join(["python", "-m", f"mllt.{config_name}", *["--config-dir", "FOLDER"] * own, *words])


def _without_folder(override: Override) -> str:
    """An override as it was typed; of a path in full its last name."""
    line = str(override.input_line)
    value = None if override.is_delete() else override.value()
    held = " ".join(_texts(value))
    if isinstance(value, str) and re.match(r"/|~|file:", value):
        name = value.rstrip("/").rpartition("/")[2]
        return f"{line.partition('=')[0]}={_quoted(f'PATH/{name}')}"
    return f"{line.partition('=')[0]}=PATHS" if re.search(r"(^|[\s'\"])(/|~/|file:)", held) else line


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value."""
    if isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str):
        yield value


def _quoted(text: str) -> str:
    """A text as the command line reads it: in quotes where it would else be something more than a text."""
    return text if re.fullmatch(r"[\w./-]+", text) else "'" + text.replace("'", r"\'") + "'"


def _expand_home(argument: str) -> str:
    """`key=~/folder` with the home folder put in: shells leave it, and Hydra cannot read it."""
    key, equals, value = argument.partition("=")
    return key + equals + os.path.expanduser(value) if equals and re.match(r"~(/|$)", value) else argument


def _register_resolvers() -> None:
    def folder(explicit: str | None, *parts: str) -> str:
        return str(explicit) if explicit else "/".join([*parts, os.environ[launch.STAMP]])

    OmegaConf.register_new_resolver("mllt.folder", folder, replace=True)
    OmegaConf.register_new_resolver("mllt.slug", slug, replace=True)
    OmegaConf.register_new_resolver("mllt.groups", _shown_groups, replace=True)
    OmegaConf.register_new_resolver("mllt.by_factor", recipes.by_factor, replace=True)
    OmegaConf.register_new_resolver("mllt.when", recipes.when, replace=True)


def slug(text: str) -> str:
    """A text as the name of a folder; what had to be changed or cut off is told by digits, so that others stay others.

    >>> slug("method=ride,seed=0"), slug("data.root=/data/birds"), slug("")
    ('method=ride,seed=0', 'data.root=-data-birds-a798fbf3', 'run')
    """
    name = re.sub(r"[^\w.=,+-]+", "-", str(text))[:150]
    return (name if name == text else f"{name}-{zlib.crc32(str(text).encode()):08x}") or "run"


def _shown_groups() -> str:
    """A line for each group with what can be chosen, for `--help`."""
    loader = GlobalHydra.instance().config_loader()
    lines = []
    for group in loader.list_groups(""):
        options = loader.get_group_options(group)
        inner = {name: loader.get_group_options(f"{group}/{name}") for name in loader.list_groups(group)}
        options += [f"{name}/{option}" for name, found in inner.items() for option in found]
        lines += [f"{group}: {', '.join(options)}"] if options and group != "hydra" else []
    return "\n".join(lines) + "\n"


# When this is imported, not when a command begins: the jobs of a sweep may run in processes that only import it.
_register_resolvers()


class _Outcome:
    """What a single run returned or raised, which `hydra.main` keeps to itself or prints in its own way."""

    value: Any = None
    error: Exception | None = None


def _checked(task: Callable[[DictConfig], Any], config_name: str, outcome: _Outcome) -> Callable[[DictConfig], Any]:
    """The task behind a check of the overrides' types."""

    def checked(config: DictConfig) -> Any:
        settings = HydraConfig.get()
        try:
            check_override_types(config_name, list(settings.overrides.task), settings.runtime.choices)
            _check_sweep(settings)
            # Plain, as the types of a launcher's settings cannot be sent to another process from within its jobs
            hydras = {name: OmegaConf.to_container(getattr(settings, name)) for name in ("runtime", "overrides")}
            same = (config_name, copy.deepcopy(config), hydras)  # a task may change its own configuration
            with launch.together(_another_process, same, functools.partial(_told, config_name)):
                value = task(config)
        except Exception as error:
            setattr(error, _JOB, (os.getpid(), traceback.format_exc()))
            if isinstance(error, launch.ProcessLostError) and settings.mode != RunMode.MULTIRUN:
                outcome.error = error
                return None
            if isinstance(error, _USERS_MISTAKES):
                _remove_if_empty(settings.runtime.output_dir)
                if settings.mode != RunMode.MULTIRUN:
                    outcome.error = error
                    return None
                # At the end, only the first of several is told
                print(f"Job {settings.job.num} of the sweep failed: {_explain(error, config_name)}", file=sys.stderr)
            raise
        if settings.mode != RunMode.MULTIRUN:
            outcome.value = value
        return value

    return checked


def _another_process(config_name: str, config: DictConfig, hydras: dict[str, Any]) -> None:
    """The command in another process of the same run, on another device: with the same configuration, composed once.

    Args:
        config_name: of the command.
        config: of the run.
        hydras: of Hydra's own settings, those that a command asks for.
    """
    own = [source["path"] for source in hydras["runtime"]["config_sources"] if source["schema"] == "file"]
    folders = ",".join(f"'file://{path}'" for path in own)
    initialize_config_module(CONFIG_MODULE, version_base="1.3")
    compose(config_name, overrides=[f"hydra.searchpath=[{folders}]"])  # from now on, files are found as in the first process
    HydraConfig.instance().cfg = OmegaConf.create({"hydra": hydras})  # type: ignore[assignment]
    getattr(importlib.import_module(f"mllt.{config_name}"), config_name)(config)


def _told(config_name: str, error: BaseException) -> tuple[int, str]:
    """Exit status and text of an error in another process of the run."""
    if isinstance(error, _USERS_MISTAKES) and os.environ.get(_WANTS_TRACE, "0") in ("", "0"):
        return 2, f"Error: {_explain(error, config_name)}"
    return 1, "".join(traceback.format_exception(error))


def _check_sweep(settings: Any) -> None:
    """Raise `ArgumentError` for a sweep whose jobs would not be the same in all processes that a launcher has started."""
    choices = settings.runtime.choices
    by, sweeper, launcher = launch.launched_by(), choices.get("hydra/sweeper"), choices.get("hydra/launcher")
    if by is None or settings.mode != RunMode.MULTIRUN or launcher == "submitit_slurm":
        return
    if sweeper != "basic" or launcher != "basic":
        what = f"the sweeper {sweeper}" if sweeper != "basic" else f"the launcher {launcher}"
        raise ArgumentError(
            f"With {what} each process that {by} starts would go through jobs of its own. Start the sweep without {by}: "
            "every run then starts the processes for its devices itself (trainer=ddp trainer.devices=...)."
        )


def _remove_if_empty(folder: str) -> None:
    """Take back the folder that Hydra made for a run which never began (`evaluate` and `predict` have none of their own)."""
    if not os.path.samefile(folder, os.curdir):
        with contextlib.suppress(OSError):  # not empty: something of worth may lie there
            os.rmdir(folder)


# ---------------------------------------------------------------------------------------------------------------
# Overrides of the wrong type


def check_override_types(config_name: str, overrides: list[str], groups: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` for a value of another type than the setting's default (a default of null takes any)."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [o.input_line for o in parsed if o.key_or_group in groups and o.input_line]
    values = [o for o in parsed if o.key_or_group not in groups and not o.is_add() and not o.is_delete()]
    if not values:
        return
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.load_configuration(config_name, overrides=choices, run_mode=RunMode.RUN)
    for override in values:
        default = OmegaConf.select(defaults, override.key_or_group, throw_on_missing=False)
        _check_type(override.key_or_group, default, override.value())


def _check_type(key: str, default: Any, value: Any) -> None:
    if default is None or value is None or (isinstance(value, str) and "${" in value):
        return
    wanted = _type_name(default)
    got = _type_name(value)
    if wanted != got and not (wanted == "a number" and got == "a whole number") and not _lenient(key, wanted, got):
        shown = OmegaConf.to_container(default) if OmegaConf.is_config(default) else default
        raise ArgumentError(f"Expected `{key}` to be {wanted} (its default is {shown!r}), but got {value!r}.")


def _lenient(key: str, wanted: str, got: str) -> bool:
    """Settings that take several types: Lightning's, for which a text, a number or a list may all be right, and the like."""
    names = ("compile", "devices", "precision", "deterministic", "profiler", "strategy", "sync_batchnorm")
    several = [*(f"trainer.{name}" for name in names), "data.on_device"]
    limits = re.fullmatch(r"trainer\.limit_\w+_batches", key) is not None and "number" in got
    # a text that looks like a number is still a text: name=2024
    return key in several or limits or (wanted == "a text" and "number" in got) or key == "evaluation.test_prior"


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, (list, tuple)) or OmegaConf.is_list(value):
        return "a list"
    if isinstance(value, dict) or OmegaConf.is_dict(value):
        return "a group of settings"
    return "a text"


# ---------------------------------------------------------------------------------------------------------------
# Errors as one line


def _explain(error: Exception, config_name: str) -> str:
    """What was wrong and what to type instead, in one line."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        extra = _LAUNCHERS.get(option.partition("_")[0]) if group == "hydra/launcher" else None
        if extra:
            return f"The launcher {option} is not installed. Type pip install 'mllt[{extra}]' to have it."
        return f"There is no {group}={option}. {did_you_mean(option, sorted(error.options))}"
    if isinstance(error, ConfigCompositionException):
        choices = re.search(r"resolving interpolation '(\$\{[^']*)', possible interpolation keys: (.*)", str(error))
        if choices:
            known = choices.group(2).split(", ")
            for name in re.findall(r"\$\{(\w+)\}", choices.group(1)):
                if name not in known:
                    return f"Expected a choice for `{name}`, but there is none. Type {name}=... (see --help)."
        wrong = re.search(r"Could not (?:override|append to config|delete from config).*?'([^'=]+)", str(error))
        if wrong:
            return _explain_key(wrong.group(1).split("@")[0], str(error), config_name)
    if isinstance(error, TypeError):
        return f"Cannot read the command line ({error}). A group is chosen by one name, such as network=resnet20 (see --help)."
    if isinstance(error, OverrideParseException):
        return (
            f"Cannot read {error.override!r}. Settings are typed key=value, without spaces around `=`; a value with spaces or "
            f"any of , = ( ) [ ] {{ }} needs two pairs of quotes, as in \"data.root='My pictures (1)'\"."
        )
    if "Ambiguous value" in str(error):  # a sweep that is none, perhaps because its launcher is missing
        try:
            _vocabulary(config_name)
        except MissingConfigException as missing_one:
            return _explain(missing_one, config_name)
    missing = re.search(r"Missing mandatory value: (\S+)", str(error))
    if missing:
        key = (getattr(error, "full_key", None) if isinstance(error, MissingMandatoryValue) else None) or missing.group(1)
        return f"`{key}` has no default and needs a value. Type {key}=..., or set it in your experiment."
    if isinstance(error, OSError) and not isinstance(error, MlltError):
        place = f" {error.filename}" if error.filename else ""
        return f"Cannot read or write{place}: {error.strerror or error}. Choose another place, or make it writable."
    cause = error.__cause__
    if isinstance(cause, MlltError) and not isinstance(error, MlltError):  # raised while Hydra built an object
        return str(cause)
    if isinstance(error, MlltError) and str(error).startswith("Caught "):  # in a loader's process: the text is a traceback
        return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _explain_key(key: str, message: str, config_name: str) -> str:
    settings, groups = _vocabulary(config_name, hydras=key.startswith("hydra."))
    if OmegaConf.select(settings, key) is not None:  # the key is right: the value is not
        return " ".join(message.split())
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(settings, parent) if parent else settings
    while node is None or not OmegaConf.is_dict(node):
        parent, _, leaf = parent.rpartition(".")
        node = OmegaConf.select(settings, parent) if parent else settings
    known = [str(name) for name in node if not str(name).startswith("_")]
    known += [] if parent else [group for group in groups if group not in known]
    where = f"`{parent}` has no setting `{leaf}`" if parent else f"There is no setting or group `{leaf}`"
    elsewhere = [] if parent else _paths_ending_in(leaf, settings)
    hint = did_you_mean(leaf, sorted(known))
    if elsewhere:  # a name that stands in a group is meant, not one that only looks like it
        hint = f"Did you mean {elsewhere[0]!r}? {hint[hint.index('Known:') :]}"
    return f"{where} (from {key!r}). {hint}"


def _paths_ending_in(leaf: str, settings: DictConfig) -> list[str]:
    """Settings of that name in any group: `lr` is `optimizer.lr`."""
    groups = [(str(name), node) for name, node in settings.items_ex(resolve=False) if OmegaConf.is_dict(node)]
    return [f"{name}.{leaf}" for name, node in groups if leaf in node]


def _vocabulary(config_name: str, *, hydras: bool = False) -> tuple[DictConfig, list[str]]:
    """All settings and groups, under the groups that the command line chose as far as they exist; `hydras`: Hydra's, too."""
    own = _own_settings()
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        # Only these are composed of groups
        composed = config_name in ("train", "check", "pack")
        groups = [g for g in loader.list_groups("") if composed and g not in ("hydra", "__pycache__")]
        choices = [] if own is None else [f"hydra.searchpath=['file://{own}']"]
        for argument in sys.argv[1:]:
            name, _, option = argument.partition("=")
            theirs = own is not None and os.path.isfile(os.path.join(own, name, f"{option}.yaml"))
            if name in groups and (theirs or option in loader.get_group_options(name)):
                choices.append(argument)
        return compose(config_name, overrides=choices, return_hydra_config=hydras), groups


def _own_settings() -> str | None:
    """The folder of the user's own settings that the command line names, absolute; None where there is none."""
    for number, argument in enumerate(sys.argv[1:], start=2):
        name, equals, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            return os.path.abspath(value if equals else "".join(sys.argv[number : number + 1]))
    return None
