"""Classifier heads: from features `(B, D)` to logits `(B, C)`.

Two kinds, by name: "linear" (`LinearHead`, the ordinary one) and "cosine" (`CosineHead`, the "NormedLinear" of LDAM-DRW
and RIDE). Both carry `in_features` (D) and `out_features` (C), as `nn.Linear` does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllt.errors import ArgumentError, check_choice, check_integer, check_number

HEADS = ("linear", "cosine")
DEFAULT_SCALE = 30.0


class LinearHead(nn.Linear):
    """z = W x + b, with PyTorch's default initialisation; `weight` `(C, D)`, `bias` `(C,)`.

    >>> LinearHead(64, 10)(torch.zeros(2, 64)).shape
    torch.Size([2, 10])
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        check_integer("in_features", in_features, 1)
        check_integer("num_classes", num_classes, 1)
        super().__init__(in_features, num_classes)


class CosineHead(nn.Module):
    """z_c = scale * <x / |x|, w_c / |w_c|>: the cosine between feature and class weight, without a bias.

    The "NormedLinear" of Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss" (NeurIPS
    2019) and Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts" (RIDE, ICLR 2021),
    which use scale 30. The logits are the scaled ones, so `longtail.compensate` applies to them as they are. A feature
    of all zeros has logits 0.

    Args:
        in_features: D, at least 1.
        num_classes: C, at least 1.
        scale: the s above; positive.

    Raises:
        ArgumentError: when an argument is out of range.

    >>> head = CosineHead(2, 2)
    >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    >>> head(torch.tensor([[0.0, 7.0]]))
    tensor([[ 0., 30.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, in_features: int, num_classes: int, scale: float = DEFAULT_SCALE) -> None:
        super().__init__()
        self.in_features = check_integer("in_features", in_features, 1)
        self.out_features = check_integer("num_classes", num_classes, 1)
        self.scale = check_number("scale", scale, above=0)
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rows drawn from uniform(-1, 1), then brought to unit norm (LDAM-DRW, RIDE)."""
        with torch.no_grad():
            self.weight.uniform_(-1, 1)
            self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, D)` -> logits `(B, C)`."""
        return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1)) * self.scale

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale:g}"


def make_head(kind: str, in_features: int, num_classes: int, scale: float | None = None) -> LinearHead | CosineHead:
    """The head of that kind.

    Args:
        kind: "linear" or "cosine".
        in_features: D, at least 1.
        num_classes: C, at least 1.
        scale: scale of a cosine head, positive; None is 30. A linear head has none.

    Raises:
        ArgumentError: an unknown kind, a scale for a linear head, or a number out of range.

    >>> make_head("cosine", 64, 10)
    CosineHead(in_features=64, out_features=10, scale=30)
    """
    check_choice("head", kind, HEADS)
    if kind == "cosine":
        return CosineHead(in_features, num_classes, DEFAULT_SCALE if scale is None else scale)
    if scale is not None:
        raise ArgumentError(f"A linear head has no scale, but got scale={scale!r}: leave `scale` out, or set head='cosine'.")
    return LinearHead(in_features, num_classes)
