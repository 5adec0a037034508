"""Learning-rate schedules against tables written by hand, and SGD against its formula."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from mllt.errors import ArgumentError
from mllt.networks import build_network
from mllt.optim import check_schedule, check_sgd, epoch_schedule, learning_rate_factor, milestone_epochs, parameter_groups, sgd

MISLAS = {"schedule": "multistep", "milestones": (160, 180), "gamma": 0.1, "warmup_epochs": 5}
# By hand: lr * e / 5 for e = 1 .. 5, then lr, a tenth from epoch 160 on, a hundredth from 180 on (counted from 0).
MISLAS_TABLE = [0.02, 0.04, 0.06, 0.08, 0.1] + [0.1] * 155 + [0.01] * 20 + [0.001] * 20
# LDAM-DRW and RIDE: the same warm-up, then a hundredth from epoch 160 on and a hundredth of that from 180 on.
LDAM = {**MISLAS, "milestones": (0.8, 0.9), "gamma": 0.01}
LDAM_TABLE = [0.02, 0.04, 0.06, 0.08, 0.1] + [0.1] * 155 + [1e-3] * 20 + [1e-5] * 20
# LADE: 0.2 / 3 to 0.2 in five equal steps, a hundredth from epoch 120 on and a hundredth of that from 160 on.
LADE = {"schedule": "multistep", "milestones": (0.6, 0.8), "gamma": 0.01, "warmup_epochs": 5, "warmup_start": 1 / 3}
LADE_TABLE = [0.2 / 3, 0.28 / 3, 0.36 / 3, 0.44 / 3, 0.52 / 3] + [0.2] * 115 + [2e-3] * 40 + [2e-5] * 40
# (1 + cos(pi * k / 8)) / 2 for k = 0 .. 7, after two epochs of warm-up to the full rate
COSINE_TABLE = [0.5, 1.0, 1.0, 0.9619398, 0.8535534, 0.6913417, 0.5, 0.3086583, 0.1464466, 0.0380602]


def rates_of_a_training(max_epochs, lr, **settings):
    """The learning rate in every epoch of a real loop."""
    layer = nn.Linear(2, 2)
    optimizer = sgd(parameter_groups(layer, 0.0), lr, 0.9, nesterov=False)
    scheduler = epoch_schedule(optimizer, max_epochs, **settings)
    rates = []
    for _ in range(max_epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("max_epochs", "lr", "settings", "table"),
    [
        (200, 0.1, MISLAS, MISLAS_TABLE),
        (200, 0.1, {**MISLAS, "milestones": (0.8, 0.9)}, MISLAS_TABLE),  # as shares of the run
        (200, 0.1, {**MISLAS, "milestones": (180, 160)}, MISLAS_TABLE),  # in any order
        (200, 0.1, LDAM, LDAM_TABLE),
        (200, 0.2, LADE, LADE_TABLE),
        (20, 0.2, LADE, [*LADE_TABLE[:5], *[0.2] * 7, *[2e-3] * 4, *[2e-5] * 4]),  # a shortened run keeps the shape
        (10, 1.0, {"schedule": "cosine", "warmup_epochs": 2}, COSINE_TABLE),
        (3, 1.0, {"schedule": "cosine", "warmup_epochs": 2, "warmup_start": 0}, [0.0, 0.5, 1.0]),
        (3, 0.4, {"schedule": "constant", "warmup_epochs": 0, "warmup_start": 0.5}, [0.4] * 3),  # nothing to start
        (4, 0.3, {"schedule": "constant"}, [0.3] * 4),
        (4, 0.4, {"schedule": "constant", "warmup_epochs": 2}, [0.2, 0.4, 0.4, 0.4]),
        (3, 1.0, {"schedule": "cosine", "warmup_epochs": 5}, [0.2, 0.4, 0.6]),  # warm-up longer than the run
        (3, 1.0, {"schedule": "multistep", "milestones": ()}, [1.0] * 3),
        (4, 1.0, {"schedule": "multistep", "milestones": (1, 1), "gamma": 0.5}, [1, 0.25, 0.25, 0.25]),
    ],
)
def test_a_training_follows_the_table(max_epochs, lr, settings, table):
    assert rates_of_a_training(max_epochs, lr, **settings) == pytest.approx(table, rel=1e-6)
    factors = [learning_rate_factor(epoch, max_epochs, **settings) for epoch in range(max_epochs)]
    assert [lr * factor for factor in factors] == pytest.approx(table, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"schedule": "multistep", "milestones": (12, 16), "gamma": 0.2}, lambda o: MultiStepLR(o, [12, 16], 0.2)),
        ({"schedule": "cosine"}, lambda o: CosineAnnealingLR(o, 20)),
    ],
)
def test_without_warm_up_the_schedules_are_those_of_torch(settings, theirs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = theirs(optimizer)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates_of_a_training(20, 0.1, **settings) == pytest.approx(expected, rel=1e-9)


def test_milestones_under_one_are_shares_of_the_run():
    assert milestone_epochs([0.8, 0.9], 200) == [160, 180]
    assert milestone_epochs([0.5, 1, 7.0, 180], 10) == [5, 1, 7, 180]


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_norm_layers_and_biases_are_set_apart(head):
    network = build_network("resnet20", 5, 2, head=head)
    weights, others = parameter_groups(network, 5e-4, decay_norm_and_bias=False)
    assert (weights["weight_decay"], others["weight_decay"]) == (5e-4, 0)
    apart = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    apart |= {id(p) for name, p in network.named_parameters() if name.endswith("bias")}
    assert {id(p) for p in others["params"]} == apart
    assert {id(p) for p in weights["params"]} == {id(p) for p in network.parameters()} - apart
    assert len(weights["params"]) + len(others["params"]) == len(list(network.parameters()))


def test_by_default_everything_decays_and_every_parameter_is_there_once():
    network = build_network("resnet20", 5, 2)
    (group,) = parameter_groups(network, 5e-4)
    assert group["weight_decay"] == 5e-4
    assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_frozen_parameters_are_left_out(decay_norm_and_bias):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    groups = parameter_groups(network, 0.1, decay_norm_and_bias=decay_norm_and_bias)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in network[1].parameters()}


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_the_formula_with_coupled_weight_decay(momentum, nesterov):
    lr, decay, rng = 0.1, 0.05, np.random.default_rng(0)
    parameter = nn.Parameter(torch.tensor(rng.normal(size=4)))
    weights, velocity = parameter.detach().numpy().copy(), np.zeros(4)
    optimizer = sgd([{"params": [parameter], "weight_decay": decay}], lr, momentum, nesterov=nesterov)
    for _ in range(5):
        gradient = rng.normal(size=4)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        coupled = gradient + decay * weights
        velocity = momentum * velocity + coupled
        weights = weights - lr * (coupled + momentum * velocity if nesterov else velocity)
    np.testing.assert_allclose(parameter.detach().numpy(), weights, rtol=1e-12)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.0}, r"Expected `lr` .* above 0"),
        ({"lr": float("inf")}, r"Expected `lr`"),
        ({"momentum": 1.0}, r"Expected `momentum` .* below 1"),
        ({"momentum": 0.0, "nesterov": True}, r"Expected `momentum` above 0 with nesterov=true"),
        ({"weight_decay": -1e-4}, r"Expected `weight_decay` .* at least 0"),
        ({"nesterov": 1}, r"Expected `nesterov` to be true or false"),
    ],
)
def test_settings_that_sgd_cannot_have_are_refused(changed, message):
    good = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False}
    check_sgd(**good)
    with pytest.raises(ArgumentError, match=message):
        check_sgd(**{**good, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schedule": "multistp"}, r"Expected `schedule` .*Did you mean 'multistep'\?"),
        ({"milestones": "160"}, r"Expected `milestones` to be a list"),
        ({"milestones": 160}, r"Expected `milestones` to be a list"),
        ({"milestones": [0]}, r"Expected `milestones` .* above 0, but got 0"),
        ({"milestones": [-5]}, r"Expected `milestones`"),
        ({"milestones": [160.5]}, r"Expected `milestones` to be whole epochs, or shares of the run under 1, but got 160.5"),
        ({"milestones": ["a"]}, r"Expected `milestones`"),
        ({"gamma": 0}, r"Expected `gamma` .* above 0"),
        ({"warmup_epochs": -1}, r"Expected `warmup_epochs` .* at least 0, but got -1"),
        ({"warmup_epochs": 2.5}, r"Expected `warmup_epochs` to be a whole number"),
        ({"warmup_start": 1}, r"Expected `warmup_start` .* below 1, but got 1"),
        ({"warmup_start": -0.1}, r"Expected `warmup_start` .* at least 0"),
        ({"warmup_start": "1/3"}, r"Expected `warmup_start` to be a number"),
    ],
)
def test_settings_that_no_schedule_can_have_are_refused(changed, message):
    good = {"schedule": "multistep", "milestones": [160, 180], "gamma": 0.1, "warmup_epochs": 5}
    check_schedule(**good)
    with pytest.raises(ArgumentError, match=message):
        check_schedule(**{**good, **changed})
