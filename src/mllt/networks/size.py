"""How large a network is and how much it computes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mllt.errors import ArgumentError, check_integer
from mllt.networks.heads import CosineHead


def count_parameters(module: nn.Module) -> int:
    """The number of parameters, trainable or not; one that is shared counts once.

    >>> count_parameters(nn.Linear(64, 10))
    650
    """
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(network: nn.Module, image_size: int | Sequence[int]) -> int:
    """Multiply-accumulates of the convolutions and linear layers (heads included) in the forward pass of one image.

    A shared trunk runs once and counts once. Additions of biases, norms, activations, pooling and the products inside
    attention do not count, as is customary for convolutional networks. Nothing is computed and the network stays as it
    is: a copy without data runs in its place.

    Args:
        network: takes images `(B, 3, H, W)`.
        image_size: H = W, or (H, W); at least 1.

    Raises:
        ArgumentError: when `image_size` is not one or two whole numbers of at least 1.

    >>> count_macs(nn.Conv2d(3, 16, 3, padding=1), 32)
    442368
    """
    height, width = _height_and_width(image_size)
    shadow = copy.deepcopy(network).to("meta").eval()  # `eval`, as batch norm does not train on a single pixel
    macs = 0

    def count(module: Any, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()  # one row of weights per output number

    for module in shadow.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, CosineHead)):
            module.register_forward_hook(count)
    dtype = next((parameter.dtype for parameter in shadow.parameters()), None)
    with torch.no_grad():
        shadow(torch.zeros(1, 3, height, width, dtype=dtype, device="meta"))
    return macs


def _height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    sides = list(image_size) if isinstance(image_size, Sequence) else [image_size, image_size]
    if len(sides) != 2:
        raise ArgumentError(f"Expected `image_size` to be one number or (height, width), but got {image_size!r}.")
    return check_integer("image_size", sides[0], 1), check_integer("image_size", sides[1], 1)
