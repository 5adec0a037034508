"""The CIFAR ResNets: shortcut, initialisation, shapes."""

import math

import pytest
import torch
from torch import nn

from mllt.networks import build_network
from mllt.networks.resnet_cifar import option_a_shortcut


def slow_shortcut(x, channels, stride):
    batch, in_channels, height, width = x.shape
    before = math.floor((channels - in_channels) / 2)
    result = torch.zeros(batch, channels, math.ceil(height / stride), math.ceil(width / stride))
    for c in range(in_channels):
        for i in range(0, height, stride):
            for j in range(0, width, stride):
                if 0 <= c + before < channels:
                    result[:, c + before, i // stride, j // stride] = x[:, c, i, j]
    return result


@pytest.mark.parametrize(
    ("in_channels", "channels", "stride", "size"),
    [(16, 32, 2, 8), (16, 24, 2, 8), (24, 48, 2, 7), (16, 21, 2, 5), (4, 4, 2, 4), (4, 6, 1, 3), (16, 12, 1, 4), (7, 4, 2, 4)],
)
def test_option_a_shortcut_agrees_with_a_slow_implementation(in_channels, channels, stride, size):
    torch.manual_seed(0)
    x = torch.randn(2, in_channels, size, size + 1)
    assert torch.equal(option_a_shortcut(x, channels, stride), slow_shortcut(x, channels, stride))


def test_option_a_shortcut_has_no_parameters():
    convolutions = [m for m in build_network("resnet20", 10).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 19  # and the linear head: 20 layers
    assert {m.kernel_size for m in convolutions} == {(3, 3)}


def test_a_block_with_silent_convolutions_passes_its_shortcut_on():
    block = build_network("resnet20", 10).experts[0].stage2[0].eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(block(x), slow_shortcut(x, 32, 2).relu())


@pytest.mark.parametrize(("name", "blocks"), [("resnet20", 3), ("resnet32", 5), ("resnet44", 7), ("resnet56", 9)])
def test_depth_is_that_of_the_name(name, blocks):
    network = build_network(name, 10, shared="none")
    assert [len(network.experts[0].get_submodule(f"stage{k}")) for k in (1, 2, 3)] == [blocks] * 3
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == int(name.removeprefix("resnet"))


def test_reduced_stages_have_24_and_48_channels():
    network = build_network("resnet32", 10, 2)
    assert [network.experts[1].get_submodule(name)[-1].channels for name in ("stage2", "stage3")] == [24, 48]
    assert network.feature_dim == 48


def test_convolution_and_linear_weights_start_kaiming_normal():
    torch.manual_seed(0)
    network = build_network("resnet56", 100)
    for module in [network.experts[0].stage3[-1].conv2, network.heads[0]]:
        weight = module.weight.detach()
        assert weight.std().item() == pytest.approx(math.sqrt(2 / weight[0].numel()), rel=0.05)
        assert ((weight**4).mean() / weight.var() ** 2).item() == pytest.approx(3, abs=0.3)  # normal, not uniform


def test_cosine_heads_keep_their_own_initialisation():
    head = build_network("resnet20", 10, 2, head="cosine").heads[1]
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(10))


def test_stages_halve_the_resolution():
    network = build_network("resnet20", 10, shared="stage3").eval()
    x, sizes = torch.zeros(1, 3, 30, 32), []
    for stage in network.trunk:
        x = stage(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(16, 30, 32), (16, 30, 32), (32, 15, 16), (64, 8, 8)]
