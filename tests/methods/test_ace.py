"""`ACEModule`: who owns which classes, what moves what and how fast, and how the experts are averaged."""

import pytest
import torch
from tests.reference import complementary_experts as reference
from torch.testing import assert_close

from mllt import ACEModule, DigitsLT, load_checkpoint
from mllt.errors import ArgumentError
from mllt.longtail import shot_groups
from mllt.networks import ExpertNetwork

COUNTS = [120, 24, 6]
OWNED = [[True, True, True], [False, True, True], [False, False, True]]
TARGETS = [0, 2, 1, 0, 0]


def owned_sizes(counts, **settings):
    module = ACEModule(class_counts=counts, network="resnet20", shared="none", width=0.25, **settings)
    return module.owned.sum(dim=1).tolist()


# ----------------------------------------------------------------------------------------------------- classes owned


def test_three_experts_own_all_then_medium_and_few_then_few_classes():
    data = DigitsLT()
    data.setup()
    for rule in ({}, {"many_above": 40, "few_below": 8}, {"many_above": 76, "few_below": 12, "shot_edges_inclusive": True}):
        module = ACEModule(class_counts=data.class_counts, network="resnet20", **rule)
        thresholds = (rule.get("many_above", 100), rule.get("few_below", 20))
        groups = shot_groups(data.class_counts, *thresholds, inclusive=rule.get("shot_edges_inclusive", False))
        assert module.owned[0].all()
        assert torch.equal(module.owned[1], ~groups["many"])
        assert torch.equal(module.owned[2], groups["few"])


@pytest.mark.parametrize(
    ("experts", "sizes"), [(1, [10]), (2, [10, 5]), (4, [10, 8, 5, 3]), (5, [10, 8, 6, 4, 2]), (10, list(range(10, 0, -1)))]
)
def test_another_number_of_experts_owns_ever_fewer_of_the_rarest(experts, sizes):
    counts = [7, 120, 4, 76, 2, 48, 19, 30, 12, 3]
    assert owned_sizes(counts, num_experts=experts) == sizes
    module = ACEModule(class_counts=counts, network="resnet20", num_experts=experts)
    ranks = torch.tensor(counts).argsort().argsort()
    assert all(torch.equal(owned, ranks < size) for owned, size in zip(module.owned, sizes, strict=True))


def test_three_experts_own_ever_fewer_also_where_no_class_is_many_shot():
    """As on digits_lt with a part of its images held out to validate."""
    assert owned_sizes([96, 61, 38, 24, 15, 10, 6, 3, 2, 2]) == [10, 7, 4]


def test_classes_of_equal_size_stay_together():
    assert owned_sizes([50, 9, 9, 9, 9, 2], num_experts=2) == [6, 5]


@pytest.mark.parametrize("max_counts", [[24, 6], (100, 23), [119, 7]], ids=str)
def test_the_classes_can_be_set_by_their_sizes(max_counts):
    assert owned_sizes(COUNTS, max_counts=max_counts) == [3, *(sum(n <= limit for n in COUNTS) for limit in max_counts)]
    assert owned_sizes(COUNTS, num_experts=2, max_counts=[6]) == [3, 1]


def test_classes_come_back_with_a_checkpoint_and_are_told_in_the_details(small, loader, make_trainer, tmp_path):
    module, trainer = ACEModule(**small, num_experts=2, max_counts=[6]), make_trainer(1)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = load_checkpoint(tmp_path / "model.ckpt")
    assert again.owned.tolist() == [[True, True, True], [False, False, True]]
    assert again.details() == {"classes_per_expert": [3, 1], "image_shares": pytest.approx([1.0, 6 / 150])}
    assert again.expert_weights().equal(module.expert_weights())


# ------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("settings", "weight"),
    [({}, 1.0), ({"complement_weight": 0.1, "complement": "samples"}, 0.1), ({"complement_weight": 0}, 0)],
)
def test_the_objective_is_that_of_the_loop(small, settings, weight):
    logits = torch.randn(3, 5, 3, dtype=torch.float64)
    terms = ACEModule(**small, **settings).objective(logits, torch.tensor(TARGETS))
    expected = reference.owned_cross_entropy(logits.tolist(), TARGETS, OWNED, COUNTS)
    complement = reference.complement(logits.tolist(), TARGETS, OWNED, settings.get("complement", "classes"))
    assert terms["cross_entropy"].item() == pytest.approx(expected, rel=1e-9)
    assert terms["complement"].item() == pytest.approx(weight * complement, rel=1e-9)


