"""`RIDEModule`: its loss, when re-weighting begins, that it drives experts apart; its teacher, and its router."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tests.reference import published_losses as reference
from torch.utils.data import DataLoader, IterableDataset

from mllt import RIDEModule, load_checkpoint
from mllt.errors import ArgumentError
from mllt.methods.batches import as_batch
from mllt.networks import ExpertNetwork, count_macs

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


# ------------------------------------------------------------------------------------------------------ distillation


def fitted(module, stage, loader, make_trainer, epochs=1):
    module.begin(stage)
    make_trainer(epochs).fit(module, loader)
    return module


def weights_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_larger_ride_is_trained_first_and_then_teaches(small, loader, make_trainer):
    module = RIDEModule(**small, distill=True, teacher_experts=4)
    assert [stage.name for stage in module.stages()] == ["teacher", "experts", "routing"]
    assert module.num_experts == 4
    fitted(module, "teacher", loader, make_trainer)
    taught = weights_of(module.network)
    fitted(module, "experts", loader, make_trainer)
    assert module.num_experts == 3
    assert same(weights_of(module.teacher.network), taught), "a teacher learns nothing"
    fitted(module, "routing", loader, make_trainer)
    assert module.teacher is None


def test_with_distillation_the_whole_loss_counts_once_per_expert(small, problem):
    images, targets = problem[0][:6], problem[1][:6]
    module = RIDEModule(**small, distill=True, teacher_experts=2, distill_temperature=2.0, distill_weight=0.7)
    module.begin("experts")
    module.eval()
    terms = module.losses(as_batch((images, targets)))
    logits = module(images)
    taught = module.teacher(images)
    assert terms["ride"].item() == pytest.approx(3 * module.objective(logits, targets)["ride"].item(), rel=1e-5)
    kl = reference.virtual_examples(logits.mean(0).tolist(), taught.tolist(), 2.0, 1.0)
    assert terms["distillation"].item() == pytest.approx(3 * 0.7 * kl, rel=1e-4)


def test_a_teacher_can_be_given_by_path_and_is_not_needed_again(small, loader, make_trainer, tmp_path):
    teacher = RIDEModule(**small, num_experts=5, routing_epochs=0)
    trainer = make_trainer(1)
    trainer.fit(teacher, loader)
    trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    module = RIDEModule(**small, teacher=tmp_path / "teacher.ckpt")
    assert [stage.name for stage in module.stages()] == ["experts", "routing"]
    assert same(weights_of(module.teacher.network), weights_of(teacher.network))
    trainer = make_trainer(1)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    (tmp_path / "teacher.ckpt").unlink()
    again = load_checkpoint(tmp_path / "student.ckpt")
    assert again.teacher.network.num_experts == 5
    assert same(weights_of(again), weights_of(module))


# ----------------------------------------------------------------------------------------------------------- routing


@pytest.fixture
def routed(small, loader, make_trainer):
    torch.manual_seed(3)
    module = fitted(RIDEModule(**small), "experts", loader, make_trainer)
    return fitted(module, "routing", loader, make_trainer).eval()


def test_routing_trains_the_router_and_nothing_else(small, loader, make_trainer):
    module = fitted(RIDEModule(**small), "experts", loader, make_trainer)
    before = weights_of(module.network)
    module.begin("routing")
    router = weights_of(module.router)
    assert {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad} == {"router"}
    make_trainer(1).fit(module, loader)
    assert same(weights_of(module.network), before), "batch statistics included"
    assert not any(torch.equal(value, router[name]) for name, value in module.router.state_dict().items())


def consulted(module, image):
    """Expert after expert for one image, as the paper says: the mean of those that were asked, and their number."""
    network, total = module.network, torch.zeros(module.num_classes)
    shared = network.trunk(image[None])
    for k in range(module.num_experts):
        features = network.experts[k](shared)
        total += network.heads[k](features)[0]
        if k + 1 == module.num_experts:
            break
        unit = features[0] / features[0].norm()
        hidden = (module.router.reduce[k].weight @ unit + module.router.reduce[k].bias).clamp(min=0)
        top = (total / (k + 1)).sort(descending=True).values[: module.router.top_k]
        if torch.cat([hidden, top]) @ module.router.decide.weight[0] + module.router.decide.bias <= 0:
            break
    return total / (k + 1), k + 1


@torch.no_grad()
def test_an_image_is_shown_to_expert_after_expert_until_the_router_says_enough(routed, problem):
    images = problem[0][:40]
    # The median of the first decision is where it turns: so that some images stop after one, some go on
    shared = routed.network.trunk(images)
    features = routed.network.experts[0](shared)
    asks = routed.router(0, features, routed.network.heads[0](features))
    routed.router.decide.bias -= asks.median()
    expected = [consulted(routed, image) for image in images]
    assert {number for _, number in expected} >= {1, 2} or {number for _, number in expected} >= {1, 3}
    logits, weights = routed.judge(images)
    assert (weights > 0).sum(0).flatten().tolist() == [number for _, number in expected]
    torch.testing.assert_close((logits * weights).sum(0), torch.stack([mean for mean, _ in expected]), rtol=1e-4, atol=1e-4)
    assert logits.shape == (3, 40, 3)
    torch.testing.assert_close(logits, routed(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(routed.probabilities(images), routed.combine(logits, weights).softmax(-1))


@torch.no_grad()
def test_only_the_experts_that_are_asked_are_computed_to_predict(routed, problem):
    calls = []
    for k, expert in enumerate(routed.network.experts):
        expert.register_forward_hook(lambda module, inputs, output, k=k: calls.append((k, len(output))))
    for bias, expected in ((-1e6, [(0, 10)]), (1e6, [(0, 10), (1, 10), (2, 10)])):
        routed.router.decide.bias.fill_(bias)
        calls.clear()
        routed.probabilities(problem[0][:10])
        assert calls == expected


@pytest.mark.parametrize(("bias", "mean"), [(-1e6, 1.0), (1e6, 3.0)])
def test_a_test_tells_how_many_experts_were_asked_and_what_that_saves(routed, loader, make_trainer, bias, mean):
    with torch.no_grad():
        routed.router.decide.bias.fill_(bias)
    make_trainer().test(routed, loader, verbose=False)
    details = routed.details()
    assert details["mean_experts"] == mean
    assert details["images_by_experts"] == ([150, 0, 0] if mean == 1 else [0, 0, 150])
    network = routed.network
    trunk = count_macs(ExpertNetwork(network.trunk, network.experts[:1], network.heads[:1]), 8)
    assert details["flops_all_experts"] == 2 * count_macs(network, 8)
    decisions = 1 if mean == 1 else 2
    router = decisions * (16 * network.feature_dim + 16 + 3)
    assert details["flops_per_image"] == 2 * ((trunk if mean == 1 else count_macs(network, 8)) + router)
    assert details["flops_saved"] == pytest.approx(100 * (1 - details["flops_per_image"] / details["flops_all_experts"]))


def test_every_stage_of_a_run_loads_with_one_call(small, loader, problem, make_trainer, tmp_path):
    module = RIDEModule(**small, distill=True, teacher_experts=2)
    for stage in ("teacher", "experts", "routing"):
        module.begin(stage)
        trainer = make_trainer(1)
        trainer.fit(module, loader)
        trainer.save_checkpoint(tmp_path / f"{stage}.ckpt")
        again = load_checkpoint(tmp_path / f"{stage}.ckpt")
        assert (again.stage, again.num_experts) == (stage, module.num_experts)
        assert torch.equal(again.probabilities(problem[0]), module.probabilities(problem[0]))


def test_a_teacher_of_as_many_experts_is_not_taken_for_the_student(small, loader, problem, make_trainer, tmp_path):
    module = RIDEModule(**small, num_experts=2, distill=True, teacher_experts=2)
    for stage in ("teacher", "experts"):
        fitted(module, stage, loader, make_trainer)
    taught = weights_of(module.teacher.network)
    before = weights_of(module.network)
    assert not same(before, taught)
    module.begin("routing")
    trainer = make_trainer(1)
    trainer.fit(module, loader)
    assert same(weights_of(module.network), before)
    trainer.save_checkpoint(tmp_path / "routing.ckpt")
    again = load_checkpoint(tmp_path / "routing.ckpt")
    again.on_stage()  # as a trainer that begins the stage once more
    assert same(weights_of(again.network), before), "not a new network in place of the trained one"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_router_decides_in_float32_as_heads_do(routed, problem, dtype):
    features, logits = (torch.randn(8, size) for size in (routed.network.feature_dim, 3))
    with torch.autocast("cpu", dtype):
        asks = routed.router(0, features.to(dtype), logits.to(dtype))
    assert asks.dtype == torch.float32
    assert torch.equal(asks, routed.router(0, features.to(dtype).float(), logits.to(dtype).float()))


class OnOneDevice(IterableDataset):
    """Batches for the first device, none for the others."""

    def __init__(self, images, targets):
        self.batches = list(zip(images.split(32), targets.split(32), strict=True))

    def __iter__(self):
        first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        return iter(self.batches if first else [])


class TellDetails(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_test_end(self, trainer, module):
        torch.save(module.details(), self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
def test_a_device_without_an_image_to_test_tells_the_same(routed, problem, make_trainer, tmp_path):
    loader = DataLoader(OnOneDevice(*problem), batch_size=None)
    devices = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    make_trainer(callbacks=[TellDetails(tmp_path)], **devices).test(routed, loader, verbose=False)
    make_trainer().test(routed, loader, verbose=False)
    alone = routed.details()
    assert alone["flops_all_experts"] > 0
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)] == [alone, alone]


def test_a_test_without_a_router_tells_nothing_of_one(small, loader, make_trainer):
    module = RIDEModule(**small)
    make_trainer().test(module, loader, verbose=False)
    assert module.details() == {}


def test_one_expert_needs_no_router(small):
    assert [stage.name for stage in RIDEModule(**small, num_experts=1).stages()] == ["experts"]
    assert [stage.name for stage in RIDEModule(**small, routing_epochs=0).stages()] == ["experts"]


def test_the_routing_stage_has_a_rate_batch_and_order_of_its_own(small):
    module = RIDEModule(**small, lr=0.3, schedule="multistep", routing_lr=0.02, routing_epochs=7, routing_batch_size=512)
    stage = module.stages()[-1]
    assert (stage.epochs, stage.sampling, stage.batch_size) == (7, "balanced", 512)
    module.begin("routing")
    assert (module.recipe()["lr"], module.recipe()["schedule"], module.recipe()["warmup_epochs"]) == (0.02, "cosine", 0)
    assert module.recipe()["weight_decay"] == 5e-4
    other = RIDEModule(**small, weight_decay=2e-4, routing_weight_decay=1e-3)
    assert other.recipe()["weight_decay"] == 2e-4
    other.begin("routing")
    assert other.recipe()["weight_decay"] == 1e-3


def test_a_teacher_may_warm_up_for_another_time(small):
    module = RIDEModule(**{**small, "warmup_epochs": 20}, distill=True, teacher_warmup_epochs=5)
    assert module.recipe()["warmup_epochs"] == 5
    module.begin("experts")
    assert module.recipe()["warmup_epochs"] == 20
