"""Label-aware smoothing: frequent classes are smoothed more."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mllt.errors import ArgumentError, check_choice, check_number
from mllt.losses.checks import check_logits, check_seen

SMOOTHINGS = ("concave", "linear", "convex", "exp")


def label_aware_smoothing_loss(
    logits: Tensor,
    target: Tensor,
    class_counts: Tensor,
    smooth_head: float,
    smooth_tail: float,
    shape: str = "concave",
    power: float | None = None,
) -> Tensor:
    r"""Cross entropy with labels that are smoothed by the frequency of their class.

    L = (1 - eps_y) (-log p_y) + eps_y mean_c (-log p_c), with r = (n_y - n_min) / (n_max - n_min) and

    - "concave": eps_y = eps_tail + (eps_head - eps_tail) sin(pi r / 2);
    - "linear": eps_tail + (eps_head - eps_tail) r;
    - "convex": eps_head + (eps_head - eps_tail) sin(3 pi / 2 + pi r / 2), which runs from eps_tail to eps_head, too;
    - "exp": eps_tail + (eps_head - eps_tail) r^power.

    (Zhong et al., "Improving Calibration for Long-Tailed Recognition" (MiSLAS), CVPR 2021, section 3.3.) The mean includes
    the true class, as in the released code and unlike the paper's text.

    Args:
        logits: `(B, C)`, or `(N, B, C)` for N experts, whose losses are summed; floating.
        target: `(B,)` whole numbers in 0 .. C-1.
        class_counts: `(C,)` training images per class; where all are alike, r is 1.
        smooth_head, smooth_tail: eps of the largest and of the smallest class, in [0, 1].
        shape: "concave", "linear", "convex" or "exp".
        power: of "exp", and only there: above 0.

    Returns:
        Scalar, a mean over the batch; float32 for half precision; 0 for an empty batch.

    Raises:
        ArgumentError: shapes do not fit, a number is out of range, or a target's class has no training image.

    >>> import torch
    >>> loss = label_aware_smoothing_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.tensor([9, 1]), 0.4, 0.1)
    >>> round(float(loss), 4)  # 0.6 * 0.1269 + 0.4 * (0.1269 + 2.1269) / 2
    0.5269
    """
    check_number("smooth_head", smooth_head, 0, 1)
    check_number("smooth_tail", smooth_tail, 0, 1)
    check_smoothing(shape, power)
    logits, target = check_logits(logits, target)
    counts = check_seen(class_counts, target, logits.shape[-1]).double()
    smallest = counts[counts > 0].min()
    rank = (counts - smallest) / (counts.max() - smallest) if bool(counts.max() > smallest) else torch.ones_like(counts)
    if shape == "concave":
        rise = (rank * math.pi / 2).sin()
    elif shape == "convex":
        rise = 1 + (1.5 * math.pi + rank * math.pi / 2).sin()
    else:
        rise = rank if power is None else rank**power
    eps = (smooth_tail + (smooth_head - smooth_tail) * rise).to(logits)[target]
    loss = -logits.log_softmax(dim=-1)
    own = loss.gather(-1, target.expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)
    return ((1 - eps) * own + eps * loss.mean(dim=-1)).sum() / max(len(target), 1)


def check_smoothing(shape: str, power: float | None, names: tuple[str, str] = ("shape", "power")) -> None:
    """Raise `ArgumentError` for an unknown shape, and for a power where there is none or none where there must be one.

    `names` are those of the two arguments, for the error.
    """
    check_choice(names[0], shape, SMOOTHINGS)
    if shape == "exp":
        check_number(names[1], power, above=0)
    elif power is not None:
        raise ArgumentError(
            f"Expected `{names[1]}` with {names[0]}='exp' only, but got {names[0]}={shape!r} and {names[1]}={power!r}. "
            f"Leave it out, or set {names[0]}='exp'."
        )
