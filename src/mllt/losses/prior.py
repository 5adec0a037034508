"""Losses that know the class prior: balanced softmax and LADE's regulariser."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from mllt.errors import check_number
from mllt.longtail import class_prior
from mllt.losses.checks import check_logits, check_seen
from mllt.losses.cross_entropy import expert_cross_entropy


def balanced_softmax_loss(logits: Tensor, target: Tensor, class_counts: Tensor) -> Tensor:
    """Cross entropy of logits that are shifted by the log prior: the raw logits then fit a uniform prior.

    L = -log softmax(z + log pi)_y, pi_c = n_c / sum n (Ren et al., "Balanced Meta-Softmax", NeurIPS 2020, eq. 4; also
    "logit adjustment", Menon et al., ICLR 2021, and LADE's prior-corrected cross entropy). At test time the raw logits
    predict for a uniform prior: they must not be compensated again.

    Args:
        logits: `(B, C)`, or `(N, B, C)` for N experts, whose losses are summed; floating.
        target: `(B,)` whole numbers in 0 .. C-1.
        class_counts: `(C,)` training images per class. A class of none is left out of the softmax.

    Returns:
        Scalar, a mean over the batch; float32 for half precision; 0 for an empty batch.

    Raises:
        ArgumentError: shapes do not fit, or a target's class has no training image.

    >>> import torch
    >>> round(float(balanced_softmax_loss(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([3, 1]))), 4)  # -log 1/4
    1.3863
    """
    logits, target = check_logits(logits, target)
    counts = check_seen(class_counts, target, logits.shape[-1])
    return expert_cross_entropy(logits + class_prior(counts).log().to(logits), target)


def lade_regularizer(logits: Tensor, target: Tensor, class_counts: Tensor, remine_lambda: float = 0.01) -> Tensor:
    r"""LADE's regulariser: a variational bound that draws the logits to the class-conditional density ratio.

    For the batch of B images, B_c of them of class c, and u_ic = z_ic - log pi_c - log C:

        A_c = 1/B_c sum_{i: y_i = c} z_ic        (0 where a batch misses the class)
        D_c = log 1/B sum_i exp(u_ic)
        L   = - sum_c pi_c (A_c - D_c - lambda D_c^2)

    The batch is the one at hand: each share of a batch that is cut up for several devices or accumulated steps, as in the
    released code the batch of its one device.

    (Hong et al., "Disentangling Label Distribution for Long-tailed Visual Recognition", CVPR 2021, section 3.3, with the
    regularised Donsker-Varadhan form, "ReMINE", of section 3.4; weights and the case of a missing class as in its
    released code.)

    Args:
        logits: `(B, C)`, or `(N, B, C)` for N experts, whose terms are summed; floating.
        target: `(B,)` whole numbers in 0 .. C-1.
        class_counts: `(C,)` training images per class; a class of none adds nothing.
        remine_lambda: lambda >= 0. It keeps the terms bounded; without it, large label sets fail.

    Returns:
        Scalar; float32 for half precision; 0 for an empty batch.

    Raises:
        ArgumentError: shapes do not fit, lambda is negative, or a target's class has no training image.

    >>> import torch
    >>> abs(round(float(lade_regularizer(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1, 1]), 0.0)), 4))
    0.0
    """
    check_number("remine_lambda", remine_lambda, 0)
    logits, target = check_logits(logits, target)
    counts = check_seen(class_counts, target, logits.shape[-1])
    if len(target) == 0:
        return logits.sum()  # 0, and can be stepped through; the mean over no image has no logarithm
    seen = counts.nonzero().squeeze(1)
    prior, seen = class_prior(counts)[seen].to(logits), seen.to(logits.device)
    own = F.one_hot(target, logits.shape[-1]).to(logits)[:, seen]  # (B, classes with images)
    logits = logits[..., seen]
    in_class = (logits * own).sum(dim=-2) / own.sum(dim=0).clamp(min=1)
    ratio = (logits - prior.log() - math.log(len(counts))).logsumexp(dim=-2) - math.log(len(target))
    bound = in_class - ratio - remine_lambda * ratio.square()
    return -(prior * bound).sum()
