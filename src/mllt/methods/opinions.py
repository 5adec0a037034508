"""What a model says of images, expert by expert."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mllt.metrics import expert_disagreement


class Opinions(NamedTuple):
    """Class probabilities of B images by N experts and their ensemble; see `LongTailedModule.opinions`.

    Args:
        experts: of each expert, compensated to the test prior, `(N, B, C)`.
        ensemble: of all together, compensated, `(B, C)`: what `LongTailedModule.probabilities` gives.
        raw_experts: of each expert as trained, `(N, B, C)`.
        raw_ensemble: of all together as trained, `(B, C)`.
    """

    experts: Tensor
    ensemble: Tensor
    raw_experts: Tensor
    raw_ensemble: Tensor

    @property
    def disagreement(self) -> Tensor:
        """How far the compensated experts are from agreeing, `(B,)` in 0 .. 1; see `mllt.metrics.expert_disagreement`."""
        return expert_disagreement(self.experts)
