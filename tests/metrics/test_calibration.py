import copy
import math
import pickle

import pytest
import torch
from tests.reference import metrics as reference
from torch.testing import assert_close
from torchmetrics.classification import MulticlassCalibrationError

from mllt.errors import ArgumentError
from mllt.metrics import ExpectedCalibrationError, calibration_error


def batch(*shape, seed=0):
    """Logits of a rather certain, often mistaken network, and targets."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator), torch.randint(shape[-1], shape[-2:-1], generator=generator)


def of_confidence(*confidences):
    """Float64 logits of two classes whose first gets the given probability, exactly where log and exp are."""
    first = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([first.log(), (1 - first).log()], dim=-1)


def exact(actual, expected):
    assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_equals_the_slow_reference(num_bins):
    logits, target = batch(3, 300, 10)
    metric = ExpectedCalibrationError(num_bins=num_bins, num_experts=3)
    for start in range(0, 300, 77):
        metric.update(logits[:, start : start + 77], target[start : start + 77])
    expected = [
        reference.calibration_error(rows, target.tolist(), num_bins)
        for rows in reference.predictors(logits.tolist(), with_ensemble=True)
    ]
    assert metric.compute().tolist() == pytest.approx(expected, abs=1e-7)
    exact(calibration_error(logits, target, num_bins), metric.compute())


def test_float64_logits_reach_the_reference_to_ten_digits():
    logits, target = batch(200, 10)
    actual = calibration_error(logits.double(), target).item()
    assert actual == pytest.approx(reference.calibration_error(logits.double().tolist(), target.tolist()), abs=2**-32)


def test_equals_torchmetrics_away_from_the_edges():
    logits, target = batch(500, 10)
    theirs = MulticlassCalibrationError(10, n_bins=15, norm="l1")
    theirs.update(logits.softmax(dim=-1), target)
    assert calibration_error(logits, target).item() == pytest.approx(theirs.compute().item(), abs=1e-6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    metric = ExpectedCalibrationError(num_bins=4)
    for logits, bins in (
        ([0.0, 0.0], [0, 1, 0, 0]),  # 1/2 lies in (1/4, 1/2],
        ([1e-6, 0.0], [0, 1, 1, 0]),  # what is a little more, in (1/2, 3/4],
        ([500.0, 0.0], [0, 1, 1, 1]),  # and 1 in the last bin
    ):
        metric.update(torch.tensor([logits]), torch.tensor([0]))
        assert metric.total.tolist() == [bins]


@pytest.mark.parametrize("num_bins", [3, 10, 15, 16])
def test_confidences_of_equal_logits_lie_on_their_edge(num_bins):
    # C equal logits have confidence 1 / C, which is an edge where C divides the number of bins.
    for classes in (c for c in range(2, num_bins + 1) if num_bins % c == 0):
        metric = ExpectedCalibrationError(num_bins=num_bins)
        metric.update(torch.zeros(1, classes), torch.tensor([0]))
        assert metric.total[0].nonzero().item() == num_bins // classes - 1


def test_by_hand():
    # Bin (0.5, 0.75]: confidences 0.6 and 0.7, one right; bin (0.75, 1]: 0.9, right.
    logits = of_confidence(0.6, 0.7, 0.9)
    error = calibration_error(logits, torch.tensor([0, 1, 0]), num_bins=4)
    assert error.item() == pytest.approx((abs(1 - 1.3) + abs(1 - 0.9)) / 3, abs=1e-9)


def test_certain_and_right_is_zero_certain_and_wrong_is_one():
    logits = torch.tensor([[1000.0, 0.0]])
    assert calibration_error(logits, torch.tensor([0])) == 0
    assert calibration_error(logits, torch.tensor([1])) == 1


def test_the_ensemble_is_the_softmax_of_the_mean_logits():
    logits, target = batch(3, 100, 5)
    errors = calibration_error(logits, target)
    assert errors.shape == (4,)
    exact(errors[:3], torch.stack([calibration_error(expert, target) for expert in logits]))
    exact(errors[3], calibration_error(logits.mean(dim=0), target))


def test_shapes_and_types():
    logits, target = batch(2, 10, 5)
    for experts, preds, shape in ((None, logits[0], ()), (1, logits[:1], (2,)), (2, logits, (3,))):
        metric = ExpectedCalibrationError(num_experts=experts)
        metric.update(preds, target)
        assert metric.compute().shape == shape
        assert metric.compute().dtype == torch.float64
        assert metric.total.dtype == metric.correct.dtype == metric.confidence.dtype == torch.int64


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nan_before_any_update_and_for_no_images():
    assert ExpectedCalibrationError().compute().isnan()
    assert ExpectedCalibrationError(num_experts=2).compute().isnan().tolist() == [True] * 3
    assert calibration_error(torch.zeros(0, 3), torch.zeros(0).long()).isnan()


def test_order_and_batches_do_not_matter_to_the_last_digit():
    logits, target = batch(2, 301, 10)
    order = torch.randperm(301, generator=torch.Generator().manual_seed(3))
    expected = calibration_error(logits, target)
    for index, size in ((order, 301), (order, 13), (torch.arange(301), 1)):
        metric = ExpectedCalibrationError(num_experts=2)
        for part in index.split(size):
            metric.update(logits[:, part], target[part])
        exact(metric.compute(), expected)


def test_nan_logits_count_as_certain_mistakes():
    logits = torch.full((2, 3), math.nan)
    assert calibration_error(logits, torch.tensor([0, 1])) == 1


def test_a_class_ruled_out_by_minus_infinity():
    logits = torch.tensor([[-math.inf, 0.0, 0.0]])
    assert calibration_error(logits, torch.tensor([1])) == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_taken_in_float32(dtype):
    logits, target = batch(2, 100, 5)
    exact(calibration_error(logits.to(dtype), target), calibration_error(logits.to(dtype).float(), target))


def test_reset_pickle_copy_and_state_dict():
    logits, target = batch(2, 50, 5)
    metric = ExpectedCalibrationError(num_experts=2)
    metric.update(logits, target)
    for other in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        exact(other.compute(), metric.compute())
    assert metric.state_dict() == {}
    metric.persistent(True)
    restored = ExpectedCalibrationError(num_experts=2)
    restored.persistent(True)
    restored.load_state_dict(metric.state_dict())
    exact(restored.confidence, metric.confidence)
    metric.reset()
    assert metric.total.sum() == metric.correct.sum() == metric.confidence.sum() == 0


@pytest.mark.parametrize(
    "device", ["meta", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
)
def test_moves_to_a_device_whole(device):
    metric = ExpectedCalibrationError(num_experts=2).to(device)
    assert {state.device.type for state in (metric.total, metric.correct, metric.confidence)} == {device}
    if device != "meta":
        logits, target = batch(2, 50, 5)
        metric.update(logits.to(device), target.to(device))
        assert_close(metric.compute().cpu(), calibration_error(logits, target), atol=1e-6, rtol=0)


@pytest.mark.parametrize("arguments", [{"num_bins": 0}, {"num_bins": 2.5}, {"num_experts": 0}])
def test_bad_arguments(arguments):
    with pytest.raises(ArgumentError, match=r"Expected `num_\w+` .*, but got"):
        ExpectedCalibrationError(**arguments)


@pytest.mark.parametrize(
    ("num_experts", "preds", "target", "message"),
    [
        (None, torch.zeros(2, 4, 3), torch.zeros(4).long(), r"shape \(B, C\), but got shape \(2, 4, 3\)"),
        (2, torch.zeros(4, 3), torch.zeros(4).long(), r"shape \(2, B, C\), but got shape \(4, 3\)"),
        (None, torch.zeros(4, 0), torch.zeros(4).long(), r"shape \(B, C\), but got shape \(4, 0\)"),
        (None, torch.zeros(4, 3).long(), torch.zeros(4).long(), r"floating-point"),
        (None, torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), r"Expected `target` .* from 0 to 2, but got 3"),
        (None, torch.zeros(4, 3), torch.zeros(5).long(), r"of one batch size, but got 4 and 5"),
    ],
)
def test_bad_batches(num_experts, preds, target, message):
    metric = ExpectedCalibrationError(num_experts=num_experts)
    with pytest.raises(ArgumentError, match=message):
        metric.update(preds, target)
    assert metric.total.sum() == 0


@pytest.mark.parametrize("logits", [torch.zeros(3), torch.zeros(1, 2, 3, 4), [[0.0]], torch.zeros(0, 4, 3)])
def test_the_function_refuses_other_shapes(logits):
    with pytest.raises(ArgumentError, match=r"Expected .*, but got"):
        calibration_error(logits, torch.zeros(4).long())


def test_the_diagram_tells_what_lies_in_each_bin():
    confidence = torch.tensor([0.55, 0.58, 0.95, 0.91, 0.92])
    logits = torch.stack([confidence, 1 - confidence], dim=1).log()
    metric = ExpectedCalibrationError(num_bins=10)
    metric.update(logits[:2], torch.tensor([0, 1]))
    metric.update(logits[2:], torch.tensor([0, 0, 1]))
    diagram = {name: values[0] for name, values in metric.diagram().items()}
    assert diagram["count"].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    full = [5, 9]
    assert diagram["accuracy"][full].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert diagram["confidence"][full].tolist() == pytest.approx([0.565, 0.9266667], abs=1e-6)
    assert diagram["accuracy"][diagram["count"] == 0].isnan().all()
    gap = (diagram["count"] * (diagram["accuracy"] - diagram["confidence"]).abs()).nansum() / diagram["count"].sum()
    assert gap.item() == pytest.approx(metric.compute().item())
