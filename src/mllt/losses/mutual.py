"""Mutual distillation: experts learn from each other's predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from mllt.errors import ArgumentError, check_bool, check_choice, check_number
from mllt.longtail import as_tensor
from mllt.losses.checks import balancing_offset, check_classes, check_logits, exact_type
from mllt.losses.cross_entropy import expert_cross_entropy
from mllt.losses.fused import MutualTerms

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
    and the terms i = j that this adds are zero in value and in gradient, detached targets or not. With s_i = z_i / T and s
    their mean, log p_i may be s_i here, since the logarithms of the sums cancel; and the gradient of z_i is T / B times

    - N/(N-1) (p_i - mean_j p_j) for "peers", and where they are not detached also N/(N-1) p_i (d_i - sum_c p_i,c d_i,c) with
      d_i = s_i - s;
    - p_i - softmax(s) for "mean", whose value is sum_i (log sum_c exp s_i,c - log sum_c exp s_c).

    So it is computed (`mllt.losses.fused`), outside of a compiler; it can be differentiated once, not twice.

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
    logits, offset = _check(logits, temperature, target, class_counts, detach=detach)
    if logits.shape[0] == 1 or logits.shape[1] == 0:
        return logits.new_zeros((), dtype=exact_type(logits.dtype))
    return _terms(logits, None, offset, temperature, target, detach)[1]


def mutual_learning_terms(
    logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    *,
    target: str = "peers",
    class_counts: Tensor | None = None,
    detach: bool = True,
) -> tuple[Tensor, Tensor]:
    """`expert_cross_entropy` and `mutual_distillation_loss` of the same logits, in one.

    Where both need the same softmax (temperature 1, raw probabilities) it is taken once, and kept once for the gradient. The
    results are those of the two functions to rounding. They can be differentiated once, not twice.

    Args:
        logits: `(N, B, C)` floating; computed in float32 when half precision comes.
        labels: `(B,)` whole numbers in 0 .. C-1.
        temperature, target, class_counts, detach: as of `mutual_distillation_loss`.

    Returns:
        Cross entropy and mutual distillation, scalars of `logits`' type (float32 for half precision).

    Raises:
        ArgumentError: as of the two functions, and a label that is no class. On an accelerator, where looking at labels would
            wait for it, such a label fails in its kernels.

    >>> import torch
    >>> logits = torch.tensor([[[0.0, 0.0]], [[0.0, 1.0986123]]])  # (1/2, 1/2) and (1/4, 3/4)
    >>> [round(float(term), 4) for term in mutual_learning_terms(logits, torch.tensor([0]))]  # log 2 + log 4
    [2.0794, 0.2747]
    """
    logits, offset = _check(logits, temperature, target, class_counts, detach=detach)
    labels = check_logits(logits, labels)[1]
    check_classes(labels, logits.shape[-1])
    if logits.shape[0] == 1 or logits.shape[1] == 0:
        return expert_cross_entropy(logits, labels), logits.new_zeros((), dtype=exact_type(logits.dtype))
    return _terms(logits, labels, offset, temperature, target, detach)


def _check(
    logits: Tensor, temperature: float, target: str, class_counts: Tensor | None, *, detach: bool
) -> tuple[Tensor, Tensor | None]:
    """Logits, and what is added to them before the softmax."""
    logits = as_tensor("logits", logits)
    if logits.ndim != 3 or not logits.is_floating_point():
        raise ArgumentError(
            "Expected `logits` to be floating and of shape (experts, batch, classes), but got "
            f"{tuple(logits.shape)} of {logits.dtype}."
        )
    check_number("temperature", temperature, above=0)
    check_choice("target", target, MUTUAL_TARGETS)
    check_bool("detach", detach)
    if class_counts is None or logits.shape[0] == 1 or logits.shape[1] == 0:
        return logits, None
    return logits, balancing_offset(class_counts, logits.shape[-1], logits.device, exact_type(logits.dtype))


def _terms(
    logits: Tensor, labels: Tensor | None, offset: Tensor | None, temperature: float, target: str, detach: bool
) -> tuple[Tensor, Tensor]:
    """Both terms; the first is 0 without labels."""
    if not torch.compiler.is_compiling():
        return MutualTerms.apply(logits, labels, offset, temperature, target, detach)
    logits = logits.to(exact_type(logits.dtype))  # a compiler makes its own blocks, out of the formula as it stands
    entropy = logits.new_zeros(()) if labels is None else expert_cross_entropy(logits, labels)
    scaled = (logits if offset is None else logits + offset) / temperature
    log_p = scaled.log_softmax(dim=-1)
    teacher = log_p if target == "peers" else scaled.mean(dim=0, keepdim=True).log_softmax(dim=-1)
    if detach:
        teacher = teacher.detach()
    divergence = teacher.exp() * (teacher - log_p.mean(dim=0))
    experts, batch, _ = logits.shape
    pairs = experts / (experts - 1) if target == "peers" else experts
    return entropy, divergence.sum() * (pairs * temperature**2 / batch)
