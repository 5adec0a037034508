"""RIDE's losses: LDAM per expert and a term that drives the experts apart; and that of the routing."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
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
        Scalar, a mean over the batch (once re-weighted, of LDAM the weighted one); float32 for half precision; 0 for an empty
        batch. The weighted mean is over the batch at hand: over each share of a batch that is cut up for several devices or
        accumulated steps, as in the released code over the batch of its one device.

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


def routing_loss(asks: Tensor, logits: Tensor, target: Tensor, positive_weight: float = 100.0) -> Tensor:
    r"""Learn when to ask one more expert: when those so far are wrong together and one more, or some more, would be right.

    With zbar_k the mean of the logits of experts 1 .. k, and h_k = [argmax zbar_k != y and argmax zbar_l = y for some l > k]:

        mean_k BCE(sigmoid(a_k), h_k), the h_k = 1 weighted by `positive_weight`,

    for k = 1 .. N-1 (Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts", ICLR 2021, section
    3.3; the mean over k and the weight as in the released code).

    Args:
        asks: `(N - 1, B)`, a_k: how strongly expert k + 1 is asked for after expert k, as a logit.
        logits: `(N, B, C)`, of the experts; constants.
        target: `(B,)` whole numbers in 0 .. C-1.
        positive_weight: above 0; high, since a further expert rarely helps.

    Returns:
        Scalar, a mean over the batch; float32 for half precision.

    Raises:
        ArgumentError: shapes do not fit, or a number is out of range.

    >>> import torch
    >>> logits = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])  # the second expert sets the first one right
    >>> round(float(routing_loss(torch.zeros(1, 1), logits, torch.tensor([1]), positive_weight=10.0)), 4)  # 10 log 2
    6.9315
    """
    check_number("positive_weight", positive_weight, above=0)
    asks, (logits, target) = as_tensor("asks", asks), check_logits(logits, target)
    experts, batch, _ = logits.shape
    if experts < 2 or asks.shape != (experts - 1, batch) or not asks.is_floating_point():
        raise ArgumentError(
            f"Expected `asks` of two or more experts, floating, of shape (experts - 1, batch), ({experts - 1}, {batch}) here, "
            f"but got {tuple(asks.shape)} of {asks.dtype}."
        )
    # Not by cumsum, which has no deterministic form on CUDA; a sum has the largest logit where the mean has it
    right = torch.stack(list(itertools.accumulate(logits.detach()))).argmax(dim=-1) == target
    later = torch.stack([right[k + 1 :].any(dim=0) for k in range(experts - 1)])
    helps = (~right[:-1] & later).to(logits)
    weight = logits.new_tensor(positive_weight)
    summed = F.binary_cross_entropy_with_logits(asks.to(logits), helps, pos_weight=weight, reduction="sum")
    return summed / max(asks.numel(), 1)


def diversity_temperatures(class_counts: Tensor, temperature: float, reweight_factor: float) -> Tensor:
    """T_c of the diversity term: T0 w_c, w_c = (C pi_c eta + 1 - eta) / max_c(C pi_c eta + 1 - eta), float64 `(C,)`.

    >>> import torch
    >>> diversity_temperatures(torch.tensor([3, 1]), 1.0, 0.5)
    tensor([1.0000, 0.6000], dtype=torch.float64)
    """
    weights = len(class_counts) * class_prior(class_counts) * reweight_factor + 1 - reweight_factor
    return temperature * weights / weights.max()
