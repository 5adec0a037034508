"""The ground floor: everything that follows from class counts alone.

Profiles (how many images each class keeps), shot groups (many / medium / few), class priors, test priors and
post-compensation. Pure functions on tensors; nothing here knows of data sets, networks or trainers.

Throughout, `class_counts` is the number of *training* images per class, shape `(C,)`, and C the number of classes.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllt.errors import ArgumentError, DataError, check_bool, check_choice, check_integer, check_number, did_you_mean, name_some

SHOT_GROUPS = ("many", "medium", "few")
PROFILES = ("exponential", "step")
TEST_PRIORS = ("uniform", "train", "forward", "backward")


# ---------------------------------------------------------------------------------------------------------------
# Profiles


def exponential_profile(num_classes: int, max_count: int, imbalance_factor: float) -> list[int]:
    """Images per class that fall exponentially from `max_count` to `max_count / imbalance_factor`.

    n_k = floor(max_count * (1 / imbalance_factor) ** (k / (C - 1))), k = 0 .. C-1; truncated, not rounded, as in the
    customary CIFAR-LT subsets (Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    section 5.1; Cao et al., "Learning Imbalanced Datasets with LDAM", NeurIPS 2019).

    Args:
        num_classes: C, at least 1.
        max_count: images of the largest class, at least 1.
        imbalance_factor: largest over smallest class, at least 1.

    Raises:
        ArgumentError: when an argument is out of range, or a class would be left without images.

    >>> exponential_profile(10, 5000, 100)
    [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    _check_profile(num_classes, max_count, imbalance_factor)
    ratio = 1.0 / imbalance_factor
    counts = [int(max_count * ratio ** (k / max(num_classes - 1, 1))) for k in range(num_classes)]
    return _no_empty_class(counts, max_count, imbalance_factor)


def step_profile(num_classes: int, max_count: int, imbalance_factor: float) -> list[int]:
    """The first half of the classes keep `max_count` images, the others `max_count / imbalance_factor` (truncated).

    The "step" imbalance of Buda et al., "A systematic study of the class imbalance problem in convolutional neural
    networks" (2018), as in LDAM-DRW. With an odd number of classes the larger half is the small one.

    >>> step_profile(5, 500, 100)
    [500, 500, 5, 5, 5]
    """
    _check_profile(num_classes, max_count, imbalance_factor)
    head = num_classes // 2
    counts = [max_count] * head + [int(max_count * (1.0 / imbalance_factor))] * (num_classes - head)
    return _no_empty_class(counts, max_count, imbalance_factor)


def profile_counts(profile: str, num_classes: int, max_count: int, imbalance_factor: float) -> list[int]:
    """`exponential_profile` or `step_profile`, by name.

    >>> profile_counts("step", 4, 100, 10)
    [100, 100, 10, 10]
    """
    check_choice("profile", profile, PROFILES)
    make = exponential_profile if profile == "exponential" else step_profile
    return make(num_classes, max_count, imbalance_factor)


def _check_profile(num_classes: int, max_count: int, imbalance_factor: float) -> None:
    check_integer("num_classes", num_classes, 1)
    check_integer("max_count", max_count, 1)
    check_number("imbalance_factor", imbalance_factor, 1)


def _no_empty_class(counts: list[int], max_count: int, imbalance_factor: float) -> list[int]:
    if imbalance_factor <= max_count:  # 49 * (1 / 49) is a little less than 1
        return [max(1, count) for count in counts]
    if min(counts) < 1:
        raise ArgumentError(
            f"An imbalance factor of {imbalance_factor:g} leaves the smallest class of {max_count} images empty. "
            f"Set `imbalance_factor` to at most {max_count}."
        )
    return counts


def imbalance_factor(class_counts: Tensor) -> float:
    """Largest class over smallest class; infinite when a class is empty.

    >>> imbalance_factor(torch.tensor([100, 20, 5]))
    20.0
    """
    counts = check_class_counts(class_counts)
    smallest = int(counts.min())
    return float(counts.max()) / smallest if smallest else float("inf")


# ---------------------------------------------------------------------------------------------------------------
# Shot groups


def shot_groups(
    class_counts: Tensor, many_above: int = 100, few_below: int = 20, *, inclusive: bool = False
) -> dict[str, Tensor]:
    """Which classes are many-, medium- and few-shot, by their number of training images.

    many: n > `many_above`; few: n < `few_below`; medium: the rest (Kang et al., "Decoupling Representation and
    Classifier", ICLR 2020, and after it RIDE, LADE, SSD). With `inclusive=True` the edges belong to the outer
    groups (n >= `many_above`, n <= `few_below`), the rule of OLTR's original code (Liu et al., CVPR 2019).

    Returns:
        `{"many": (C,) bool, "medium": (C,) bool, "few": (C,) bool}`; every class is in exactly one group.

    Raises:
        ArgumentError: when the thresholds overlap.

    >>> groups = shot_groups(torch.tensor([500, 100, 20, 19]))
    >>> {name: mask.nonzero().flatten().tolist() for name, mask in groups.items()}
    {'many': [0], 'medium': [1, 2], 'few': [3]}
    """
    counts = check_class_counts(class_counts)
    check_integer("many_above", many_above, 0)
    check_integer("few_below", few_below, 0)
    check_bool("inclusive", inclusive)
    many = counts >= many_above if inclusive else counts > many_above
    few = counts <= few_below if inclusive else counts < few_below
    if few_below > many_above + (0 if inclusive else 1) or (inclusive and few_below == many_above):
        raise ArgumentError(
            f"Expected `few_below` to lie under `many_above`, but got few_below={few_below}, many_above={many_above}: "
            "a class would be in both groups."
        )
    return {"many": many, "medium": ~(many | few), "few": few}


# ---------------------------------------------------------------------------------------------------------------
# Priors and compensation


def check_class_counts(class_counts: Any, num_classes: int | None = None) -> Tensor:
    """Class counts as an int64 tensor `(C,)`: whole, not negative, not all zero.

    >>> check_class_counts([3, 2, 1])
    tensor([3, 2, 1])
    """
    try:
        counts = torch.as_tensor(class_counts)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"Expected `class_counts` to be the number of training images of each class, but got {class_counts!r}."
        ) from error
    if counts.ndim != 1 or counts.numel() == 0 or counts.is_complex() or counts.dtype == torch.bool:
        raise ArgumentError(
            f"Expected `class_counts` to be of shape (C,), one number per class, but got shape {tuple(counts.shape)} "
            f"and type {counts.dtype}."
        )
    if num_classes is not None and counts.numel() != num_classes:
        raise ArgumentError(f"Expected `class_counts` to hold {num_classes} numbers, one per class, but got {counts.numel()}.")
    whole = counts.to(torch.int64)
    fine = (whole.to(counts.dtype) == counts) & (whole >= 0)
    if not bool(fine.all() & (whole.sum() != 0)):  # one question: on an accelerator, each waits for the device
        raise ArgumentError(
            f"Expected `class_counts` to be whole numbers, none negative, not all zero, but got {counts.tolist()[:10]}."
        )
    return whole


