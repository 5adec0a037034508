"""`ensemble_logits`: the mean of logits or of probabilities, alone and in the metrics."""

import math

import pytest
import torch
from tests.reference import metrics as reference

from mllt.errors import ArgumentError
from mllt.metrics import ExpectedCalibrationError, ShotAccuracy, calibration_error, ensemble_logits

COUNTS = [500, 100, 30, 5]


def some(size=200, experts=3):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (size,), generator=generator)
    return 3 * torch.randn(experts, size, 4, generator=generator) + 2 * torch.eye(4)[targets], targets


def mean_probabilities(logits):
    """`[B][C]`, in Python's float64, from the experts' logits `[N][B][C]`."""
    result = [[0.0] * len(logits[0][0]) for _ in logits[0]]
    for expert in logits:
        for row, scores in zip(result, expert, strict=True):
            total = math.fsum(map(math.exp, scores))
            for label, score in enumerate(scores):
                row[label] += math.exp(score) / total / len(logits)
    return result


def test_the_mean_of_probabilities_is_that_of_the_slow_reference():
    logits, _ = some()
    expected = torch.tensor(mean_probabilities(logits.tolist()), dtype=torch.float64)
    torch.testing.assert_close(ensemble_logits(logits.double(), "probabilities").softmax(-1), expected)
    torch.testing.assert_close(ensemble_logits(logits.double(), "probabilities").exp(), expected)


def test_the_mean_of_logits_is_the_default():
    logits, _ = some()
    torch.testing.assert_close(ensemble_logits(logits), (logits[0] + logits[1] + logits[2]) / 3)


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_an_ensemble_of_one_predicts_what_that_one_does(ensemble):
    logits, _ = some(experts=1)
    torch.testing.assert_close(ensemble_logits(logits, ensemble).softmax(-1), logits[0].softmax(-1))


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_a_class_that_is_impossible_for_all_stays_impossible(ensemble):
    logits, _ = some()
    logits[..., 3] = -math.inf
    probabilities = ensemble_logits(logits, ensemble).softmax(-1)
    assert (probabilities[:, 3] == 0).all()
    assert probabilities.isfinite().all()


def test_the_metrics_ensemble_is_the_one_asked_for():
    logits, targets = some()
    rows = {"logits": reference.predictors(logits.tolist(), with_ensemble=True)[-1]}
    rows["probabilities"] = [[math.log(value) for value in row] for row in mean_probabilities(logits.tolist())]
    assert list(map(reference.first_largest, rows["logits"])) != list(map(reference.first_largest, rows["probabilities"]))
    for ensemble, row in rows.items():
        accuracy = ShotAccuracy(COUNTS, num_experts=3, ensemble=ensemble)
        calibration = ExpectedCalibrationError(num_experts=3, ensemble=ensemble)
        for metric in (accuracy, calibration):
            metric.update(logits[:, :70], targets[:70])
            metric.update(logits[:, 70:], targets[70:])
        expected = reference.shot_accuracy([reference.first_largest(scores) for scores in row], targets.tolist(), COUNTS)
        assert {name: accuracy.compute()[name][-1].item() for name in expected} == pytest.approx(expected)
        error = reference.calibration_error(row, targets.tolist())
        assert calibration.compute()[-1].item() == pytest.approx(error, abs=1e-6)
        assert calibration_error(logits, targets, ensemble=ensemble)[-1].item() == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ensemble_logits(torch.zeros(1, 1, 2), "logit"),
        lambda: ShotAccuracy(COUNTS, num_experts=2, ensemble="logit"),
        lambda: ExpectedCalibrationError(num_experts=2, ensemble="logit"),
    ],
)
def test_an_unknown_ensemble_is_refused(make):
    with pytest.raises(ArgumentError, match=r"`ensemble` .*Did you mean 'logits'\?"):
        make()


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 200, 1), (3, 1, 4)], ids=str)
def test_weights_are_of_experts_images_or_classes_and_the_offset_comes_once(shape):
    logits, _ = some()
    logits = logits.double()
    weights = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    offset = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    full = weights.expand(3, 200, 4)
    expected = [
        [math.fsum(float(full[k, b, c] * logits[k, b, c]) for k in range(3)) + float(offset[c]) for c in range(4)]
        for b in range(200)
    ]
    combined = ensemble_logits(logits, weights=weights, offset=offset)
    torch.testing.assert_close(combined, torch.tensor(expected, dtype=torch.float64))
    probabilities = (logits + offset).softmax(-1)
    torch.testing.assert_close(
        ensemble_logits(logits, "probabilities", weights, offset).exp(), (full * probabilities).sum(dim=0)
    )


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_equal_weights_are_the_mean_and_a_weight_of_0_leaves_an_expert_out(ensemble):
    logits, _ = some()
    offset = torch.tensor([0.5, -1.0, 2.0, 0.0])
    even = torch.full((3, 1, 1), 1 / 3)
    expected = ensemble_logits(logits + offset, ensemble)
    torch.testing.assert_close(ensemble_logits(logits, ensemble, even, offset), expected)
    two = torch.tensor([0.5, 0.0, 0.5])[:, None, None]
    without = ensemble_logits(logits[[0, 2]], ensemble)
    torch.testing.assert_close(ensemble_logits(logits, ensemble, two), without)


def test_metrics_without_an_ensemble_have_a_row_per_expert_only():
    logits, targets = some()
    for make in (lambda **how: ShotAccuracy(COUNTS, **how), lambda **how: ExpectedCalibrationError(**how)):
        alone, together = make(num_experts=3, ensemble=None), make(num_experts=3)
        for metric in (alone, together):
            metric.update(logits, targets)
        rows = [metric.compute() for metric in (alone, together)]
        rows = [row["all"] if isinstance(row, dict) else row for row in rows]
        assert torch.equal(rows[0], rows[1][:-1])
