"""Whether a class, its settings and a checkpoint fit each other."""

from __future__ import annotations

import inspect
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mllt.checkpoint import plain_values
from mllt.errors import ArgumentError, CheckpointError, name_some

#: What a module must share with a checkpoint to take its weights.
NETWORK_SETTINGS = ("class_counts", "network", "num_experts", "shared", "width", "head", "scale", "network_options")
#: What does not bear on training. Every other setting must stay when a run goes on: the optimizer keeps the old ones.
EVALUATION_SETTINGS = (
    *(
        "test_prior",
        "test_prior_factor",
        "calibration_temperature",
        "many_above",
        "few_below",
        "shot_edges_inclusive",
        "ensemble",
    ),
)


def has_own_method(cls: type) -> bool:
    """Whether a class has a `method` name that is not inherited."""
    return bool(vars(cls).get("method"))


def subclass_name(cls: type) -> str | None:
    """A class's name where its `method` does not tell it, being inherited or empty; else None."""
    return None if has_own_method(cls) else cls.__qualname__


def check_subclass(cls: type, subclass: str | None, checkpoint: str) -> None:
    """Raise `CheckpointError` when a checkpoint is of a subclass that neither `cls` nor a base of it is."""
    if subclass is not None and subclass not in [base.__qualname__ for base in cls.__mro__]:
        raise CheckpointError(
            f"Expected {checkpoint} to be of {cls.__name__}, but it is of {subclass}, a subclass without a `method` name of "
            f"its own. Use {subclass}, such as {subclass}.load_from_checkpoint."
        )


def check_method_is_free(cls: type, other: type | None) -> None:
    """Raise `ArgumentError` when another class has the `method` name already.

    The same class may be defined again, as in a notebook, or in a script that is imported, too.
    """
    modules = {cls.__module__, other.__module__ if other else cls.__module__}
    if other is not None and (cls.__qualname__ != other.__qualname__ or (len(modules) == 2 and "__main__" not in modules)):
        raise ArgumentError(
            f"There is a method {vars(cls)['method']!r} already, {other.__module__}.{other.__qualname__}. Choose another "
            f"`method` name for {cls.__module__}.{cls.__qualname__}: checkpoints find their class by it."
        )


def argument_names(cls: type) -> list[str]:
    """The constructor arguments of a method and of the classes it builds on, by name."""
    bases = [base for base in cls.__mro__[: cls.__mro__.index(L.LightningModule)] if "__init__" in vars(base)]
    parameters = [p for base in bases for p in list(inspect.signature(base.__init__).parameters.values())[1:]]  # type: ignore[misc]
    return list(dict.fromkeys(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)))


def check_rebuildable(module: L.LightningModule) -> None:
    """Raise `ArgumentError` unless checkpoints will hold every constructor argument, as a plain value."""
    kept = {*plain_values(module.hparams), "class_names", "preprocessing"}
    forgotten = [name for name in argument_names(type(module)) if name not in kept]
    if forgotten:
        calls = ", ".join(f"{name}={name}" for name in forgotten)
        raise ArgumentError(
            f"Expected {type(module).__name__} to remember its arguments, but {name_some(forgotten)} would be missing in "
            f"checkpoints. Call self.remember({calls}) in its __init__, after super().__init__."
        )


def check_same_counts(ours: Tensor, theirs: Tensor) -> None:
    """Raise `ArgumentError` when a module and its data module do not have the same class counts."""
    if not torch.equal(ours, theirs):
        raise ArgumentError(
            "Expected the module's `class_counts` to be its data module's, but got "
            f"{ours.numel()} classes, {name_some(ours.tolist(), 10)}, and the data has {theirs.numel()} classes, "
            f"{name_some(theirs.tolist(), 10)}. Make the module with class_counts=data.class_counts."
        )


def check_same_settings(stored: dict[str, Any], here: dict[str, Any], *, training: bool) -> None:
    """Raise `CheckpointError` when a module's settings are not a checkpoint's: method and network, and the recipe to train.

    The optimizer takes its settings from the checkpoint, so that others would be recorded but not used.
    """
    names = ["method", *NETWORK_SETTINGS]
    if training:
        free = (*names, *EVALUATION_SETTINGS, "pretrained")
        names += [name for name in here if name in stored and name not in free]
    changed = [name for name in names if stored.get(name) != here[name]]
    if changed:
        found = "; ".join(f"its {name} is {stored.get(name)!r:.100}, and here it is {here[name]!r:.100}" for name in changed)
        wanted = ", ".join(f"{name}={stored.get(name)!r:.100}" for name in changed)
        raise CheckpointError(
            f"Expected a checkpoint of the same {', '.join(changed)} to go on from, but {found}. Use the settings that it was "
            f"trained with ({wanted}), or start a new run, from mllt.load_checkpoint to begin with these weights."
        )
