"""What every run is judged by: accuracy by shot group and calibration, raw and compensated, per expert and ensemble."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mllt.errors import check_choice
from mllt.longtail import SHOT_GROUPS
from mllt.metrics import ENSEMBLES, ExpectedCalibrationError, ShotAccuracy, ensemble_logits, shot_accuracy

KINDS = ("raw", "compensated")
GROUPS = (*SHOT_GROUPS, "all")


class Evaluation(nn.Module):
    """Accumulates logits of a split and tells the whole table.

    Args:
        class_counts: int64 `(C,)` training images per class.
        num_experts: N.
        many_above, few_below, inclusive: the shot-group rule, see `mllt.longtail.shot_groups`.
        ensemble: how the experts are averaged, see `mllt.metrics.ensemble_logits`.
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
    ) -> None:
        super().__init__()
        self.rule: dict[str, Any] = {"many_above": many_above, "few_below": few_below, "inclusive": inclusive}
        self.ensemble = check_choice("ensemble", ensemble, ENSEMBLES)
        shared: dict[str, Any] = {"num_experts": num_experts + 1, "ensemble": None}  # its row comes ready made
        self.accuracy = nn.ModuleDict({kind: ShotAccuracy(class_counts, **shared, **self.rule) for kind in KINDS})
        self.calibration = nn.ModuleDict({kind: ExpectedCalibrationError(**shared) for kind in KINDS})
        self.register_buffer("class_counts", class_counts, persistent=False)

    def update(self, logits: Tensor, targets: Tensor, offset: Tensor, weights: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            logits: raw, `(N, B, C)`.
            targets: int64 `(B,)`.
            offset: `(C,)`, what compensation adds to logits.
            weights: of the experts in the ensemble, see `ensemble_logits`.
        """
        for kind, added in (("raw", torch.zeros_like(offset)), ("compensated", offset)):
            together = ensemble_logits(logits, self.ensemble, weights, added)
            rows = torch.cat([logits + added, together.unsqueeze(0)])
            self.accuracy[kind].update(rows, targets)  # type: ignore[operator]
            self.calibration[kind].update(rows, targets)  # type: ignore[operator]

    def compute(self) -> dict[str, Any]:
        """The table, over all devices.

        Returns:
            {"ensemble": {"raw": row, "compensated": row}, "experts": [{"raw": row, "compensated": row}, ...],
            "per_class": {"raw": [...], "compensated": [...]}, "reliability": {"raw": bins, "compensated": bins}}

            with row = {"many", "medium", "few", "all", "micro", "ece"}, in percent; None where a group or class has no
            images. "many" .. "all" are means over classes, "micro" is the plain share of images; "per_class" and
            "reliability" are the ensemble's, bins = {"count", "accuracy", "confidence"}: lists over bins of confidence of
            equal width.
        """
        rows: dict[str, list[dict[str, float | None]]] = {}
        per_class, reliability = {}, {}
        for kind in KINDS:
            metric = self.accuracy[kind]
            accuracy = metric.compute()  # type: ignore[operator]
            micro = self._micro(metric)
            ece = self.calibration[kind].compute()  # type: ignore[operator]
            columns = {**{group: accuracy[group] for group in GROUPS}, "micro": micro, "ece": ece}
            rows[kind] = [{name: percent(column[row]) for name, column in columns.items()} for row in range(len(micro))]
            per_class[kind] = [percent(value) for value in accuracy["per_class"][-1]]
            reliability[kind] = self._ensembles_bins(self.calibration[kind])
        predictors = [{kind: rows[kind][row] for kind in KINDS} for row in range(len(rows["raw"]))]
        table = {"ensemble": predictors[-1], "experts": predictors[:-1]}
        return {**table, "per_class": per_class, "reliability": reliability}

    def _micro(self, metric: Any) -> Tensor:
        with metric.sync_context(should_sync=metric._to_sync):
            return shot_accuracy(metric.correct, metric.total, self.class_counts, average="micro", **self.rule)["all"]

    def _ensembles_bins(self, metric: Any) -> dict[str, list[Any]]:
        bins = {name: values[-1] for name, values in metric.diagram().items()}
        shares = {name: [percent(value) for value in bins[name]] for name in ("accuracy", "confidence")}
        return {"count": bins["count"].tolist(), **shares}

    def reset(self) -> None:
        """Forget everything taken in."""
        for metric in (*self.accuracy.values(), *self.calibration.values()):
            metric.reset()  # type: ignore[operator]


def percent(fraction: Tensor | float) -> float | None:
    """A fraction as percent; None (n/a) for NaN.

    >>> percent(0.25), percent(float("nan"))
    (25.0, None)
    """
    value = float(fraction)
    return None if math.isnan(value) else 100 * value
