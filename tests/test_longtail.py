import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference import longtail as reference
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mllt.errors import ArgumentError, DataError
from mllt.longtail import (
    check_class_counts,
    class_prior,
    compensate,
    compensation_offset,
    exponential_profile,
    imbalance_factor,
    log_prior,
    long_tailed_prior,
    profile_counts,
    resolve_test_prior,
    shot_groups,
    step_profile,
)

COUNTS = [500, 7, 100, 7, 20, 1]
prop = settings(deadline=None, database=None, max_examples=60)
some_counts = st.lists(st.integers(1, 5000), min_size=1, max_size=8)


def random_logits(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ------------------------------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize(
    ("num_classes", "max_count", "factor", "total", "smallest", "groups"),
    [
        (100, 500, 200, 9_502, 2, None),
        (100, 500, 100, 10_847, 5, (35, 35, 30)),
        (100, 500, 50, 12_608, 10, (41, 41, 18)),
        (100, 500, 20, 15_907, 25, None),
        (100, 500, 10, 19_573, 50, (69, 31, 0)),
        (10, 5000, 200, 11_203, 25, None),
        (10, 5000, 100, 12_406, 50, None),
        (10, 5000, 50, 13_996, 100, None),
        (10, 5000, 20, 17_023, 250, None),
        (10, 5000, 10, 20_431, 500, None),
    ],
)
def test_exponential_profiles_have_the_sizes_of_the_literature(num_classes, max_count, factor, total, smallest, groups):
    counts = exponential_profile(num_classes, max_count, factor)
    assert (sum(counts), counts[0], counts[-1]) == (total, max_count, smallest)
    if groups is not None:
        assert tuple(int(mask.sum()) for mask in shot_groups(torch.tensor(counts)).values()) == groups


def test_the_classes_next_to_the_edges_of_cifar100_lt():
    at_100, at_10 = exponential_profile(100, 500, 100), exponential_profile(100, 500, 10)
    assert (at_100[34], at_100[35], at_100[69], at_100[70]) == (102, 98, 20, 19)
    assert (at_10[68], at_10[69]) == (102, 100)
    assert shot_groups(torch.tensor(at_10))["medium"][69]


def test_step_profiles_keep_the_first_half_whole():
    assert step_profile(100, 500, 100) == [500] * 50 + [5] * 50
    assert sum(step_profile(100, 500, 100)) == sum(step_profile(10, 5000, 100)) == 25_250
    assert step_profile(3, 100, 3) == [100, 33, 33]


@prop
@given(st.integers(1, 60), st.integers(1, 6000), st.floats(1, 6000))
@example(1, 7, 5.0)
def test_an_exponential_profile_is_the_exact_curve_cut_off(num_classes, max_count, factor):
    exact = [reference.exact_count(k, num_classes, max_count, factor) for k in range(num_classes)]
    if min(exact) < 1 - 1e-9:
        with pytest.raises(ArgumentError, match=f"Set `imbalance_factor` to at most {max_count}"):
            exponential_profile(num_classes, max_count, factor)
    elif min(exact) > 1 + 1e-9:
        counts = exponential_profile(num_classes, max_count, factor)
        assert all(-1e-9 <= value - count < 1 + 1e-9 for count, value in zip(counts, map(float, exact), strict=True))
        assert counts[0] == max_count
        assert counts == sorted(counts, reverse=True)


def test_a_factor_of_one_is_balanced_and_one_class_is_no_tail():
    assert exponential_profile(4, 30, 1) == step_profile(4, 30, 1) == [30] * 4
    assert exponential_profile(1, 30, 10) == [30]


def test_profiles_by_name_and_a_mistyped_one():
    assert profile_counts("exponential", 10, 5000, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert profile_counts("step", 2, 10, 5) == [10, 2]
    with pytest.raises(ArgumentError, match=r"Expected `profile` .*'exponental'\. Did you mean 'exponential'\?"):
        profile_counts("exponental", 10, 5000, 100)


@pytest.mark.parametrize("make", [exponential_profile, step_profile])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 500, 100), "`num_classes` to be a whole number of at least 1, but got 0"),
        ((10, 0, 1), "`max_count` to be a whole number of at least 1, but got 0"),
        ((10, 500.0, 1), "`max_count` .*500.0"),
        ((10, 500, 0.5), "`imbalance_factor` to be a number of at least 1, but got 0.5"),
        ((10, 500, math.nan), "`imbalance_factor` .*nan"),
        ((10, 500, math.inf), "`imbalance_factor` .*inf"),
        ((10, 500, 501), "leaves the smallest class of 500 images empty. Set `imbalance_factor` to at most 500"),
    ],
)
def test_impossible_profiles_are_refused(make, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        make(*arguments)


@pytest.mark.parametrize(
    "max_count",
    # in floating point 49 * (1 / 49) falls just short of 1
    [120, 500, 5000, 49],  # 49 * (1 / 49) is a little less than 1
)
def test_the_largest_allowed_factor_leaves_one_image(max_count):
    assert exponential_profile(10, max_count, max_count)[-1] == step_profile(10, max_count, max_count)[-1] == 1


def test_the_imbalance_factor_of_counts():
    assert imbalance_factor(torch.tensor([5, 100, 20])) == 20
    assert imbalance_factor(torch.tensor([3, 2])) == 1.5
    assert imbalance_factor(torch.tensor([3, 0])) == math.inf


# ---------------------------------------------------------------------------------------------------------- shot groups


@pytest.mark.parametrize(("inclusive", "many", "few"), [(False, [101, 500], [1, 19]), (True, [100, 101, 500], [1, 19, 20])])
def test_both_edges_of_the_shot_groups(inclusive, many, few):
    counts = torch.tensor([1, 19, 20, 21, 99, 100, 101, 500])
    groups = shot_groups(counts, inclusive=inclusive)
    assert list(groups) == ["many", "medium", "few"]
    assert counts[groups["many"]].tolist() == many
    assert counts[groups["few"]].tolist() == few


@prop
@given(some_counts, st.integers(0, 200), st.integers(0, 200), st.booleans())
def test_every_class_is_in_exactly_one_group(counts, many_above, few_below, inclusive):
    disjoint = few_below < many_above if inclusive else few_below <= many_above + 1
    if not disjoint:
        with pytest.raises(ArgumentError, match=f"few_below={few_below}, many_above={many_above}: .* both groups"):
            shot_groups(torch.tensor(counts), many_above, few_below, inclusive=inclusive)
        return
    groups = shot_groups(torch.tensor(counts), many_above, few_below, inclusive=inclusive)
    assert torch.stack(list(groups.values())).sum(dim=0).tolist() == [1] * len(counts)
    for count, in_many, in_few in zip(counts, groups["many"], groups["few"], strict=True):
        assert in_many == (count > many_above or (inclusive and count == many_above))
        assert in_few == (count < few_below or (inclusive and count == few_below))


def test_a_group_may_be_empty():
    groups = shot_groups(torch.tensor([500, 400]))
    assert groups["many"].all()
    assert not groups["medium"].any()
    assert not groups["few"].any()


@pytest.mark.parametrize("arguments", [{"many_above": -1}, {"few_below": 2.5}, {"inclusive": 1}, {"many_above": True}])
def test_bad_thresholds_are_refused(arguments):
    with pytest.raises(ArgumentError, match=f"`{next(iter(arguments))}`"):
        shot_groups(torch.tensor(COUNTS), **arguments)


# ------------------------------------------------------------------------------------------------------ counts and priors


@pytest.mark.parametrize("given_counts", [[3, 2, 0], (3, 2, 0), torch.tensor([3.0, 2.0, 0.0]), torch.tensor([3, 2, 0]).byte()])
def test_class_counts_come_in_many_forms(given_counts):
    counts = check_class_counts(given_counts, 3)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [3, 2, 0]


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [[1, 2]],
        3,
        None,
        ["many"],
        [1.5],
        [math.nan, 1],
        [math.inf, 1],
        [-1, 3],
        [0, 0],
        [True, False],
        [1j],
        [1e30],
        [2**70],
    ],
    ids=repr,
)
def test_what_are_no_class_counts(bad):
    with pytest.raises(ArgumentError, match="Expected `class_counts` to be"):
        check_class_counts(bad)


