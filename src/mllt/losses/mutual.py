"""Mutual distillation: experts learn from each other's predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from mllt.errors import ArgumentError, check_bool, check_choice, check_number
from mllt.longtail import as_tensor, check_class_counts, compensation_offset

MUTUAL_TARGETS = ("peers", "mean")


def mutual_distillation_loss(
    logits: Tensor,
    temperature: float = 1.0,
    *,
    target: str = "peers",
    class_counts: Tensor | None = None,
    detach: bool = True,
) -> Tensor:
    r"""How far the experts' predictions lie from each other's.

    With p_i = softmax(z_i / T):

    - `target="peers"`: sum over experts i of the mean over peers j != i of T^2 KL(p_j || p_i), the loss of deep mutual
      learning (Zhang et al., "Deep Mutual Learning", CVPR 2018, eq. 8; T = 1 there).
    - `target="mean"`: sum over i of T^2 KL(softmax(mean_j z_j / T) || p_i): each expert learns from the ensemble. (The
      mean of the peers' *probabilities* would give the same gradients as "peers".)

    averaged over the batch. T^2 keeps the gradient's size when T changes (Hinton et al., 2015).

    No pair is ever formed: the sum over ordered pairs equals N/(N-1) sum_j sum_c p_j,c (log p_j,c - mean_i log p_i,c),
    and the terms i = j that this adds are zero in value and in gradient, detached targets or not.

    Args:
        logits: `(N, B, C)` floating; computed in float32 when half precision comes.
        temperature: T > 0.
        target: "peers" or "mean".
        class_counts: `(C,)` training images per class: the probabilities are then the prior-balanced ones,
            softmax((z - log pi) / T), so that agreement on rare classes weighs as much as on frequent ones. None: raw.
        detach: whether targets are constants (no gradient flows into the teaching expert). It changes nothing for "mean":
            the mean of the logits minimises that divergence, so the gradient into it is zero.

    Returns:
        Scalar of `logits`' type (float32 for half precision), never negative but for rounding; exactly 0 for one expert.

    Raises:
        ArgumentError: logits of another shape, T not positive, or an unknown target.

    >>> import torch
    >>> logits = torch.tensor([[[0.0, 0.0]], [[0.0, 1.0986123]]])  # (1/2, 1/2) and (1/4, 3/4)
    >>> round(float(mutual_distillation_loss(logits)), 4)  # KL(p2 || p1) + KL(p1 || p2)
    0.2747
    """
    logits = as_tensor("logits", logits)
    if logits.ndim != 3 or not logits.is_floating_point():
        raise ArgumentError(
            "Expected `logits` to be floating and of shape (experts, batch, classes), but got "
            f"{tuple(logits.shape)} of {logits.dtype}."
        )
    check_number("temperature", temperature, above=0)
    check_choice("target", target, MUTUAL_TARGETS)
    check_bool("detach", detach)
    experts, batch, classes = logits.shape
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if experts == 1 or batch == 0:
        return logits.new_zeros(())
    if class_counts is not None:
        logits = logits + compensation_offset(check_class_counts(class_counts, classes)).to(logits)

    scaled = logits / temperature
    log_p = scaled.log_softmax(dim=-1)
    teacher = log_p if target == "peers" else scaled.mean(dim=0, keepdim=True).log_softmax(dim=-1)
    if detach:
        teacher = teacher.detach()
    divergence = teacher.exp() * (teacher - log_p.mean(dim=0))
    pairs = experts / (experts - 1) if target == "peers" else experts
    return divergence.sum() * (pairs * temperature**2 / batch)
