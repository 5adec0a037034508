"""ACE's losses: experts that each own some of the classes, and are held still on the others.

Cai et al., "ACE: Ally Complementary Experts for Solving Long-Tailed Recognition in One-Shot", ICCV 2021. Its code is not
public, and what is written of it leaves the averages open: how they are taken here says each function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mllt.errors import ArgumentError, check_choice
from mllt.longtail import as_tensor
from mllt.losses.checks import check_logits, check_seen

COMPLEMENTS = ("classes", "samples")


def owned_cross_entropy(logits: Tensor, target: Tensor, owned: Tensor, class_counts: Tensor) -> Tensor:
    """Cross entropy of every expert on the images of the classes that it owns, 0 on the others; summed over experts.

    sum_k 1 / (B s_k) sum_{b: y_b in T_k} -log softmax(z_k,b)[y_b], with T_k the classes of expert k and s_k their share of the
    training images: an average over as many images as a batch of B holds of them in the mean. (Over those that it happens to
    hold, the loss would change with how a batch is cut into shares for several devices.)

    Args:
        logits: `(N, B, C)`, or `(B, C)` for one expert; floating.
        target: `(B,)` whole numbers in 0 .. C-1.
        owned: bool `(N, C)`, or `(C,)` for one expert: T_k; no expert without training images.
        class_counts: `(C,)` training images per class.

    Returns:
        Scalar; float32 for half precision; 0 for an empty batch.

    Raises:
        ArgumentError: shapes do not fit, an expert owns no class with training images (seen on the CPU only), or a target's
            class has none.

    >>> import torch
    >>> owned, counts = torch.tensor([[True, True], [False, True]]), torch.tensor([3, 1])
    >>> once = owned_cross_entropy(torch.zeros(2, 4, 2), torch.tensor([0, 0, 0, 1]), owned, counts)
    >>> bool(once.isclose(2 * torch.tensor(2.0).log()))  # log 2 of each expert: the second averages over one image
    True
    """
    logits, target = check_logits(logits, target)
    owned = _check_owned(owned, logits)
    experts, batch, classes = logits.shape
    counts = check_seen(class_counts, target, classes)
    images = (owned * counts.to(owned.device)).sum(dim=-1)
    if images.device.type == "cpu" and not bool((images > 0).all()):  # elsewhere, every step would wait for the answer
        raise ArgumentError(
            "Expected every expert to own a class with training images, but those of numbers "
            f"{(images == 0).nonzero().flatten().tolist()} do not. Give them other classes, or leave them out."
        )
    each = F.cross_entropy(logits.reshape(-1, classes), target.repeat(experts), reduction="none").reshape(experts, batch)
    share = images.to(logits) / counts.sum().to(logits)
    return (each * owned[:, target]).sum(dim=-1).div(share).sum() / max(batch, 1)


def complement_loss(logits: Tensor, target: Tensor, owned: Tensor, complement: str = "classes") -> Tensor:
    """Squares of the logits that an expert should keep at 0; summed over experts, averaged over classes and the batch.

    - "classes": of the classes that it does not own, of every image:
      sum_k 1 / (B C) sum_b sum_{c not in T_k} z_k,b,c^2 (Cai et al., 2021: the L2 norm of interfering classes is suppressed);
    - "samples": of all classes, of images whose class it does not own, and only where the batch holds an image whose class it
      owns: sum_k [some y_b in T_k] 1 / (B C) sum_{b: y_b not in T_k} |z_k,b|^2 (as in Alps, which segments images). Whether
      there is one is asked of the batch at hand: of a device's share of it, on several.

    An expert of all classes costs nothing. The average over classes keeps a learning rate that suits the cross entropy; with
    their sum, a hundred classes at a rate of 0.1 drive the features of an expert to zero, or apart, within a few steps.

    Args:
        logits: `(N, B, C)`, or `(B, C)` for one expert; floating.
        target: `(B,)` whole numbers in 0 .. C-1.
        owned: bool `(N, C)`, or `(C,)` for one expert: T_k.
        complement: one of `COMPLEMENTS`.

    Returns:
        Scalar; float32 for half precision; 0 for an empty batch.

    Raises:
        ArgumentError: shapes do not fit, a target is out of range, or an unknown `complement`.

    >>> import torch
    >>> logits, owned = torch.tensor([[3.0, 1.0], [2.0, 5.0]]), torch.tensor([False, True])
    >>> complement_loss(logits, torch.tensor([0, 1]), owned)  # (9 + 4) / (2 * 2)
    tensor(3.2500)
    >>> complement_loss(logits, torch.tensor([0, 1]), owned, "samples")  # (9 + 1) / (2 * 2)
    tensor(2.5000)
    """
    check_choice("complement", complement, COMPLEMENTS)
    logits, target = check_logits(logits, target)
    owned = _check_owned(owned, logits)
    check_seen(torch.ones(logits.shape[-1], dtype=torch.int64), target, logits.shape[-1])
    if complement == "classes":
        kept_still = ~owned[:, None, :]
    else:
        own = owned[:, target]  # (N, B)
        kept_still = (~own & own.any(dim=1, keepdim=True))[:, :, None]
    return (logits.square() * kept_still).sum() / max(logits[0].numel(), 1)


def _check_owned(owned: Tensor, logits: Tensor) -> Tensor:
    """Which classes each expert owns, bool `(N, C)`, on the device of the logits `(N, B, C)`."""
    owned = as_tensor("owned", owned)
    owned = owned.unsqueeze(0) if owned.ndim == 1 else owned
    experts, _, classes = logits.shape
    if owned.shape != (experts, classes) or owned.dtype != torch.bool:
        raise ArgumentError(
            f"Expected `owned` to be true or false and of shape ({experts}, {classes}), experts by classes, but got "
            f"{tuple(owned.shape)} of {owned.dtype}."
        )
    return owned.to(logits.device)
