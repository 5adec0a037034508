"""LDAM-DRW: margins that grow with rarity, and class weights in the last part of the run.

Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019. The true class's cosine
gives up a margin m_c ~ n_c^(-1/4) before softmax (LDAM); from the first drop of the learning rate on, classes are weighted by
their effective number (deferred re-weighting, DRW).

As released: a cosine head of scale 30, largest margin 0.5, beta 0.9999. Re-weighting begins after 160 of 200 epochs; that
is a share of the run here (`reweight_from=0.8`). The weighted mean is over the batch of the one device; where a batch is cut up
for several devices or accumulated steps, over each of its shares here. The raw logits are what is reported: they are
compensated for a test prior other than uniform only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mllt.errors import check_number
from mllt.losses import drw_weights, ldam_loss
from mllt.methods.base import LongTailedModule


class LDAMDRWModule(LongTailedModule):
    """LDAM loss with deferred re-weighting; one expert by default.

    Args:
        head: "cosine", which the margins are made for, or "linear".
        scale: of the cosine head, by which margins are scaled, too; for a linear head they are taken as they are.
        max_margin: of the rarest class, in units of the cosine, at least 0.
        beta: of the effective number, in [0, 1).
        reweight_from: share of the run after which classes are weighted, in 0 .. 1; 1: never.
        common: see `LongTailedModule`.

    Raises:
        ArgumentError: a value is out of range, or values do not fit each other.

    >>> import torch
    >>> module = LDAMDRWModule(class_counts=[30, 10, 2], network="resnet20")
    >>> module.network.heads[0].scale
    30.0
    """

    method = "ldam_drw"
    fitted_prior = "uniform"

    def __init__(
        self,
        *,
        head: str = "cosine",
        scale: float | None = None,
        max_margin: float = 0.5,
        beta: float = 0.9999,
        reweight_from: float = 0.8,
        **common: Any,
    ) -> None:
        super().__init__(head=head, scale=scale, **common)
        self.remember(
            max_margin=check_number("max_margin", max_margin, 0),
            beta=check_number("beta", beta, 0, below=1),
            reweight_from=check_number("reweight_from", reweight_from, 0, 1),
        )

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        hp = self.hparams
        weight = drw_weights(self.class_counts, hp["beta"]) if self.progress() >= hp["reweight_from"] else None
        scale = getattr(self.network.heads[0], "scale", 1.0)
        return {"ldam": ldam_loss(logits, targets, self.class_counts, hp["max_margin"], scale, weight)}
