"""Heads: the cosine head against its definition, and what heads refuse."""

import pytest
import torch

from mllt.errors import ArgumentError
from mllt.networks import CosineHead, LinearHead, build_network, make_head


def test_cosine_logits_are_scaled_cosines():
    torch.manual_seed(0)
    head, features = CosineHead(5, 3, scale=7.0), torch.randn(4, 5)
    head.weight.data.mul_(torch.tensor([[0.1], [1.0], [20.0]]))
    expected = torch.empty(4, 3)
    for b in range(4):
        for c in range(3):
            x, w = features[b], head.weight[c]
            expected[b, c] = 7.0 * (x @ w) / (x.square().sum().sqrt() * w.square().sum().sqrt())
    torch.testing.assert_close(head(features), expected)


def test_cosine_logits_do_not_change_with_the_norm_of_features_or_weights():
    torch.manual_seed(0)
    head, features = CosineHead(8, 6), torch.randn(4, 8)
    before = head(features)
    torch.testing.assert_close(head(features * torch.tensor([[0.01], [1.0], [3.0], [500.0]])), before)
    head.weight.data.mul_(torch.rand(6, 1) + 0.5)
    torch.testing.assert_close(head(features), before)


def test_cosine_logits_reach_the_scale_and_not_beyond():
    head = CosineHead(4, 3)
    logits = head(head.weight.detach())
    torch.testing.assert_close(logits.diagonal(), torch.full((3,), 30.0))
    assert logits.abs().max() <= 30.001


def test_cosine_logits_of_a_zero_feature_are_zero_and_have_finite_gradients():
    head, features = CosineHead(4, 3), torch.zeros(2, 4, requires_grad=True)
    logits = head(features)
    logits.sum().backward()
    assert torch.equal(logits, torch.zeros(2, 3))
    assert features.grad.isfinite().all()


def test_cosine_weights_start_as_rows_of_unit_norm_in_all_directions():
    torch.manual_seed(0)
    weight = CosineHead(64, 1000).weight.detach()
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(1000))
    assert weight.mean().abs() < 0.002
    # uniform(-1, 1) before normalisation has a kurtosis of 1.8, a normal distribution one of 3
    assert ((weight**4).mean() / weight.var() ** 2).item() == pytest.approx(1.8, abs=0.1)


def test_parameters_are_named_and_shaped_as_documented():
    assert {name: tuple(p.shape) for name, p in CosineHead(4, 3).named_parameters()} == {"weight": (3, 4)}
    assert {name: tuple(p.shape) for name, p in LinearHead(4, 3).named_parameters()} == {"weight": (3, 4), "bias": (3,)}


def test_linear_head_is_an_affine_map():
    head, features = LinearHead(4, 3), torch.randn(5, 4)
    torch.testing.assert_close(head(features), features @ head.weight.T + head.bias)


def test_make_head_makes_each_kind():
    assert isinstance(make_head("linear", 4, 3), LinearHead)
    assert make_head("cosine", 4, 3).scale == 30
    assert make_head("cosine", 4, 3, scale=16).scale == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosin", 4, 3), "Did you mean 'cosine'"),
        (("linear", 4, 3, 30.0), "A linear head has no scale, but got scale=30.0: leave `scale` out, or set head='cosine'."),
        (("cosine", 4, 3, 0), "`scale` to be a number above 0"),
        (("cosine", 4, 3, float("nan")), "`scale` to be a number above 0"),
        (("cosine", 4, 0), "`num_classes` to be a whole number of at least 1"),
        (("linear", 0, 3), "`in_features` to be a whole number of at least 1"),
        (("linear", 4, 2.5), "`num_classes` to be a whole number of at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ArgumentError) as caught:
        make_head(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_under_autocast_heads_compute_in_float32(head, half):
    torch.manual_seed(0)
    network, images = build_network("resnet20", 10, num_experts=2, head=head).eval(), torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", dtype=half):
        features, logits = network.features(images), network(images)
        assert torch.nn.functional.linear(images[0, 0], images[0, 1]).dtype == half  # autocast is on again
    assert logits.dtype == torch.float32
    expected = torch.stack([network.heads[k](features[k].float()) for k in range(2)])
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, logits.to(half).float())


def test_a_network_of_half_precision_throughout_still_runs():
    network = build_network("resnet20", 10, num_experts=2).to(torch.bfloat16).eval()
    assert network(torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
