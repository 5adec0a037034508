"""`MiSLASModule`: mixed images first; then a classifier, scales and batch statistics on balanced classes."""

import lightning as L
import pytest
import torch
from scipy import stats
from tests.reference import published_losses as reference
from torch.testing import assert_close

from mllt import DigitsLT, MiSLASModule, load_checkpoint
from mllt.data import Batch, PairedBatch
from mllt.errors import ArgumentError

COUNTS = [120, 24, 6]


def batch_of(images, targets):
    return Batch(images, targets, torch.arange(len(targets)), torch.tensor(1.0))


def paired(problem, draw):
    """The first eight images, each beside one of the next eight."""
    (images, targets), first, second = problem, slice(0, 8), slice(8, 16)
    return PairedBatch(*batch_of(images[first], targets[first]), batch_of(images[second], targets[second]), draw)


def what_the_network_sees(module, batch):
    """The images that a batch becomes."""
    seen = []
    handle = module.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    module.losses(batch)
    handle.remove()
    return seen[0]


def trained(module, loader, make_trainer, stage, epochs=1, **settings):
    if module.begun != stage:
        module.begin(stage)
    trainer = make_trainer(epochs, **settings)
    trainer.fit(module, loader)
    return trainer


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


# ------------------------------------------------------------------------------------------------ the first stage


@pytest.mark.parametrize(("alpha", "draw"), [(1.0, 0.3), (0.2, 0.3), (0.2, 0.0), (0.4, 0.999)])
def test_the_loss_is_that_of_mixed_images_shared_between_both_targets(small, problem, alpha, draw):
    module = MiSLASModule(**small, mixup_alpha=alpha).eval()
    batch = paired(problem, draw)
    lam = float(stats.beta.ppf(draw, alpha, alpha))
    mixed = lam * batch.images.double() + (1 - lam) * batch.companion.images.double()
    with torch.no_grad():
        assert_close(what_the_network_sees(module, batch), mixed.float())
        rows = module.network.double()(mixed)[0].tolist()
        module.float()
        found = module.losses(batch)["cross_entropy"].item()
    expected = sum(
        lam * reference.cross_entropy(row, own) + (1 - lam) * reference.cross_entropy(row, other)
        for row, own, other in zip(rows, batch.targets.tolist(), batch.companion.targets.tolist(), strict=True)
    )
    assert found == pytest.approx(expected / 8, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_spread_as_the_beta_distribution_is(small, alpha):
    module = MiSLASModule(**small, mixup_alpha=alpha)
    ones, zeros = torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    targets = torch.zeros(2, dtype=torch.long)
    module.eval()
    module.network.forward = lambda images: images.mean() * torch.ones(1, 2, 3)  # only what it is shown matters
    shares = torch.stack(
        [
            what_the_network_sees(module, PairedBatch(*batch_of(ones, targets), batch_of(zeros, targets), (k + 0.5) / 400))[
                0, 0, 0, 0
            ]
            for k in range(400)
        ]
    )
    assert shares.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert shares.var(correction=0).item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)


def test_a_plain_loaders_images_are_mixed_with_each_other(small, problem):
    module = MiSLASModule(**small).eval()
    batch = batch_of(problem[0][:16], problem[1][:16])
    mixed = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        mixed.append(what_the_network_sees(module, batch))
    assert torch.equal(mixed[0], mixed[1])
    assert not torch.equal(mixed[0], mixed[2])
    assert not torch.allclose(mixed[0], batch.images)
    assert_close(mixed[0].sum(0), batch.images.sum(0), atol=1e-4, rtol=1e-4)  # each image once as itself, once as a partner


def test_two_loaders_without_a_random_number_of_their_own_are_mixed_too(small, loader, make_trainer):
    module = MiSLASModule(**small)
    trainer = trained(module, [loader, loader], make_trainer, "features")
    assert trainer.callback_metrics["train/cross_entropy"].isfinite()


def test_our_data_modules_give_each_image_a_partner_of_its_batch(small, make_trainer):
    data = DigitsLT(batch_size=32)
    module, seen = MiSLASModule(**{**small, "class_counts": data.class_counts}), []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch)

    make_trainer(1, limit_train_batches=2, callbacks=[Watch()]).fit(module, datamodule=data)
    assert all(sorted(batch.indices.tolist()) == sorted(batch.companion.indices.tolist()) for batch in seen)
    assert seen[0].draw != seen[1].draw


def test_without_mixup_the_first_stage_is_plain_cross_entropy(small, problem):
    module = MiSLASModule(**small, mixup_alpha=0).eval()
    assert module.stages()[0].companion is None
    batch = batch_of(problem[0][:8], problem[1][:8])
    assert torch.equal(what_the_network_sees(module, batch), batch.images)
    expected = torch.nn.functional.cross_entropy(module(batch.images)[0], batch.targets)
    assert_close(module.losses(batch)["cross_entropy"], expected)


# ----------------------------------------------------------------------------------------------- the second stage


@pytest.mark.parametrize(("smoothing", "power"), [("concave", None), ("linear", None), ("convex", None), ("exp", 2.0)], ids=str)
def test_the_second_stage_smooths_labels_by_their_class(small, smoothing, power):
    module = MiSLASModule(**small, smooth_head=0.3, smooth_tail=0.05, smoothing=smoothing, smoothing_power=power)
    module.begin("head")
    logits, targets = torch.randn(1, 5, 3), torch.tensor([0, 2, 1, 0, 0])
    expected = reference.label_aware_smoothing(logits[0].tolist(), targets.tolist(), COUNTS, 0.3, 0.05, smoothing, power)
    assert module.objective(logits, targets)["label_aware_smoothing"].item() == pytest.approx(expected, rel=1e-5)


