"""Balanced softmax: the class prior goes into the training loss, so that the raw logits are free of it.

L = -log softmax(z + log pi)_y (Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020; also
logit adjustment, Menon et al., ICLR 2021). The released code adds a meta-learned sampler and, on CIFAR, AutoAugment and
Cutout; this is the loss alone, as in the tables of LADE and DiVE. At test the raw logits predict for a uniform prior.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mllt.losses import balanced_softmax_loss
from mllt.methods.base import LongTailedModule


class BalancedSoftmaxModule(LongTailedModule):
    """Experts that each minimise balanced softmax; one expert by default.

    Args:
        common: see `LongTailedModule`.

    >>> module = BalancedSoftmaxModule(class_counts=[30, 10, 2], network="resnet20")
    >>> module.compensation  # nothing is left to take out for a uniform test prior
    tensor([0., 0., 0.])
    """

    method = "balanced_softmax"
    fitted_prior = "uniform"

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"balanced_softmax": balanced_softmax_loss(logits, targets, self.class_counts)}
