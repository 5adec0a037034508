"""From a name and a few numbers to an `ExpertNetwork`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mllt.errors import ArgumentError, check_bool, check_choice, check_integer, check_number, did_you_mean
from mllt.networks import resnet, resnet_cifar
from mllt.networks import timm as timm_networks
from mllt.networks.architecture import Architecture, Backbone
from mllt.networks.experts import ExpertNetwork
from mllt.networks.heads import make_head

NETWORKS = (*resnet_cifar.BLOCKS_PER_STAGE, *resnet.LAYOUTS)
REDUCED_WIDTH = 0.75
MAX_WIDTH = 8  # guards against 75 for 0.75, and against a seed for a number, which would ask for more memory than there is
MAX_EXPERTS = 100


def build_network(
    name: str,
    num_classes: int,
    num_experts: int = 1,
    *,
    shared: str | None = None,
    width: float | None = None,
    head: str = "linear",
    scale: float | None = None,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> ExpertNetwork:
    """A network of one or several experts.

    Args:
        name: one of `NETWORKS`, or "timm/<model>" for a network of timm.
        num_classes: C, at least 1.
        num_experts: N, at least 1, at most 100.
        shared: the last stage that the experts share: "none" (N separate networks), "stem", "stage1", ... (a timm ViT:
            "block1", ...), up to the last stage (all but late norms, pooling and the head). None is RIDE's choice: "stage1"
            for a CIFAR ResNet, "stage2" for the larger ResNets; for timm, the first half of the stages.
        width: factor on the channels of the private stages, above 0. Channels are rounded to the nearest whole number, a
            ResNeXt's to a multiple of 16 or 8 (see `resnet`). With shared="none" it holds for the stem too, but for that
            of a timm ResNet; and a timm ConvNeXt's stage 1 always is as wide as its stem. None is RIDE's 3/4 with several
            experts, and 1 with a single one, with nothing private to narrow, and for timm.
        head: "linear" or "cosine", see `heads`.
        scale: scale of a cosine head; None is 30.
        pretrained: start from timm's weights, the trunk and every expert's private part alike; heads stay random. Only
            for timm networks.
        options: passed on to `timm.create_model`, such as `{"img_size": 64}`. Only for timm networks.

    Returns:
        A network whose logits are of shape `(N, B, C)`.

    Raises:
        ArgumentError: whatever is out of range or does not fit together.

    >>> network = build_network("resnet20", 10, num_experts=3, head="cosine")
    >>> network.stage_names, [name for name, _ in network.trunk.named_children()], network.feature_dim
    (('stem', 'stage1', 'stage2', 'stage3'), ['stem', 'stage1'], 48)
    """
    num_experts = check_integer("num_experts", num_experts, 1, MAX_EXPERTS)
    architecture = _find(name, pretrained, options)
    shared_stages = _count_shared(architecture, shared)
    if width is None:
        can_narrow = name in NETWORKS and shared_stages < len(architecture.stage_names)
        width = REDUCED_WIDTH if num_experts > 1 and can_narrow else 1.0
    width = _check_width(width, architecture, shared_stages, pretrained)
    with torch.device("meta"):  # a wrong head speaks up before large networks are made, and draws no random numbers
        make_head(head, 1, num_classes, scale)
    backbones = [architecture.build(shared_stages, width) for _ in range(num_experts)]
    heads = [make_head(head, backbone.feature_dim, num_classes, scale) for backbone in backbones]
    if architecture.initialise is not None:
        for module in heads:
            module.apply(architecture.initialise)
    # Convolutions take this layout from their weights, and what follows from its input: faster than NCHW on processors with
    # wide vectors and on GPUs with tensor cores
    return _join(backbones, heads, shared_stages).to(memory_format=torch.channels_last)


def _find(name: str, pretrained: bool, options: Mapping[str, Any] | None) -> Architecture:
    check_bool("pretrained", pretrained)
    if options is not None and not isinstance(options, Mapping):
        raise ArgumentError(f"Expected `options` to be a dictionary of settings for timm, but got {options!r}.")
    if isinstance(name, str) and name.startswith(timm_networks.PREFIX):
        return timm_networks.architecture(name, pretrained, options)
    if name not in NETWORKS:
        raise ArgumentError(f"There is no network {name!r}. {did_you_mean(name, NETWORKS)} Others: timm/<model>.")
    if pretrained:
        raise ArgumentError(f"{name} has no pretrained weights here: use a network of timm, name='timm/<model>'.")
    if options:
        raise ArgumentError(f"{name} takes no `options`, but got {dict(options)}: they are for networks named timm/<model>.")
    return resnet_cifar.architecture(name) if name in resnet_cifar.BLOCKS_PER_STAGE else resnet.architecture(name)


def _count_shared(architecture: Architecture, shared: str | None) -> int:
    choices = ("none", *architecture.stage_names)
    return choices.index(check_choice("shared", architecture.default_shared if shared is None else shared, choices))


def _check_width(width: float, architecture: Architecture, shared_stages: int, pretrained: bool) -> float:
    width = check_number("width", width, above=0, maximum=MAX_WIDTH)
    if width == 1:
        return width
    if pretrained:
        raise ArgumentError(f"Pretrained weights have full width, but got width={width:g}: leave `width` out.")
    if shared_stages == len(architecture.stage_names):
        raise ArgumentError(
            f"With shared={architecture.stage_names[-1]!r} no stage is private, so width={width:g} would change nothing: "
            "leave `width` out, or share fewer stages."
        )
    return width


def _join(backbones: list[Backbone], heads: list[Any], shared_stages: int) -> ExpertNetwork:
    """The first network's first stages become the trunk of all."""
    names = tuple(backbones[0].stages)
    trunk = _chain({name: backbones[0].stages[name] for name in names[:shared_stages]})
    experts = [
        _chain({**{name: backbone.stages[name] for name in names[shared_stages:]}, "pool": backbone.pool})
        for backbone in backbones
    ]
    return ExpertNetwork(trunk, experts, heads, names)


def _chain(parts: dict[str, nn.Module]) -> nn.Sequential:
    chain = nn.Sequential()
    for name, part in parts.items():
        chain.add_module(name, part)
    return chain
