"""`BilateralNetwork`: which blocks are common, what is mixed, and that it is a network of one expert to everyone else."""

from functools import partial

import pytest
import torch
from tests.reference import bilateral_branches as reference
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from mllt.errors import ArgumentError
from mllt.networks import NETWORKS, BilateralNetwork, bilateral_network, build_network, count_macs, count_parameters


def two_branches(name="resnet20", classes=10, **settings):
    return bilateral_network(partial(build_network, name, classes, **settings))


def blocks(network, stage):
    """Shared blocks of the last stage, and those of one branch."""
    last = dict(network.trunk.named_children()).get(stage)
    return 0 if last is None else len(last), network.experts[0].conventional.block


@pytest.mark.parametrize(
    ("name", "stage", "shared"),
    [("resnet20", "stage3", 2), ("resnet32", "stage3", 4), ("resnet18", "stage4", 1), ("resnet50", "stage4", 2)],
)
def test_all_but_the_last_block_is_common(name, stage, shared):
    with torch.device("meta"):
        network, single = two_branches(name), build_network(name, 10, shared="none")
    number, block = blocks(network, stage)
    assert number == shared
    last = single.experts[0].get_submodule(stage)[-1]
    assert [p.shape for p in block.parameters()] == [p.shape for p in last.parameters()]
    # nothing is missing and nothing else is there twice
    expected = count_parameters(single) + count_parameters(last) + 10 * single.feature_dim
    assert count_parameters(network) == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_by_name_can_have_two_branches(name):
    with torch.device("meta"):
        network, single = two_branches(name), build_network(name, 10)
    assert (network.num_experts, network.num_classes, network.feature_dim) == (1, 10, 2 * single.feature_dim)
    assert network.stage_names == single.stage_names
    assert network(torch.zeros(2, 3, 64, 64, device="meta")).shape == (1, 2, 10)


@pytest.mark.parametrize(
    ("model", "options", "size", "private"),
    [
        ("resnet18", {"channels": (8, 16, 24, 32)}, 32, "BasicBlock"),
        ("test_efficientnet", {}, 32, None),
        ("convnext_atto", {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}, 32, "ConvNeXtStage"),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 3, "embed_dim": 48}, 32, "Block"),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "embed_dim": 12, "depths": (1, 1, 1, 1), "window_size": 4},
            64,
            "SwinTransformerStage",
        ),
        ("regnety_002", {}, 32, "RegStage"),
    ],
)
def test_every_family_of_timm_can_have_two_branches(model, options, size, private):
    pytest.importorskip("timm")
    network = two_branches(f"timm/{model}", options=options).eval()
    block = network.experts[0].conventional.block
    assert private is None or type(block).__name__ == private
    images = torch.randn(2, 3, size, size)
    logits = network(images)
    assert logits.shape == (1, 2, 10)
    assert_close(network.mixed(images, images, 0.5), logits)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_the_branches_start_from_weights_of_their_own():
    branches = two_branches().experts[0]
    first, second = (torch.cat([p.flatten() for p in part.parameters() if p.ndim > 1]) for part in branches.children())
    assert not torch.equal(first, second)


def test_on_one_image_the_features_of_both_stand_side_by_side():
    network = two_branches().eval()
    images = torch.randn(4, 3, 16, 16)
    shared, branches = network.trunk(images), network.experts[0]
    features = network.features(images)
    assert features.shape == (1, 4, 128)
    assert_close(features[0, :, :64], branches.conventional(shared))
    assert_close(features[0, :, 64:], branches.rebalancing(shared))
    assert_close(network(images)[0], network.heads[0](features[0]))


@pytest.mark.parametrize("alpha", [1.0, 0.8, 0.5, 0.0])
def test_mixed_logits_are_those_of_the_loop(alpha):
    network = two_branches(classes=3, shared="none", width=0.25).double().eval()
    images, others = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    branches, head = network.experts[0], network.heads[0]
    conventional, rebalancing = branches.conventional(network.trunk(images)), branches.rebalancing(network.trunk(others))
    expected = reference.mixed_logits(
        conventional.tolist(), rebalancing.tolist(), head.weight.tolist(), head.bias.tolist(), alpha
    )
    assert_close(network.mixed(images, others, alpha), torch.tensor([expected], dtype=torch.float64))


def test_half_and_half_of_one_image_is_the_plain_forward_pass():
    network = two_branches().eval()
    images = torch.randn(4, 3, 16, 16)
    assert_close(network.mixed(images, images, 0.5), network(images))