# ------------------------------------------------------------------------------------------------------------ routing


def gradients(module, images, targets):
    """By part of the network, of the whole loss."""
    module.zero_grad()
    torch.stack(list(module.objective(module(images), targets).values())).sum().backward()
    parts = {"trunk": module.network.trunk}
    for k in range(module.num_experts):
        parts[f"expert {k + 1}"] = torch.nn.ModuleList([module.network.experts[k], module.network.heads[k]])
    return {name: [p.grad for p in part.parameters()] for name, part in parts.items()}


@pytest.mark.parametrize("complement", ["classes", "samples"])
@pytest.mark.parametrize("shared", ["stem", "stage2", "stage3"])
def test_the_first_expert_alone_moves_the_trunk(small, problem, shared, complement):
    settings = {**small, "shared": shared, "width": None if shared == "stage3" else 0.25, "complement": complement}
    module = ACEModule(**settings).double().eval()
    images, targets = problem[0][:32].double(), problem[1][:32]
    found = gradients(module, images, targets)
    alone = ExpertNetwork(module.network.trunk, module.network.experts[:1], module.network.heads[:1])
    for p in module.parameters():
        p.grad = None
    torch.nn.functional.cross_entropy(alone(images)[0], targets).backward()  # the first expert owns all classes
    expected = [p.grad for p in (*alone.trunk.parameters(), *alone.experts.parameters(), *alone.heads.parameters())]
    for one, other in zip([*found["trunk"], *found["expert 1"]], expected, strict=True):
        assert_close(one, other)
    assert all(any(g.abs().sum() > 0 for g in found[f"expert {k}"]) for k in (2, 3))


@pytest.mark.parametrize("complement", ["classes", "samples"])
def test_every_parameter_has_a_gradient_also_where_no_image_is_an_experts_own(small, problem, complement):
    """Several devices wait for the gradient of every parameter."""
    images, targets = problem
    module = ACEModule(**{**small, "shared": "stage1"}, complement=complement)
    found = gradients(module, images[targets == 0][:4], targets[targets == 0][:4])
    assert all(g is not None and g.isfinite().all() for part in found.values() for g in part)
    assert all(g.any() == (complement == "classes") for g in found["expert 3"][-2:])  # of the head


def test_the_features_are_those_of_an_ordinary_network_of_experts(small, problem):
    network = ACEModule(**small).network.eval()
    plain = ExpertNetwork(network.trunk, network.experts, network.heads, network.stage_names)
    assert torch.equal(network(problem[0][:8]), plain(problem[0][:8]))
    assert (network.num_experts, network.stage_names) == (3, ("stem", "stage1", "stage2", "stage3"))


@pytest.mark.parametrize("distribution_lr", [True, False])
def test_experts_learn_at_the_rate_of_their_share_of_the_images(small, loader, make_trainer, distribution_lr):
    module = ACEModule(**{**small, "shared": "stage1"}, lr=0.2, schedule="constant", distribution_lr=distribution_lr)
    make_trainer(1).fit(module, loader)
    rates = {p: group["lr"] for group in module.optimizers().param_groups for p in group["params"]}
    shares = (1.0, 30 / 150, 6 / 150) if distribution_lr else (1.0, 1.0, 1.0)
    network = module.network
    assert {rates.pop(p) for p in network.trunk.parameters()} == {0.2}
    for k, share in enumerate(shares):
        private = [*network.experts[k].parameters(), *network.heads[k].parameters()]
        assert [rates.pop(p) for p in private] == pytest.approx([0.2 * share] * len(private))
    assert not rates


# ---------------------------------------------------------------------------------------------------------- inference


def lengths(module):
    return [reference.frobenius(head.weight.tolist()) for head in module.network.heads]


