"""What holds for any settings: runs compose and train, or say clearly why not; orders and priors keep their laws.

Few examples by default, the same ones every time; many more, with `-m slow`.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.commands.conftest import command_runner

from mllt.data.order import (
    COMPANIONS,
    ClassBalancedOrder,
    Companions,
    EpochOrder,
    EvaluationSampler,
    GlobalBatchSampler,
    per_class_split,
)
from mllt.errors import ArgumentError, MlltError
from mllt.longtail import (
    PROFILES,
    class_prior,
    compensate,
    imbalance_factor,
    long_tailed_prior,
    profile_counts,
    resolve_test_prior,
    shot_groups,
)
from mllt.methods import LongTailedModule
from mllt.optim import learning_rate_factor, milestone_epochs

seeds = st.integers(0, 2**32 - 1)
epochs = st.integers(0, 10**6)


def few(examples):
    """So many examples, the same in every run."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


# ---------------------------------------------------------------------------------------------------------------
# Profiles and priors

counts_lists = st.lists(st.integers(1, 5000), min_size=1, max_size=30)


@few(100)
@given(st.sampled_from(PROFILES), st.integers(1, 200), st.integers(1, 10_000), st.floats(1, 1000))
def test_a_profile_falls_from_its_largest_class_by_the_factor(profile, classes, largest, factor):
    try:
        counts = profile_counts(profile, classes, largest, factor)
    except ArgumentError:
        assert factor > largest  # a class would be empty
        return
    assert len(counts) == classes
    assert all(isinstance(count, int) and 1 <= count <= largest for count in counts)
    assert counts == sorted(counts, reverse=True)
    if classes > 1:
        assert counts[0] == largest
        assert counts[-1] == max(1, int(largest * (1 / factor)))
        assert imbalance_factor(torch.tensor(counts)) >= factor * (1 - 1e-9) or counts[-1] == 1
    if profile == "step":
        assert len(set(counts)) <= 2


@few(100)
@given(counts_lists, st.floats(1, 1000), st.booleans())
def test_priors_are_distributions_that_rank_classes_as_the_training_does(counts, factor, backward):
    counts = torch.tensor(counts)
    for prior in (class_prior(counts), long_tailed_prior(counts, factor, backward=backward)):
        assert prior.dtype == torch.float64
        assert bool((prior > 0).all())
        assert float(prior.sum()) == pytest.approx(1, abs=1e-12)
    prior = long_tailed_prior(counts, factor, backward=backward)
    order = torch.argsort(counts, descending=True, stable=True)
    along = prior[order] if not backward else prior[order].flip(0)
    assert bool((along.diff() <= 1e-15).all())
    if len(counts) > 1:
        assert float(prior.max() / prior.min()) == pytest.approx(factor, rel=1e-9)


@few(100)
@given(st.data(), counts_lists)
def test_shot_groups_hold_every_class_once(data, counts):
    few_below = data.draw(st.integers(0, 200))
    many_above = data.draw(st.integers(0, 200))
    inclusive = data.draw(st.booleans())
    try:
        groups = shot_groups(torch.tensor(counts), many_above, few_below, inclusive=inclusive)
    except ArgumentError:
        assert few_below >= many_above
        return
    together = torch.stack(list(groups.values())).int()
    assert together.sum(dim=0).tolist() == [1] * len(counts)


