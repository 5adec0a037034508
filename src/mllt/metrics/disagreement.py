"""How far experts are from agreeing on an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mllt.errors import ArgumentError


def expert_disagreement(probabilities: Tensor) -> Tensor:
    r"""The Jensen-Shannon divergence of the experts' predictions, as a share of the most that it can be.

    d = [H(mean_k p_k) - mean_k H(p_k)] / log N = mean_k KL(p_k || mean_j p_j) / log N: the disagreement of Lakshminarayanan et
    al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles" (NeurIPS 2017, section 3.5), brought to
    0 .. 1. 0: all say the same, be it certain or not; 1: each is certain, and each of another class.

    Args:
        probabilities: of N experts, floating `(N, B, C)`.

    Returns:
        `(B,)` in 0 .. 1; zeros for one expert, who has nobody to disagree with.

    Raises:
        ArgumentError: another shape, or no floating type.

    >>> expert_disagreement(torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]))
    tensor([1., 0.])
    """
    if probabilities.ndim != 3 or not probabilities.is_floating_point():
        raise ArgumentError(
            "Expected `probabilities` to be floating and of shape (experts, images, classes), but got "
            f"{tuple(probabilities.shape)} of {probabilities.dtype}."
        )
    experts = probabilities.shape[0]
    if experts == 1:
        return torch.zeros_like(probabilities[0, :, 0])
    together = torch.special.entr(probabilities.mean(dim=0)).sum(dim=-1)
    alone = torch.special.entr(probabilities).sum(dim=-1).mean(dim=0)
    return ((together - alone) / math.log(experts)).clamp(0, 1)
