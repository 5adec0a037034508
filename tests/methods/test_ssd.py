"""`SSDModule`: what each stage learns, from what, and what it leaves alone."""

import pytest
import torch
import torch.nn.functional as F
from tests.reference import published_losses as reference
from torch.testing import assert_close

from mllt import DigitsLT, SSDModule, load_checkpoint
from mllt.errors import ArgumentError
from mllt.methods.batches import as_batch


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def fitted(module, stage, loader, make_trainer, epochs=1):
    module.begin(stage)
    trainer = make_trainer(epochs)
    trainer.fit(module, [loader, loader] if stage == "features" else loader)
    return trainer


@pytest.fixture
def pair(problem):
    """Six images and another view of each, as a trainer hands them over that has two loaders."""
    images, targets = problem[0][:6], problem[1][:6]
    return as_batch([(images, targets), (images.flip(-1), targets)])


# --------------------------------------------------------------------------------------------------------- features


def test_features_learn_from_labels_and_from_the_contrast_of_two_views(small, pair):
    module = SSDModule(**small, queue_size=20, contrast_temperature=0.3, contrast_weight=0.5)
    module.contrast.queue_targets.copy_(torch.arange(20) % 3)
    terms = module.losses(pair)
    network = module.network
    cross_entropy = F.cross_entropy(network.heads[0](network.features(pair.images)[0]), pair.targets)
    assert_close(terms["cross_entropy"], cross_entropy)
    queries = F.normalize(module.contrast.projector(network.features(pair.images)[0]), dim=1)
    keys = F.normalize(module.contrast.projector(network.features(pair.companion.images)[0]), dim=1)  # the same at first
    lists = [tensor.tolist() for tensor in (queries, keys, pair.targets, module.contrast.queue, module.contrast.queue_targets)]
    assert terms["contrast"].item() == pytest.approx(0.5 * reference.guided_contrast(*lists, 0.3), rel=1e-4)


def test_no_gradient_reaches_the_keys(small, pair):
    module = SSDModule(**small, queue_size=20)
    torch.stack(list(module.losses(pair).values())).sum().backward()
    moved = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in moved} == {"network", "contrast"}
    assert not any("key" in name for name in moved)
    assert {name for name, parameter in module.named_parameters() if parameter.requires_grad} == moved


def test_after_a_step_keys_enter_the_queue_and_their_encoder_follows(small, pair):
    module = SSDModule(**small, queue_size=10, key_momentum=0.9)
    contrast = module.contrast
    before = weights_of(contrast)
    keys = contrast.keys_of(pair.companion.images)
    module.losses(pair)
    assert torch.equal(contrast.queue, before["queue"]), "not within the step: other shares of it must see the same queue"
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(1.0)
    ahead = {name: value.clone() for name, value in module.network.named_parameters()}
    contrast.follow(module.network, 0.9)
    assert_close(contrast.queue[:6], keys)
    assert torch.equal(contrast.queue[6:], before["queue"][6:])
    assert torch.equal(contrast.queue_targets[:6], pair.targets)
    for name, value in contrast.key_network.named_parameters():
        assert_close(value, 0.9 * before[f"key_network.{name}"] + 0.1 * ahead[name])
    module.losses(pair)
    contrast.follow(module.network, 0.9)
    assert contrast.queue_at == 2, "12 keys went through a queue of 10"
    assert torch.equal(contrast.queue_targets, pair.targets[[4, 5, 2, 3, 4, 5, 0, 1, 2, 3]])


def test_the_queue_takes_steps_of_several_shares_and_none_of_what_only_fills_up(small, pair):
    module = SSDModule(**small, queue_size=10)
    one, other = (pair._replace(images=pair.images[rows], targets=pair.targets[rows]) for rows in (slice(4), slice(4, 6)))
    filler = other._replace(weight=torch.zeros(()))
    for share, rows in ((one, slice(4)), (other, slice(4, 6)), (filler, slice(4, 6))):
        companion = pair.companion._replace(images=pair.companion.images[rows], targets=pair.companion.targets[rows])
        module.losses(share._replace(companion=companion))
    module.contrast.follow(module.network, 0.999)
    assert module.contrast.queue_at == 6
    assert torch.equal(module.contrast.queue_targets[:6], pair.targets)


def test_the_queue_is_as_long_as_the_training_set_unless_told(small):
    assert SSDModule(**small).contrast.queue.shape == (150, 128)
    assert SSDModule(**small, queue_size=7, projection_dim=16).contrast.queue.shape == (7, 16)
    assert SSDModule(**{**small, "class_counts": [200_000, 5, 5]}).contrast.queue.shape == (131_072, 128)


def test_loaders_without_a_second_view_are_refused(small, loader, make_trainer):
    with pytest.raises(ArgumentError, match="companion"):
        make_trainer(1).fit(SSDModule(**small), loader)


# ------------------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("drifting", [True, False])
def test_scales_alone_learn_in_the_second_stage(small, loader, make_trainer, drifting):
    module = SSDModule(**small, drifting_statistics=drifting)
    fitted(module, "features", loader, make_trainer)
    before = weights_of(module.network)
    module.begin("labels")
    assert [name for name, parameter in module.named_parameters() if parameter.requires_grad] == ["scales"]
    make_trainer(1).fit(module, loader)
    assert not torch.equal(module.scales, torch.ones(3))
    for name, value in module.network.state_dict().items():
        statistics = "running" in name or "num_batches" in name
        assert torch.equal(value, before[name]) != (statistics and drifting), name


