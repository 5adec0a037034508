"""What every run is judged by: accuracy by shot group and calibration, raw and compensated, per expert and ensemble."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mllt.blocks import blocks_of_images
from mllt.errors import ArgumentError, check_choice
from mllt.longtail import SHOT_GROUPS, shot_groups
from mllt.metrics import ENSEMBLES, ensemble_logits, shot_accuracy
from mllt.metrics.calibration import diagram_of_bins, error_of_bins, fill_bins
from mllt.metrics.shot_accuracy import check_labels, judge

KINDS = ("raw", "compensated")
GROUPS = (*SHOT_GROUPS, "all")
NUM_BINS = 15


class Evaluation(nn.Module):
    """Accumulates logits of a split and tells the whole table.

    All rows come from one pass over the images: those of N experts and of their ensemble, raw and compensated, under as many
    test priors as are named. Nothing but whole numbers is kept, and taking in a batch never waits for an accelerator; where
    targets are on one, a target that is no class fails in its kernels.

    Args:
        class_counts: int64 `(C,)` training images per class.
        num_experts: N.
        many_above, few_below, inclusive: the shot-group rule, see `mllt.longtail.shot_groups`.
        ensemble: how the experts are averaged, see `mllt.metrics.ensemble_logits`.
        compensations: the names of the compensated kinds of rows, K of them.
    """

    class_counts: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        num_experts: int,
        many_above: int = 100,
        few_below: int = 20,
        inclusive: bool = False,
        ensemble: str = "logits",
        compensations: Sequence[str] = KINDS[1:],
    ) -> None:
        super().__init__()
        self.rule: dict[str, Any] = {"many_above": many_above, "few_below": few_below, "inclusive": inclusive}
        self.ensemble = check_choice("ensemble", ensemble, ENSEMBLES)
        self.kinds = (KINDS[0], *compensations)
        if len(set(self.kinds)) < len(self.kinds):
            raise ArgumentError(f"Expected names of compensations that differ, and none to be 'raw', but got {compensations}.")
        shot_groups(class_counts, **self.rule)  # refuse bad thresholds now, not after a test
        self.tallies = Tallies(len(self.kinds), num_experts + 1, class_counts.numel())
        self.register_buffer("class_counts", class_counts, persistent=False)

    def update(
        self,
        logits: Tensor,
        targets: Tensor,
        offset: Tensor,
        weights: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            logits: raw, `(N, B, C)`, float32 or more.
            targets: int64 `(B,)`.
            offset: `(C,)`, or `(K, C)` of K compensations: what they add to logits.
            weights: of the experts in the ensemble, see `ensemble_logits`.
            counted: bool, `()` or `(B,)`: the images that count; None: all.
        """
        if targets.device.type == "cpu":
            check_labels("targets", targets, self.class_counts.numel())
        if weights is not None:
            weights = weights.broadcast_to(logits.shape)
        offsets = (torch.zeros_like(offset.view(-1, len(self.class_counts))[0]), *offset.view(-1, len(self.class_counts)))
        blocks = [
            self._judge(logits[:, rows], targets[rows], offsets, None if weights is None else weights[:, rows])
            for rows in blocks_of_images(logits)
        ]
        if blocks:
            right, confidence = (torch.cat(parts, dim=-1) for parts in zip(*blocks, strict=True))
            self.tallies.update(
                right, confidence, targets, targets.new_ones((), dtype=torch.bool) if counted is None else counted
            )

    def _judge(
        self, logits: Tensor, targets: Tensor, offsets: Sequence[Tensor], weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Of every kind and predictor, whether it is right about each image, and how sure: `(1 + K, N + 1, b)`."""
        judged = []
        rows = logits.new_empty(len(logits) + 1, *logits.shape[1:])
        for offset in offsets:
            torch.add(logits, offset, out=rows[:-1])
            rows[-1] = ensemble_logits(logits, self.ensemble, weights, offset)
            judged.append(judge(rows, targets))
        right, confidence = zip(*judged, strict=True)
        return torch.stack(right), torch.stack(confidence)

    def compute(self) -> dict[str, Any]:
        """The table, over all devices.

        Returns:
            {"ensemble": {"raw": row, "compensated": row}, "experts": [{"raw": row, "compensated": row}, ...],
            "per_class": {"raw": [...], "compensated": [...]}, "reliability": {"raw": bins, "compensated": bins}}

            with row = {"many", "medium", "few", "all", "micro", "ece"}, in percent; None where a group or class has no
            images. "many" .. "all" are means over classes, "micro" is the plain share of images; "per_class" and
            "reliability" are the ensemble's, bins = {"count", "accuracy", "confidence"}: lists over bins of confidence of
            equal width. In place of "compensated", the names of the compensations.
        """
        tallies = {name: tally.cpu() for name, tally in self.tallies.compute().items()}
        counts, total = self.class_counts.cpu(), tallies["total"].view(-1)  # torchmetrics gives a number for a single class
        rows: dict[str, list[dict[str, float | None]]] = {}
        per_class, reliability = {}, {}
        for place, kind in enumerate(self.kinds):
            correct, bins = tallies["correct"][place], tallies["bins"][:, place]
            accuracy = shot_accuracy(correct, total, counts, **self.rule)
            micro = shot_accuracy(correct, total, counts, average="micro", **self.rule)["all"]
            columns = {**{group: accuracy[group] for group in GROUPS}, "micro": micro, "ece": error_of_bins(*bins)}
            rows[kind] = [{name: percent(column[row]) for name, column in columns.items()} for row in range(len(micro))]
            per_class[kind] = [percent(value) for value in accuracy["per_class"][-1].tolist()]
            reliability[kind] = _plain_bins(diagram_of_bins(*bins[:, -1]))
        predictors = [{kind: rows[kind][row] for kind in self.kinds} for row in range(len(rows["raw"]))]
        table = {"ensemble": predictors[-1], "experts": predictors[:-1]}
        return {**table, "per_class": per_class, "reliability": reliability}

    def reset(self) -> None:
        """Forget everything taken in."""
        self.tallies.reset()


class Tallies(Metric):
    """The whole numbers that a table is computed from, summed over devices.

    States, int64: `correct` `(K, P, C)`, right answers per class of every kind and predictor; `total` `(C,)`, images; and
    `bins` `(3, K, P, M)`, of `mllt.metrics.calibration.fill_bins`.
    """

    full_state_update = False
    correct: Tensor
    total: Tensor
    bins: Tensor

    def __init__(self, kinds: int, predictors: int, classes: int) -> None:
        super().__init__()
        shapes = {"correct": (kinds, predictors, classes), "total": (classes,), "bins": (3, kinds, predictors, NUM_BINS)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, right: Tensor, confidence: Tensor, targets: Tensor, counted: Tensor) -> None:
        """Take in what `judge` says of a batch, `(K, P, B)` each; `counted` as of `Evaluation.update`."""
        filled = fill_bins(right.flatten(0, 1), confidence.flatten(0, 1), NUM_BINS, counted)
        # Not in place: a state that was reset in inference mode could not be written to outside of it.
        self.bins = self.bins + filled.view_as(self.bins)
        self.correct = self.correct.index_add(2, targets, (right & counted).long())
        self.total = self.total.index_add(0, targets, counted.long().expand(len(targets)))

    def compute(self) -> dict[str, Tensor]:
        return {"correct": self.correct, "total": self.total, "bins": self.bins}


def _plain_bins(bins: dict[str, Tensor]) -> dict[str, list[Any]]:
    """The ensemble's bars, in percent."""
    shares = {name: [percent(value) for value in bins[name].tolist()] for name in ("accuracy", "confidence")}
    return {"count": bins["count"].tolist(), **shares}


def percent(fraction: Tensor | float) -> float | None:
    """A fraction as percent; None (n/a) for NaN.

    >>> percent(0.25), percent(float("nan"))
    (25.0, None)
    """
    value = float(fraction)
    return None if math.isnan(value) else 100 * value
