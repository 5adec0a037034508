import copy
import math
import pickle

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix
from tests.reference import metrics as reference
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.metrics import ShotAccuracy, shot_accuracy
from mllt.metrics.shot_accuracy import right_answers

COUNTS = [500, 101, 100, 50, 20, 19, 1]  # many, many, then on both edges and between, few, few
GROUPS = ("many", "medium", "few", "all")


def random_logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_target(size, seed=1):
    """Imbalanced on purpose: low classes far more often."""
    draws = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return (draws.square() * len(COUNTS)).long()


def exact(actual, expected):
    assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize("inclusive", [False, True])
def test_equals_the_slow_reference(average, inclusive):
    logits, target = random_logits(3, 200, 7), random_target(200)
    metric = ShotAccuracy(COUNTS, num_experts=3, inclusive=inclusive, average=average)
    for start in range(0, 200, 33):  # the last batch is smaller
        metric.update(logits[:, start : start + 33], target[start : start + 33])
    result = metric.compute()
    for row, scores in enumerate(reference.predictors(logits.tolist(), with_ensemble=True)):
        guesses = [reference.first_largest(score) for score in scores]
        expected = reference.shot_accuracy(guesses, target.tolist(), COUNTS, inclusive=inclusive, average=average)
        for name in GROUPS:
            assert result[name][row].item() == pytest.approx(expected[name], abs=1e-15)


def test_all_is_scikit_learns_balanced_accuracy_and_micro_its_accuracy():
    logits, target = random_logits(500, 7), random_target(500)
    guess = logits.argmax(dim=-1)
    result = {}
    for average in ("macro", "micro"):
        metric = ShotAccuracy(COUNTS, average=average)
        metric.update(logits, target)
        result[average] = metric.compute()
    confusion = confusion_matrix(target, guess, labels=range(7))
    assert result["macro"]["all"].item() == pytest.approx(balanced_accuracy_score(target, guess), abs=1e-15)
    assert result["micro"]["all"].item() == pytest.approx(accuracy_score(target, guess), abs=1e-15)
    assert_close(result["macro"]["per_class"], torch.tensor(confusion.diagonal() / confusion.sum(axis=1)))


def test_macro_and_micro_agree_on_a_balanced_test_set():
    target = torch.arange(7).repeat(30)
    results = []
    for average in ("macro", "micro"):
        metric = ShotAccuracy(COUNTS, average=average)
        metric.update(random_logits(210, 7), target)
        results.append(metric.compute())
    assert_close(*results)


def test_labels_and_logits_tell_the_same():
    logits, target = random_logits(50, 7), random_target(50)
    by_logits, by_probability, by_label = ShotAccuracy(COUNTS), ShotAccuracy(COUNTS), ShotAccuracy(COUNTS)
    by_logits.update(logits, target)
    by_probability.update(logits.softmax(dim=-1), target)
    by_label.update(logits.argmax(dim=-1).int(), target.to(torch.uint8))
    exact(by_probability.compute(), by_logits.compute())
    exact(by_label.compute(), by_logits.compute())


def test_shapes_and_types_of_the_result():
    plain, one, three = ShotAccuracy(COUNTS), ShotAccuracy(COUNTS, num_experts=1), ShotAccuracy(COUNTS, num_experts=3)
    for metric, logits in (
        (plain, random_logits(9, 7)),
        (one, random_logits(1, 9, 7)),
        (three, random_logits(3, 9, 7)),
    ):
        metric.update(logits, random_target(9))
        result = metric.compute()
        shape = () if metric is plain else (metric.num_experts + 1,)
        assert list(result) == [*GROUPS, "per_class"]
        assert all(result[name].shape == shape and result[name].dtype == torch.float64 for name in GROUPS)
        assert result["per_class"].shape == (*shape, 7)
        assert metric.correct.dtype == metric.total.dtype == torch.int64
    exact(one.compute()["all"][0], one.compute()["all"][1])  # an ensemble of one is that one


def test_the_ensemble_is_the_mean_of_logits_not_a_vote():
    logits = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]], [[9.0, 0.0]]])  # two mild votes for 1, one strong for 0
    metric = ShotAccuracy([500, 5], num_experts=3)
    metric.update(logits, torch.tensor([0]))
    assert metric.compute()["all"].tolist() == [0, 0, 1, 1]


def test_empty_groups_are_nan_and_not_zero():
    metric = ShotAccuracy([500, 400, 300])  # no medium, no few classes
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 1]))  # and none of class 2
    result = metric.compute()
    assert result["many"] == result["all"] == 1
    assert result["medium"].isnan()
    assert result["few"].isnan()
    exact(result["per_class"], torch.tensor([1, 1, math.nan], dtype=torch.float64))