@few(100)
@given(st.data(), counts_lists)
def test_compensation_is_bayes_rule(data, counts):
    """softmax(compensated) ~ softmax(raw) * test prior / training prior; from and to the same prior it changes nothing."""
    logits = torch.tensor(data.draw(st.lists(st.floats(-20, 20), min_size=len(counts), max_size=len(counts)))).double()
    weights = data.draw(st.lists(st.floats(0.01, 10), min_size=len(counts), max_size=len(counts)))
    prior = resolve_test_prior(weights, torch.tensor(counts))
    assert float(prior.sum()) == pytest.approx(1, abs=1e-12)
    expected = logits.softmax(-1) * prior / class_prior(counts)
    found = compensate(logits, counts, prior).softmax(-1)
    assert torch.allclose(found, expected / expected.sum(), atol=1e-9)
    assert torch.allclose(compensate(logits, counts, class_prior(counts)), logits, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------
# Orders and samplers


@few(60)
@given(st.integers(1, 300), seeds, epochs, st.booleans())
def test_an_epoch_has_every_image_once_and_depends_on_nothing_else(length, seed, epoch, shuffle):
    order = EpochOrder(length, seed, shuffle=shuffle)
    assert sorted(order(epoch).tolist()) == list(range(length))
    assert order(epoch).tolist() == EpochOrder(length, seed, shuffle=shuffle)(epoch).tolist()
    if not shuffle:
        assert order(epoch).tolist() == order(0).tolist()


label_lists = st.lists(st.integers(0, 12), min_size=1, max_size=200)


@few(60)
@given(label_lists, seeds, epochs)
def test_a_balanced_epoch_has_each_class_as_often_and_its_images_in_turn(labels, seed, epoch):
    labels = np.array(labels)
    drawn = ClassBalancedOrder(labels, seed)(epoch)
    assert len(drawn) == len(labels)
    present, times = np.unique(labels[drawn], return_counts=True)
    classes = np.unique(labels)
    rounds = -(-len(labels) // len(classes))
    assert set(present) == set(classes) or len(labels) < len(classes)
    assert times.max() <= rounds
    assert times.min() >= rounds - 1
    for label in present:
        of_class = drawn[labels[drawn] == label]
        each = np.unique(of_class, return_counts=True)[1]
        assert each.max() - (each.min() if len(each) == (labels == label).sum() else 0) <= 1


@st.composite
def layouts(draw):
    """Images, global batch, devices and accumulated steps that fit each other."""
    world, accumulate = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    batch_size = draw(st.integers(1, 8)) * world * accumulate
    return draw(st.integers(1, 150)), batch_size, world, accumulate


def shares(length, batch_size, world, accumulate, *, seed, epoch, labels=None, companion=None, drop_last=False):
    """What each device gets: a list of requests per device."""
    order = EpochOrder(length, seed)
    beside = None if companion is None else Companions(companion, labels, seed)
    found = []
    for rank in range(world):
        sampler = GlobalBatchSampler(
            *(order, length, batch_size),
            num_replicas=world,
            rank=rank,
            accumulate=accumulate,
            drop_last=drop_last,
            companions=beside,
        )
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    return found


@few(100)
@given(layouts(), seeds, epochs, st.booleans())
def test_shares_make_the_same_global_batches_whatever_the_layout(layout, seed, epoch, drop_last):
    length, batch_size, world, accumulate = layout
    assume(not drop_last or length >= batch_size)
    whole = shares(length, batch_size, 1, 1, seed=seed, epoch=epoch, drop_last=drop_last)[0]
    parts = shares(*layout, seed=seed, epoch=epoch, drop_last=drop_last)
    assert len({len(requests) for requests in parts}) == 1
    steps = len(whole)
    for step, alone in enumerate(whole):
        turns = [parts[rank][step * accumulate + turn] for turn in range(accumulate) for rank in range(world)]
        real = [request for request in turns if request.weight > 0]
        assert np.concatenate([request.indices for request in real]).tolist() == alone.indices.tolist()
        assert np.concatenate([request.positions for request in real]).tolist() == alone.positions.tolist()
        # The mean of the shares' means, each by its weight, is the mean over the global batch
        assert sum(Fraction(request.weight).limit_denominator(10**6) for request in turns) == len(turns)
        images = len(alone.indices)
        for request in real:
            assert request.weight == pytest.approx(len(request.indices) * len(turns) / images)
        assert all(len(request.indices) == 1 for request in turns if request.weight == 0)
    every = np.concatenate([request.indices for request in whole]).tolist()
    assert len(every) == len(set(every)) == (steps * batch_size if drop_last else length)
    sizes = {len(request.indices) for request in whole}
    assert max(sizes) - min(sizes) <= (0 if drop_last else 1)
    assert max(sizes) <= batch_size


@few(60)
@given(layouts(), seeds, epochs, st.sampled_from(COMPANIONS), st.data())
def test_companions_are_the_same_whatever_the_layout(layout, seed, epoch, companion, data):
    length, batch_size, world, accumulate = layout
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=length, max_size=length)))
    common = {"seed": seed, "epoch": epoch, "labels": labels, "companion": companion}
    whole = shares(length, batch_size, 1, 1, **common)[0]
    parts = shares(*layout, **common)
    for step, alone in enumerate(whole):
        turns = [parts[rank][step * accumulate + turn] for turn in range(accumulate) for rank in range(world)]
        beside = [request.companion for request in turns if request.weight > 0]
        assert np.concatenate([request.indices for request in beside]).tolist() == alone.companion.indices.tolist()
        assert np.concatenate([request.positions for request in beside]).tolist() == alone.companion.positions.tolist()
        assert {request.draw for request in turns} == {alone.draw}
        assert 0 <= alone.draw < 1
        if companion == "partner":
            assert sorted(alone.companion.indices.tolist()) == sorted(alone.indices.tolist())
        elif companion == "view":
            assert alone.companion.indices.tolist() == alone.indices.tolist()
            assert not set(alone.companion.positions.tolist()) & set(alone.positions.tolist())
        else:
            assert alone.companion.indices.max() < length


