"""What a network makes of images on the way to its logits."""

from __future__ import annotations

import pytest
import torch

from mllt.methods.ace import ComplementaryExperts
from mllt.networks import bilateral_network, build_network
from mllt.networks.features import frozen_features, over_positions


def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_experts_are_what_the_heads_see_and_the_trunk_is_averaged_over_positions():
    network = build_network("resnet20", 5, num_experts=2).eval()
    found = frozen_features(network, images())
    assert list(found) == ["expert 1", "expert 2", "trunk"]
    for number, (head, logits) in enumerate(zip(network.heads, network(images()), strict=True), start=1):
        torch.testing.assert_close(head(found[f"expert {number}"]), logits)
    torch.testing.assert_close(found["trunk"], network.trunk(images()).mean(dim=(2, 3)))
    assert not any(part.requires_grad for part in found.values())
    assert not network.trunk._forward_hooks, "left as it was"


def test_what_is_not_shared_is_left_out():
    assert list(frozen_features(build_network("resnet20", 5, num_experts=2, shared="none").eval(), images())) == [
        "expert 1",
        "expert 2",
    ]


def test_other_forward_passes_and_two_branches_are_looked_at_as_they_are():
    plain = build_network("resnet20", 5, num_experts=2).eval()
    ace = ComplementaryExperts(plain.trunk, plain.experts, plain.heads).eval()
    for name, part in frozen_features(ace, images()).items():
        assert torch.equal(part, frozen_features(plain, images())[name])
    bbn = bilateral_network(lambda: build_network("resnet20", 5)).eval()
    shapes = {name: part.shape[1] for name, part in frozen_features(bbn, images()).items()}
    assert shapes == {"expert 1": 128, "trunk": 64}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_the_trunk_of_every_layout_has_its_channels(name):
    pytest.importorskip("timm")
    options = {} if name == "convnext_atto" else {"img_size": 32}
    options |= {"window_size": 2} if name.startswith("swin") else {}
    network = build_network(f"timm/{name}", 5, num_experts=2, shared="stem", options=options).eval()
    stem = {"vit_tiny_patch16_224": 192, "swin_tiny_patch4_window7_224": 96, "convnext_atto": 40}
    assert frozen_features(network, torch.zeros(2, 3, 32, 32))["trunk"].shape == (2, stem[name])


def test_positions_of_channels_last_maps_are_averaged():
    maps = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(over_positions(maps, channels_last=True), maps.mean(dim=(1, 2)))