def class_prior(class_counts: Tensor | Sequence[int]) -> Tensor:
    """Training prior pi_c = n_c / N, float64, shape `(C,)`.

    >>> class_prior(torch.tensor([3, 1]))
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    counts = check_class_counts(class_counts).double()
    return counts / counts.sum()


def log_prior(class_counts: Tensor | Sequence[int]) -> Tensor:
    """log pi_c, float64, shape `(C,)`.

    Raises:
        ArgumentError: when a class has no training image; its logarithm would be -inf, and every later use NaN.
    """
    counts = check_class_counts(class_counts)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise ArgumentError(
            f"Expected every class to have at least one training image, but {len(empty)} of {len(counts)} have none "
            f"(classes {name_some(empty)}). The logarithm of an empty class's prior is not finite: leave such classes out."
        )
    return class_prior(counts).log()


def compensate(
    logits: Tensor | Sequence[Any], class_counts: Tensor | Sequence[int], test_prior: Tensor | Sequence[float] | None = None
) -> Tensor:
    r"""Post-compensated logits: take the training prior out, put the test prior in.

    z'_c = z_c - log pi_train,c + log pi_test,c, with pi_train from `class_counts` (Hong et al., "Disentangling Label
    Distribution for Long-tailed Visual Recognition" (LADE), CVPR 2021, section 3.2: PC softmax). The softmax of z' is
    the training posterior, re-weighted to the test prior by Bayes' rule. For inference only: raw logits are trained.

    With a cosine classifier the logits must be the scaled ones.

    Args:
        logits: `(..., C)`, any floating type; raw, as trained with plain cross entropy. A tensor, an array or a list.
        class_counts: `(C,)` training images per class, each at least 1.
        test_prior: `(C,)`, non-negative, summing to 1; None is the uniform prior.

    Returns:
        `(..., C)` of the logits' type and device. A class of test prior 0 gets -inf.

    Raises:
        ArgumentError: when shapes do not fit, a class has no training image, or `test_prior` is no distribution.

    >>> compensate(torch.zeros(1, 2), torch.tensor([3, 1])).softmax(-1)
    tensor([[0.2500, 0.7500]])
    """
    counts = check_class_counts(class_counts)
    logits = as_tensor("logits", logits)
    if logits.ndim < 1 or logits.shape[-1] != counts.numel() or not logits.is_floating_point():
        raise ArgumentError(
            f"Expected `logits` to be floating and of shape (..., {counts.numel()}), one per class, but got "
            f"{tuple(logits.shape)} of {logits.dtype}."
        )
    return logits + compensation_offset(counts, test_prior).to(logits)


def compensation_offset(class_counts: Tensor | Sequence[int], test_prior: Tensor | Sequence[float] | None = None) -> Tensor:
    """What `compensate` adds to logits: log pi_test - log pi_train, float64, shape `(C,)`."""
    offset = -log_prior(class_counts)
    if test_prior is None:  # a constant shift, the same for every class: softmax and ranking do not see it
        return offset - torch.log(torch.tensor(float(offset.numel()), dtype=offset.dtype, device=offset.device))
    return offset + check_prior("test_prior", test_prior, offset.numel()).to(offset).log()


def check_prior(name: str, prior: Tensor | Sequence[float], num_classes: int) -> Tensor:
    """A distribution over classes, float64 `(C,)`: non-negative, finite, summing to 1 within 1e-3, then normalised."""
    prior = _as_numbers(name, prior)
    if prior.shape != (num_classes,):
        raise ArgumentError(f"Expected `{name}` to be of shape ({num_classes},), but got {tuple(prior.shape)}.")
    if not bool(torch.isfinite(prior).all()) or bool((prior < 0).any()) or abs(float(prior.sum()) - 1) > 1e-3:
        raise ArgumentError(
            f"Expected `{name}` to be a distribution (no negative number, sum 1), but got smallest {float(prior.min()):.4g} "
            f"and sum {float(prior.sum()):.4g}."
        )
    return prior / prior.sum()


def long_tailed_prior(class_counts: Tensor, factor: float, *, backward: bool = False) -> Tensor:
    """The prior of a long-tailed *test* set, float64 `(C,)`.

    Classes are ranked by training count (r = 0 for the most frequent; ties by class number) and pi_test falls
    exponentially with the rank, pi_test,c ~ factor ** (-r_c / (C - 1)): "forward", the training tail again; backward
    turns the ranking round (LADE, CVPR 2021, section 4.1, "Evaluation protocol": shifted test sets).

    >>> long_tailed_prior(torch.tensor([50, 5, 500]), factor=4)
    tensor([0.2857, 0.1429, 0.5714], dtype=torch.float64)
    >>> long_tailed_prior(torch.tensor([50, 5, 500]), factor=4, backward=True)
    tensor([0.2857, 0.5714, 0.1429], dtype=torch.float64)
    """
    counts = check_class_counts(class_counts)
    check_number("factor", factor, 1)
    rank = torch.empty(counts.numel(), dtype=torch.float64, device=counts.device)
    order = torch.argsort(counts, descending=True, stable=True)
    rank[order] = torch.arange(counts.numel(), dtype=torch.float64, device=counts.device)
    if backward:
        rank = counts.numel() - 1 - rank
    weight = torch.tensor(float(factor), dtype=torch.float64, device=counts.device) ** (-rank / max(counts.numel() - 1, 1))
    return weight / weight.sum()


def resolve_test_prior(
    prior: str | os.PathLike[str] | Sequence[float] | Tensor | None, class_counts: Tensor, factor: float = 100.0
) -> Tensor | None:
    """The test prior that a setting names.

    Args:
        prior: "uniform" (or None), "train", "forward", "backward", the path of a file, or the C numbers themselves.
            A file holds C non-negative numbers (counts or probabilities), in class order: JSON list, or CSV (with
            a header or without) / plain text with the number last on each line.
        class_counts: `(C,)` training images per class.
        factor: imbalance factor of "forward" and "backward".

    Returns:
        `(C,)` float64, or None for uniform.

    Raises:
        ArgumentError: an unknown name, or numbers that are no distribution.
        DataError: a file that cannot be read, or does not hold C numbers.

    >>> resolve_test_prior("train", torch.tensor([3, 1]))
    tensor([0.7500, 0.2500], dtype=torch.float64)
    >>> resolve_test_prior([2, 2], torch.tensor([3, 1]))
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    counts = check_class_counts(class_counts)
    if prior is None or (isinstance(prior, str) and prior == "uniform"):
        return None
    name = "test_prior"
    if isinstance(prior, (str, os.PathLike)):
        if prior == "train":
            return class_prior(counts)
        if prior in ("forward", "backward"):
            return long_tailed_prior(counts, factor, backward=prior == "backward")
        if not _is_file(Path(prior)):
            raise ArgumentError(
                f"Expected `test_prior` to be a name or the path of a file, but there is no file {str(prior)!r}. "
                f"{did_you_mean(str(prior), TEST_PRIORS)}"
            )
        name, prior = str(prior), _read_numbers(Path(prior), counts.numel())
    weights = _as_numbers(name, prior)
    if weights.ndim == 1 and bool((weights >= 0).all()) and float(weights.sum()) > 0:
        weights = weights / weights.sum()
    return check_prior(name, weights, counts.numel())


