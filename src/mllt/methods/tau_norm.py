"""tau-normalisation: after training, each class's weight vector is shortened by its own length to the power of tau.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020, section 4.1. Nothing is learned:
training is plain cross entropy, and the classifier is changed at inference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mllt.errors import ArgumentError, check_number
from mllt.losses import expert_cross_entropy
from mllt.methods.base import LongTailedModule


class TauNormModule(LongTailedModule):
    """z_c = <x, w_c> / |w_c|^tau at inference, without the bias; plain cross entropy in training.

    Args:
        tau: in 0 .. 1: 0 leaves the weights (but not the bias) as they are, 1 makes all of one length. The authors choose it on
            validation images; their choices lie between 0.5 and 1.
        common: see `LongTailedModule`; the head must be linear.

    Raises:
        ArgumentError: a value is out of range, or values do not fit each other.

    >>> TauNormModule(class_counts=[30, 10, 2], network="resnet20", tau=0.7).hparams["tau"]
    0.7
    """

    method = "tau_norm"
    fitted_prior = "uniform"
    reconstructed = ("tau = 0.7: its authors choose it on validation images, and the chosen values are not public.",)

    def __init__(self, *, tau: float = 0.7, head: str = "linear", **common: Any) -> None:
        if head != "linear":
            raise ArgumentError(f"tau-normalisation is of linear heads, but got head={head!r}. Set head='linear'.")
        super().__init__(head=head, **common)
        self.remember(tau=check_number("tau", tau, 0, 1))

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"cross_entropy": expert_cross_entropy(logits, targets)}

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return super().forward(images)
        features = self.network.features(images)
        weights = torch.stack([head.weight for head in self.network.heads])
        shortened = weights / weights.norm(dim=-1, keepdim=True).clamp(min=1e-12) ** self.hparams["tau"]
        with torch.autocast(features.device.type, enabled=False):  # as all heads, in float32
            return torch.einsum("nbd,ncd->nbc", features.to(shortened.dtype), shortened)
