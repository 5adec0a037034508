"""`build_network` and `ExpertNetwork`: what is shared, what is private, what is refused."""

import copy

import pytest
import torch
from torch import nn

from mllt.errors import ArgumentError
from mllt.networks import NETWORKS, ExpertNetwork, build_network

STAGES = ("stem", "stage1", "stage2", "stage3")


def stage_parameters(stages):
    return {id(parameter) for stage in stages for parameter in stage.parameters()}


@pytest.mark.parametrize("num_experts", [1, 2, 3])
@pytest.mark.parametrize("shared", ["none", *STAGES])
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_logits_are_experts_by_batch_by_classes(shared, num_experts, head):
    network = build_network("resnet20", 7, num_experts, shared=shared, head=head)
    images = torch.randn(4, 3, 16, 16)
    assert network(images).shape == (num_experts, 4, 7)
    assert network.features(images).shape == (num_experts, 4, network.feature_dim)
    assert (network.num_experts, network.num_classes, network.stage_names) == (num_experts, 7, STAGES)


@pytest.mark.parametrize("shared", ["none", *STAGES])
def test_exactly_the_stages_up_to_shared_are_common(shared):
    network = build_network("resnet20", 10, 3, shared=shared)
    count = ("none", *STAGES).index(shared)
    assert [name for name, _ in network.trunk.named_children()] == list(STAGES[:count])
    private = [stage_parameters([expert, head]) for expert, head in zip(network.experts, network.heads, strict=True)]
    for k, expert in enumerate(network.experts):
        assert [name for name, _ in expert.named_children()] == [*STAGES[count:], "pool"]
        assert not private[k] & stage_parameters([network.trunk])
        assert not private[k] & private[(k + 1) % 3]
    # nothing is missing: trunk and one expert are a whole network, of the same shapes as the single one
    single = build_network("resnet20", 10, shared=shared, width=None if count == 4 else 0.75)
    shapes = [p.shape for part in (network.trunk, network.experts[2], network.heads[2]) for p in part.parameters()]
    assert shapes == [p.shape for p in single.parameters()]


@pytest.mark.parametrize(
    ("name", "default"), [("resnet32", "stage1"), ("resnet18", "stage2"), ("resnet50", "stage2"), ("resnext50", "stage2")]
)
def test_the_topology_of_ride_is_the_default(name, default):
    with torch.device("meta"):
        network = build_network(name, 10, 2)
    assert list(dict(network.trunk.named_children()))[-1] == default


def test_every_network_by_name_can_be_built():
    assert len(NETWORKS) == 11
    with torch.device("meta"):
        for name in NETWORKS:
            assert build_network(name, 10, 2).num_experts == 2


@pytest.mark.parametrize("shared", ["none", "stage1", "stage3"])
def test_gradients_of_one_expert_do_not_reach_another(shared):
    network = build_network("resnet20", 10, 3, shared=shared)
    network(torch.randn(4, 3, 16, 16))[1].square().sum().backward()
    own = [*network.trunk.parameters(), *network.experts[1].parameters(), *network.heads[1].parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own)
    others = [*network.experts[0].parameters(), *network.heads[2].parameters(), *network.experts[2].parameters()]
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in others)


def test_experts_start_from_different_weights():
    network = build_network("resnet20", 10, 3, head="cosine")
    for part in (network.experts, network.heads):
        first, second, third = ([p for p in module.parameters() if p.ndim > 1] for module in part)
        for a, b, c in zip(first, second, third, strict=True):
            assert not torch.equal(a, b)
            assert not torch.equal(b, c)
    logits = network.eval()(torch.randn(2, 3, 16, 16))
    assert not torch.allclose(logits[0], logits[1])


def test_the_same_seed_gives_the_same_network():
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(torch.cat([p.flatten() for p in build_network("resnet20", 10, 2).parameters()]))
    assert torch.equal(networks[0], networks[1])
    assert not torch.equal(networks[0], networks[2])


def test_expert_k_computes_trunk_then_its_own_part_then_its_head():
    network = build_network("resnet20", 10, 3).eval()
    images = torch.randn(2, 3, 16, 16)
    logits = network(images)
    for k in range(3):
        alone = copy.deepcopy(nn.Sequential(network.trunk, network.experts[k], network.heads[k]))
        torch.testing.assert_close(logits[k], alone(images))


def test_experts_do_not_change_what_the_trunk_hands_them():
    for name, shared in [("resnet20", "none"), ("resnet20", "stage1"), ("resnet18", "stem"), ("resnet18", "stage4")]:
        network = build_network(name, 10, 2, shared=shared).eval()
        handed = network.trunk(torch.randn(2, 3, 64, 64)).detach()
        before = handed.clone()
        network.experts[0](handed)
        assert torch.equal(handed, before)


def test_a_single_network_has_full_width_and_several_are_reduced():
    assert build_network("resnet20", 10).feature_dim == 64
    assert build_network("resnet20", 10, 2).feature_dim == 48
    assert build_network("resnet20", 10, 2, width=1).feature_dim == 64
    assert build_network("resnet20", 10, 1, width=0.5).feature_dim == 32
    assert build_network("resnet20", 10, 2, width=1.5).feature_dim == 96
    assert build_network("resnet20", 10, 2, shared="stage3").feature_dim == 64  # nothing private to reduce


