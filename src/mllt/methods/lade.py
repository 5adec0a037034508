"""LADE: balanced softmax, and a regulariser that makes the logits log density ratios.

Hong et al., "Disentangling Label Distribution for Long-tailed Visual Recognition", CVPR 2021:

    L = CE(z + log pi, y) + alpha * L_R

with L_R of `mllt.losses.lade_regularizer`, both on the same logits. Weights of the paper's table 7: alpha 0.1 and lambda 0.01
on CIFAR100-LT at imbalance 100 (0.01 and 0.01 at 50 and 10), 0.05 and 0.5 on ImageNet-LT and iNaturalist 2018, 0.005 and 0.1
on Places-LT. The released code's "ResNet-32" for CIFAR is a network of two branches and 128 features (BBN's); here it is the
plain one. L_R is of the batch of the one device; where a batch is cut up for several, or into accumulated steps, it is the mean
over its shares here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mllt.errors import check_number
from mllt.losses import balanced_softmax_loss, lade_regularizer
from mllt.methods.base import LongTailedModule


class LADEModule(LongTailedModule):
    """Balanced softmax with LADE's regulariser; one expert by default.

    Args:
        regularizer_weight: alpha >= 0.
        remine_lambda: lambda >= 0; on large label sets it is what keeps the regulariser from failing.
        common: see `LongTailedModule`.

    Raises:
        ArgumentError: a value is out of range, or values do not fit each other.

    >>> module = LADEModule(class_counts=[30, 10, 2], network="resnet20")
    >>> module.fitted_prior
    'uniform'
    """

    method = "lade"
    fitted_prior = "uniform"

    def __init__(self, *, regularizer_weight: float = 0.1, remine_lambda: float = 0.01, **common: Any) -> None:
        super().__init__(**common)
        self.remember(
            regularizer_weight=check_number("regularizer_weight", regularizer_weight, 0),
            remine_lambda=check_number("remine_lambda", remine_lambda, 0),
        )

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        hp = self.hparams
        regularizer = lade_regularizer(logits, targets, self.class_counts, hp["remine_lambda"])
        return {
            "balanced_softmax": balanced_softmax_loss(logits, targets, self.class_counts),
            "regularizer": hp["regularizer_weight"] * regularizer,
        }
