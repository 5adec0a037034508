"""Accuracy by shot group, of every expert and of their ensemble in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mllt.errors import ArgumentError, check_choice, check_integer, name_some
from mllt.longtail import check_class_counts, shot_groups
from mllt.metrics.ensemble import ENSEMBLES, ensemble_logits

AVERAGES = ("macro", "micro")


def shot_accuracy(
    correct: Tensor | Sequence[int],
    total: Tensor | Sequence[int],
    class_counts: Tensor | Sequence[int],
    many_above: int = 100,
    few_below: int = 20,
    *,
    inclusive: bool = False,
    average: str = "macro",
) -> dict[str, Tensor]:
    r"""Accuracy of many-, medium- and few-shot classes, from the number of right answers per class.

    With a_c = correct_c / total_c and a group G of classes, of which G' have test images:

    - "macro": mean of a_c over G' (Liu et al., "Large-Scale Long-Tailed Recognition in an Open World" (OLTR), CVPR 2019,
      and the code of all that followed); "all" is then the balanced accuracy;
    - "micro": sum of correct_c over sum of total_c, c in G; "all" is then the plain share of right answers.

    The two agree where all classes have equally many test images, as in the customary test sets.

    Args:
        correct: integers `(..., C)`, test images of each class that were recognised; leading axes are predictors.
        total: integers `(C,)`, test images of each class.
        class_counts: `(C,)`, *training* images of each class, which decide the group.
        many_above, few_below, inclusive: the shot-group rule, see `mllt.longtail.shot_groups`.
        average: "macro" or "micro".

    Returns:
        `{"many", "medium", "few", "all": (...), "per_class": (..., C)}`, fractions in 0..1, float64 (float32 on MPS,
        which has no float64). NaN, to be shown as n/a, for a group or class without test images: never 0, which would
        say that they were all mistaken.

    Raises:
        ArgumentError: shapes or types do not fit, or a class has more right answers than test images.

    >>> result = shot_accuracy([9, 3, 1, 0], [10, 4, 2, 2], class_counts=[500, 50, 10, 5])
    >>> {name: [round(x, 4) for x in value.reshape(-1).tolist()] for name, value in result.items()}
    {'many': [0.9], 'medium': [0.75], 'few': [0.25], 'all': [0.5375], 'per_class': [0.9, 0.75, 0.5, 0.0]}
    """
    check_choice("average", average, AVERAGES)
    correct, total = torch.as_tensor(correct), torch.as_tensor(total)
    counts = check_class_counts(class_counts).to(total.device)
    _check_tallies(correct, total, counts.numel())
    groups = shot_groups(counts, many_above, few_below, inclusive=inclusive)
    groups["all"] = torch.ones_like(groups["many"])

    dtype = result_dtype(total.device)
    right, images = correct.to(dtype), total.to(dtype)
    per_class = right / images  # 0 / 0 is NaN: no test images, no accuracy
    if average == "macro":  # every class that has test images weighs 1, whatever their number
        right, images = per_class.nan_to_num(0.0), (total > 0).to(dtype)
    result = {name: (right * group).sum(-1) / (images * group).sum(-1) for name, group in groups.items()}
    return {**result, "per_class": per_class}


class ShotAccuracy(Metric):
    """Accuracy of many-, medium- and few-shot classes, accumulated over batches and processes.

    The class around `shot_accuracy`, which has the formulas. `update` takes, without `num_experts`:

    - `preds`: logits or probabilities `(B, C)`, floating, or predicted classes `(B,)`, integer;
    - `target`: integer `(B,)`, in 0..C-1.

    With `num_experts=N`, `preds` are logits `(N, B, C)`, and there are P = N + 1 predictors: experts 0..N-1, and as row N
    their ensemble (taken in float32 for half-precision logits). B may be 0.

    The largest logit wins, the first among equals. A row of logits with a NaN in it is counted as a mistake. Labels are
    checked in every batch, which on a GPU waits for it once.

    States: `correct` `(P, C)` and `total` `(C,)`, int64, summed over processes. They are whole numbers, so the result
    is the same for any split of the images over batches and processes, also an uneven one or one that leaves a process
    empty; but each image must be seen once, so don't let the sampler pad.

    Args:
        class_counts: `(C,)` *training* images of each class.
        num_experts: N; None for a single predictor.
        many_above, few_below, inclusive: the shot-group rule, see `mllt.longtail.shot_groups`.
        average: "macro" (over classes) or "micro" (over images).
        ensemble: of the experts, see `ensemble_logits`; None: no row for it, P = N.
        kwargs: of `torchmetrics.Metric`.

    `compute` returns the dictionary of `shot_accuracy`: "many", "medium", "few", "all" of shape `()`, or `(N + 1,)` with
    `num_experts`; "per_class" `(C,)` or `(N + 1, C)`. All are NaN before any update.

    Raises:
        ArgumentError: on bad arguments, and from `update` when shapes, types or labels do not fit.

    >>> metric = ShotAccuracy(class_counts=[500, 50, 5])
    >>> metric.update(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 1]))
    >>> {name: value.tolist() for name, value in metric.compute().items()}
    {'many': 1.0, 'medium': 0.5, 'few': nan, 'all': 0.75, 'per_class': [1.0, 0.5, nan]}

    Two experts of opposite opinion; the more certain one decides for the ensemble:

    >>> metric = ShotAccuracy(class_counts=[500, 5], num_experts=2)
    >>> metric.update(torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([0]))
    >>> metric.compute()["all"]
    tensor([1., 0., 1.], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    class_counts: Tensor
    correct: Tensor
    total: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        num_experts: int | None = None,
        many_above: int = 100,
        few_below: int = 20,
        inclusive: bool = False,
        average: str = "macro",
        ensemble: str | None = "logits",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        counts = check_class_counts(class_counts)
        shot_groups(counts, many_above, few_below, inclusive=inclusive)  # refuse bad thresholds now, not after a test
        self.num_experts = check_num_experts(num_experts)
        self.many_above, self.few_below, self.inclusive = many_above, few_below, inclusive
        self.average = check_choice("average", average, AVERAGES)
        self.ensemble = None if ensemble is None else check_choice("ensemble", ensemble, ENSEMBLES)
        # Moves with the metric, but adds nothing to checkpoints: the model has its own.
        self.register_buffer("class_counts", counts.clone(), persistent=False)
        predictors = count_predictors(num_experts, self.ensemble)
        self.add_state("correct", torch.zeros(predictors, counts.numel(), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(counts.numel(), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        num_classes = self.class_counts.numel()
        if self.num_experts is None and isinstance(preds, Tensor) and preds.ndim == 1:
            preds, target = check_labels("preds", preds, num_classes), check_labels("target", target, num_classes)
            if len(preds) != len(target):
                raise ArgumentError(
                    f"Expected `preds` and `target` to be of one length, but got {len(preds)} and {len(target)}."
                )
            hits = (preds == target).unsqueeze(0)
        else:
            logits, target = check_logits("preds", preds, target, self.num_experts, num_classes, self.ensemble)
            hits = right_answers(logits, target)
        # Not in place: a state that was reset in inference mode could not be written to outside of it.
        self.correct = self.correct.index_add(1, target, hits.long())
        self.total = self.total.index_add(0, target, torch.ones_like(target))

    def compute(self) -> dict[str, Tensor]:
        return shot_accuracy(
            self.correct[0] if self.num_experts is None else self.correct,
            self.total,
            self.class_counts,
            self.many_above,
            self.few_below,
            inclusive=self.inclusive,
            average=self.average,
        )


# ---------------------------------------------------------------------------------------------------------------
# What the metrics share


def check_num_experts(num_experts: int | None) -> int | None:
    """None, or at least 1."""
    return None if num_experts is None else check_integer("num_experts", num_experts, 1)


def count_predictors(num_experts: int | None, ensemble: str | None) -> int:
    """P: one, or N experts, and their ensemble where there is one."""
    return 1 if num_experts is None else num_experts + (ensemble is not None)


def check_labels(name: str, labels: Tensor, num_classes: int) -> Tensor:
    """Class numbers as int64 `(B,)`, all in 0..C-1."""
    if not isinstance(labels, Tensor) or labels.ndim != 1 or not _is_integer(labels):
        raise ArgumentError(
            f"Expected `{name}` to be class numbers, an integer tensor of shape (B,), but got {_describe(labels)}."
        )
    labels = labels.long()
    outside = (labels < 0) | (labels >= num_classes)
    if bool(outside.any()):
        wrong = labels[outside].unique().tolist()
        raise ArgumentError(f"Expected `{name}` to hold class numbers from 0 to {num_classes - 1}, but got {name_some(wrong)}.")
    return labels


def check_logits(
    name: str,
    logits: Tensor,
    target: Tensor,
    num_experts: int | None,
    num_classes: int | None = None,
    ensemble: str | None = "logits",
) -> tuple[Tensor, Tensor]:
    """Logits of all predictors `(P, B, C)`, in at least float32, and targets as int64 `(B,)`.

    P = 1 for logits `(B, C)` without `num_experts`; else P = N + 1 and the last row is the N others' ensemble (P = N where
    `ensemble` is None). Any number of classes goes where `num_classes` is None.
    """
    axes = ("B", num_classes or "C") if num_experts is None else (num_experts, "B", num_classes or "C")
    fits = (
        isinstance(logits, Tensor)
        and logits.ndim == len(axes)
        and all(isinstance(axis, str) or axis == size for axis, size in zip(axes, logits.shape, strict=True))
        and logits.shape[-1] > 0
    )
    if not fits or not logits.is_floating_point():
        shape = f"({', '.join(map(str, axes))})"
        raise ArgumentError(f"Expected `{name}` to be a floating-point tensor of shape {shape}, but got {_describe(logits)}.")
    target = check_labels("target", target, logits.shape[-1])
    if logits.shape[-2] != len(target):
        raise ArgumentError(
            f"Expected `{name}` and `target` to be of one batch size, but got {logits.shape[-2]} and {len(target)}."
        )
    if logits.dtype.itemsize < 4:  # a mean in half precision would round, and make ties of close calls
        logits = logits.float()
    if num_experts is None:
        return logits.unsqueeze(0), target
    if ensemble is None:
        return logits, target
    return torch.cat([logits, ensemble_logits(logits, ensemble).unsqueeze(0)]), target


def right_answers(logits: Tensor, target: Tensor) -> Tensor:
    """Whether the largest logit, the first among equals, is the target's: bool `(P, B)` from `(P, B, C)` and `(B,)`.

    NaN is never right.
    """
    if logits.device.type == "cpu" and logits.shape[-1] > 1:  # to ask where the largest lies takes it ten times as long
        place = target.expand(len(logits), -1).unsqueeze(-1)
        own = logits.gather(-1, place).squeeze(-1)
        others = logits.scatter(-1, place, -math.inf).amax(dim=-1)
        if not bool((own == others).any()):
            return own > others
    top, predicted = logits.max(dim=-1)
    return (predicted == target) & ~top.isnan()


def judge(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of `(P, B, C)` whether its largest logit is the target's (bool), and the probability that it has.

    A row with a NaN in it is a mistake made with confidence 1.
    """
    confidence = logits.softmax(dim=-1).amax(dim=-1).nan_to_num(nan=1.0)
    return right_answers(logits, target), confidence


def result_dtype(device: torch.device) -> torch.dtype:
    """float64, except on MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)} and type {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _check_tallies(correct: Tensor, total: Tensor, num_classes: int) -> None:
    for name, tally, fits, wanted in (
        ("correct", correct, correct.shape[-1:] == (num_classes,), f"(..., {num_classes})"),
        ("total", total, total.shape == (num_classes,), f"({num_classes},)"),
    ):
        if not fits or not _is_integer(tally):
            raise ArgumentError(
                f"Expected `{name}` to be whole numbers of shape {wanted}, one per class, but got {_describe(tally)}."
            )
    if bool((correct < 0).any()) or bool((correct > total).any()):
        raise ArgumentError(
            "Expected `correct` to lie between 0 and `total` in every class, but got a class where it does not."
        )
