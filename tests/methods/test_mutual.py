"""`MutualLTModule`: the weight of the mutual term, its settings, and what it adds to cross entropy."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tests.reference import losses as reference
from torch.testing import assert_close

from mllt import CrossEntropyModule, MutualLTModule, load_checkpoint
from mllt.errors import ArgumentError

COUNTS = [120, 24, 6]


def some_logits(experts=3):
    return 2 * torch.randn(experts, 5, 3, generator=torch.Generator().manual_seed(2))


TARGETS = torch.tensor([0, 2, 1, 0, 0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"temperature": 1.0}),
        ({"temperature": 3.0}, {"temperature": 3.0}),
        ({"mutual_target": "mean"}, {"target": "mean"}),
        ({"mutual_probabilities": "balanced"}, {"class_counts": COUNTS}),
        ({"num_experts": 2}, {}),
        ({"mutual_weight": 0.3}, {}),
        ({"mutual_weight": -0.3}, {}),
    ],
    ids=str,
)
def test_the_objective_is_cross_entropy_and_the_weighted_divergence(small, settings, expected):
    module = MutualLTModule(**small, **settings)
    logits = some_logits(module.num_experts)
    terms = module.objective(logits, TARGETS)
    assert set(terms) == {"cross_entropy", "mutual"}
    assert terms["cross_entropy"].item() == pytest.approx(reference.cross_entropy(logits.tolist(), TARGETS.tolist()), rel=1e-5)
    weighted = settings.get("mutual_weight", 1.0) * reference.mutual_distillation(logits.tolist(), **expected)
    assert terms["mutual"].item() == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("detach", [True, False])
def test_peers_are_constants_only_when_detached(small, detach):
    module = MutualLTModule(**small, detach_peers=detach, temperature=2.0)
    logits = some_logits().double().requires_grad_()
    slow = reference.mutual_distillation_pairs(logits, 2.0, "peers", None, detach=detach)
    (expected,) = torch.autograd.grad(slow, logits)
    (gradient,) = torch.autograd.grad(module.objective(logits, TARGETS)["mutual"], logits)
    assert_close(gradient, expected)


def test_three_experts_of_reduced_dimension_by_default():
    module = MutualLTModule(class_counts=COUNTS)
    assert module.num_experts == 3
    assert module.network.feature_dim == 48  # three quarters of ResNet-32's 64
    assert [name for name, _ in module.network.trunk.named_children()] == ["stem", "stage1"]
    settings = ("mutual_weight", "temperature", "mutual_target", "mutual_probabilities", "detach_peers", "mutual_warmup_epochs")
    assert [module.hparams[name] for name in settings] == [1.0, 1.0, "peers", "raw", True, 0]


def test_one_expert_has_no_mutual_term(small):
    terms = MutualLTModule(**small, num_experts=1).objective(some_logits(1), TARGETS)
    assert terms["mutual"].item() == 0


class TermsByEpoch(Callback):
    """The mutual term as it is logged, over what it is at weight 1."""

    def __init__(self, module):
        self.at_weight_one, self.factors = MutualLTModule(**{**module.hparams, "mutual_warmup_epochs": 0}), []

    def on_train_epoch_end(self, trainer, pl_module):
        terms = [module.objective(some_logits(), TARGETS)["mutual"].item() for module in (pl_module, self.at_weight_one)]
        self.factors.append(terms[0] / terms[1])


def test_the_weight_grows_from_zero_over_the_warm_up(small, loader, make_trainer):
    module = MutualLTModule(**small, mutual_warmup_epochs=4, mutual_weight=0.5)
    watch = TermsByEpoch(module)
    trainer = make_trainer(6, callbacks=[watch], limit_train_batches=1)
    trainer.fit(module, loader)
    assert watch.factors == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_weight_zero_trains_like_cross_entropy_to_the_last_bit(small, loader, make_trainer):
    states = []
    for cls, settings in ((CrossEntropyModule, {}), (MutualLTModule, {"mutual_weight": 0.0}), (MutualLTModule, {})):
        torch.manual_seed(0)
        module = cls(**small, num_experts=3, **settings)
        make_trainer(2).fit(module, loader)
        states.append(module.state_dict())
    assert_close(states[1], states[0], rtol=0, atol=0)
    assert not torch.equal(states[2]["network.heads.0.weight"], states[0]["network.heads.0.weight"])


def test_the_settings_travel_with_the_checkpoint(small, loader, make_trainer, tmp_path):
    settings = {
        "num_experts": 2,
        "mutual_weight": 0.3,
        "temperature": 2.0,
        "mutual_target": "mean",
        "mutual_probabilities": "balanced",
        "detach_peers": False,
        "mutual_warmup_epochs": 3,
        "class_chunk": 2,
    }
    trainer = make_trainer()
    trainer.fit(MutualLTModule(**small, **settings), loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert {name: loaded.hparams[name] for name in settings} == settings


@pytest.mark.parametrize(
    "settings", [{}, {"head": "cosine", "temperature": 2.0}, {"num_experts": 1}, {"mutual_probabilities": "balanced"}], ids=str
)
def test_chunks_of_classes_train_the_same_network(small, loader, make_trainer, settings):
    states = []
    for chunk in (None, 2):
        torch.manual_seed(0)
        module = MutualLTModule(**{**small, **settings}, class_chunk=chunk).double()
        trainer = make_trainer(2)
        trainer.fit(module, loader)
        states.append({**module.state_dict(), "loss": trainer.callback_metrics["train/loss"].double()})
    assert_close(states[1], states[0], rtol=1e-6, atol=1e-9)


def test_chunks_of_classes_never_make_the_logits_of_all(small, loader, make_trainer):
    module = MutualLTModule(**small, class_chunk=2)
    module.network.forward = module.network.classify = None  # what would make them
    trainer = make_trainer()
    trainer.fit(module, loader)
    assert trainer.callback_metrics["train/mutual"] > 0


class Scaled(torch.nn.Linear):
    def forward(self, features):
        return 2 * super().forward(features)


def test_chunks_of_classes_are_refused_for_heads_whose_logits_they_do_not_know(small):
    class Own(MutualLTModule):
        def make_network(self, **changes):
            network = super().make_network(**changes)
            network.heads[1] = Scaled(network.feature_dim, network.num_classes)
            return network

    assert Own(**small).num_experts == 3
    with pytest.raises(ArgumentError, match=r"Expected linear or cosine heads, alike in all experts.*LinearHead, Scaled"):
        Own(**small, class_chunk=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_chunk": 0}, "Expected `class_chunk` .* at least 1"),
        ({"temperature": 0}, r"Expected `temperature` .* above 0, but got 0"),
        ({"temperature": "2"}, r"Expected `temperature`"),
        ({"mutual_weight": float("inf")}, r"Expected `mutual_weight`"),
        ({"mutual_weight": None}, r"Expected `mutual_weight`"),
        ({"mutual_target": "peer"}, r"Expected `mutual_target` .*Did you mean 'peers'\?"),
        ({"mutual_probabilities": "balancd"}, r"Expected `mutual_probabilities` .*Did you mean 'balanced'\?"),
        ({"detach_peers": "no"}, r"Expected `detach_peers` to be true or false"),
        ({"mutual_warmup_epochs": -1}, r"Expected `mutual_warmup_epochs` .* at least 0"),
        ({"mutual_warmup_epochs": 1.5}, r"Expected `mutual_warmup_epochs` to be a whole number"),
        ({"num_experts": 0}, r"Expected `num_experts`"),
    ],
)
def test_settings_out_of_range_are_refused(small, settings, message):
    with pytest.raises(ArgumentError, match=message):
        MutualLTModule(**small, **settings)
