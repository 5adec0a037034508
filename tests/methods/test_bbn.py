"""`BBNModule`: its loss and schedule, its two batches, and that a break changes nothing."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tests.reference import bilateral_branches as reference
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from mllt import BBNModule, DigitsLT, load_checkpoint
from mllt.data.sources import Batch, PairedBatch
from mllt.errors import ArgumentError
from mllt.methods.stages import Stage

TARGETS, OTHERS = [0, 0, 1, 0, 0, 1], [2, 1, 2, 0, 2, 1]


def paired(dtype=torch.float32):
    """A batch of six images and six others."""
    images, others = torch.randn(2, 6, 3, 8, 8, dtype=dtype)
    one, weight = torch.arange(6), torch.ones(())
    return PairedBatch(images, torch.tensor(TARGETS), one, weight, Batch(others, torch.tensor(OTHERS), one, weight), 0.5)


class AlphaByEpoch(Callback):
    """Notes the conventional branch's part in each epoch, from `first` (0-based) on."""

    def __init__(self):
        self.alphas = []

    def on_train_epoch_start(self, trainer, module):
        self.alphas.append(module.alpha())


def test_the_loss_is_that_of_the_loop_in_every_epoch(small, monkeypatch):
    module, batch = BBNModule(**small).double().eval(), paired(torch.float64)
    network = module.network
    branches, head = network.experts[0], network.heads[0]
    ours = branches.conventional(network.trunk(batch.images)).tolist()
    theirs = branches.rebalancing(network.trunk(batch.companion.images)).tolist()
    for part in (1.0, 0.9, 0.36, 0.0):
        monkeypatch.setattr(module, "alpha", lambda part=part: part)
        logits = reference.mixed_logits(ours, theirs, head.weight.tolist(), head.bias.tolist(), part)
        terms = module.losses(batch)
        assert sum(terms.values()).item() == pytest.approx(reference.loss(logits, TARGETS, OTHERS, part), rel=1e-9)
        assert terms["conventional"].item() == pytest.approx(
            part * reference.loss(logits, TARGETS, TARGETS, 1.0), rel=1e-9, abs=1e-12
        )


def test_at_first_all_is_for_the_conventional_branch(small):
    module, batch = BBNModule(**small), paired()
    terms = module.losses(batch)
    assert terms["rebalancing"] == 0
    terms["conventional"].backward()
    conventional, rebalancing = module.network.experts[0].children()
    assert all(p.grad is not None for p in module.network.parameters())
    assert any(p.grad.abs().sum() > 0 for p in conventional.parameters())
    assert all(p.grad.abs().sum() == 0 for p in rebalancing.parameters())


@pytest.mark.parametrize(
    ("epochs", "last"), [(1, 1.0), (5, 9 / 25), (90, 1 - 0.89**2), pytest.param(180, 1 - 0.895**2, marks=pytest.mark.slow)]
)
def test_its_part_falls_as_a_parabola_by_the_released_rule(small, problem, make_trainer, epochs, last):
    recorder, module = AlphaByEpoch(), BBNModule(**small, lr=1e-6)
    loader = DataLoader(TensorDataset(*(part[:2] for part in problem)), batch_size=2)
    make_trainer(epochs, callbacks=[recorder]).fit(module, [loader, loader])
    assert recorder.alphas == pytest.approx([reference.alpha(t, epochs) for t in range(1, epochs + 1)])
    assert (recorder.alphas[0], recorder.alphas[-1]) == pytest.approx((1.0, last))


@pytest.mark.parametrize(("adaptor_epochs", "expected"), [(4, [1, 15 / 16, 12 / 16, 7 / 16, 0, 0]), (100, None)])
def test_another_length_of_the_schedule_can_be_set(small, problem, make_trainer, adaptor_epochs, expected):
    recorder, module = AlphaByEpoch(), BBNModule(**small, adaptor_epochs=adaptor_epochs)
    loader = DataLoader(TensorDataset(*(part[:8] for part in problem)), batch_size=8)
    make_trainer(6, callbacks=[recorder]).fit(module, [loader, loader])
    assert recorder.alphas == pytest.approx(expected or [1 - (e / 100) ** 2 for e in range(6)])