def test_with_nothing_shared_all_channels_are_reduced():
    expert = build_network("resnet20", 10, 2, shared="none").experts[0]
    assert [expert.stem[0].out_channels, *(expert.get_submodule(f"stage{k}")[-1].channels for k in (1, 2, 3))] == [
        12,
        12,
        24,
        48,
    ]


def test_a_narrow_stage_may_follow_a_wider_one():
    network = build_network("resnet20", 10, 2, shared="stem")
    assert network.experts[0].stage1[0].conv1.weight.shape == (12, 16, 3, 3)
    assert network(torch.randn(2, 3, 16, 16)).isfinite().all()


def test_state_dict_round_trip(tmp_path):
    torch.manual_seed(0)
    first = build_network("resnet20", 10, 3, head="cosine").eval()
    second = build_network("resnet20", 10, 3, head="cosine").eval()
    torch.save(first.state_dict(), tmp_path / "weights.pt")
    images = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(first(images), second(images))
    second.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(first(images), second(images))


def test_state_dict_keys_name_part_expert_and_stage():
    keys = build_network("resnet20", 10, 2).state_dict().keys()
    assert {"trunk.stage1.0.conv1.weight", "experts.1.stage3.2.bn2.running_var", "heads.1.bias"} <= set(keys)


def test_export_with_a_dynamic_batch():
    network = build_network("resnet20", 10, 3, head="cosine").eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(4, 3, 32, 32),), dynamic_shapes={"images": {0: batch}})
    for size in (1, 7):
        images = torch.randn(size, 3, 32, 32)
        torch.testing.assert_close(program.module()(images), network(images))


def test_compile_finds_one_whole_graph():
    network = build_network("resnet20", 10, 2, head="cosine").eval()
    images = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images))


def test_channels_last_stays_and_gives_the_same_logits():
    network = build_network("resnet20", 10, 3).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = network(images)
    network, images = network.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    last_map = network.experts[0][:-1](network.trunk(images))
    assert last_map.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ({"name": "resent32"}, ["no network 'resent32'", "Did you mean 'resnet32'", "timm/<model>"]),
        ({"name": "resnext50_32x4d"}, ["Did you mean 'resnext50'"]),
        ({"name": None}, ["no network None"]),
        ({"num_classes": 0}, ["`num_classes` to be a whole number of at least 1, but got 0"]),
        ({"num_classes": "10"}, ["`num_classes`"]),
        ({"num_experts": 0}, ["`num_experts` to be a whole number of at least 1 and of at most 100, but got 0"]),
        ({"num_experts": -1}, ["`num_experts`"]),
        ({"num_experts": 2.0}, ["`num_experts`"]),
        ({"shared": "stage4"}, ["`shared` to be one of", "none, stem, stage1", "'stage4'"]),
        ({"shared": "layer2"}, ["`shared`", "stage2"]),
        ({"shared": 2}, ["`shared`"]),
        ({"width": 0}, ["`width` to be a number of at most 8 and above 0, but got 0"]),
        ({"width": -0.5}, ["`width`"]),
        ({"width": 75}, ["`width`"]),
        ({"width": "wide"}, ["`width`"]),
        ({"width": 0.5, "shared": "stage3"}, ["no stage is private", "leave `width` out, or share fewer stages"]),
        ({"head": "cosinus"}, ["Did you mean 'cosine'"]),
        ({"scale": 16}, ["leave `scale` out, or set head='cosine'"]),
        ({"head": "cosine", "scale": -1}, ["`scale`"]),
        ({"pretrained": True}, ["no pretrained weights", "name='timm/<model>'"]),
        ({"pretrained": "yes"}, ["`pretrained` to be true or false"]),
        ({"options": {"img_size": 64}}, ["takes no `options`", "timm/<model>"]),
        ({"options": [1]}, ["`options` to be a dictionary"]),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_in_one_line(arguments, messages):
    with pytest.raises(ArgumentError) as caught:
        build_network(**{"name": "resnet20", "num_classes": 10, "num_experts": 2, **arguments})
    for message in messages:
        assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_width_1_is_fine_where_width_has_no_effect():
    assert build_network("resnet20", 10, 2, shared="stage3", width=1, options={}).num_experts == 2


def test_experts_and_heads_have_to_fit():
    with pytest.raises(ArgumentError, match="0 experts and 0 heads"):
        ExpertNetwork(nn.Identity(), [], [])
    with pytest.raises(ArgumentError, match="2 experts and 1 heads"):
        ExpertNetwork(nn.Identity(), [nn.Flatten(), nn.Flatten()], [nn.Linear(4, 2)])
    with pytest.raises(ArgumentError, match="one size"):
        ExpertNetwork(nn.Identity(), [nn.Flatten(), nn.Flatten()], [nn.Linear(4, 2), nn.Linear(4, 3)])