def _json_numbers(content: Any) -> list[float]:
    if not isinstance(content, list) or any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in content):
        raise TypeError("it is JSON, but no list of numbers")
    return [float(number) for number in content]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a path, or no path at all
        return False


def as_tensor(name: str, values: Any) -> Tensor:
    """A tensor as it is, and an array or a list of numbers as a tensor; else raise `ArgumentError`."""
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"Expected `{name}` to be numbers, but got {values!r:.200}.") from error


def _as_numbers(name: str, values: Any) -> Tensor:
    """Numbers of any kind as float64."""
    numbers = as_tensor(name, values)
    if numbers.is_complex():
        raise ArgumentError(f"Expected `{name}` to be real numbers, one per class, but got {numbers.dtype}.")
    return numbers.double()


def _read_numbers(path: Path, expected: int) -> list[float]:
    """The numbers of a file, which must be so many."""
    numbers = _parse_numbers(path)
    if len(numbers) != expected:
        raise DataError(
            f"Expected {path} to hold {expected} numbers, one number per class, in class order, but it holds {len(numbers)}."
        )
    return numbers


def _parse_numbers(path: Path) -> list[float]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return _json_numbers(json.loads(text))
        cells = [row[-1].split()[-1] for row in csv.reader(text.splitlines()) if row and row[-1].strip()]
        return [float(cell) for cell in (cells[1:] if cells and path.suffix == ".csv" and not _is_number(cells[0]) else cells)]
    except (OSError, UnicodeDecodeError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            f"Expected {path} to hold one number per class (a JSON list, or text with the number last on each line), "
            f"but reading it failed: {error}"
        ) from error