@pytest.mark.parametrize("rescale", [True, False])
def test_each_class_is_the_average_over_the_experts_that_own_it(small, problem, rescale):
    module = ACEModule(**small, rescale=rescale).double().eval()
    with torch.no_grad():
        module.network.heads[1].weight *= 0.3
        module.network.heads[2].weight *= 5
    images = problem[0][:6].double()
    logits, weights = module.judge(images)
    assert weights.shape == (3, 1, 3)
    assert torch.equal(logits, module(images)), "raw: what is told of an expert is what it says"
    expected = reference.ensemble(logits.tolist(), OWNED, lengths(module) if rescale else [1.0] * 3)
    assert_close((logits * weights).sum(dim=0), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert_close(module.probabilities(images), torch.tensor(expected).softmax(-1), rtol=1e-4, atol=1e-5)


def test_an_expert_has_no_say_on_classes_that_are_not_its_own(small, problem):
    module = ACEModule(**small).eval()
    before = module.probabilities(problem[0][:6])
    with torch.no_grad():
        module.network.heads[2].bias[:2] += 100
    assert torch.equal(module.probabilities(problem[0][:6]), before)


def test_an_ensemble_of_probabilities_averages_those_of_the_owners(small, problem):
    module = ACEModule(**small, ensemble="probabilities").eval()
    with torch.no_grad():
        module.network.heads[2].weight *= 5
    images = problem[0][:6]
    each = module(images).double().softmax(-1)
    owned = torch.tensor(OWNED).double()
    mean = (each * owned[:, None]).sum(dim=0) / owned.sum(dim=0)
    expected = mean / mean.sum(dim=-1, keepdim=True)
    assert_close(module.probabilities(images).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_table_of_a_test_is_of_that_ensemble(small, problem, loader, make_trainer):
    for ensemble in ("logits", "probabilities"):
        module, trainer = ACEModule(**small, ensemble=ensemble), make_trainer(3)
        trainer.fit(module, loader)
        trainer.test(module, loader, verbose=False)
        images, targets = problem
        right = module.probabilities(images).argmax(-1) == targets
        by_class = [100 * right[targets == label].double().mean().item() for label in range(3)]
        row = module.test_results["ensemble"]["raw"]
        assert [row["many"], row["medium"], row["few"]] == pytest.approx(by_class)


def test_cosine_heads_are_of_one_length_already(small):
    assert ACEModule(**small, head="cosine").expert_weights().equal(ACEModule(**small, rescale=False).expert_weights())


# ------------------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_stay_finite(small, loader, make_trainer, precision):
    trainer = make_trainer(2, precision=precision)
    trainer.fit(ACEModule(**small), loader)
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_it_says_what_was_decided_here():
    assert any("official code" in sentence for sentence in ACEModule.reconstructed)
    assert any("on average" in sentence for sentence in ACEModule.reconstructed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_counts": [6, 24]}, r"`max_counts` to be 2 falling numbers for 3 experts .* but got \[6, 24\]"),
        ({"max_counts": [24, 24]}, "`max_counts` to be 2 falling numbers"),
        ({"max_counts": [24]}, "`max_counts` to be 2 falling numbers"),
        ({"max_counts": 24}, "`max_counts` to be a list of whole numbers such as"),
        ({"max_counts": "24"}, "`max_counts` to be a list"),
        ({"max_counts": [24.5, 6]}, "`max_counts` to be a whole number"),
        ({"max_counts": [24, 5]}, "expert 3 would own those of at most 5 training images, and the rarest class has 6"),
        ({"max_counts": [1000, 999]}, r"fewer classes than the one before.*\[1000, 999\] .* are \[3, 3, 3\] classes"),
        ({"max_counts": [130, 24]}, r"fewer classes than the one before.* are \[3, 3, 2\] classes. Set other `max_counts`"),
        ({"max_counts": [25, 24]}, r"fewer classes than the one before.* are \[3, 2, 2\] classes"),
        ({"num_experts": 4, "class_counts": [9, 9, 9, 9]}, r"fewer classes.*\[9, 9, 9\] .* are \[4, 4, 4, 4\] classes"),
        ({"class_counts": [120, 60, 50]}, "few-shot classes for the third expert.*rarest class has 50.* Set `max_counts`"),
        ({"class_counts": [120, 6, 5]}, r"fewer classes than the one before.*\[6, 6\] .* are \[3, 2, 2\] classes"),
        ({"complement_weight": -1}, "`complement_weight`"),
        ({"complement": "class"}, "`complement` to be one of classes, samples"),
        ({"distribution_lr": 1}, "`distribution_lr` to be true or false"),
        ({"rescale": "yes"}, "`rescale` to be true or false"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(small, changed, message):
    with pytest.raises(ArgumentError, match=message):
        ACEModule(**{**small, **changed})
