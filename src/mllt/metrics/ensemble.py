"""What an ensemble of experts predicts."""

from __future__ import annotations

import math

from torch import Tensor

from mllt.errors import check_choice

ENSEMBLES = ("logits", "probabilities")


def ensemble_logits(
    logits: Tensor, ensemble: str = "logits", weights: Tensor | None = None, offset: Tensor | None = None
) -> Tensor:
    """Logits of the experts' ensemble.

    Args:
        logits: floating `(N, B, C)`.
        ensemble: "logits", the mean of the experts' logits; or "probabilities", the logarithm of the mean of their
            probabilities (log mean_i softmax(z_i)), whose softmax is that mean.
        weights: of the experts, not negative, broadcast to `(N, B, C)`, for a weighted sum in place of the mean; None: 1 / N.
        offset: `(C,)`, added to the logits (a compensation of the class prior): to their weighted sum, or to each expert's
            before their probabilities are taken.

    Returns:
        `(B, C)`.

    Raises:
        ArgumentError: an unknown kind of ensemble.

    >>> import torch
    >>> experts = torch.tensor([[[1.0, 0.0]], [[1.0, 3.0]]]).log()  # certain of class 0, and 3/4 for class 1
    >>> ensemble_logits(experts).softmax(-1), ensemble_logits(experts, "probabilities").softmax(-1)
    (tensor([[1., 0.]]), tensor([[0.6250, 0.3750]]))
    """
    added = 0.0 if offset is None else offset
    if check_choice("ensemble", ensemble, ENSEMBLES) == "logits":
        return (logits + added).mean(dim=0) if weights is None else (logits * weights).sum(dim=0) + added
    log_p = (logits + added).log_softmax(dim=-1)
    if weights is None:
        return log_p.logsumexp(dim=0) - math.log(logits.shape[0])
    return (log_p + weights.log()).logsumexp(dim=0)
