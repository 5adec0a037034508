"""RIDE's loss: LDAM per expert, and a term that drives the experts apart."""

from __future__ import annotations

from torch import Tensor

from mllt.errors import ArgumentError, check_bool, check_number
from mllt.longtail import as_tensor, class_prior
from mllt.losses.checks import check_logits, check_seen
from mllt.losses.margin import drw_weights, ldam_loss


def ride_loss(
    logits: Tensor,
    target: Tensor,
    class_counts: Tensor,
    diversity: float = -0.45,
    diversity_temperature: float = 1.0,
    reweight_factor: float = 0.05,
    reweight: bool = False,
    max_margin: float = 0.5,
    scale: float = 30.0,
) -> Tensor:
    r"""The loss of RIDE's first stage, summed over experts.

    For each expert k, with zbar the mean of the experts' logits (a constant) and pi the training prior:

        LDAM(z_k) + diversity * mean_c(T_c)^2 * KL(softmax(zbar / T) || softmax(z_k / T))

    T_c = T0, and once `reweight` is on T_c = T0 w_c with w_c = (C pi_c eta + 1 - eta) / max_c(...); LDAM is then weighted by
    `drw_weights`. (Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts", ICLR 2021, section
    3.2; the factor mean(T)^2 is of the released code and not in the paper. The code also trains the mean of the logits in
    place of the experts where `diversity` is 0: so does this.)

    Args:
        logits: `(N, B, C)`, of cosine heads, scale included; floating.
        target: `(B,)` whole numbers in 0 .. C-1.
        class_counts: `(C,)` training images per class.
        diversity: factor of the divergence; negative drives the experts apart. 0: the collaborative loss, N times LDAM of
            the mean logits.
        diversity_temperature: T0 > 0.
        reweight_factor: eta in [0, 1).
        reweight: whether the deferred re-weighting has begun.
        max_margin, scale: of LDAM.

    Returns:
        Scalar, a mean over the batch; float32 for half precision; 0 for an empty batch.

    Raises:
        ArgumentError: shapes do not fit, a number is out of range, or a target's class has no training image.

    >>> import torch
    >>> logits = torch.zeros(3, 2, 4)
    >>> alike = ride_loss(logits, torch.tensor([0, 1]), torch.tensor([8, 4, 2, 1]))
    >>> bool(alike == ldam_loss(logits, torch.tensor([0, 1]), torch.tensor([8, 4, 2, 1])))  # nothing to drive apart
    True
    """
    check_number("diversity", diversity)
    check_number("diversity_temperature", diversity_temperature, above=0)
    check_number("reweight_factor", reweight_factor, 0, below=1)  # at 1, a class of no image has temperature 0
    check_bool("reweight", reweight)
    logits = as_tensor("logits", logits)
    if logits.ndim != 3:
        raise ArgumentError(f"Expected `logits` of shape (experts, batch, classes), but got {tuple(logits.shape)}.")
    logits, target = check_logits(logits, target)
    counts = check_seen(class_counts, target, logits.shape[-1])
    weight = drw_weights(counts) if reweight else None
    mean = logits.mean(dim=0, keepdim=True)
    judged = mean.expand_as(logits) if diversity == 0 else logits
    base = ldam_loss(judged, target, counts, max_margin, scale, weight)
    if diversity == 0:
        return base
    temperature = diversity_temperatures(counts, diversity_temperature, reweight_factor if reweight else 0.0).to(logits)
    log_p = (logits / temperature).log_softmax(dim=-1)
    log_q = (mean.detach() / temperature).log_softmax(dim=-1)
    divergence = (log_q.exp() * (log_q - log_p)).sum() / max(len(target), 1)
    return base + diversity * temperature.mean() ** 2 * divergence


def diversity_temperatures(class_counts: Tensor, temperature: float, reweight_factor: float) -> Tensor:
    """T_c of the diversity term: T0 w_c, w_c = (C pi_c eta + 1 - eta) / max_c(C pi_c eta + 1 - eta), float64 `(C,)`.

    >>> import torch
    >>> diversity_temperatures(torch.tensor([3, 1]), 1.0, 0.5)
    tensor([1.0000, 0.6000], dtype=torch.float64)
    """
    weights = len(class_counts) * class_prior(class_counts) * reweight_factor + 1 - reweight_factor
    return temperature * weights / weights.max()