def test_class_counts_of_another_number_of_classes():
    with pytest.raises(ArgumentError, match="`class_counts` to hold 4 numbers, one per class, but got 2"):
        check_class_counts([3, 1], 4)


@prop
@given(some_counts)
def test_priors_are_shares_and_log_priors_their_logarithms(counts):
    prior, logarithm = class_prior(torch.tensor(counts)), log_prior(torch.tensor(counts))
    assert prior.dtype == logarithm.dtype == torch.float64
    for n, share, log_share in zip(counts, prior.tolist(), logarithm.tolist(), strict=True):
        assert share == pytest.approx(n / sum(counts), rel=1e-14)
        assert log_share == pytest.approx(math.log(n) - math.log(sum(counts)), abs=1e-12)


def test_an_empty_class_has_a_prior_but_no_logarithm():
    counts = torch.tensor([3, 0, 1, 0])
    assert class_prior(counts).tolist() == [0.75, 0, 0.25, 0]
    for use in (log_prior, compensation_offset, lambda n: compensate(torch.zeros(2, 4), n)):
        with pytest.raises(ArgumentError, match=r"2 of 4 have none \(classes 1, 3\)"):
            use(counts)


# -------------------------------------------------------------------------------------------------------- compensation

TEST_PRIOR = [0.1, 0.2, 0.3, 0.05, 0.05, 0.3]


