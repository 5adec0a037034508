"""LWS: learnable weight scaling; the classifier keeps its directions and learns how long each class's weight is.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020, section 4.1. Stages, shared with
the other decoupled methods: `mllt.methods.decoupling`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mllt.methods.decoupling import DecoupledModule


class LWSModule(DecoupledModule):
    """One scale per class and expert on the logits, learned on frozen features and heads, images drawn class by class.

    z_c <- s_c z_c, s_c = 1 at first. (Scaling the logits scales the bias with the weight, as MiSLAS does.)

    Args:
        head_epochs: of the second stage.
        head_lr: its first learning rate; None: that of the first stage.
        common: see `LongTailedModule`.

    >>> LWSModule(class_counts=[30, 10, 2], network="resnet20").scales.shape
    torch.Size([1, 1, 3])
    """

    method = "lws"

    def __init__(self, *, head_epochs: int = 10, head_lr: float | None = None, **common: Any) -> None:
        super().__init__(head_epochs=head_epochs, head_lr=head_lr, **common)
        self.scales = nn.Parameter(torch.ones(self.num_experts, 1, self.num_classes), requires_grad=False)

    def prepare_head(self) -> None:
        self.scales.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.scales