def test_a_group_whose_classes_have_no_test_images_is_nan():
    metric = ShotAccuracy([500, 50, 5])
    metric.update(torch.tensor([0]), torch.tensor([1]))
    result = metric.compute()
    assert result["many"].isnan()
    assert result["few"].isnan()
    assert result["medium"] == result["all"] == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_before_any_update_all_is_nan():
    result = ShotAccuracy(COUNTS, num_experts=2).compute()
    assert all(value.isnan().all() for value in result.values())


def test_an_empty_batch_changes_nothing():
    metric = ShotAccuracy(COUNTS, num_experts=2)
    metric.update(random_logits(2, 8, 7), random_target(8))
    before = metric.compute()
    metric.update(torch.zeros(2, 0, 7), torch.zeros(0, dtype=torch.int64))
    exact(metric.compute(), before)


def test_the_batch_size_does_not_matter_to_the_last_digit():
    logits, target = random_logits(2, 101, 7), random_target(101)
    results = []
    for size in (1, 7, 101):
        metric = ShotAccuracy(COUNTS, num_experts=2)
        for start in range(0, 101, size):
            metric.update(logits[:, start : start + size], target[start : start + size])
        results.append(metric.compute())
    exact(results[1], results[0])
    exact(results[2], results[0])


def test_ties_go_to_the_first_and_nan_is_a_mistake():
    metric = ShotAccuracy([500, 5])
    metric.update(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert metric.compute()["per_class"].tolist() == [1, 0]
    metric = ShotAccuracy([500, 5])
    metric.update(torch.tensor([[math.nan, 0.0], [0.0, math.nan]]), torch.tensor([0, 1]))
    assert metric.compute()["per_class"].tolist() == [0, 0]


def test_a_class_ruled_out_by_minus_infinity_is_never_predicted():
    metric = ShotAccuracy([500, 5], num_experts=2)
    metric.update(torch.tensor([[[-math.inf, -9.0]], [[-math.inf, -9.0]]]), torch.tensor([1]))
    assert metric.compute()["all"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_averaged_in_float32(dtype):
    # In half precision the mean of 256 and 256, 256 is 256, and that of 256, 256 and 258 rounds to it in bfloat16.
    logits = torch.tensor([[[256.0, 256.0]], [[256.0, 256.0]], [[256.0, 258.0]]], dtype=dtype)
    metric = ShotAccuracy([500, 5], num_experts=3)
    metric.update(logits, torch.tensor([1]))
    assert metric.compute()["all"].tolist() == [0, 0, 1, 1]
    halves, target = random_logits(2, 64, 7).to(dtype), random_target(64)
    half, full = ShotAccuracy(COUNTS, num_experts=2), ShotAccuracy(COUNTS, num_experts=2)
    half.update(halves, target)
    full.update(halves.float(), target)
    exact(half.compute(), full.compute())


def test_reset_forgets_everything():
    metric = ShotAccuracy(COUNTS)
    metric.update(random_logits(20, 7), random_target(20))
    metric.reset()
    metric.update(torch.tensor([0]), torch.tensor([0]))
    assert metric.compute()["all"] == 1
    assert metric.total.sum() == 1


def test_reset_in_inference_mode_leaves_a_usable_metric():
    metric = ShotAccuracy(COUNTS)
    with torch.inference_mode():
        metric.reset()
        metric.update(random_logits(20, 7), random_target(20))
    metric.update(random_logits(20, 7), random_target(20))
    assert metric.total.sum() == 40


def test_pickle_copy_and_state_dict():
    metric = ShotAccuracy(COUNTS, num_experts=2)
    metric.update(random_logits(2, 20, 7), random_target(20))
    expected = metric.compute()
    for other in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        exact(other.compute(), expected)
        other.update(random_logits(2, 20, 7, seed=5), random_target(20))
        assert other.total.sum() == 40
    assert metric.total.sum() == 20
    assert metric.state_dict() == {}  # a model's checkpoint is none of the metric's business
    metric.persistent(True)
    restored = ShotAccuracy(COUNTS, num_experts=2)
    restored.persistent(True)
    restored.load_state_dict(metric.state_dict())
    exact(restored.correct, metric.correct)
    exact(restored.total, metric.total)


@pytest.mark.parametrize(
    "device", ["meta", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
)
def test_moves_to_a_device_whole(device):
    metric = ShotAccuracy(COUNTS, num_experts=2).to(device)
    assert {metric.correct.device.type, metric.total.device.type, metric.class_counts.device.type} == {device}
    if device != "meta":
        logits, target = random_logits(2, 64, 7), random_target(64)
        metric.update(logits.to(device), target.to(device))
        on_cpu = ShotAccuracy(COUNTS, num_experts=2)
        on_cpu.update(logits, target)
        exact({name: value.cpu() for name, value in metric.compute().items()}, on_cpu.compute())


def test_forward_gives_the_batch_and_keeps_the_sum():
    metric = ShotAccuracy([500, 5])
    assert metric(torch.tensor([0]), torch.tensor([0]))["all"] == 1
    assert metric(torch.tensor([0]), torch.tensor([1]))["all"] == 0
    assert metric.compute()["all"] == 0.5


def test_the_function_takes_any_leading_axes():
    correct = torch.tensor([[[1, 0]], [[2, 2]]])
    result = shot_accuracy(correct, torch.tensor([2, 2]), torch.tensor([500, 5]))
    assert result["all"].tolist() == [[0.25], [1.0]]
    assert result["per_class"].shape == (2, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_counts": [3.5]}, r"Expected `class_counts` .*, but got"),
        ({"class_counts": COUNTS, "num_experts": 0}, r"Expected `num_experts` .* at least 1, but got 0"),
        ({"class_counts": COUNTS, "average": "mean"}, r"Expected `average` .*, but got 'mean'"),
        ({"class_counts": COUNTS, "many_above": 10, "few_below": 20}, r"Expected `few_below` .*, but got few_below=20"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        ShotAccuracy(**arguments)


@pytest.mark.parametrize(
    ("num_experts", "preds", "target", "message"),
    [
        (None, torch.zeros(4, 6), torch.zeros(4).long(), r"Expected `preds` .* shape \(B, 7\), but got shape \(4, 6\)"),
        (None, torch.zeros(2, 4, 7), torch.zeros(4).long(), r"shape \(B, 7\), but got shape \(2, 4, 7\)"),
        (2, torch.zeros(3, 4, 7), torch.zeros(4).long(), r"shape \(2, B, 7\), but got shape \(3, 4, 7\)"),
        (2, torch.zeros(4).long(), torch.zeros(4).long(), r"shape \(2, B, 7\), but got shape \(4,\)"),
        (None, torch.zeros(4, 7).long(), torch.zeros(4).long(), r"floating-point .*, but got .* torch.int64"),
        (None, torch.zeros(4), torch.zeros(4).long(), r"Expected `preds` .* integer .*, but got .* torch.float32"),
        (None, [0], torch.zeros(1).long(), r"Expected `preds` .*, but got list"),
        (None, torch.zeros(4, 7), torch.zeros(4), r"Expected `target` .* integer .*, but got .* torch.float32"),
        (None, torch.zeros(4, 7), torch.zeros(4).bool(), r"Expected `target` .*, but got .* torch.bool"),
        (None, torch.zeros(4, 7), torch.zeros(4, 1).long(), r"Expected `target` .*, but got shape \(4, 1\)"),
        (None, torch.zeros(4, 7), torch.zeros(3).long(), r"of one batch size, but got 4 and 3"),
        (None, torch.zeros(4).long(), torch.zeros(3).long(), r"of one length, but got 4 and 3"),
        (None, torch.zeros(3, 7), torch.tensor([0, 7, -1]), r"Expected `target` .* from 0 to 6, but got -1, 7"),
        (None, torch.tensor([0, 300]), torch.tensor([0, 0]), r"Expected `preds` .* from 0 to 6, but got 300"),
    ],
)
def test_bad_batches(num_experts, preds, target, message):
    metric = ShotAccuracy(COUNTS, num_experts=num_experts)
    with pytest.raises(ArgumentError, match=message):
        metric.update(preds, target)
    assert metric.total.sum() == 0


@pytest.mark.parametrize(
    ("correct", "total", "message"),
    [
        ([1, 2], [1, 2, 3], r"Expected `correct` .* shape \(..., 3\)"),
        ([1, 2, 3], [1, 2], r"Expected `total` .* shape \(3,\)"),
        ([1.0, 2.0, 3.0], [1, 2, 3], r"Expected `correct` to be whole numbers"),
        ([1, 2, 4], [1, 2, 3], r"Expected `correct` to lie between 0 and `total`"),
        ([-1, 2, 3], [1, 2, 3], r"Expected `correct` to lie between 0 and `total`"),
    ],
)
def test_bad_tallies(correct, total, message):
    with pytest.raises(ArgumentError, match=message):
        shot_accuracy(correct, total, [500, 50, 5])


@pytest.mark.parametrize("values", [3, 1000], ids=["many ties", "few ties"])
def test_the_first_of_the_largest_decides_whether_rows_tie_or_not(values):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(values, (400, 5), generator=generator).float()
    logits[:3, 2] = torch.tensor([math.inf, -math.inf, math.nan])
    target = torch.randint(5, (400,), generator=generator)
    for size in (1, 400):  # alone, a row without ties is judged in another way than among others
        hits = torch.cat(
            [right_answers(logits[i : i + size].unsqueeze(0), target[i : i + size])[0] for i in range(0, 400, size)]
        )
        expected = [reference.first_largest(row) == label for row, label in zip(logits.tolist(), target.tolist(), strict=True)]
        expected[2] = False  # a row with a NaN
        assert hits.tolist() == expected
