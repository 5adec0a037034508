"""ResNets for CIFAR-sized images: ResNet-20, -32, -44 and -56.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2: a 3x3 stem and three stages of 16, 32
and 64 channels, each of n basic blocks (depth 6 n + 2), the shortcut free of parameters (option A). Kaiming-normal
initialisation of convolution and linear weights, as in LDAM-DRW and RIDE.

Experts share the stem and stage 1, as in RIDE; there, private stages are 3/4 as wide (24 and 48 channels).
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from mllt.networks.architecture import Architecture, Backbone, scale_channels

BLOCKS_PER_STAGE = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}
STAGE_NAMES = ("stem", "stage1", "stage2", "stage3")
CHANNELS = (16, 16, 32, 64)


def option_a_shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    """Every `stride`-th pixel, and zero channels on both sides up to `channels`: (out - in) // 2 before, the rest after.

    The usual padding by out // 4 is right only where a stage doubles the channels; 16 -> 24 -> 48 needs this form. Where
    a (narrow) stage has fewer channels than its input, the same numbers of outer channels are cut off instead.

    Args:
        x: `(B, C, H, W)`.
        channels: of the result.
        stride: at least 1.

    Returns:
        `(B, channels, ceil(H / stride), ceil(W / stride))`.
    """
    missing = channels - x.shape[1]
    before = missing // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, missing - before))


class BasicBlock(nn.Module):
    """conv - norm - relu - conv - norm, added to the shortcut, relu; images `(B, in, H, W)` -> `(B, channels, H', W')`."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.channels = channels
        self.stride = stride
        self.keeps_shape = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        # In place where nothing else needs what was there: fewer passes over memory, the same numbers
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x if self.keeps_shape else option_a_shortcut(x, self.channels, self.stride)
        return F.relu(out, inplace=True)


def architecture(name: str) -> Architecture:
    """The CIFAR ResNet of that name, one of `BLOCKS_PER_STAGE`."""
    return Architecture(
        stage_names=STAGE_NAMES,
        default_shared="stage1",
        build=partial(_build, BLOCKS_PER_STAGE[name]),
        initialise=_initialise,
    )


def _build(blocks: int, shared_stages: int, width: float) -> Backbone:
    stem, *channels = [
        channels if index < shared_stages else scale_channels(channels, width) for index, channels in enumerate(CHANNELS)
    ]
    stages: dict[str, nn.Module] = {
        "stem": nn.Sequential(nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)),
        "stage1": _stage(stem, channels[0], blocks, stride=1),
        "stage2": _stage(channels[0], channels[1], blocks, stride=2),
        "stage3": _stage(channels[1], channels[2], blocks, stride=2),
    }
    for stage in stages.values():
        stage.apply(_initialise)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return Backbone(stages, pool, feature_dim=channels[2])


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight)
