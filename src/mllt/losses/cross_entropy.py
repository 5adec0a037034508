"""Cross entropy of several experts at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mllt.errors import ArgumentError
from mllt.longtail import as_tensor


def expert_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of every expert, summed over experts and averaged over the batch.

    sum_i mean_b -log softmax(z_i,b)[y_b]: each expert gets the gradient it would have alone.

    Args:
        logits: `(N, B, C)` floating; computed in float32 when half precision comes.
        target: `(B,)` whole numbers in 0 .. C-1.

    Returns:
        Scalar of `logits`' type (float32 for half precision).

    Raises:
        ArgumentError: shapes or types do not fit.

    >>> import torch
    >>> expert_cross_entropy(torch.zeros(3, 2, 4), torch.tensor([0, 1])) / 3  # log 4
    tensor(1.3863)
    """
    logits, target = as_tensor("logits", logits), as_tensor("target", target)
    if logits.ndim != 3 or target.shape != logits.shape[1:2]:
        raise ArgumentError(
            "Expected `logits` of shape (experts, batch, classes) and `target` of shape (batch,), but got "
            f"{tuple(logits.shape)} and {tuple(target.shape)}."
        )
    if not logits.is_floating_point() or target.dtype.is_floating_point or target.dtype == torch.bool:
        raise ArgumentError(
            f"Expected floating `logits` and whole numbers in `target`, but got {logits.dtype} and {target.dtype}."
        )
    experts, batch, classes = logits.shape
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    total = F.cross_entropy(logits.reshape(-1, classes), target.long().repeat(experts), reduction="sum")
    return total / max(batch, 1)
