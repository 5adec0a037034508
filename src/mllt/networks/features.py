"""What a trained network makes of images on the way to its logits, to be looked at by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mllt.networks.experts import ExpertNetwork

TRUNK = "trunk"


def frozen_features(network: ExpertNetwork, images: Tensor) -> dict[str, Tensor]:
    """The features of each expert and of the shared trunk, in one forward pass without gradients.

    Args:
        network: in eval mode, or batch statistics are those of this batch.
        images: `(B, 3, H, W)`.

    Returns:
        float32 by name: "expert 1" .. "expert N" `(B, D)`, what the heads see; and "trunk" `(B, D')`, what the experts see,
        averaged over positions. A trunk that has learned nothing, since the experts share nothing, is left out.

    >>> network = ExpertNetwork(nn.Conv2d(3, 4, 8), [nn.Flatten(), nn.Flatten()], [nn.Linear(4, 10), nn.Linear(4, 10)])
    >>> {name: tuple(found.shape) for name, found in frozen_features(network, torch.zeros(5, 3, 8, 8)).items()}
    {'expert 1': (5, 4), 'expert 2': (5, 4), 'trunk': (5, 4)}
    """
    shared: list[Tensor] = []
    # Caught where it passes, so that a network of another forward pass (ACE's) is looked at as it is
    hook = network.trunk.register_forward_hook(lambda _module, _inputs, output: shared.append(output))
    try:
        with torch.no_grad():
            experts = network.features(images)
    finally:
        hook.remove()
    found = {f"expert {number}": features.float() for number, features in enumerate(experts, start=1)}
    if any(True for _ in network.trunk.parameters()):
        found[TRUNK] = over_positions(shared[0], channels_last=_is_channels_last(network.trunk)).float()
    return found


def over_positions(output: Tensor, *, channels_last: bool = False) -> Tensor:
    """The mean over all positions: `(B, C)` of maps `(B, C, H, W)`, of tokens `(B, T, C)`, or of `(B, C)` as it is.

    Args:
        output: of a stage.
        channels_last: whether its maps are `(B, H, W, C)`.

    >>> over_positions(torch.ones(2, 7, 3, 3)).shape, over_positions(torch.ones(2, 9, 7)).shape
    (torch.Size([2, 7]), torch.Size([2, 7]))
    """
    if output.ndim == 4 and not channels_last:
        return output.mean(dim=(2, 3))
    return output.flatten(1, -2).mean(dim=1) if output.ndim > 2 else output


def _is_channels_last(trunk: nn.Module) -> bool:
    """Whether timm says of its network that maps are `(B, H, W, C)`, as a Swin's are."""
    formats: list[Any] = [getattr(module, "output_fmt", "") for module in trunk.modules()]
    return any(str(getattr(each, "value", each)) == "NHWC" for each in formats)
