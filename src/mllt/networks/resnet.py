"""ResNets and ResNeXts for ImageNet-sized images, of torchvision's own blocks and with its initialisation.

ResNet-18, -34, -50, -101, -152 (He et al., CVPR 2016; the bottleneck's stride in its 3x3 convolution, as in torchvision)
and ResNeXt-50 (32x4d), ResNeXt-101 (32x8d) (Xie et al., CVPR 2017). With one expert and full width the network equals
torchvision's, weight for weight.

Experts share the stem and stages 1 and 2 (torchvision's `layer1` and `layer2`), as in RIDE. A narrower private stage has
fewer `planes`: 256 -> 192 and 512 -> 384 at 3/4 (outputs 768 and 1536), as there. A ResNeXt's planes are rounded to a
multiple of 16 (32x4d) or 8 (32x8d), so that its grouped convolutions keep whole groups in the same proportion: 384 and
768 channels at 3/4 of 32x4d.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from mllt.networks.architecture import Architecture, Backbone, scale_channels

STAGE_NAMES = ("stem", "stage1", "stage2", "stage3", "stage4")
PLANES = (64, 64, 128, 256, 512)


@dataclass(frozen=True)
class Layout:
    """What tells one network of the family from another."""

    block: Any  # torchvision's BasicBlock or Bottleneck
    depths: tuple[int, int, int, int]
    groups: int = 1
    base_width: int = 64  # channels per group at 64 planes

    @property
    def planes_multiple(self) -> int:
        """Planes in steps of this leave the 3x3 width, planes * base_width / 64 * groups, without a fraction."""
        return 64 // self.base_width


LAYOUTS = {
    "resnet18": Layout(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Layout(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Layout(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Layout(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Layout(Bottleneck, (3, 8, 36, 3)),
    "resnext50": Layout(Bottleneck, (3, 4, 6, 3), groups=32, base_width=4),
    "resnext101": Layout(Bottleneck, (3, 4, 23, 3), groups=32, base_width=8),
}


def architecture(name: str) -> Architecture:
    """The ResNet or ResNeXt of that name, one of `LAYOUTS`."""
    return Architecture(stage_names=STAGE_NAMES, default_shared="stage2", build=partial(_build, LAYOUTS[name]))


def _build(layout: Layout, shared_stages: int, width: float) -> Backbone:
    channels, *planes = [
        planes if index < shared_stages else scale_channels(planes, width, layout.planes_multiple)
        for index, planes in enumerate(PLANES)
    ]
    stages: dict[str, nn.Module] = {"stem": _stem(channels)}
    for name, stage_planes, depth in zip(STAGE_NAMES[1:], planes, layout.depths, strict=True):
        stages[name] = _stage(layout, channels, stage_planes, depth, stride=1 if name == "stage1" else 2)
        channels = stage_planes * layout.block.expansion
    for stage in stages.values():
        stage.apply(_initialise)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return Backbone(stages, pool, feature_dim=channels)


def _stem(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def _stage(layout: Layout, in_channels: int, planes: int, depth: int, stride: int) -> nn.Sequential:
    out_channels = planes * layout.block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
    block = partial(layout.block, planes=planes, groups=layout.groups, base_width=layout.base_width)
    first = block(in_channels, stride=stride, downsample=downsample)
    return nn.Sequential(first, *(block(out_channels) for _ in range(depth - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):  # batch norms start at weight 1 and bias 0 by themselves
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