@pytest.mark.parametrize("test_prior", [None, TEST_PRIOR, [0.5, 0, 0, 0, 0, 0.5]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.float16, 1e-2)])
def test_compensate_equals_the_slow_reference(test_prior, dtype, tolerance):
    logits = random_logits(200, 6, dtype=dtype)
    prior = None if test_prior is None else torch.tensor(test_prior, dtype=torch.float64)
    result = compensate(logits, torch.tensor(COUNTS), prior)
    expected = torch.tensor(reference.compensate(logits.tolist(), COUNTS, test_prior or [1 / 6] * 6), dtype=torch.float64)
    assert result.dtype == dtype
    assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
    if dtype == torch.float64:
        assert torch.equal(result.argmax(dim=-1), expected.argmax(dim=-1))


def test_compensation_changes_decisions_towards_the_tail():
    logits = random_logits(500, 6)
    before, after = logits.argmax(dim=-1), compensate(logits, torch.tensor(COUNTS)).argmax(dim=-1)
    assert (after == 5).sum() > (before == 5).sum()
    assert (after == 0).sum() < (before == 0).sum()


@prop
@given(some_counts, st.integers(0, 2**31), st.booleans())
def test_compensated_probabilities_are_bayes_rule_with_the_other_prior(counts, seed, uniform):
    draw = torch.Generator().manual_seed(seed)
    likelihood = torch.rand(5, len(counts), generator=draw, dtype=torch.float64) + 1e-3
    test_prior = torch.rand(len(counts), generator=draw, dtype=torch.float64) + 1e-3
    test_prior = torch.full_like(test_prior, 1 / len(counts)) if uniform else test_prior / test_prior.sum()
    train_prior = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    logits = (likelihood * train_prior).log()  # what a perfect network of plain cross entropy gives
    posterior = likelihood * test_prior
    result = compensate(logits, torch.tensor(counts), None if uniform else test_prior).softmax(dim=-1)
    assert_close(result, posterior / posterior.sum(dim=-1, keepdim=True), rtol=1e-9, atol=1e-12)


@prop
@given(some_counts, st.integers(2, 50), st.integers(0, 2**31))
def test_only_shares_of_the_counts_matter_and_the_order_of_classes_does_not(counts, times, seed):
    n, logits = torch.tensor(counts), random_logits(4, len(counts), seed=seed)
    result = compensate(logits, n)
    assert_close(compensate(logits, n * times), result, rtol=1e-12, atol=1e-12)
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    assert_close(compensate(logits[:, order], n[order]), result[:, order], rtol=0, atol=1e-12)


def test_compensating_to_the_training_prior_or_from_a_balanced_set_changes_no_probability():
    logits = random_logits(20, 6)
    to_train = compensate(logits, torch.tensor(COUNTS), class_prior(torch.tensor(COUNTS)))
    assert_close(to_train, logits, rtol=0, atol=1e-12)
    from_balanced = compensate(logits, torch.full((6,), 30))
    assert_close(from_balanced.softmax(dim=-1), logits.softmax(dim=-1), rtol=0, atol=1e-14)


def test_any_leading_axes_and_the_gradient_passes_unchanged():
    logits = random_logits(3, 4, 6).requires_grad_()
    result = compensate(logits, torch.tensor(COUNTS))
    for expert in range(3):
        assert torch.equal(result[expert], compensate(logits[expert], torch.tensor(COUNTS)))
    weight = random_logits(3, 4, 6, seed=1)
    (result * weight).sum().backward()
    assert torch.equal(logits.grad, weight)
    assert compensate(logits[0, 0], torch.tensor(COUNTS)).shape == (6,)


