"""The errors of mllt, and the checks that raise them.

Every error a user can cause is an `MlltError`: its message says what was expected, what came, and what to
do. The commands print it as one line; a library user can catch it by kind (each is also the built-in error that
fits, so `except ValueError` works too).
"""

from __future__ import annotations

import difflib
import math
import numbers
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any


class MlltError(Exception):
    """Base of all errors that mllt raises on purpose."""


class ArgumentError(MlltError, ValueError):
    """An argument or setting is of the wrong type, out of range, or does not fit another one."""


class DataError(MlltError, ValueError):
    """Data is missing, unreadable, or contradicts itself."""


class CheckpointError(MlltError, ValueError):
    """A checkpoint is missing, damaged, or not one of ours."""


class StorageError(MlltError, OSError):
    """A file cannot be written: the disk is full, or the place is not writable."""

    def __str__(self) -> str:
        return str(self.args[-1])  # without the number, which `errno` has


class NonFiniteError(MlltError, ArithmeticError):
    """The loss or a gradient is infinite or not a number."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped word: the closest known one, if any is close, and the list of all.

    >>> did_you_mean("resnet23", ["resnet20", "resnet32"])
    "Did you mean 'resnet32'? Known: resnet20, resnet32."
    >>> did_you_mean("zebra", ["one", "two"])
    'Known: one, two.'
    """
    names = [str(name) for name in known]
    return f"{_closest(word, names)}Known: {', '.join(names)}."


def _closest(word: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.55)
    return f"Did you mean {close[0]!r}? " if close else ""


def name_some(items: Sequence[Any], show: int = 5) -> str:
    """The first few of many problems, and how many more there are.

    >>> name_some(["a", "b", "c"], show=2)
    "'a', 'b' and 1 more"
    """
    named = ", ".join(repr(item) for item in items[:show])
    return named + (f" and {len(items) - show} more" if len(items) > show else "")


def printable(text: str) -> str:
    """Text that a terminal, a page and an editor show as it is: what would steer them is shown as a mark.

    Names in files that come from elsewhere may hold a terminal's commands, or turn the direction of writing round. New lines
    and tabs stay, and what joins letters in many scripts.

    >>> printable("ok \x1b[31m, " + chr(0x202E) + "gnp.exe")
    'ok �[31m, �gnp.exe'
    """
    if text.isprintable():
        return text
    return "".join(one if one in _HARMLESS or unicodedata.category(one) not in _STEERING else "\ufffd" for one in text)


_HARMLESS = "\n\t\u200c\u200d"
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, else raise `ArgumentError` with the closest one.

    >>> check_choice("head", "cosin", ["linear", "cosine"])
    Traceback (most recent call last):
    mllt.errors.ArgumentError: Expected `head` to be one of linear, cosine, but got 'cosin'. Did you mean 'cosine'?
    """
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        hint = _closest(str(value), choices).rstrip()
        raise ArgumentError(f"Expected `{name}` to be one of {', '.join(choices)}, but got {value!r}.{' ' * bool(hint)}{hint}")
    return value


def check_bool(name: str, value: Any) -> bool:
    """Return `value` if it is True or False, else raise `ArgumentError`."""
    if not isinstance(value, bool):
        raise ArgumentError(f"Expected `{name}` to be true or false, but got {value!r}.")
    return value


def check_integer(name: str, value: Any, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return `value` as an int if it is a whole number within the bounds (both included), else raise `ArgumentError`.

    Whole numbers of any type will do, also NumPy's; a float is none. They must be ones that tensors can hold, of 64 bits.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ArgumentError(f"Expected `{name}` to be a whole number{_bounds(minimum, maximum)}, but got {value!r}.")
    number = int(value)
    if number.bit_length() > 63:
        raise ArgumentError(f"Expected `{name}` to be a whole number of at most 64 bits, but it has {number.bit_length() + 1}.")
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        raise ArgumentError(f"Expected `{name}` to be a whole number{_bounds(minimum, maximum)}, but got {number}.")
    return number


def check_seed(name: str, value: Any) -> int:
    """Return `value` if it is in 0 .. 2^32 - 1, the seeds that every generator takes, else raise `ArgumentError`."""
    return check_integer(name, value, 0, 2**32 - 1)


def check_number(
    name: str,
    value: Any,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return `value` as a float if it is finite and within the bounds, else raise `ArgumentError`.

    `minimum` and `maximum` are included, `above` and `below` are not. Real numbers of any type will do, also NumPy's.
    """
    wanted = f"Expected `{name}` to be a number{_bounds(minimum, maximum, above, below)}, but got {value!r}."
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentError(wanted)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if (
        not math.isfinite(number)
        or (minimum is not None and number < minimum)
        or (maximum is not None and number > maximum)
        or (above is not None and number <= above)
        or (below is not None and number >= below)
    ):
        raise ArgumentError(wanted)
    return number


def _bounds(
    minimum: float | None = None, maximum: float | None = None, above: float | None = None, below: float | None = None
) -> str:
    parts = [
        f"{word} {bound}"
        for word, bound in (("of at least", minimum), ("of at most", maximum), ("above", above), ("below", below))
        if bound is not None
    ]
    return " " + " and ".join(parts) if parts else ""
