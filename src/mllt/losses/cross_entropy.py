"""Cross entropy of several experts at once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mllt.losses.checks import check_logits, check_weight

_NO_TARGET = -(2**62)


def expert_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross entropy of every expert, summed over experts and averaged over the batch.

    sum_i mean_b -log softmax(z_i,b)[y_b]: each expert gets the gradient it would have alone.

    Args:
        logits: `(N, B, C)`, or `(B, C)` for one expert; floating; computed in float32 when half precision comes.
        target: `(B,)` whole numbers in 0 .. C-1.
        weight: `(C,)` weights of the classes; the average over the batch is then the weighted one.

    Returns:
        Scalar of `logits`' type (float32 for half precision); 0 for an empty batch.

    Raises:
        ArgumentError: shapes or types do not fit.

    >>> import torch
    >>> expert_cross_entropy(torch.zeros(3, 2, 4), torch.tensor([0, 1])) / 3  # log 4
    tensor(1.3863)
    """
    logits, target = check_logits(logits, target)
    experts, batch, classes = logits.shape
    if weight is not None:
        weight = check_weight(weight, classes).to(logits)
    # torch's own default would leave out targets of -100 without a word
    total = F.cross_entropy(
        logits.reshape(-1, classes), target.repeat(experts), weight=weight, reduction="sum", ignore_index=_NO_TARGET
    )
    return total / (max(batch, 1) if weight is None else weight[target].sum().clamp(min=1e-12))
