"""What an ensemble of experts predicts."""

from __future__ import annotations

import math

from torch import Tensor

from mllt.errors import check_choice

ENSEMBLES = ("logits", "probabilities")


def ensemble_logits(logits: Tensor, ensemble: str = "logits") -> Tensor:
    """Logits of the experts' ensemble.

    Args:
        logits: floating `(N, B, C)`.
        ensemble: "logits", the mean of the experts' logits; or "probabilities", the logarithm of the mean of their
            probabilities (log mean_i softmax(z_i)), whose softmax is that mean.

    Returns:
        `(B, C)`.

    Raises:
        ArgumentError: an unknown kind of ensemble.

    >>> import torch
    >>> experts = torch.tensor([[[1.0, 0.0]], [[1.0, 3.0]]]).log()  # certain of class 0, and 3/4 for class 1
    >>> ensemble_logits(experts).softmax(-1), ensemble_logits(experts, "probabilities").softmax(-1)
    (tensor([[1., 0.]]), tensor([[0.6250, 0.3750]]))
    """
    if check_choice("ensemble", ensemble, ENSEMBLES) == "logits":
        return logits.mean(dim=0)
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(logits.shape[0])
