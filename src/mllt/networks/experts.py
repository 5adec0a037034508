"""A network of several experts on a shared trunk.

The architecture of RIDE (Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts", ICLR
2021, section 3.1; official code `model/fb_resnets/`): the first stages are common to all experts, the later ones and the
classifier head are each expert's own. One expert is an ordinary network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mllt.errors import ArgumentError


class ExpertNetwork(nn.Module):
    """Shared `trunk`, then per expert a private part (`experts[k]`) and a classifier head (`heads[k]`).

    Logits are always `(experts, batch, classes)`, also with one expert. Under autocast the heads still compute in
    float32: half-precision logits would tie close calls, and the prior is added to them later.

    Args:
        trunk: images `(B, 3, H, W)` -> whatever the experts take; an empty `nn.Sequential` shares nothing.
        experts: N modules, trunk output -> features `(B, D)`. They must not change their input in place: it is common.
        heads: N modules, features `(B, D)` -> logits `(B, C)`, with the attributes `in_features` (D) and `out_features`
            (C), like `nn.Linear`.
        stage_names: the names of all stages, shared and private, in order. For information.

    Attributes:
        num_experts: N.
        num_classes: C.
        feature_dim: D.
        stage_names: as given.

    Raises:
        ArgumentError: when there is no expert, or experts and heads do not fit together.

    >>> flat = [nn.Flatten(), nn.Flatten()]
    >>> network = ExpertNetwork(nn.Conv2d(3, 4, 8), flat, [nn.Linear(4, 10), nn.Linear(4, 10)])
    >>> network(torch.zeros(5, 3, 8, 8)).shape
    torch.Size([2, 5, 10])
    """

    def __init__(
        self, trunk: nn.Module, experts: Iterable[nn.Module], heads: Iterable[nn.Module], stage_names: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.experts = nn.ModuleList(experts)
        self.heads = nn.ModuleList(heads)
        self.stage_names = tuple(stage_names)
        if not len(self.experts) or len(self.experts) != len(self.heads):
            raise ArgumentError(
                f"Expected one head per expert, at least one of each, but got {len(self.experts)} experts and "
                f"{len(self.heads)} heads."
            )
        sizes: list[Any] = [(head.in_features, head.out_features) for head in self.heads]
        if len(set(sizes)) != 1:
            raise ArgumentError(f"Expected all heads to be of one size (features, classes), but got {sizes}.")
        self.num_experts = len(self.experts)
        self.feature_dim: int = sizes[0][0]
        self.num_classes: int = sizes[0][1]

    def features(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` -> what the heads see, `(N, B, D)`."""
        shared = self.trunk(images)
        return torch.stack([expert(shared) for expert in self.experts])

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` -> raw logits `(N, B, C)`."""
        features = self.features(images)
        return torch.stack([self.classify(expert, features[expert]) for expert in range(self.num_experts)])

    def classify(self, expert: int, features: Tensor) -> Tensor:
        """Features `(B, D)` of an expert, 0 .. N-1 -> its raw logits `(B, C)`, computed in float32 under autocast."""
        head, device = self.heads[expert], features.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return head(features)
        with torch.autocast(device, enabled=False):
            return head(features.float())
