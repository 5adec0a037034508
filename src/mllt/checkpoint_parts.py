"""What a checkpoint must hold, and may ask for: the one place that knows the type of each part that something reads.

Values are plain and end somewhere, tensors are no larger than what is there of them (`check_values`); the parts are of their
types (`check_parts`); a run goes on only from what it could have written itself (`check_continuable`); and what is built by the
settings in a checkpoint is held to the size of its weights (`no_larger_than`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mllt.errors import CheckpointError
from mllt.longtail import TEST_PRIORS

#: Where `LongTailedModule` puts what is ours in a Lightning checkpoint.
KEY = "mllt"
#: arguments of methods that name another run's checkpoint, in place of a stage of their own; remembered as `origin` tells it
GIVEN_BY_PATH = ("teacher", "features")
#: Values in a checkpoint, and how deep they are nested: far beyond what any run has.
MOST_VALUES = 2_000_000
DEEPEST = 64
#: Pixels of the square that pictures are brought to.
LARGEST_PICTURE = 4096


# ---------------------------------------------------------------------------------------------------------------
# The values


def check_values(content: Any, size: int) -> None:
    """Raise ValueError, with what is wrong, for anything but plain values and tensors that are there in full.

    Args:
        content: what was read.
        size: of its file, in bytes.
    """
    left: list[tuple[Any, int]] = [(content, 0)]
    count = held = 0
    while left:
        value, depth = left.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:  # a container that stands in many places counts in each of them
            raise ValueError(f"its values are nested more than {DEEPEST} deep, or refer to each other without end")
        if isinstance(value, Mapping):
            left += [(part, depth + 1) for item in value.items() for part in item]
        elif isinstance(value, (list, tuple, set)):
            left += [(item, depth + 1) for item in value]
        elif isinstance(value, Tensor):
            here = value.numel() * value.element_size()
            held += here
            if here > value.untyped_storage().nbytes() or held > 4 * size:  # few numbers, made out to be many
                raise ValueError(f"it tells of a tensor of {value.numel():,} numbers, which it does not hold")
        elif not _is_plain(value):
            raise ValueError(f"it holds {shown(value)}, and not tensors and plain values only")


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return _is_writable(value, "surrogateescape")  # paths may be in any encoding
    if isinstance(value, int):
        return value.bit_length() <= 128
    return value is None or isinstance(value, (float, torch.dtype, torch.device))


def _is_writable(text: str, errors: str = "strict") -> bool:
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """A value in short, without going through all of a large one."""
    if isinstance(value, int):
        return f"a number of {value.bit_length()} bits" if value.bit_length() > 64 else repr(value)
    if isinstance(value, (Mapping, list, tuple, set)):
        return f"a {type(value).__name__} of {len(value):,}"
    return f"{value[:60]!r}" if isinstance(value, str) else f"{value!r:.60}"


# ---------------------------------------------------------------------------------------------------------------
# The parts

Test = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    return isinstance(value, str) and _is_writable(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _list_of(test: Test) -> Test:
    return lambda value: isinstance(value, (list, tuple)) and all(map(test, value))


def _table_of(test: Test) -> Test:
    return lambda value: isinstance(value, Mapping) and all(map(_text, value)) and all(map(test, value.values()))


def _table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _without_tensors(value: Any) -> bool:
    """Whether a value is plain throughout; how deep it goes has been looked at."""
    if isinstance(value, Mapping):
        return all(map(_text, value)) and all(map(_without_tensors, value.values()))
    return all(map(_without_tensors, value)) if isinstance(value, (list, tuple)) else not isinstance(value, (Tensor, set))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _optimizer(value: Any) -> bool:
    """Of an optimizer: tensors and numbers for each parameter, and numbers for settings."""

    def setting(value: Any) -> bool:
        return value is None or _tensor(value) or _number(value) or _list_of(_number)(value)

    def group(values: Any) -> bool:
        return _table(values) and all(name in ("name", "params") or setting(item) for name, item in values.items())

    return _table(value) and _list_of(group)(value.get("param_groups")) and _table(value.get("state"))


def _is_file(value: Any) -> bool:
    """Whether a value names something that could be read: what was given by path is remembered by its content."""
    return isinstance(value, str) and os.path.lexists(os.path.expanduser(value.replace("\0", "")))


def _lightning(value: Any) -> bool:
    return (
        isinstance(value, str)
        and re.fullmatch(r"[2-9](\.\d+){1,3}((a|b|rc|\.dev|\.post)\d+)*(\+[a-z0-9.]+)?", value) is not None
    )


def _picture(value: Any) -> bool:
    sizes = [value.get(name) for name in ("size", "resize")] if _table(value) else [0]
    return all(size is None or (_count(size) and 0 < size <= LARGEST_PICTURE) for size in sizes)


#: What a checkpoint holds, by dotted name: whether it must be there, the words for it, and how to know it.
_PARTS: dict[str, tuple[bool, str, Test]] = {
    f"{KEY}.version": (False, "a version", _or_none(_text)),
    f"{KEY}.subclass": (False, "the name of a class", _or_none(_text)),
    f"{KEY}.stage": (False, "the name of a stage", _or_none(_text)),
    f"{KEY}.class_names": (False, "a list of names", _or_none(_list_of(_name))),
    f"{KEY}.preprocessing": (False, f"sizes of 1 to {LARGEST_PICTURE} pixels, and statistics", _or_none(_picture)),
    "epoch": (True, "a whole number", _count),
    "global_step": (True, "a whole number", _count),
    "state_dict": (True, "tensors by name", lambda value: _table_of(_tensor)(value) and len(value) > 0),
    "hyper_parameters": (True, "plain values by name", lambda value: _table(value) and _without_tensors(value)),
    "hyper_parameters.test_prior": (
        False,
        f"one of {', '.join(TEST_PRIORS)}, or numbers",
        lambda value: value is None or value in TEST_PRIORS if not isinstance(value, list) else _list_of(_number)(value),
    ),
    "hyper_parameters.test_prior_factor": (False, "a number", _number),
    "hyper_parameters.calibration_temperature": (False, "a number above 0", lambda value: _number(value) and value > 0),
    **{f"hyper_parameters.{name}": (False, "no file", lambda value: not _is_file(value)) for name in GIVEN_BY_PATH},
    "hyper_parameters.network_options": (False, "options by name", _or_none(_table)),
    "pytorch-lightning_version": (False, "a version from 2 on", _lightning),
    "optimizer_states": (False, "optimizers, with numbers for settings", _list_of(_optimizer)),
    "lr_schedulers": (False, "numbers by name", _list_of(lambda value: _table(value) and _without_tensors(value))),
    "loops": (False, "counts by name", _table_of(_table)),
    "callbacks": (False, "what callbacks keep, by name", _table_of(_table)),
    "callbacks.Provenance.commits": (False, "a list of commits", _list_of(_or_none(_text))),
    "callbacks.Provenance.settings": (False, "settings by name", lambda value: _table(value) and _without_tensors(value)),
    "callbacks.RunProgress.train_seconds": (False, "a number", _number),
    "callbacks.RunProgress.cpu_seconds": (False, "a number", _or_none(_number)),
    "callbacks.RunProgress.images": (False, "a whole number", _count),
}


def check_parts(content: Mapping[str, Any], name: str) -> None:
    """Raise `CheckpointError` unless the parts of a checkpoint that something reads are of their types.

    Args:
        content: of a checkpoint.
        name: what the error calls it.
    """
    for place, (needed, words, test) in _PARTS.items():
        *above, key = place.split(".")
        section: Any = content
        for part in above:
            section = section.get(part) if isinstance(section, Mapping) else None
        there = isinstance(section, Mapping) and key in section
        if (there or needed) and not (there and test(section[key])):
            found = shown(section[key]) if there else "missing"
            raise CheckpointError(
                f"Expected {place} of {name} to be {words}, but it is {found}: it is damaged, or no run wrote it. Use another "
                "copy of it."
            )


def check_continuable(content: Mapping[str, Any], made: Mapping[str, Any], parameters: Iterable[Tensor]) -> None:
    """Raise `CheckpointError` unless a run can go on from a checkpoint without harm.

    Lightning takes what it finds: counts that are texts fail in the middle of a run, and of files that a checkpoint names as
    those of its own folder it deletes the superseded ones, wherever they lie.

    Args:
        content: of a checkpoint.
        made: what the run itself would write now, of the same parts: their names and types must be the same.
        parameters: of the optimizer, which its state belongs to; none: not known.
    """
    check_parts(content, "the checkpoint")
    for name, value in made.items():
        _check_like(content.get(name), value, name)
    shapes = dict(enumerate(tuple(parameter.shape) for parameter in parameters))
    for optimizer in content.get("optimizer_states", []):
        for number, state in optimizer["state"].items() if shapes else ():
            shape = shapes.get(number)
            if not _table(state) or any(_tensor(v) and v.dim() and tuple(v.shape) != shape for v in state.values()):
                raise _of_another_make("optimizer_states.state")
    for name, state in content.get("callbacks", {}).items():
        for path in _files_kept(state):
            if not (_text(path) and _lies_in(path, str(state.get("dirpath")))):
                raise CheckpointError(
                    f"Expected callbacks.{name:.40} of the checkpoint to name files of its own folder, but it names "
                    f"{shown(path)}, which going on could delete. Begin a new run with its weights, by mllt.load_checkpoint."
                )


def _files_kept(state: Mapping[str, Any]) -> list[Any]:
    """The checkpoints that a callback which writes them counts as its own."""
    several = state.get("best_k_models") or {}
    single = [state.get(name) for name in ("best_model_path", "last_model_path", "kth_best_model_path")]
    return [path for path in [*single, *(several if _table(several) else [several])] if path not in (None, "")]


def _lies_in(path: str, folder: str) -> bool:
    """Whether a path leads into a folder, with no way around: neither by `..` nor by an address of fsspec's."""
    straight = os.path.isabs(path) and os.path.normpath(path) == path and "::" not in path
    return straight and path.startswith(os.path.join(folder, ""))