def test_each_stage_has_its_order_epochs_batch_and_rate(small):
    module = SSDModule(**small, lr=0.3, schedule="multistep", label_epochs=4, label_lr=0.2, label_batch_size=512)
    stages = [(stage.name, stage.epochs, stage.sampling, stage.companion, stage.batch_size) for stage in module.stages()]
    assert stages == [
        ("features", None, "instance", "view", None),
        ("labels", 4, "balanced", None, 512),
        ("distillation", None, "instance", None, None),
    ]
    assert SSDModule(**small, rescaling_epochs=3).stages()[-1].epochs == 3
    assert (module.recipe()["lr"], module.recipe()["schedule"]) == (0.3, "multistep")
    module.begin("labels")
    assert (module.recipe()["lr"], module.recipe()["schedule"], module.recipe()["warmup_epochs"]) == (0.2, "cosine", 0)
    module.begin("distillation")
    assert (module.recipe()["lr"], module.recipe()["schedule"]) == (0.3, "multistep")


# ------------------------------------------------------------------------------------------------------ distillation


def test_a_new_network_learns_the_scaled_ones_soft_labels_and_the_hard_ones(small, problem):
    images, targets = problem[0][:6], problem[1][:6]
    module = SSDModule(**small, drifting_statistics=False, temperature=2.0, soft_weight=0.7)
    module.begin("labels")
    with torch.no_grad():
        module.scales.copy_(torch.tensor([0.5, 1.0, 2.0]))
    module.eval()
    expected = module(images)[0]
    old = module.network.heads[0].weight.clone()
    module.begin("distillation")
    assert_close(module.teacher(images), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(module.network.heads[0].weight, old)
    module.eval()
    terms = module.losses(as_batch((images, targets)))
    soft = reference.virtual_examples(module(images)[0].tolist(), expected.tolist(), 2.0, 1.0)
    assert terms["distillation"].item() == pytest.approx(0.7 * soft, rel=1e-3)
    features = module.network.features(images)[0]
    assert_close(terms["cross_entropy"], F.cross_entropy(module.hard_head(features), targets))


def test_hard_and_soft_heads_learn_apart_and_the_teacher_not_at_all(small, problem):
    module = SSDModule(**small)
    module.begin("distillation")
    batch = as_batch((problem[0][:6], problem[1][:6]))
    learning = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("teacher") for name in learning)
    terms = module.losses(batch)
    for term, head, other in (
        ("cross_entropy", module.hard_head, module.network.heads[0]),
        ("distillation", module.network.heads[0], module.hard_head),
    ):
        grads = torch.autograd.grad(terms[term], [head.weight, other.weight], retain_graph=True, allow_unused=True)
        assert grads[0].abs().sum() > 0
        assert grads[1] is None


@pytest.mark.parametrize("drifting", [True, False])
def test_the_teacher_runs_on_batch_statistics_as_released_unless_told(small, loader, make_trainer, drifting):
    module = SSDModule(**small, drifting_statistics=drifting)
    module.begin("distillation")
    before = weights_of(module.teacher)
    make_trainer(1).fit(module, loader)
    for name, value in module.teacher.state_dict().items():
        statistics = "running" in name or "num_batches" in name
        assert torch.equal(value, before[name]) != (statistics and drifting), name
    module.eval()
    assert not any(part.training for part in module.teacher.modules())


# ------------------------------------------------------------------------------------------------------------- a run


def test_every_stage_loads_with_one_call_and_holds_what_it_needs(small, loader, problem, make_trainer, tmp_path):
    module, sizes = SSDModule(**small, rescaling_epochs=1), {}
    for stage in module.stages():
        trainer = fitted(module, stage.name, loader, make_trainer)
        path = tmp_path / f"{stage.name}.ckpt"
        trainer.save_checkpoint(path)
        sizes[stage.name] = {name.split(".")[0] for name in module.state_dict()}
        again = load_checkpoint(path)
        assert again.stage == stage.name
        assert same(weights_of(again), weights_of(module))
        assert torch.equal(again.probabilities(problem[0]), module.probabilities(problem[0]))
    common = {"class_counts", "network"}
    assert sizes == {
        "features": common | {"contrast"},
        "labels": common | {"scales"},
        "distillation": common | {"teacher", "hard_head"},
        "rescaling": common | {"scales"},
    }


def test_our_data_modules_give_the_second_view_by_themselves(make_trainer):
    data = DigitsLT(batch_size=64)
    module = SSDModule(class_counts=data.class_counts, network="resnet20", shared="none", width=0.25)
    make_trainer(1).fit(module, datamodule=data)
    assert module.contrast.queue_at == 0, "321 keys through a queue of 321"
    assert module.contrast.queue_targets.bincount().tolist() == data.class_counts.tolist()


@pytest.mark.parametrize(
    "changed",
    [
        {"queue_size": 0},
        {"key_momentum": 1.5},
        {"contrast_temperature": 0},
        {"contrast_weight": -1},
        {"projection_dim": 0},
        {"label_epochs": 0},
        {"label_lr": 0},
        {"label_batch_size": 0},
        {"temperature": -2},
        {"soft_weight": -1},
        {"rescaling_epochs": -1},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(small, changed):
    with pytest.raises(ArgumentError, match=f"`{next(iter(changed))}`"):
        SSDModule(**small, **changed)


@pytest.mark.parametrize("changed", [{"num_experts": 2}, {"head": "cosine"}], ids=str)
def test_it_is_one_network_with_a_linear_head(small, changed):
    with pytest.raises(ArgumentError, match="one network with a linear head"):
        SSDModule(**small, **changed)
