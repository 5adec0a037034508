"""What every family of networks tells the builder: its stages, in order, and how to make one network of them.

A multi-expert network is N ordinary networks whose first stages are one and the same. So each family only has to say how
a single network falls into named stages ("stem", "stage1", ...); `build.build_network` shares the first ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass
class Backbone:
    """One network without its classifier head.

    `pool(stageN(... stem(images)))` is of shape `(B, feature_dim)`.
    """

    stages: dict[str, nn.Module]
    pool: nn.Module  # global pooling and flattening, with whatever norm belongs to it; always private to an expert
    feature_dim: int


@dataclass(frozen=True)
class Architecture:
    """A family member, not yet built."""

    stage_names: tuple[str, ...]
    default_shared: str  # the last stage that experts share when the user does not say
    build: Callable[[int, float], Backbone]  # (number of shared stages, width of the others) -> a new network
    initialise: Callable[[nn.Module], None] | None = None  # applied to the heads; None: they keep their own


def scale_channels(channels: int, width: float, multiple: int = 1) -> int:
    """`channels * width`, rounded to the nearest multiple of `multiple` (a tie to the even one), and at least one of it.

    >>> scale_channels(256, 0.75), scale_channels(16, 0.33), scale_channels(16, 0.001)
    (192, 5, 1)
    >>> scale_channels(256, 0.7, multiple=16)  # 179.2
    176
    """
    return max(1, round(channels * width / multiple)) * multiple