def test_beside_each_image_stands_one_drawn_by_reversed_frequency(small, make_trainer):
    seen = []

    class Watched(BBNModule):
        def losses(self, batch):
            seen.append((batch.targets, batch.companion.targets))
            return super().losses(batch)

    data = DigitsLT(batch_size=32)
    data.setup()
    make_trainer(2).fit(Watched(**{**small, "class_counts": data.class_counts}), datamodule=data)
    own, others = (torch.cat(parts).bincount(minlength=10) for parts in zip(*seen, strict=True))
    assert torch.equal(own, 2 * data.class_counts)
    rarity = 1 / data.class_counts.double()
    expected = 2 * 321 * rarity / rarity.sum()
    assert others.sum() == own.sum()
    assert_close(others.double(), expected, atol=5 * expected.max().sqrt().item(), rtol=0)
    assert others[9] > 10 * others[0]
    assert BBNModule(**small).stages() == [Stage("training", companion="reversed")]


def test_to_predict_one_image_goes_through_both_branches(small, problem):
    module = BBNModule(**small).eval()
    images = problem[0][:8]
    assert_close(module(images), module.network.mixed(images, images, 0.5))
    assert module(images).shape == (1, 8, 3)
    assert_close(module.probabilities(images), module(images)[0].softmax(-1))  # nothing to compensate


@pytest.mark.slow
def test_the_tail_is_learned_better_than_without_the_second_branch(small, make_trainer):
    """What the method is for, on real images."""
    few = {}
    for adaptor_epochs in (None, 1e9):  # the latter: alpha stays 1
        torch.manual_seed(0)
        data = DigitsLT(batch_size=32)
        data.setup()
        settings = {**small, "class_counts": data.class_counts, "width": 0.5, "shared": "none", "lr": 0.02}
        module = BBNModule(**settings, adaptor_epochs=adaptor_epochs, schedule="cosine")
        trainer = make_trainer(8)
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
        few[adaptor_epochs] = module.test_results["ensemble"]["raw"]["few"]
    assert few[None] > few[1e9] + 10


def run(small, make_trainer, folder, *callbacks, seed=0, resume=None):
    torch.manual_seed(seed)
    data = DigitsLT(batch_size=32, seed=5)
    data.setup()
    module = BBNModule(**{**small, "class_counts": data.class_counts, "lr": 0.05})
    saver = ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = make_trainer(4, callbacks=[saver, *callbacks], enable_checkpointing=True, limit_train_batches=3)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module


class Killed(Callback):
    """In the middle of the third epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 1:
            raise SystemExit(143)


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(small, make_trainer, tmp_path):
    straight = run(small, make_trainer, tmp_path / "straight")
    with pytest.raises(SystemExit):
        run(small, make_trainer, tmp_path / "broken", Killed())
    resumed = run(small, make_trainer, tmp_path / "broken", seed=7, resume=tmp_path / "broken" / "last.ckpt")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    images = torch.randn(4, 3, 8, 8)
    loaded = load_checkpoint(tmp_path / "straight" / "last.ckpt")
    assert type(loaded) is BBNModule
    assert torch.equal(loaded.probabilities(images), straight.probabilities(images))


def test_two_loaders_of_anyone_will_do_and_one_is_refused_with_the_way_out(small, loader, make_trainer):
    make_trainer(1).fit(BBNModule(**small), [loader, loader])
    with pytest.raises(ArgumentError, match=r"companion \('reversed'\).*two loaders, trainer.fit\(model, \[loader, other\]\)"):
        make_trainer(1).fit(BBNModule(**small), loader)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_stay_finite(small, loader, make_trainer, precision):
    module, trainer = BBNModule(**small), make_trainer(2, precision=precision)
    trainer.fit(module, [loader, loader])
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_a_run_without_end_needs_to_be_told_the_length(small, loader, make_trainer):
    endless = {"max_epochs": -1, "max_steps": 4}
    with pytest.raises(
        ArgumentError, match=r"`max_epochs`, over which the branches change places, but got -1.*adaptor_epochs="
    ):
        make_trainer(**endless).fit(BBNModule(**small, schedule="constant"), [loader, loader])
    make_trainer(**endless).fit(BBNModule(**small, schedule="constant", adaptor_epochs=10), [loader, loader])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"adaptor_epochs": 0}, "`adaptor_epochs` to be a number above 0, but got 0"),
        ({"adaptor_epochs": "all"}, "`adaptor_epochs`"),
        ({"num_experts": 3}, "`num_experts` to be 1, but got 3"),
    ],
)
def test_settings_out_of_range_are_refused(small, changed, message):
    with pytest.raises(ArgumentError, match=message):
        BBNModule(**small, **changed)


def test_its_network_is_of_the_paper():
    network = BBNModule(class_counts=[120, 24, 6]).network  # ResNet-32
    assert (len(network.trunk.stage3), network.feature_dim, network.heads[0].in_features) == (4, 128, 128)
