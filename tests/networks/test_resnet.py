"""The ImageNet ResNets and ResNeXts: torchvision's networks, weight for weight, and their reduced stages."""

import math

import pytest
import torch
import torchvision
from torch import nn

from mllt.networks import build_network

STEM = {"0": "conv1", "1": "bn1"}


def torchvision_key(key):
    """trunk.stage1.0.conv1.weight -> layer1.0.conv1.weight, and so on."""
    if key.startswith("heads.0."):
        return key.replace("heads.0.", "fc.")
    stage, rest = key.removeprefix("trunk.").removeprefix("experts.0.").split(".", 1)
    if stage == "stem":
        index, name = rest.split(".")
        return f"{STEM[index]}.{name}"
    return f"{stage.replace('stage', 'layer')}.{rest}"


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("resnet18", torchvision.models.resnet18),
        ("resnet50", torchvision.models.resnet50),
        ("resnext50", torchvision.models.resnext50_32x4d),
    ],
)
def test_a_single_network_agrees_with_torchvisions(name, make):
    torch.manual_seed(0)
    theirs, ours = make(num_classes=20).eval(), build_network(name, 20).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that nothing is the identity by chance
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
    weights = theirs.state_dict()
    copied = {key: weights.pop(torchvision_key(key)) for key in ours.state_dict()}
    assert not weights
    ours.load_state_dict(copied)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images)[None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "widths", "outputs"),
    [
        ("resnet50", (64, 128, 192, 384), (256, 512, 768, 1536)),
        ("resnext50", (128, 256, 384, 768), (256, 512, 768, 1536)),
        ("resnext101", (256, 512, 768, 1536), (256, 512, 768, 1536)),
    ],
)
def test_reduced_stages_have_the_channels_of_ride(name, widths, outputs):
    with torch.device("meta"):
        network = build_network(name, 10, 2)
    last_blocks = [stage[-1] for stage in [*network.trunk[1:], *network.experts[1][:2]]]
    assert tuple(block.conv2.out_channels for block in last_blocks) == widths
    assert tuple(block.conv3.out_channels for block in last_blocks) == outputs
    assert network.feature_dim == outputs[-1]


def test_basic_blocks_are_reduced_too():
    with torch.device("meta"):
        network = build_network("resnet34", 10, 3)
    assert network.feature_dim == 384
    assert [stage[0].conv1.out_channels for stage in network.experts[0][:2]] == [192, 384]


@pytest.mark.parametrize("width", [0.01, 0.3, 0.55, 0.7, 1.1])
@pytest.mark.parametrize(("name", "channels_per_plane"), [("resnext50", 2), ("resnext101", 4)])
def test_grouped_convolutions_keep_whole_groups_at_any_width(name, channels_per_plane, width):
    with torch.device("meta"):
        network = build_network(name, 10, shared="none", width=width)
    for stage in network.experts[0][1:5]:
        for block in stage:
            assert block.conv2.groups == 32
            assert block.conv2.out_channels * 4 == block.conv3.out_channels * channels_per_plane
            assert block.conv2.out_channels >= 32


def test_weights_start_as_torchvisions():
    torch.manual_seed(0)
    network = build_network("resnet18", 10)
    weight = network.experts[0].stage4[1].conv2.weight.detach()
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)  # fan out
    stem = network.trunk.stem[0].weight.detach()
    assert stem.std().item() == pytest.approx(math.sqrt(2 / (49 * 64)), rel=0.05)
    assert torch.equal(network.experts[0].stage4[1].bn2.weight, torch.ones(512))
