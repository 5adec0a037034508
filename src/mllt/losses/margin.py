"""Margins by class frequency and deferred re-weighting: LDAM-DRW."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mllt.errors import check_number
from mllt.longtail import check_class_counts
from mllt.losses.checks import check_logits, check_seen
from mllt.losses.cross_entropy import expert_cross_entropy


def ldam_loss(
    logits: Tensor,
    target: Tensor,
    class_counts: Tensor,
    max_margin: float = 0.5,
    scale: float = 30.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Label-distribution-aware margin loss: cross entropy after the true class's logit gave up a margin.

    z_y <- z_y - scale * m_y with m_c = max_margin * n_c^(-1/4) / max_c n_c^(-1/4) (Cao et al., "Learning Imbalanced Datasets
    with Label-Distribution-Aware Margin Loss", NeurIPS 2019, eq. 13). The logits must be those of a cosine head that
    already carry its scale, as in the code of RIDE; LDAM-DRW's own code subtracts the margin first and scales then, which
    is the same.

    Args:
        logits: `(B, C)`, or `(N, B, C)` for N experts, whose losses are summed; floating.
        target: `(B,)` whole numbers in 0 .. C-1.
        class_counts: `(C,)` training images per class.
        max_margin: the margin of the rarest class, in units of the cosine, at least 0.
        scale: of the cosine head, above 0.
        weight: `(C,)` weights of the classes (`drw_weights`), none negative; None: all alike.

    Returns:
        Scalar, a (weighted) mean over the batch; float32 for half precision; 0 for an empty batch. The weighted mean is over
        the batch at hand: over each share of a batch that is cut up for several devices or accumulated steps, as in the
        released code over the batch of its one device.

    Raises:
        ArgumentError: shapes do not fit, a number is out of range, or a target's class has no training image.

    >>> import torch
    >>> logits, target, counts = torch.zeros(1, 2), torch.tensor([1]), torch.tensor([16, 1])
    >>> round(float(ldam_loss(logits, target, counts, max_margin=0.5, scale=2.0)), 4)  # log(1 + e^1)
    1.3133
    """
    check_number("max_margin", max_margin, 0)
    check_number("scale", scale, above=0)
    logits, target = check_logits(logits, target)
    counts = check_seen(class_counts, target, logits.shape[-1])
    margins = counts.clamp(min=1).double() ** -0.25
    margins = max_margin * margins / margins[counts > 0].max()
    shift = F.one_hot(target, logits.shape[-1]) * (scale * margins).to(logits)
    return expert_cross_entropy(logits - shift, target, weight)


def drw_weights(class_counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Class weights by the effective number of samples, for deferred re-weighting.

    w_c ~ (1 - beta) / (1 - beta^n_c), scaled to sum C (Cui et al., "Class-Balanced Loss Based on Effective Number of
    Samples", CVPR 2019, eq. 2; used from a late epoch on by LDAM-DRW and RIDE).

    Args:
        class_counts: `(C,)` training images per class; a class of none has weight 0.
        beta: in [0, 1); 0 weighs all classes alike.

    Returns:
        float64 `(C,)`.

    >>> import torch
    >>> drw_weights(torch.tensor([1000, 10]), beta=0.99).round(decimals=4)
    tensor([0.1746, 1.8254], dtype=torch.float64)
    """
    check_number("beta", beta, 0, below=1)
    counts = check_class_counts(class_counts)
    weights = ((1 - beta) / (1 - beta ** counts.clamp(min=1).double())) * (counts > 0)
    return weights * len(counts) / weights.sum()