@few(10)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), seeds, epochs)
def test_reversed_companions_are_of_each_class_as_often_as_asked(counts, seed, epoch):
    """p_c ~ 1 / n_c, within five standard deviations of 20,000 draws; within a class, each image alike."""
    labels = np.repeat(np.arange(len(counts)), counts)
    draws = 20_000
    order = np.arange(draws) % len(labels)
    requests = GlobalBatchSampler(lambda _: order, draws, draws, companions=Companions("reversed", labels, seed))
    requests.set_epoch(epoch)
    (request,) = list(requests)
    found = np.bincount(labels[request.companion.indices], minlength=len(counts)) / draws
    wanted = (1 / np.array(counts)) / (1 / np.array(counts)).sum()
    assert (abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / draws) + 1e-12).all()


@few(60)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 5))
def test_an_evaluation_has_every_image_once_over_all_devices(length, batch_size, world):
    samplers = [EvaluationSampler(length, batch_size, num_replicas=world, rank=rank) for rank in range(world)]
    of_ranks = [list(sampler) for sampler in samplers]
    assert {len(requests) for requests in of_ranks} == {len(samplers[0])}, "no device waits for another in vain"
    dealt = [request for turn in zip(*of_ranks, strict=True) for request in turn]
    assert all(len(request.indices) <= batch_size and request.weight in (0, 1) for request in dealt)
    counted = [request.indices.tolist() for request in dealt if request.weight]
    alone = [request.indices.tolist() for request in EvaluationSampler(length, batch_size)]
    assert counted == alone, "the batches of one device"
    assert [index for batch in alone for index in batch] == list(range(length))


@few(60)
@given(label_lists, st.floats(0, 0.9), seeds)
def test_a_split_holds_out_the_share_of_each_class_and_leaves_one_of_each(labels, fraction, seed):
    labels = np.array(labels)
    kept, out = per_class_split(labels, fraction, seed)
    assert sorted([*kept.tolist(), *out.tolist()]) == list(range(len(labels)))
    assert set(labels[kept]) == set(labels)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        assert (labels[out] == label).sum() == min(np.rint(count * fraction), count - 1)


@few(100)
@given(
    st.integers(1, 300),
    st.sampled_from(["multistep", "cosine", "constant"]),
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True),
    st.integers(0, 20),
    st.floats(0.01, 1),
)
def test_a_schedule_warms_up_and_never_rises_after(max_epochs, schedule, shares_of_run, warmup, gamma):
    milestones = sorted(shares_of_run)
    values = [learning_rate_factor(epoch, max_epochs, schedule, milestones, gamma, warmup) for epoch in range(max_epochs)]
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in values)
    assert all(one <= other + 1e-12 for one, other in itertools.pairwise(values[:warmup]))
    assert all(one >= other - 1e-12 for one, other in itertools.pairwise(values[warmup:]))
    assert milestone_epochs(milestones, max_epochs) == sorted(milestone_epochs(milestones, max_epochs))


# ---------------------------------------------------------------------------------------------------------------
# Whole runs

METHODS = sorted(name for name, cls in LongTailedModule.registry.items() if cls.__module__.startswith("mllt.methods"))


def maybe(strategy):
    """None: the setting is left as it is."""
    return st.one_of(st.none(), strategy)


def numbers(least, most):
    return st.floats(least, most, allow_nan=False).map(lambda value: float(f"{value:.3g}"))