def test_a_class_of_test_prior_zero_is_never_predicted():
    result = compensate(random_logits(50, 3), torch.tensor([5, 3, 1]), torch.tensor([0.5, 0.5, 0.0]))
    assert (result[:, 2] == -math.inf).all()
    assert result.softmax(dim=-1).isfinite().all()


@pytest.mark.parametrize(
    ("logits", "test_prior", "message"),
    [
        (torch.zeros(2, 5), None, r"`logits` to be floating and of shape \(..., 6\), one per class, but got \(2, 5\)"),
        (torch.zeros(()), None, r"`logits` to be floating and of shape \(..., 6\)"),
        (torch.zeros(2, 6), torch.full((5,), 0.2), r"`test_prior` to be of shape \(6,\), but got \(5,\)"),
        (torch.zeros(2, 6), torch.full((6,), 0.2), r"`test_prior` to be a distribution .* sum 1.2"),
        (torch.zeros(2, 6), torch.tensor([-0.5, 1.5, 0, 0, 0, 0]), r"`test_prior` to be a distribution .* smallest -0.5"),
        (torch.zeros(2, 6), torch.full((6,), math.nan), r"`test_prior` to be a distribution"),
    ],
)
def test_what_cannot_be_compensated(logits, test_prior, message):
    with pytest.raises(ArgumentError, match=message):
        compensate(logits, torch.tensor(COUNTS), test_prior)


def test_lists_and_arrays_are_compensated_too():
    logits, expected = [[1.0, 2.0], [0.0, -1.0]], compensate(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([3, 1]))
    assert torch.equal(compensate(logits, [3, 1], [0.5, 0.5]), expected)
    assert torch.equal(compensate(np.array(logits, dtype=np.float32), np.array([3, 1])), expected)
    with pytest.raises(ArgumentError, match="Expected `logits` to be numbers, but got"):
        compensate("logits", [3, 1])


def test_whole_number_logits_are_refused_rather_than_rounded():
    with pytest.raises(ArgumentError, match="logits"):
        compensate(torch.zeros(2, 6, dtype=torch.int64), torch.tensor(COUNTS))


# ---------------------------------------------------------------------------------------------------------- test priors


@prop
@given(some_counts, st.floats(1, 1000), st.booleans())
def test_long_tailed_priors_equal_the_slow_reference(counts, factor, backward):
    prior = long_tailed_prior(torch.tensor(counts), factor, backward=backward)
    assert prior.dtype == torch.float64
    assert prior.tolist() == pytest.approx(reference.tail(counts, factor, backward), rel=1e-10)


def test_forward_follows_the_training_tail_and_backward_turns_it_round():
    n = torch.tensor([7, 500, 1, 100])
    forward, backward = resolve_test_prior("forward", n, 50), resolve_test_prior("backward", n, 50)
    assert forward.argsort(descending=True).tolist() == [1, 3, 0, 2]
    assert backward.argsort(descending=True).tolist() == [2, 0, 3, 1]
    for prior in (forward, backward):
        assert float(prior.max() / prior.min()) == pytest.approx(50)
    assert torch.unique(resolve_test_prior("forward", n, 1)).tolist() == [0.25]


def test_of_equally_frequent_classes_the_lower_number_ranks_first():
    prior = long_tailed_prior(torch.tensor([5, 9] * 1000), 100)
    for same in (prior[0::2], prior[1::2]):
        assert (same.diff() < 0).all()
    assert prior[-1] > prior[0]


def test_test_priors_by_name_and_by_numbers():
    n = torch.tensor([30, 10])
    assert resolve_test_prior("uniform", n) is None
    assert resolve_test_prior(None, n) is None
    assert resolve_test_prior("train", n).tolist() == [0.75, 0.25]
    for numbers in ([1, 4], (0.2, 0.8), torch.tensor([5.0, 20.0]), torch.tensor([1, 4])):
        assert resolve_test_prior(numbers, n).tolist() == pytest.approx([0.2, 0.8], rel=1e-6)


