"""What the files of a run must hold for a report: looked at once, where they are read, so that nothing behind them stumbles."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mllt.errors import DataError
from mllt.longtail import shot_groups
from mllt.methods.evaluation import GROUPS, KINDS

Test = Callable[[Any], bool]
#: What is expected at a dotted name: whether it must be there, the words for it, and how to know it.
Rule = tuple[bool, str, Test]
_MISSING = object()
#: Characters of the command that repeats a run; a number for every class of the largest data sets is a third of it.
LONGEST_COMMAND = 2**18
#: many_above, few_below, and whether both include their edge, as in the literature.
SHOT_RULE = (100, 20, False)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of a size that can be computed with.

    >>> is_number(3), is_number(True), is_number("3"), is_number(float("nan")), is_number(10**400)
    (True, False, False, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and is_number(value) and abs(value) < 2**53


def _count(value: Any) -> bool:
    return _whole(value) and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    return isinstance(value, str) and any(one.isprintable() and not one.isspace() for one in value)


def _or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _table_of(test: Test) -> Test:
    return lambda value: isinstance(value, Mapping) and all(map(test, value.values()))


def _accuracies(value: Any) -> bool:
    """Of a network or an ensemble: percentages by kind and shot group, and perhaps the calibration error."""

    def fit(row: Any) -> bool:
        return isinstance(row, Mapping) and all(map(_or_none(is_number), [*map(row.__getitem__, GROUPS), row.get("ece")]))

    try:
        return all(fit(value[kind]) for kind in KINDS)
    except (KeyError, TypeError):
        return False


def _bins(value: Any) -> bool:
    """Bins of confidence by kind: as many counts, accuracies and confidences; numbers where there are images."""

    def fit(row: Any) -> bool:
        counts, *means = (row[name] for name in ("count", "accuracy", "confidence"))
        return _list_of(_count)(counts) and all(
            len(mean) == len(counts) > 0 and all(is_number(one) for one, count in zip(mean, counts, strict=True) if count)
            for mean in means
        )

    try:
        return all(fit(row) for row in value.values())
    except (KeyError, TypeError, AttributeError):
        return False


def _stages(value: Any) -> bool:
    stages = isinstance(value, list) and all(isinstance(stage, Mapping) for stage in value)
    return stages and all(_name(stage.get("name")) and _count(stage.get("epochs")) for stage in value)


_RESULTS: dict[str, Rule] = {
    "method": (True, "a name", _name),
    "epochs": (True, "a whole number", _count),
    "class_counts": (True, "images per class, not all 0", lambda value: _list_of(_count)(value) and sum(value) > 0),
    "test.ensemble": (True, "accuracies, raw and compensated, by shot group", _accuracies),
    "test.experts": (True, "a list of accuracies", lambda value: _list_of(_accuracies)(value) and len(value) > 0),
    "test.per_class": (True, "an accuracy for each class, raw and compensated", _table_of(_list_of(_or_none(is_number)))),
    "test.reliability": (False, "bins of confidence", _bins),
    "stages": (False, "a list of stages with name and epochs", _stages),
    "class_names": (False, "a list of names", _list_of(_text)),
    "shot_groups": (False, "numbers of classes by shot group", _table_of(_count)),
    "reported": (False, " or ".join(KINDS), lambda value: value in KINDS),
    "reconstructed": (False, "a list of sentences", _list_of(_text)),
    "details": (False, "findings by name", _table_of(lambda _: True)),
    "versions": (False, "versions by package", _table_of(_or_none(_text))),
    "parameters": (False, "a whole number", _count),
    "command": (False, "a short text", lambda value: _text(value) and len(value) <= LONGEST_COMMAND),
    **dict.fromkeys(("train_seconds", "cpu_seconds", "images_per_second"), (False, "a number", is_number)),
} | dict.fromkeys(("git_commit", "data_digest", "fitted_prior", "device", "recipe"), (False, "a text", _text))

_SECTION: Rule = (False, "settings by name", lambda value: value is None or isinstance(value, Mapping))
_CONFIG: dict[str, Rule] = {
    "data._target_": (True, "the name of a class", _name),
    "method._target_": (True, "the name of a class", _name),
    "network.name": (True, "a name", _name),
    "trainer.max_epochs": (True, "a whole number", _whole),
    "seed": (True, "a whole number", _whole),
    "data.imbalance_factor": (False, "a number", _or_none(is_number)),
    "data.crop_scale": (False, "two numbers", _or_none(_list_of(is_number))),
    "network.num_experts": (False, "a whole number", _or_none(_whole)),
    "evaluation": _SECTION,
    "evaluation.test_prior": (False, "a name or numbers", lambda value: value is None or isinstance(value, (str, list))),
    "evaluation.test_prior_factor": (False, "a number", _or_none(is_number)),
    "evaluation.many_above": (False, "a whole number", _or_none(_count)),
    "evaluation.few_below": (False, "a whole number", _or_none(_count)),
    "evaluation.shot_edges_inclusive": (False, "true or false", lambda value: value is None or isinstance(value, bool)),
} | {f"data.{name}": (False, "a text", _or_none(_text)) for name in ("root", "profile", "train_list", "test_list", "val_list")}


def read_results(text: str) -> dict[str, Any]:
    """`results.json`, as a run wrote it; what it need not tell and tells as null is left out.

    Raises:
        DataError: it is damaged, lacks what every run has, or holds something else than a run writes.
    """
    try:
        results = json.loads(text, parse_constant=_no_number)
        _check_text(results)
    except RecursionError:
        raise DataError("it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"it is damaged ({error})") from error
    _check(results, _RESULTS)
    per_class, counts = results["test"]["per_class"], results["class_counts"]
    if any(len(per_class.get(kind, ())) != len(counts) for kind in KINDS):
        raise DataError(f"test.per_class: expected {len(counts)} accuracies for class_counts of as many classes")
    for name, (needed, _, _) in _RESULTS.items():
        section = results["test"] if name.startswith("test.") else results
        key = name.rpartition(".")[2]
        if not needed and section.get(key) is None:
            section.pop(key, None)
    printable = "".join(one if one.isprintable() else " " for one in results["method"])
    return {**results, "method": " ".join(printable.split())}


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number that JSON has")


def check_config(settings: Mapping[str, Any]) -> None:
    """Look at the settings of a run as far as a report needs them.

    Raises:
        DataError: they lack what every run has, or hold something else than a run may have.
    """
    _check(settings, _CONFIG)
    try:
        groups_of([1], settings)
        _check_text(settings)
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is damaged ({error})") from error


def shot_rule(settings: Mapping[str, Any]) -> tuple[int, int, bool]:
    """many_above, few_below, and whether both include their edge, as a run has them; else the customary ones.

    >>> shot_rule({"evaluation": {"many_above": 50}})
    (50, 20, False)
    """
    rule = settings.get("evaluation") or {}
    above, below = (
        default if rule.get(key) is None else rule[key] for key, default in (("many_above", 100), ("few_below", 20))
    )
    return above, below, bool(rule.get("shot_edges_inclusive"))


def groups_of(class_counts: Sequence[int], settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Masks of the shot groups by the rule of a run."""
    above, below, inclusive = shot_rule(settings)
    return shot_groups(torch.tensor(class_counts), above, below, inclusive=inclusive)


def _check_text(values: Any) -> None:
    """Raise ValueError where a text cannot be written down: halves of characters, which escapes may make."""
    json.dumps(values, ensure_ascii=False, default=str).encode()


def _check(values: Any, rules: Mapping[str, Rule]) -> None:
    for name, (needed, words, test) in rules.items():
        value = _at(values, name.split("."), name)
        if (needed or value not in (_MISSING, None)) and (value is _MISSING or not test(value)):
            raise DataError(f"{name}: expected {words}, but it is {_shown(value)}")


def _at(values: Any, path: Sequence[str], name: str) -> Any:
    """The value at a dotted name, `_MISSING` where there is none."""
    for place, key in enumerate(path):
        if values is _MISSING or (values is None and place):
            return _MISSING
        if not isinstance(values, Mapping):
            above = ".".join(name.split(".")[:place])
            raise DataError(f"{above}{': ' * bool(above)}expected values by name, but it is {_shown(values)}")
        values = values.get(key, _MISSING)
    return values


def _shown(value: Any) -> str:
    """A value in short, as JSON has it."""
    if value is _MISSING:
        return "missing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."
