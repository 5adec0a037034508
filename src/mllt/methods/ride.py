"""RIDE: experts of reduced dimension that are driven apart.

Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts", ICLR 2021. Each expert minimises LDAM
with deferred re-weighting, and a diversity term pushes its predictions away from the mean of all (`mllt.losses.ride_loss`).

As released, where it differs from the paper: the factor mean(T)^2 on the diversity term; a diversity of 0 switches to LDAM of
the experts' mean. Diversity -0.45 and eta 0.05 on CIFAR100-LT; -0.2 with eta 0.02 on ImageNet-LT and 0.015 on iNaturalist 2018.
Re-weighting begins after 160 of 200 epochs (80 of 100 on the large sets): a share of the run here. The released recipe also
uses Nesterov momentum and, on CIFAR, rotations of 15 degrees (`optimizer.nesterov=true data.rotation=15`).

The first stage only: all experts answer for every image. Distillation from a larger RIDE and the routing of images to fewer
experts are not here yet.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mllt.errors import check_number
from mllt.losses import ride_loss
from mllt.methods.base import LongTailedModule


class RIDEModule(LongTailedModule):
    """RIDE's first stage for N experts.

    Args:
        num_experts: N.
        head: "cosine", which the margins are made for, or "linear".
        scale: of the cosine head, by which margins are scaled, too.
        diversity: factor of the divergence from the mean; negative drives the experts apart.
        diversity_temperature: T0 > 0 of that divergence.
        reweight_factor: eta in [0, 1), how far its temperature follows class frequency once classes are re-weighted.
        reweight_from: share of the run after which they are, in 0 .. 1; 1: never.
        max_margin: LDAM's, at least 0.
        common: see `LongTailedModule`.

    Raises:
        ArgumentError: a value is out of range, or values do not fit each other.

    >>> import torch
    >>> module = RIDEModule(class_counts=[30, 10, 2], network="resnet20")
    >>> module(torch.zeros(4, 3, 32, 32)).shape
    torch.Size([3, 4, 3])
    """

    method = "ride"
    fitted_prior = "uniform"

    def __init__(
        self,
        *,
        num_experts: int = 3,
        head: str = "cosine",
        scale: float | None = None,
        diversity: float = -0.45,
        diversity_temperature: float = 1.0,
        reweight_factor: float = 0.05,
        reweight_from: float = 0.8,
        max_margin: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(num_experts=num_experts, head=head, scale=scale, **common)
        self.remember(
            diversity=check_number("diversity", diversity),
            diversity_temperature=check_number("diversity_temperature", diversity_temperature, above=0),
            reweight_factor=check_number("reweight_factor", reweight_factor, 0, below=1),
            reweight_from=check_number("reweight_from", reweight_from, 0, 1),
            max_margin=check_number("max_margin", max_margin, 0),
        )

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        hp = self.hparams
        loss = ride_loss(
            logits,
            targets,
            self.class_counts,
            diversity=hp["diversity"],
            diversity_temperature=hp["diversity_temperature"],
            reweight_factor=hp["reweight_factor"],
            reweight=self.progress() >= hp["reweight_from"],
            max_margin=hp["max_margin"],
            scale=getattr(self.network.heads[0], "scale", 1.0),
        )
        return {"ride": loss}