def write(folder: Path, name: str, content: str | bytes) -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prior.json", json.dumps([1, 3, 4])),
        ("prior.json", "[0.125, 0.375, 0.5]\n"),
        ("prior.csv", "cat,1\r\ndog,3\r\nbird,4\r\n"),
        ("prior.csv", '"cat, black",1\n\n"dog",3\n"bird", 4'),
        ("prior.txt", "1\n3\n4\n"),
        ("prior", "cat 1\nguinea pig 3\nbird  4"),
    ],
)
def test_a_test_prior_in_a_file(tmp_path, name, content):
    prior = resolve_test_prior(write(tmp_path, name, content), torch.tensor([5, 5, 5]))
    assert prior.tolist() == pytest.approx([0.125, 0.375, 0.5], rel=1e-15)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("prior.json", "[1, 2]", DataError, r"prior\.json to hold 3 numbers, one number per class, in class order, .* holds 2"),
        ("prior.csv", "a,1\nb,1\nc,1\nd,1", DataError, r"prior\.csv to hold 3 numbers, .* holds 4"),
        ("prior.txt", "1 2 3", DataError, r"prior\.txt to hold 3 numbers, .* holds 1"),
        ("prior.json", "[1, -1, 3]", ArgumentError, r"prior\.json` to be a distribution .* smallest -1"),
        ("prior.json", "[1, NaN, 3]", ArgumentError, "no negative number, sum 1"),
        ("prior.json", "[1, Infinity, 3]", ArgumentError, "no negative number, sum 1"),
        ("prior.txt", "0\n0\n0", ArgumentError, "sum 0"),
        ("prior.json", "", DataError, "prior.json to hold one number per class"),
        ("prior.txt", "", DataError, r"prior\.txt to hold 3 numbers, .* holds 0"),
        ("prior.json", "[[1], [2], [3]]", DataError, "prior.json to hold one number per class"),
        ("prior.json", '{"cat": 1, "dog": 2, "bird": 3}', DataError, "prior.json to hold one number per class"),
        ("prior.csv", "class,count\ncat,1\ndog,x\nbird,2", DataError, "could not convert string to float: 'x'"),
        ("prior.txt", b"\xff\xfe1\n", DataError, "prior.txt to hold one number per class"),
        ("prior.json", '{"0": 5, "1": 3, "2": 1}', DataError, "prior.json to hold one number per class"),
        ("prior.json", '"123"', DataError, "prior.json to hold one number per class"),
        ("prior.json", "[true, false, true]", DataError, "prior.json to hold one number per class"),
    ],
)
def test_a_wrong_file_of_a_test_prior(tmp_path, name, content, error, message):
    with pytest.raises(error, match=message):
        resolve_test_prior(write(tmp_path, name, content), torch.tensor([5, 5, 5]))


@pytest.mark.parametrize(
    "prior",
    [
        5,
        [[1, 1]],
        [1],
        [-1, 2],
        [0, 0],
        [math.nan, 1],
        [math.inf, 1],
        ["a", "b"],
        "0.5," * 200,
    ],
    ids=lambda prior: str(prior)[:20],
)
def test_numbers_that_are_no_test_prior(prior):
    with pytest.raises(ArgumentError, match="`test_prior` to be"):
        resolve_test_prior(prior, torch.tensor([3, 1]))


def test_a_mistyped_name_and_a_folder_are_no_test_prior(tmp_path):
    with pytest.raises(ArgumentError, match=r"no file 'bakward'\. Did you mean 'backward'\? Known: uniform, train"):
        resolve_test_prior("bakward", torch.tensor([3, 1]))
    with pytest.raises(ArgumentError, match="a name or the path of a file, but there is no file"):
        resolve_test_prior(str(tmp_path), torch.tensor([3, 1]))


@pytest.mark.parametrize("factor", [0.5, math.inf, math.nan, "ten", True])
def test_a_wrong_factor_of_a_long_tailed_prior(factor):
    with pytest.raises(ArgumentError, match="Expected `factor` to be a number of at least 1"):
        resolve_test_prior("forward", torch.tensor([3, 1]), factor)


class Questions(TorchDispatchMode):
    """Counts what reads numbers of a tensor back: an accelerator is waited for each time."""

    asked = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.asked += any(name in str(func) for name in ("_local_scalar_dense", "aten.equal", "nonzero"))
        return func(*args, **(kwargs or {}))


def test_class_counts_are_checked_by_one_question():
    with Questions() as questions:
        check_class_counts(torch.tensor([3, 2, 1]))
    assert questions.asked == 1