def test_batch_statistics_are_of_either_batch_by_itself():
    network = two_branches().train()
    dark, bright = torch.randn(8, 3, 16, 16), 5 + torch.randn(8, 3, 16, 16)
    norm = network.trunk.stem[1]
    means = []
    norm.register_forward_hook(lambda module, inputs, output: means.append(inputs[0].mean(dim=(0, 2, 3))))
    network.mixed(dark, bright, 0.5)
    assert len(means) == 2
    assert not torch.allclose(means[0], means[1], atol=0.1)
    assert norm.num_batches_tracked == 2
    assert_close(norm.running_mean, 0.9 * 0.1 * means[0] + 0.1 * means[1])
    # neither branch saw the other's batch
    for branch in network.experts[0].children():
        assert branch.block.bn1.num_batches_tracked == 1


@pytest.mark.parametrize(("alpha", "still"), [(1.0, "rebalancing"), (0.0, "conventional")])
def test_a_branch_without_a_part_does_not_move_but_has_gradients(alpha, still):
    network = two_branches()
    network.mixed(*torch.randn(2, 4, 3, 16, 16), alpha).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())  # devices wait for all of them
    for name, branch in network.experts[0].named_children():
        moves = any(p.grad.abs().sum() > 0 for p in branch.parameters())
        assert moves == (name != still)


def test_the_head_is_of_float32_under_autocast():
    network = two_branches().eval()
    images = torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, mixed = network(images), network.mixed(images, images, 0.5)
    assert plain.dtype == mixed.dtype == torch.float32
    assert not torch.equal(plain, plain.bfloat16().float()), "computed in half precision"


def test_the_branches_do_not_change_what_the_trunk_hands_them():
    for name in ("resnet20", "resnet18"):
        network = two_branches(name).eval()
        handed = network.trunk(torch.randn(2, 3, 64, 64)).detach()
        before = handed.clone()
        network.experts[0](handed)
        assert torch.equal(handed, before)


def test_macs_count_the_trunk_once_and_both_branches():
    network, single = two_branches().eval(), build_network("resnet20", 10, shared="none")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert count_macs(network, 32) * 2 == counter.get_total_flops()
    block, head = 2 * 9 * 64 * 64 * 8 * 8, 64 * 10
    assert count_macs(network, 32) == count_macs(single, 32) + block + head


@pytest.mark.parametrize(("head", "scale"), [("linear", None), ("cosine", 16.0)])
def test_the_joint_head_is_of_the_kind_that_was_asked_for(head, scale):
    network = two_branches(head=head, scale=scale)
    joint = network.heads[0]
    assert len(network.heads) == 1
    assert (joint.in_features, joint.out_features) == (128, 10)
    assert getattr(joint, "scale", None) == scale
    if head == "linear":  # PyTorch's own start: uniform up to 1 / sqrt(features), not Kaiming-normal
        assert 0.07 < joint.weight.abs().max() <= 128**-0.5


def test_state_dict_keys_name_trunk_branches_and_head():
    keys = two_branches().state_dict().keys()
    assert {
        "trunk.stage3.1.conv1.weight",
        "experts.0.conventional.block.conv1.weight",
        "experts.0.rebalancing.block.bn2.running_var",
        "heads.0.bias",
    } <= set(keys)


def test_pretrained_branches_start_alike(tmp_path):
    timm = pytest.importorskip("timm")
    options = {"channels": (8, 16, 24, 32)}
    torch.save(timm.create_model("resnet18", **options).state_dict(), tmp_path / "weights.pth")
    overlay = {**options, "pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth")}}
    network = two_branches("timm/resnet18", pretrained=True, options=overlay)
    first, second = (list(part.parameters()) for part in network.experts[0].children())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(a is not b for a, b in zip(first, second, strict=True))


def test_export_with_a_dynamic_batch():
    network = two_branches().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(4, 3, 32, 32),), dynamic_shapes={"images": {0: batch}})
    images = torch.randn(7, 3, 32, 32)
    assert_close(program.module()(images), network(images))


def test_several_experts_are_refused():
    with pytest.raises(ArgumentError, match=r"Expected `num_experts` to be 1, but got 3.*Set num_experts=1"):
        two_branches(num_experts=3)


def test_what_the_family_refuses_is_refused():
    with pytest.raises(ArgumentError, match="no network 'resent20'"):
        two_branches("resent20")


def test_any_parts_of_ones_own_will_do():
    network = BilateralNetwork(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Flatten(), nn.Linear(8, 5))
    assert network(torch.zeros(2, 3, 8, 8)).shape == (1, 2, 5)
