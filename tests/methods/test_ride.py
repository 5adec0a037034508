"""`RIDEModule`: its loss, when re-weighting begins, and that it drives experts apart."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tests.reference import published_losses as reference

from mllt import RIDEModule
from mllt.errors import ArgumentError

COUNTS = [120, 24, 6]
TARGETS = torch.tensor([0, 2, 1, 0, 0])


def expected(logits, reweight=False, **changed):
    settings = {"diversity": -0.45, "temperature": 1.0, "eta": 0.05, "max_margin": 0.5, "scale": 30.0, **changed}
    return reference.ride(logits.tolist(), TARGETS.tolist(), COUNTS, reweight=reweight, **settings)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({}, {}),
        ({"diversity": -0.2, "diversity_temperature": 2.0}, {"diversity": -0.2, "temperature": 2.0}),
        ({"diversity": 0.0}, {"diversity": 0.0}),
        ({"num_experts": 4, "scale": 20.0, "max_margin": 0.3}, {"scale": 20.0, "max_margin": 0.3}),
    ],
    ids=str,
)
def test_the_objective_is_the_loss_of_the_first_stage(small, settings, changed):
    module = RIDEModule(**small, **settings)
    logits = torch.randn(module.num_experts, 5, 3)
    assert module.objective(logits, TARGETS)["ride"].item() == pytest.approx(expected(logits, **changed), rel=1e-4)


def test_re_weighting_begins_late_in_the_run(small, loader, make_trainer):
    logits, losses = torch.randn(3, 5, 3), []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, module):
            losses.append(module.objective(logits, TARGETS)["ride"].item())

    make_trainer(5, callbacks=[Watch()]).fit(RIDEModule(**small), loader)
    assert losses == pytest.approx([expected(logits)] * 4 + [expected(logits, reweight=True)], rel=1e-4)


def test_a_negative_diversity_drives_predictions_apart(small):
    logits = (0.1 * torch.randn(3, 5, 3)).requires_grad_()

    def spread(values):
        return (values - values.mean(0)).square().sum().item()

    spreads = {}
    for diversity in (-0.45, 0.45):
        module = RIDEModule(**small, diversity=diversity)
        (gradient,) = torch.autograd.grad(module.objective(logits, TARGETS)["ride"], logits)
        spreads[diversity] = spread((logits - 0.1 * gradient).detach())
    assert spreads[-0.45] > spreads[0.45]


def test_three_cosine_experts_of_reduced_dimension_by_default():
    module = RIDEModule(class_counts=COUNTS)
    assert module.num_experts == 3
    assert module.network.feature_dim == 48
    assert [head.scale for head in module.network.heads] == [30.0] * 3


@pytest.mark.parametrize("changed", [{"diversity_temperature": 0}, {"reweight_factor": 1.5}, {"reweight_from": -1}], ids=str)
def test_settings_out_of_range_are_refused(small, changed):
    with pytest.raises(ArgumentError, match=f"`{next(iter(changed))}`"):
        RIDEModule(**small, **changed)