#: Settings by name: values within their ranges. Combinations may still not fit, and are then told so.
IN_RANGE = {
    "network": st.sampled_from(["resnet20", "resnet32"]),
    "network.num_experts": st.integers(1, 3),
    "network.shared": st.sampled_from(["none", "stem", "stage1", "stage2", "stage3"]),
    "network.width": numbers(0.1, 0.5),
    "network.head": st.sampled_from(["linear", "cosine"]),
    "optimizer.lr": numbers(1e-4, 0.05),
    "optimizer.momentum": numbers(0, 0.95),
    "optimizer.nesterov": st.booleans(),
    "optimizer.weight_decay": numbers(0, 0.01),
    "optimizer.decay_norm_and_bias": st.booleans(),
    "optimizer.ema_decay": numbers(0.1, 0.99),
    "schedule": st.sampled_from(["multistep", "cosine", "constant"]),
    "schedule.warmup_epochs": st.integers(0, 3),
    "batch_size": st.sampled_from([4, 8, 12, 16, 321, 1000]),
    "seed": seeds,
    "data.imbalance_factor": numbers(1, 200),
    "data.profile": st.sampled_from(PROFILES),
    "data.val_fraction": numbers(0, 0.5),
    "data.drop_last": st.booleans(),
    "data.shuffle": st.booleans(),
    "data.augment": st.booleans(),
    "data.padding": st.integers(0, 4),
    "trainer.accumulate_grad_batches": st.sampled_from([1, 2, 3, 4]),
    "trainer.gradient_clip_val": numbers(0.1, 10),
    "trainer.precision": st.sampled_from(["32-true", "bf16-mixed"]),
    "evaluation.test_prior": st.sampled_from(["uniform", "train", "forward", "backward"]),
    "evaluation.test_prior_factor": numbers(1, 500),
    "evaluation.many_above": st.integers(0, 150),
    "evaluation.few_below": st.integers(0, 150),
    "evaluation.ensemble": st.sampled_from(["logits", "probabilities"]),
}
#: What is out of every range, by the kind of setting.
WRONG = [
    *("-1", "nan", "inf", "-inf", "1e400", "1e-400", "99999999999999999999", "0", "true", "null"),
    *("''", "[]", "{}", "text", "${seed}", "'${x}'", "[[1]]"),
]
SHORT = (
    *("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_test_batches=1", "trainer.limit_val_batches=1"),
    *("trainer.accelerator=cpu", "data.eval_batch_size=50", "network.width=0.25"),
)
STAGES = {
    **{method: ["method.head_epochs=1"] for method in ("crt", "lws", "mislas")},
    "ssd": ["method.label_epochs=1"],
    "ride": ["method.routing_epochs=1"],
}


@st.composite
def commands(draw):
    """A method with some settings in their ranges."""
    method = draw(st.sampled_from(METHODS))
    chosen = draw(st.lists(st.sampled_from(sorted(IN_RANGE)), unique=True, max_size=6))
    return [f"method={method}", *(f"{name}={show(draw(IN_RANGE[name]))}" for name in chosen)]


def show(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_command(monkeypatch, capfd, folder, arguments):
    """The command ends well, or in one line of our own; returns the exit status."""
    method = next((a.partition("=")[2] for a in arguments if a.startswith("method=")), "")
    known = {a.partition("=")[0] for a in arguments}
    extra = [a for a in (*SHORT, *STAGES.get(method, [])) if a.partition("=")[0] not in known]
    command = command_runner(monkeypatch, capfd, folder)
    done = command("train", *extra, *arguments, f"output_dir={folder / 'run'}", "overwrite=true")
    assert done.status in (0, 2), (arguments, done.err[-2000:])
    assert "Traceback" not in done.err, (arguments, done.err[-2000:])
    if done.status == 2:
        assert done.err.strip().splitlines()[-1].startswith("Error: "), (arguments, done.err[-2000:])
    else:
        assert "PC" in done.out
    return done


@pytest.mark.parametrize("examples", [6, pytest.param(150, marks=pytest.mark.slow)])
def test_any_settings_in_their_ranges_train_or_say_why_not(monkeypatch, capfd, tmp_path_factory, examples):
    ends = {0: 0, 2: 0}

    @few(examples)
    @given(commands())
    def check(arguments):
        ends[check_command(monkeypatch, capfd, tmp_path_factory.mktemp("run"), arguments).status] += 1

    check()
    assert ends[0] > examples / 4, ends


@pytest.mark.parametrize("examples", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_settings_out_of_their_ranges_are_one_line_of_ours(monkeypatch, capfd, tmp_path_factory, examples):
    names = sorted({*IN_RANGE, "trainer.limit_train_batches", "trainer.devices", "threads"})
    folder = tmp_path_factory.mktemp("run")
    ends = {0: 0, 2: 0}

    @few(examples)
    @given(st.sampled_from(names), st.sampled_from(WRONG))
    def check(name, value):
        ends[check_command(monkeypatch, capfd, folder, [f"{name}={value}"]).status] += 1

    check()
    assert ends[2] > examples / 2, ends


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
ARGUMENTS = ("num_experts", "shared", "width", "head", "scale", "lr", "momentum", "schedule", "milestones", "gamma")
MORE = (
    "warmup_epochs",
    "ema_decay",
    "test_prior",
    "test_prior_factor",
    "many_above",
    "ensemble",
    "class_names",
    "preprocessing",
)


@pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_values_for_a_methods_arguments_make_a_module_or_one_of_our_errors(examples):
    @few(examples)
    @given(
        st.sampled_from(METHODS),
        st.sampled_from([*ARGUMENTS, *MORE, "class_counts", "network", "network_options", "preprocessing"]),
        plain,
    )
    def check(method, name, value):
        arguments = {"class_counts": [5, 3, 2], "network": "resnet20", "width": 0.1, "shared": "none", name: value}
        try:
            LongTailedModule.registry[method](**arguments)
        except MlltError:
            return

    check()