def _check_like(stored: Any, made: Any, name: str) -> None:
    """Raise `CheckpointError` unless a stored value has the names and types of one that is made here."""
    if isinstance(made, Mapping):
        if not isinstance(stored, Mapping) or any(key not in stored for key in made if not str(key).startswith("_")):
            raise _of_another_make(name)
        for key in made:
            if key in stored:
                _check_like(stored[key], made[key], f"{name}.{key}")
    elif isinstance(made, (list, tuple)):
        if not isinstance(stored, (list, tuple)) or len(stored) != len(made):
            raise _of_another_make(name)
        for one, other in zip(stored, made, strict=True):
            _check_like(one, other, name)
    elif _number(made) and not (_number(stored) and isinstance(stored, bool) == isinstance(made, bool)):
        raise _of_another_make(name)


def _of_another_make(name: str) -> CheckpointError:
    return CheckpointError(
        f"Expected {name} of the checkpoint to be what this run would write, but it is of another kind: the checkpoint is "
        "damaged, or of other versions of mllt, torch or lightning. Use another copy, or begin a new run with its weights, by "
        "mllt.load_checkpoint."
    )


class no_larger_than(TorchDispatchMode):
    """A context in which no more tensors are made from nothing than some weights warrant.

    Settings are a few bytes, and what they ask for may fill any memory: a network that does not have the size of its weights
    is found out while it is built. Eight times their size is enough for every expert's copy of a trunk that is shared in the
    end, and for what a method keeps beside its network.

    Args:
        weights: what the network is to be filled with.

    Raises:
        CheckpointError: (within) more is asked for.

    >>> with no_larger_than({"weight": torch.zeros(3)}):
    ...     network = torch.nn.Linear(10**5, 10**5)
    Traceback (most recent call last):
    mllt.errors.CheckpointError: Expected settings that fit 1 weight of 12 bytes, but they ask for a far larger network.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        size = sum(weight.numel() * weight.element_size() for weight in weights.values())
        self.bytes_left, self.tensors_left = 2**27 + 8 * size, 10_000 + 64 * len(weights)
        self.what = f"{len(weights):,} weight{'' if len(weights) == 1 else 's'} of {size:,} bytes"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "device" in kwargs and not any(isinstance(value, Tensor) for value in args):
            asked = func(*args, **{**kwargs, "device": "meta", "pin_memory": False})
            self.tensors_left -= 1
            self.bytes_left -= asked.numel() * asked.element_size()
            if self.bytes_left < 0 or self.tensors_left < 0:
                raise CheckpointError(f"Expected settings that fit {self.what}, but they ask for a far larger network.")
        return func(*args, **kwargs)
