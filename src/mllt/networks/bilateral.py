"""A network of two branches and one joint classifier, as of BBN.

Zhou et al., "BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed Visual Recognition", CVPR 2020, section
4.2: both branches share all but the last residual block, and one linear classifier reads the features of both. To the
outside it is a network of one expert, logits `(1, B, C)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mllt.errors import ArgumentError
from mllt.networks.experts import ExpertNetwork
from mllt.networks.heads import CosineHead, LinearHead


class Branches(nn.Module):
    """Two private parts on a common input, their features side by side.

    Args:
        conventional, rebalancing: `(B, ...)` -> features `(B, D)`. They must not change their input in place: it is common.
    """

    def __init__(self, conventional: nn.Module, rebalancing: nn.Module) -> None:
        super().__init__()
        self.conventional = conventional
        self.rebalancing = rebalancing

    def forward(self, shared: Tensor) -> Tensor:
        """Features `(B, 2 D)`."""
        return torch.cat([self.conventional(shared), self.rebalancing(shared)], dim=-1)


class BilateralNetwork(ExpertNetwork):
    """Shared `trunk`, two branches (`experts[0]`, a `Branches`) and one head on the features of both (`heads[0]`).

    It is an `ExpertNetwork` of one expert, so that whatever takes one takes it. On one image (`forward`) the branches' features
    are concatenated as they are; `mixed` is the forward pass of training.

    Args:
        trunk: images `(B, 3, H, W)` -> what the branches take.
        conventional, rebalancing: the trunk's output -> features `(B, D)`.
        head: features `(B, 2 D)` -> logits `(B, C)`.
        stage_names: the names of all stages, in order. For information.

    >>> flat = [nn.Flatten(), nn.Flatten()]
    >>> network = BilateralNetwork(nn.Conv2d(3, 4, 8), *flat, nn.Linear(8, 10))
    >>> network(torch.zeros(5, 3, 8, 8)).shape, network.mixed(torch.zeros(5, 3, 8, 8), torch.zeros(5, 3, 8, 8), 0.9).shape
    (torch.Size([1, 5, 10]), torch.Size([1, 5, 10]))
    """

    def __init__(
        self,
        trunk: nn.Module,
        conventional: nn.Module,
        rebalancing: nn.Module,
        head: nn.Module,
        stage_names: Iterable[str] = (),
    ) -> None:
        super().__init__(trunk, [Branches(conventional, rebalancing)], [head], stage_names)

    def mixed(self, images: Tensor, others: Tensor, alpha: float) -> Tensor:
        """Logits of 2 concat(alpha f_cb(images), (1 - alpha) f_rb(others)).

        Each batch goes through the trunk by itself, so that batch statistics are taken of either, not of both together. At
        alpha = 1/2 and equal images the features are those of `forward`.

        Args:
            images: `(B, 3, H, W)`, for the conventional branch.
            others: of the same shape, for the re-balancing branch.
            alpha: in 0 .. 1.

        Returns:
            `(1, B, C)`; float32 under autocast, as of `forward`.
        """
        branches: Any = self.experts[0]
        conventional = branches.conventional(self.trunk(images))
        rebalancing = branches.rebalancing(self.trunk(others))
        features = 2 * torch.cat([alpha * conventional, (1 - alpha) * rebalancing], dim=-1)
        return self.classify(0, features).unsqueeze(0)


def bilateral_network(make: Callable[[], ExpertNetwork]) -> BilateralNetwork:
    """A network of two branches: an ordinary one, the last block of its last stage there twice.

    A CIFAR ResNet-32 shares four blocks of stage 3, a ResNet-50 two bottlenecks of stage 4. Where timm does not make the last
    stage a plain sequence of blocks (ConvNeXt, Swin, RegNet; a ViT's last block is its last stage), that whole stage is there
    twice. Late norms and pooling belong to the branches. The joint head is of the kind of the network's own, and starts as
    PyTorch's layers do, as in the released code.

    Args:
        make: gives a new network of one expert, as `build_network` makes them. Called twice, so that each branch has initial
            weights of its own (pretrained ones are alike).

    Raises:
        ArgumentError: the network is not of one expert.

    >>> from mllt.networks import build_network
    >>> network = bilateral_network(lambda: build_network("resnet20", 10))
    >>> network.num_experts, network.feature_dim, len(network.trunk.stage3)
    (1, 128, 2)
    """
    first, second = make(), make()
    if first.num_experts != 1:
        raise ArgumentError(
            f"Expected `num_experts` to be 1, but got {first.num_experts}: two branches with a joint classifier are one "
            "predictor. Set num_experts=1 (on the command line network.num_experts=1)."
        )
    (trunk, conventional), (_, rebalancing) = _cut(first), _cut(second)
    width, classes, head = 2 * first.feature_dim, first.num_classes, first.heads[0]
    joint = CosineHead(width, classes, head.scale) if isinstance(head, CosineHead) else LinearHead(width, classes)
    return BilateralNetwork(trunk, conventional, rebalancing, joint, first.stage_names)


def _cut(network: ExpertNetwork) -> tuple[nn.Sequential, nn.Sequential]:
    """All of a single network up to its last block, and that block with what follows it."""
    parts: dict[str, Any] = {**dict(network.trunk.named_children()), **dict(network.experts[0].named_children())}
    last, pool = parts.pop(network.stage_names[-1]), parts.pop("pool")
    trunk = nn.Sequential()
    for stage, part in parts.items():
        trunk.add_module(stage, part)
    if isinstance(last, nn.Sequential) and len(last) > 1:
        trunk.add_module(network.stage_names[-1], last[:-1])
        last = last[-1]
    branch = nn.Sequential()
    branch.add_module("block", last)
    branch.add_module("pool", pool)
    return trunk, branch
