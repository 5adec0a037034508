"""The mutual-learning objective in one step, whole or chunk by chunk of the classes, against slow references."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from tests.reference import losses as reference
from tests.reference.memory import peak
from torch.testing import assert_close

from mllt import blocks
from mllt.errors import ArgumentError
from mllt.losses import (
    MUTUAL_TARGETS,
    chunked_mutual_learning_terms,
    expert_cross_entropy,
    mutual_distillation_loss,
    mutual_learning_terms,
)

COUNTS = torch.tensor([500, 60, 20, 7, 1])
LABELS = torch.tensor([0, 4, 2, 2, 1, 0, 3])
SETTINGS = [
    {"temperature": temperature, "target": target, "class_counts": counts, "detach": detach}
    for temperature, target, counts, detach in itertools.product([1.0, 3.0], MUTUAL_TARGETS, [None, COUNTS], [True, False])
]
every_setting = pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda s: f"{s['temperature']}-{s['target']}-{s['class_counts'] is not None}-{s['detach']}"
)


@pytest.fixture(params=["one block", "a block per image"])
def cut(request, monkeypatch):
    """The batch at once, and image by image."""
    if request.param == "a block per image":
        monkeypatch.setattr(blocks, "PER_THREAD", 1)


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def slow_terms(logits, temperature, target, class_counts, detach):
    """By autograd: log softmax expert by expert, and one ordered pair of experts at a time."""
    entropy = sum(-one.log_softmax(-1)[range(len(LABELS)), LABELS].sum() for one in logits) / len(LABELS)
    log_prior = None if class_counts is None else (class_counts.double() / class_counts.sum()).log()
    return entropy, reference.mutual_distillation_pairs(logits, temperature, target, log_prior, detach=detach)


def gradients(terms, leaves, retain_graph=False):
    """Of a sum in which the two terms have unlike weights."""
    return torch.autograd.grad(1.5 * terms[0] - 0.4 * terms[1], leaves, retain_graph=retain_graph)


@pytest.mark.usefixtures("cut")
@every_setting
def test_both_terms_and_their_gradient_are_those_of_the_loop_over_pairs(settings):
    logits = normal(3, 7, 5).requires_grad_()
    terms, slow = mutual_learning_terms(logits, LABELS, **settings), slow_terms(logits, **settings)
    assert_close(terms, slow, rtol=1e-11, atol=1e-12)
    assert_close(gradients(terms, logits), gradients(slow, logits), rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("target", MUTUAL_TARGETS)
def test_the_gradient_is_that_of_finite_differences(target):
    logits = normal(3, 7, 5).requires_grad_()
    settings = {"target": target, "detach": False, "class_counts": COUNTS}
    assert torch.autograd.gradcheck(lambda z: mutual_learning_terms(z, LABELS, 2.0, **settings), (logits,))


@pytest.mark.usefixtures("cut")
@every_setting
def test_a_retained_graph_gives_the_same_gradient_again(settings):
    logits = normal(3, 7, 5).requires_grad_()
    terms = mutual_learning_terms(logits, LABELS, **settings)
    first, second = (gradients(terms, logits, retain_graph=True)[0].clone() for _ in range(2))
    assert_close(second, first, rtol=1e-12, atol=1e-14)


def test_each_term_may_be_left_out_of_the_sum():
    logits = normal(3, 7, 5).requires_grad_()
    for chosen, alone in enumerate((expert_cross_entropy(logits, LABELS), mutual_distillation_loss(logits))):
        (gradient,) = torch.autograd.grad(mutual_learning_terms(logits, LABELS)[chosen], logits)
        assert_close(gradient, torch.autograd.grad(alone, logits)[0])


@pytest.mark.usefixtures("cut")
def test_logits_are_left_as_they_are_and_may_lie_in_memory_as_they_like():
    logits = normal(7, 5, 3).permute(2, 0, 1).requires_grad_()
    before = logits.detach().clone()
    terms, slow = mutual_learning_terms(logits, LABELS), slow_terms(logits, 1.0, "peers", None, True)
    assert_close(gradients(terms, logits), gradients(slow, logits))
    assert torch.equal(logits, before)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_setting
def test_half_precision_is_computed_in_float32_and_its_gradient_rounded_once(settings, dtype):
    halves = normal(3, 7, 5, dtype=dtype).requires_grad_()
    floats = halves.detach().float().requires_grad_()
    terms, exact = (mutual_learning_terms(z, LABELS, **settings) for z in (halves, floats))
    assert [term.dtype for term in terms] == [torch.float32] * 2
    assert torch.equal(torch.stack(terms), torch.stack(exact))
    assert torch.equal(gradients(terms, halves)[0], gradients(exact, floats)[0].to(dtype))


@pytest.mark.usefixtures("cut")
def test_one_expert_has_cross_entropy_alone():
    logits = normal(1, 7, 5).requires_grad_()
    terms = mutual_learning_terms(logits, LABELS)
    assert terms[1].item() == 0
    assert_close(gradients(terms, logits)[0], 1.5 * torch.autograd.grad(expert_cross_entropy(logits, LABELS), logits)[0])


def test_an_empty_batch_costs_nothing_and_can_be_stepped_through():
    logits = torch.zeros(3, 0, 5, requires_grad=True)
    terms = mutual_learning_terms(logits, LABELS[:0])
    assert [term.item() for term in terms] == [0, 0]
    sum(terms).backward()
    assert logits.grad.shape == (3, 0, 5)


def test_huge_logits_stay_finite():
    logits = (1e4 * normal(3, 7, 5, dtype=torch.float32)).requires_grad_()
    terms = mutual_learning_terms(logits, LABELS)
    assert torch.stack(terms).isfinite().all()
    assert gradients(terms, logits)[0].isfinite().all()


def test_an_image_whose_logits_are_no_numbers_is_noticed():
    logits = normal(3, 7, 5)
    logits[1, 2, 3] = float("nan")
    assert torch.stack(mutual_learning_terms(logits, LABELS)).isnan().all()


def test_differentiating_twice_is_refused():
    logits, features = normal(3, 7, 5).requires_grad_(), normal(3, 7, 4).requires_grad_()
    chunked = chunked_mutual_learning_terms(features, heads("linear")[0], None, LABELS, chunk=2)
    for leaf, terms in ((logits, mutual_learning_terms(logits, LABELS)), (features, chunked)):
        with pytest.raises(ArgumentError, match="differentiated once, but got create_graph=True"):
            torch.autograd.grad(sum(terms), leaf, create_graph=True)


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[-1]], ids=["plain", "every setting"])
def test_a_compiler_gets_one_graph_of_the_same_result(settings):
    logits = normal(3, 7, 5).requires_grad_()
    mutual_learning_terms(logits, LABELS, **settings)
    whole = settings["class_counts"] is None  # what is known of counts is looked up outside of the graph
    compiled = torch.compile(lambda z: mutual_learning_terms(z, LABELS, **settings), backend="eager", fullgraph=whole)
    terms, plain = compiled(logits), mutual_learning_terms(logits, LABELS, **settings)
    assert_close(terms, plain, rtol=1e-11, atol=1e-12)
    assert_close(gradients(terms, logits), gradients(plain, logits), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_that_is_no_class_is_refused(label):
    labels = torch.tensor([0, 1, 2, 3, 4, 0, label])
    with pytest.raises(ArgumentError, match=r"Expected every target in 0 \.\. 4, but got"):
        mutual_learning_terms(normal(3, 7, 5), labels)
    with pytest.raises(ArgumentError, match=r"Expected every target in 0 \.\. 4, but got"):
        chunked_mutual_learning_terms(normal(3, 7, 4), [normal(5, 4)] * 3, None, labels, chunk=2)


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[-5]], ids=["plain", "unlike softmaxes"])
def test_beside_the_logits_no_more_than_one_tensor_of_their_size_is_held(settings, monkeypatch):
    monkeypatch.setattr(blocks, "PER_THREAD", 1)
    logits = normal(3, 7, 2000).requires_grad_()
    counts = None if settings["class_counts"] is None else torch.arange(1, 2001)

    def step():
        sum(mutual_learning_terms(logits, LABELS, **{**settings, "class_counts": counts})).backward()

    step()
    logits.grad = None
    block = logits.nbytes / 7
    assert peak(step) < logits.nbytes + 6 * block
    logits.grad = None
    assert peak(lambda: F.cross_entropy(logits.view(-1, 2000), LABELS.repeat(3)).backward()) >= 2 * logits.nbytes


# ---------------------------------------------------------------------------------------------------------------
# Chunks of classes


def heads(kind, experts=3, classes=5, size=4, dtype=torch.float64):
    """Weights, biases and scale."""
    weights = [normal(classes, size, seed=10 + k, dtype=dtype).requires_grad_() for k in range(experts)]
    biases = [normal(classes, seed=20 + k, dtype=dtype).requires_grad_() for k in range(experts)]
    return weights, biases if kind == "biased" else None, 7.0 if kind == "cosine" else None


def whole_logits(features, weights, biases, scale):
    if scale is not None:
        pairs = zip(features, weights, strict=True)
        return torch.stack([scale * (x / x.norm(dim=1, keepdim=True)) @ (w / w.norm(dim=1, keepdim=True)).T for x, w in pairs])
    biases = biases or [0.0] * len(weights)
    return torch.stack([x @ w.T + b for x, w, b in zip(features, weights, biases, strict=True)])


@pytest.mark.parametrize("kind", ["linear", "biased", "cosine"])
@every_setting
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(settings, kind):
    features, (weights, biases, scale) = normal(3, 7, 4).requires_grad_(), heads(kind)
    leaves = [features, *weights, *(biases or [])]
    slow = slow_terms(whole_logits(features, weights, biases, scale), **settings)
    expected = gradients(slow, leaves)
    for chunk in (1, 2, 5, 99):
        terms = chunked_mutual_learning_terms(features, weights, biases, LABELS, chunk=chunk, cosine_scale=scale, **settings)
        assert_close(terms, slow, rtol=1e-11, atol=1e-12)
        assert_close(gradients(terms, leaves), expected, rtol=1e-9, atol=1e-12)


def test_chunks_of_one_expert_are_cross_entropy():
    features, (weights, biases, _) = normal(1, 7, 4).requires_grad_(), heads("biased", experts=1)
    terms = chunked_mutual_learning_terms(features, weights, biases, LABELS, chunk=2)
    plain = expert_cross_entropy(whole_logits(features, weights, biases, None), LABELS)
    assert terms[1].item() == 0
    assert_close(terms[0], plain)
    assert_close(torch.autograd.grad(terms[0], [features, *weights]), torch.autograd.grad(plain, [features, *weights]))


def test_what_is_frozen_gets_no_gradient_from_chunks():
    features, (weights, _, _) = normal(3, 7, 4), heads("linear")
    weights[1].requires_grad_(False)
    sum(chunked_mutual_learning_terms(features, weights, None, LABELS, chunk=2)).backward()
    assert [weight.grad is None for weight in weights] == [False, True, False]
    assert features.grad is None


def test_chunks_of_an_empty_batch_cost_nothing():
    features, (weights, _, _) = torch.zeros(3, 0, 4, requires_grad=True), heads("linear", dtype=torch.float32)
    terms = chunked_mutual_learning_terms(features, weights, None, LABELS[:0], chunk=2)
    assert [term.item() for term in terms] == [0, 0]
    sum(terms).backward()
    assert features.grad.shape == (3, 0, 4)
    assert all(not weight.grad.any() for weight in weights)


def test_chunks_are_computed_in_float32_under_autocast():
    features, (weights, biases, _) = normal(3, 7, 4, dtype=torch.bfloat16), heads("biased", dtype=torch.float32)
    plain = chunked_mutual_learning_terms(features.float(), weights, biases, LABELS, chunk=2)
    with torch.autocast("cpu", torch.bfloat16):
        terms = chunked_mutual_learning_terms(features, weights, biases, LABELS, chunk=2)
    assert torch.equal(torch.stack(terms), torch.stack(plain))


def test_huge_logits_stay_finite_in_chunks():
    features, (weights, _, _) = 1e4 * normal(3, 7, 4, dtype=torch.float32), heads("linear", dtype=torch.float32)
    terms = chunked_mutual_learning_terms(features, weights, None, LABELS, chunk=2)
    assert torch.stack(terms).isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(terms, weights))


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[-5]], ids=["plain", "unlike softmaxes"])
def test_memory_of_chunks_does_not_grow_with_the_number_of_classes(settings):
    def beyond_the_weights(classes):
        features, (weights, biases, _) = normal(3, 7, 4).requires_grad_(), heads("biased", classes=classes)
        counts = None if settings["class_counts"] is None else torch.arange(1, classes + 1)

        def step():
            rule = {**settings, "class_counts": counts}
            sum(chunked_mutual_learning_terms(features, weights, biases, LABELS, chunk=100, **rule)).backward()

        step()  # the prior's logarithm is made once
        for leaf in (features, *weights, *biases):
            leaf.grad = None
        return peak(step) - sum(leaf.nbytes for leaf in (*weights, *biases))  # whose gradients these are

    few, many = beyond_the_weights(500), beyond_the_weights(5000)
    assert many < 1.1 * few
    assert many < 9 * 3 * 7 * 100 * 8  # chunks of logits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 0}, "Expected `chunk`"),
        ({"chunk": 2.0}, "Expected `chunk` to be a whole number"),
        ({"cosine_scale": 0.0}, "Expected `cosine_scale`"),
        ({"temperature": 0.0}, "Expected `temperature`"),
        ({"target": "peer"}, "Expected `target` .*Did you mean 'peers'"),
        ({"detach": 1}, "Expected `detach`"),
        ({"class_counts": torch.tensor([1, 2])}, "Expected `class_counts` to hold 5"),
        ({"weights": [torch.zeros(5, 4)] * 2}, r"Expected `weights` of shape \(classes, 4\), one of each of 3 experts"),
        ({"weights": [torch.zeros(5, 3)] * 3}, r"Expected `weights` of shape \(classes, 4\)"),
        ({"weights": [torch.zeros(5, 4), torch.zeros(5, 4), torch.zeros(6, 4)]}, "Expected `weights`"),
        ({"biases": [torch.zeros(5)] * 2}, r"Expected `biases` of shape \(5,\), one of each of 3"),
        ({"biases": [torch.zeros(4)] * 3}, r"Expected `biases` of shape \(5,\)"),
        ({"features": torch.zeros(3, 6, 4)}, "Expected `logits` of shape|Expected `features`"),
    ],
)
def test_bad_arguments_of_chunks_are_refused(changes, message):
    given = {"features": torch.zeros(3, 7, 4), "weights": [torch.zeros(5, 4)] * 3, "biases": None, "labels": LABELS, "chunk": 2}
    with pytest.raises(ArgumentError, match=message):
        chunked_mutual_learning_terms(**{**given, **changes})