def test_images_are_not_mixed_there(small, problem):
    module = MiSLASModule(**small)
    module.begin("head")
    batch = batch_of(problem[0][:8], problem[1][:8])
    assert torch.equal(what_the_network_sees(module, batch), batch.images)


@pytest.mark.parametrize("shifted_bn", [True, False])
def test_the_second_stage_trains_classifier_and_scales_and_moves_batch_statistics_only_when_told(
    small, loader, make_trainer, shifted_bn
):
    module = MiSLASModule(**small, shifted_bn=shifted_bn)
    trained(module, loader, make_trainer, "features")
    before = state(module)
    trained(module, loader, make_trainer, "head")
    for name, value in module.state_dict().items():
        statistic = "running_" in name or "num_batches" in name
        moves = name.startswith("network.heads.") or name == "scales" or (statistic and shifted_bn)
        assert torch.equal(value, before[name]) != moves, name


def test_no_gradient_reaches_the_features(small, problem):
    module = MiSLASModule(**small)
    module.begin("head")
    loss = module.losses(batch_of(problem[0][:32], problem[1][:32]))["label_aware_smoothing"]
    loss.backward()
    reached = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert reached == {"scales", "network.heads.0.weight", "network.heads.0.bias"}
    assert not module.network.features(problem[0][:2]).requires_grad


def test_the_classifier_goes_on_from_the_first_stage_at_a_share_of_the_rate(small, loader, make_trainer):
    rates = []

    class Watch(L.Callback):
        def on_train_start(self, trainer, pl_module):
            names = {parameter: name for name, parameter in pl_module.named_parameters()}
            groups = trainer.optimizers[0].param_groups
            rates.append({names[parameter]: group["lr"] for group in groups for parameter in group["params"]})

    module = MiSLASModule(**small, lr=0.3, head_lr=0.1, head_lr_factor=0.05)
    trained(module, loader, make_trainer, "features", callbacks=[Watch()])
    classifier = module.network.heads[0].weight.detach().clone()
    module.begin("head")
    assert torch.equal(module.network.heads[0].weight, classifier)
    trained(module, loader, make_trainer, "head", callbacks=[Watch()])
    assert set(rates[0].values()) == {0.3}
    assert rates[1] == pytest.approx({"scales": 0.1, "network.heads.0.weight": 0.005, "network.heads.0.bias": 0.005})
    assert (module.recipe()["schedule"], module.recipe()["warmup_epochs"]) == ("cosine", 0)


def test_scales_multiply_the_logits_and_so_the_bias(small, problem):
    module = MiSLASModule(**small).eval()
    with torch.no_grad():
        module.scales.copy_(torch.tensor([[[0.5, 1.0, 3.0]]]))
        module.network.heads[0].bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
        features = module.network.features(problem[0][:4])[0]
        found = module(problem[0][:4])[0]
    head = module.network.heads[0]
    for label, scale in enumerate((0.5, 1.0, 3.0)):
        assert_close(found[:, label], scale * (features @ head.weight[label] + head.bias[label]).detach())


# --------------------------------------------------------------------------------------------------------- the whole


def test_stages_by_default():
    stages = [(s.name, s.epochs, s.sampling, s.companion) for s in MiSLASModule(class_counts=COUNTS).stages()]
    assert stages == [("features", None, "instance", "partner"), ("head", 10, "balanced", None)]


@pytest.mark.parametrize("stage", ["features", "head"])
def test_a_checkpoint_of_each_stage_comes_back_by_one_call(small, problem, loader, make_trainer, tmp_path, stage):
    module = MiSLASModule(**small)
    trained(module, loader, make_trainer, stage).save_checkpoint(tmp_path / "model.ckpt")
    again = load_checkpoint(tmp_path / "model.ckpt")
    assert again.stage == stage
    assert torch.equal(again.probabilities(problem[0]), module.probabilities(problem[0]))


@pytest.mark.parametrize("stage", ["features", "head"])
def test_losses_are_finite_in_half_precision(small, loader, make_trainer, stage):
    module = MiSLASModule(**small, mixup_alpha=0.2)
    trainer = trained(module, loader, make_trainer, stage, precision="bf16-mixed")
    assert trainer.callback_metrics["train/loss"].isfinite()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mixup_alpha": -1.0}, "`mixup_alpha`"),
        ({"smooth_head": 1.5}, "`smooth_head`"),
        ({"smooth_tail": -0.1}, "`smooth_tail`"),
        ({"smoothing": "concav"}, "`smoothing` to be one of .* Did you mean 'concave'"),
        ({"smoothing": "exp"}, "`smoothing_power` to be a number above 0, but got None"),
        ({"smoothing_power": 2.0}, "`smoothing_power` with smoothing='exp' only"),
        ({"head_lr_factor": -0.1}, "`head_lr_factor`"),
        ({"shifted_bn": 1}, "`shifted_bn`"),
        ({"head_epochs": 0}, "`head_epochs`"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(small, changed, message):
    with pytest.raises(ArgumentError, match=message):
        MiSLASModule(**small, **changed)
