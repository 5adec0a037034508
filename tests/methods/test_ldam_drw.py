"""`LDAMDRWModule`: margins, and weights in the last part of the run."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tests.reference import published_losses as reference

from mllt import LDAMDRWModule
from mllt.errors import ArgumentError

COUNTS = [120, 24, 6]
TARGETS = torch.tensor([0, 2, 1, 0, 0])


class LossesByEpoch(Callback):
    """What the objective says of fixed logits at the start of each epoch."""

    def __init__(self, logits):
        self.logits, self.losses = logits, []

    def on_train_epoch_start(self, trainer, module):
        self.losses.append(module.objective(self.logits, TARGETS)["ldam"].item())


@pytest.mark.parametrize(
    ("settings", "scale"), [({}, 30.0), ({"scale": 10.0, "max_margin": 0.3}, 10.0), ({"head": "linear"}, 1.0)]
)
def test_margins_are_in_units_of_the_cosine(small, settings, scale):
    module = LDAMDRWModule(**small, **settings)
    logits = torch.randn(1, 5, 3)
    expected = reference.ldam(logits[0].tolist(), TARGETS.tolist(), COUNTS, settings.get("max_margin", 0.5), scale)
    assert module.objective(logits, TARGETS)["ldam"].item() == pytest.approx(expected, rel=1e-5)


def test_classes_are_weighted_from_the_fifth_of_five_epochs_on(small, loader, make_trainer):
    logits = torch.randn(1, 5, 3)
    seen = LossesByEpoch(logits)
    make_trainer(5, callbacks=[seen]).fit(LDAMDRWModule(**small), loader)
    plain, weighted = (
        reference.ldam(logits[0].tolist(), TARGETS.tolist(), COUNTS, 0.5, 30.0, weights)
        for weights in (None, reference.drw(COUNTS, 0.9999))
    )
    assert seen.losses == pytest.approx([plain] * 4 + [weighted], rel=1e-5)
    assert plain != pytest.approx(weighted, rel=1e-3)


def test_at_160_of_200_epochs_as_in_the_recipe(small, loader, make_trainer):
    class Jump(Callback):
        def on_train_start(self, trainer, module):
            trainer.fit_loop.epoch_progress.current.processed = trainer.fit_loop.epoch_progress.current.completed = 159

    seen = LossesByEpoch(torch.randn(1, 5, 3))
    trainer = make_trainer(200, callbacks=[Jump(), seen], limit_train_batches=1)
    module = LDAMDRWModule(**small)
    module.on_train_epoch_end = lambda: setattr(trainer, "should_stop", len(seen.losses) == 2)
    trainer.fit(module, loader)
    assert len(seen.losses) == 2
    assert seen.losses[0] != pytest.approx(seen.losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"max_margin": -0.1}, "`max_margin`"), ({"beta": 1.0}, "`beta`"), ({"reweight_from": 2}, "`reweight_from`")],
)
def test_settings_out_of_range_are_refused(small, changed, message):
    with pytest.raises(ArgumentError, match=message):
        LDAMDRWModule(**small, **changed)
