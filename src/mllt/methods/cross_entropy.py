"""Cross entropy, and PC softmax: the baselines of the paper's tables.

One network trained with plain cross entropy. Its raw row is "Cross Entropy", its compensated row "PC Softmax"
(post-compensated softmax; Hong et al., "Disentangling Label Distribution for Long-tailed Visual Recognition", CVPR
2021): the same weights, with the training prior taken out at inference.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mllt.losses import expert_cross_entropy
from mllt.methods.base import LongTailedModule


class CrossEntropyModule(LongTailedModule):
    """Experts that each minimise their own cross entropy; one expert by default.

    L = sum_i -log softmax(z_i)_y, instance-balanced sampling.

    Args:
        common: see `LongTailedModule`.

    >>> import torch
    >>> module = CrossEntropyModule(class_counts=[30, 10, 2], network="resnet20")
    >>> module(torch.zeros(4, 3, 32, 32)).shape
    torch.Size([1, 4, 3])
    """

    method = "cross_entropy"
    reported = "raw"

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"cross_entropy": expert_cross_entropy(logits, targets)}
