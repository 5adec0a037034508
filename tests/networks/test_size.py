"""Parameters and multiply-accumulates, against the reference table and PyTorch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mllt.errors import ArgumentError
from mllt.networks import build_network, count_macs, count_parameters


@pytest.mark.parametrize(
    ("name", "num_classes", "num_experts", "head", "width", "image_size", "parameters", "gmacs"),
    [
        ("resnet32", 100, 1, "linear", None, 32, 470_004, 0.0689),
        ("resnet32", 100, 3, "cosine", None, 32, 783_856, 0.1004),
        ("resnet32", 100, 3, "cosine", 1, 32, 1_362_064, 0.1585),
        ("resnet50", 1000, 1, "linear", None, 224, 25_557_032, 4.089),
        ("resnet50", 1000, 3, "cosine", None, 224, 43_677_248, 5.770),
        ("resnet50", 1000, 3, "cosine", 1.0, 224, 73_778_240, 8.640),
        ("resnext50", 1000, 1, "linear", None, 224, 25_028_904, 4.230),
        # the table's number has the biases of three linear heads in it
        ("resnext50", 1000, 3, "linear", None, 224, 42_892_024, 6.050),
        ("resnext50", 1000, 3, "cosine", None, 224, 42_889_024, 6.050),
        # torchvision's own numbers for the rest
        ("resnet18", 1000, 1, "linear", None, 224, 11_689_512, 1.814),
        ("resnet34", 1000, 1, "linear", None, 224, 21_797_672, 3.664),
        ("resnet101", 1000, 1, "linear", None, 224, 44_549_160, 7.801),
        ("resnet152", 1000, 1, "linear", None, 224, 60_192_808, 11.514),
        ("resnext101", 1000, 1, "linear", None, 224, 88_791_336, 16.414),
        # He et al., table 6: 0.27M, 0.46M, 0.66M and 0.85M, at ten classes
        ("resnet20", 10, 1, "linear", None, 32, 269_722, 0.04055),
        ("resnet44", 10, 1, "linear", None, 32, 658_586, 0.0971),
        ("resnet56", 10, 1, "linear", None, 32, 853_018, 0.1255),
    ],
)
def test_sizes_are_those_of_the_table(name, num_classes, num_experts, head, width, image_size, parameters, gmacs):
    with torch.device("meta"):
        network = build_network(name, num_classes, num_experts, head=head, width=width)
    assert count_parameters(network) == parameters
    assert count_macs(network, image_size) / 1e9 == pytest.approx(gmacs, rel=1e-3)


@pytest.mark.parametrize("shared", ["none", "stage1", "stage3"])
def test_macs_agree_with_the_flop_counter_of_pytorch(shared):
    network = build_network("resnet20", 10, 2, shared=shared, head="cosine").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 24, 40))
    assert count_macs(network, (24, 40)) * 2 == counter.get_total_flops()


def test_a_parameter_that_is_used_twice_counts_once():
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, layer)) == 12


def test_counting_leaves_the_network_as_it_is():
    network = build_network("resnet20", 10, 2)
    network.trunk.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    count_macs(network, 32)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_images_that_shrink_to_one_pixel_are_counted():  # batch norm in training mode refuses a single value
    assert count_macs(build_network("resnet20", 10), 4) > 0


def test_half_precision_networks_are_counted_too():
    network = build_network("resnet20", 10)
    assert count_macs(build_network("resnet20", 10).half(), 32) == count_macs(network, 32)


@pytest.mark.parametrize("image_size", [0, -3, 32.0, (32,), (32, 32, 3), (32, 0), "32", None])
def test_wrong_image_sizes_are_refused(image_size):
    with pytest.raises(ArgumentError, match="image_size"):
        count_macs(nn.Identity(), image_size)
