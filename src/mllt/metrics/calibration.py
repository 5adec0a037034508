"""Expected calibration error, of every expert and of their ensemble in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mllt.errors import ArgumentError, check_choice, check_integer
from mllt.metrics.ensemble import ENSEMBLES
from mllt.metrics.shot_accuracy import check_logits, check_num_experts, count_predictors, judge, result_dtype

# Confidences are added up as whole multiples of 2^-32: integer sums come out the same in any order, float sums do not.
# A float32 confidence above 1/512 is such a multiple exactly; others move by at most 2^-33. Room for 2^31 images a bin.
UNIT = 2**32


def calibration_error(logits: Tensor, target: Tensor, num_bins: int = 15, ensemble: str = "logits") -> Tensor:
    r"""Expected calibration error: how far confidence is from accuracy, on average.

    ECE = sum_m |B_m| / n * |acc(B_m) - conf(B_m)|, where B_m are the images whose confidence, the softmax of the predicted
    class, lies in ((m-1)/M, m/M], m = 1..M (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2,
    "Expected Calibration Error").

    A confidence on an edge belongs to the bin below it, as in the paper; torchmetrics puts it in the bin above, and a
    confidence of 1 in a bin of its own. A row with a NaN in it counts as a mistake made with confidence 1.

    Args:
        logits: floating, `(B, C)`, or `(N, B, C)` for N experts. Logits, not probabilities.
        target: integer `(B,)`, in 0..C-1.
        num_bins: M, at least 1.
        ensemble: of N experts, see `ensemble_logits`.

    Returns:
        A fraction in 0..1: `()`, or for N experts `(N + 1,)`, the last being that of their ensemble. float64 (float32 on
        MPS). NaN when B = 0.

    Raises:
        ArgumentError: when shapes, types or labels do not fit.

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])  # "could be either": confidence 1/2, and one of two is right
    >>> calibration_error(logits, torch.tensor([0, 1]))
    tensor(0., dtype=torch.float64)
    >>> calibration_error(logits, torch.tensor([0, 0]))
    tensor(0.5000, dtype=torch.float64)
    """
    check_integer("num_bins", num_bins, 1)
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 3):
        shape = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ArgumentError(f"Expected `logits` to be of shape (B, C) or (N, B, C), but got {shape}.")
    num_experts = check_num_experts(None if logits.ndim == 2 else logits.shape[0])
    errors = error_of_bins(*_bins(*check_logits("logits", logits, target, num_experts, ensemble=ensemble), num_bins))
    return errors[0] if num_experts is None else errors


class ExpectedCalibrationError(Metric):
    """Expected calibration error, accumulated over batches and processes.

    The class around `calibration_error`, which has the formula and the rule for edges and NaN. `update` takes

    - `preds`: *logits*, floating, `(B, C)`, or `(N, B, C)` with `num_experts=N`; P = N + 1 predictors then, the last being
      the ensemble. B may be 0;
    - `target`: integer `(B,)`, in 0..C-1 (checked in every batch, which on a GPU waits for it once).

    States: `total`, `correct` and `confidence`, each `(P, M)` int64, summed over processes: per bin the images, the right
    answers, and the sum of confidences in units of 2^-32. From them a reliability diagram can be drawn, too.

    Args:
        num_bins: M.
        num_experts: N; None for a single predictor.
        ensemble: of the experts, see `ensemble_logits`; None: no row for it, P = N.
        kwargs: of `torchmetrics.Metric`.

    `compute` returns fractions in 0..1, `()`, or `(N + 1,)` with `num_experts`; NaN before any update.

    Raises:
        ArgumentError: on bad arguments, and from `update` when shapes, types or labels do not fit.

    >>> metric = ExpectedCalibrationError()
    >>> metric.update(torch.zeros(4, 2), torch.tensor([0, 1, 1, 1]))  # confidence 1/2, one of four is right
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    total: Tensor
    correct: Tensor
    confidence: Tensor

    def __init__(
        self, num_bins: int = 15, num_experts: int | None = None, ensemble: str | None = "logits", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.ensemble = None if ensemble is None else check_choice("ensemble", ensemble, ENSEMBLES)
        self.num_bins = check_integer("num_bins", num_bins, 1)
        self.num_experts = check_num_experts(num_experts)
        predictors = count_predictors(num_experts, self.ensemble)
        for name in ("total", "correct", "confidence"):
            self.add_state(name, torch.zeros(predictors, num_bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        logits, target = check_logits("preds", preds, target, self.num_experts, ensemble=self.ensemble)
        total, correct, confidence = _bins(logits, target, self.num_bins)
        self.total = self.total + total
        self.correct = self.correct + correct
        self.confidence = self.confidence + confidence

    def diagram(self) -> dict[str, Tensor]:
        """A reliability diagram's bars, over all processes.

        Returns:
            {"count": int64, "accuracy", "confidence": fractions, NaN in empty bins}, each `(P, M)`, bin m of ((m-1)/M, m/M].
        """
        with self.sync_context(should_sync=self._to_sync):
            return diagram_of_bins(self.total, self.correct, self.confidence)

    def compute(self) -> Tensor:
        errors = error_of_bins(self.total, self.correct, self.confidence)
        return errors[0] if self.num_experts is None else errors


def fill_bins(right: Tensor, confidence: Tensor, num_bins: int, counted: Tensor | None = None) -> Tensor:
    """Per bin: images, right answers, sum of confidences in `UNIT`s; int64 `(3, P, M)`.

    Args:
        right: bool `(P, B)`, whether each answer is right.
        confidence: `(P, B)`, of the answers.
        num_bins: M.
        counted: bool, `()` or `(B,)`: images that do; None: all.
    """
    predictors = len(right)
    # The inner edges, each the float next to k / M, so that a confidence of k / M as a float lies on the edge.
    edges = torch.arange(1, num_bins, dtype=confidence.dtype, device=confidence.device) / num_bins
    # Flat, so that one sum with a fixed result on every device fills all bins of all predictors.
    rows = torch.arange(predictors, device=confidence.device).unsqueeze(1)
    place = (rows * num_bins + torch.bucketize(confidence, edges)).flatten()
    values = torch.stack([torch.ones_like(right, dtype=torch.int64), right.long(), (confidence * UNIT).round().long()])
    values = values if counted is None else values * counted
    return values.new_zeros(3, predictors * num_bins).index_add(1, place, values.flatten(1)).view(3, predictors, num_bins)


def error_of_bins(total: Tensor, correct: Tensor, confidence: Tensor) -> Tensor:
    """ECE of each predictor `(P,)` from its bins `(P, M)`; in whole numbers up to the last division."""
    gap = (correct * UNIT - confidence).abs().sum(dim=-1)
    dtype = result_dtype(total.device)
    return gap.to(dtype) / UNIT / total.sum(dim=-1).to(dtype)


def diagram_of_bins(total: Tensor, correct: Tensor, confidence: Tensor) -> dict[str, Tensor]:
    """A reliability diagram's bars from bins `(P, M)`: {"count", "accuracy", "confidence"}."""
    images = total.to(result_dtype(total.device))
    return {"count": total, "accuracy": correct / images, "confidence": confidence / UNIT / images}


def _bins(logits: Tensor, target: Tensor, num_bins: int) -> Tensor:
    return fill_bins(*judge(logits, target), num_bins)
