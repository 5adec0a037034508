"""`Evaluation`: the whole table against a slow reference, image by image."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from tests.reference import metrics as reference

from mllt import MutualLTModule, blocks
from mllt.errors import ArgumentError
from mllt.methods.evaluation import Evaluation, percent

COUNTS = [500, 101, 100, 20, 19, 3]
OFFSET = torch.tensor([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
ROW = {"many", "medium", "few", "all", "micro", "ece"}


def some(size, experts=2, seed=0, classes=6):
    """Random logits, and targets of which low classes come more often."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(size, generator=generator).square() * classes).long()
    return torch.randn(experts, size, classes, generator=generator) + torch.eye(classes)[targets], targets


def filled(*parts, experts=2, counts=COUNTS, **rule):
    evaluation = Evaluation(torch.tensor(counts), experts, **rule)
    for logits, targets in parts:
        evaluation.update(logits, targets, OFFSET[: len(counts)])
    return evaluation


@pytest.mark.parametrize("rule", [{}, {"many_above": 100, "few_below": 20, "inclusive": True}])
def test_the_table_is_that_of_the_slow_reference(rule):
    logits, targets = some(300)
    evaluation = filled(*((logits[:, s : s + 70], targets[s : s + 70]) for s in range(0, 300, 70)), **rule)
    table = evaluation.compute()
    predictors = [*table["experts"], table["ensemble"]]
    for kind, values in (("raw", logits), ("compensated", logits + OFFSET)):
        for predictor, scores in zip(predictors, reference.predictors(values.tolist(), with_ensemble=True), strict=True):
            guesses = [reference.first_largest(score) for score in scores]
            row = predictor[kind]
            assert set(row) == ROW
            for name, value in reference.shot_accuracy(guesses, targets.tolist(), COUNTS, **rule).items():
                assert math.isnan(value) if row[name] is None else row[name] == pytest.approx(100 * value, abs=1e-9)
            assert row["all"] == pytest.approx(100 * balanced_accuracy_score(targets, guesses), abs=1e-9)
            assert row["micro"] == pytest.approx(100 * accuracy_score(targets, guesses), abs=1e-9)
            assert row["ece"] == pytest.approx(100 * reference.calibration_error(scores, targets.tolist()), abs=1e-3)


def test_per_class_is_the_ensembles():
    logits, targets = some(300)
    table = filled((logits, targets)).compute()
    for kind, values in (("raw", logits), ("compensated", logits + OFFSET)):
        right = values.double().mean(dim=0).argmax(dim=-1) == targets
        expected = [100 * right[targets == label].double().mean().item() for label in range(6)]
        assert table["per_class"][kind] == pytest.approx(expected)


def test_numbers_are_percent_and_plain():
    perfect = torch.full((1, 6, 6), -50.0)
    perfect[0].fill_diagonal_(50.0)
    table = filled((perfect, torch.arange(6)), experts=1).compute()
    assert table["ensemble"]["raw"] == {"many": 100, "medium": 100, "few": 100, "all": 100, "micro": 100, "ece": 0}
    assert all(type(value) is float for value in table["ensemble"]["raw"].values())
    assert table["experts"] == [table["ensemble"]]  # an ensemble of one is that one


def test_empty_groups_and_classes_are_none():
    logits, targets = some(50, classes=3)
    keep = targets != 2
    table = filled((logits[:, keep], targets[keep]), counts=[500, 400, 300]).compute()
    for row in (table["ensemble"]["raw"], table["experts"][1]["compensated"]):
        assert row["medium"] is None
        assert row["few"] is None
        assert row["many"] == row["all"] is not None
    assert table["per_class"]["raw"][2] is None


def test_reset_forgets_everything():
    evaluation = filled(some(100, seed=1))
    evaluation.compute()  # keeps its result until the next update or reset
    evaluation.reset()
    logits, targets = some(80, seed=2)
    evaluation.update(logits, targets, OFFSET)
    assert evaluation.compute() == filled((logits, targets)).compute()


def test_the_offset_may_change_from_batch_to_batch():
    first, second = some(40, seed=1), some(40, seed=2)
    evaluation = Evaluation(torch.tensor(COUNTS), 2)
    evaluation.update(*first, OFFSET)
    evaluation.update(*second, torch.zeros(6))
    shifted = torch.cat([first[0] + OFFSET, second[0]], dim=1)
    expected = filled((shifted, torch.cat([first[1], second[1]]))).compute()
    assert evaluation.compute()["ensemble"]["compensated"] == expected["ensemble"]["raw"]


def test_it_adds_nothing_to_a_checkpoint():
    assert filled(some(20)).state_dict() == {}


def test_percent_of_nan_is_none():
    assert percent(torch.tensor(float("nan"))) is None
    assert percent(torch.tensor(0.125, dtype=torch.float64)) == 12.5


def test_weights_of_experts_count_in_the_ensembles_row_only():
    logits, targets = some(300)
    weights = torch.rand(2, 300, 1, generator=torch.Generator().manual_seed(2))
    evaluation = Evaluation(torch.tensor(COUNTS), 2)
    evaluation.update(logits, targets, OFFSET, weights)
    table, plain = evaluation.compute(), filled((logits, targets)).compute()
    assert table["experts"] == plain["experts"]
    for kind, added in (("raw", 0.0), ("compensated", OFFSET)):
        right = ((weights * logits).sum(dim=0) + added).argmax(dim=-1) == targets
        expected = [100 * right[targets == label].double().mean().item() for label in range(6)]
        assert table["per_class"][kind] == pytest.approx(expected)


def test_reliability_is_the_ensembles_in_percent_and_none_for_an_empty_bin():
    logits, targets = some(300)
    table = filled((logits, targets)).compute()
    for kind, values in (("raw", logits), ("compensated", logits + OFFSET)):
        bins = table["reliability"][kind]
        confidence, guess = values.double().mean(dim=0).softmax(dim=-1).max(dim=-1)
        place = (confidence * 15).ceil().long() - 1
        for number in range(15):
            within = place == number
            assert bins["count"][number] == int(within.sum())
            if not within.any():
                assert bins["accuracy"][number] is bins["confidence"][number] is None
                continue
            right = (guess == targets)[within].double().mean().item()
            assert bins["accuracy"][number] == pytest.approx(100 * right)
            assert bins["confidence"][number] == pytest.approx(100 * confidence[within].mean().item(), abs=1e-4)


def test_a_single_class_is_always_right():
    table = filled((torch.zeros(2, 4, 1), torch.zeros(4, dtype=torch.int64)), counts=[500]).compute()
    assert table["ensemble"]["raw"] == {"many": 100, "medium": None, "few": None, "all": 100, "micro": 100, "ece": 0}


def test_several_test_priors_are_told_in_one_pass_as_each_alone(monkeypatch):
    monkeypatch.setattr(blocks, "PER_THREAD", 7 * 2 * 6)  # seven images at a time
    logits, targets = some(300)
    offsets = torch.stack([OFFSET, -OFFSET, OFFSET.flip(0)])
    evaluation = Evaluation(torch.tensor(COUNTS), 2, ensemble="probabilities", compensations=("uniform", "train", "odd"))
    evaluation.update(logits, targets, offsets)
    together = evaluation.compute()
    for name, offset in zip(("uniform", "train", "odd"), offsets, strict=True):
        alone = Evaluation(torch.tensor(COUNTS), 2, ensemble="probabilities")
        alone.update(logits, targets, offset)
        table = alone.compute()
        assert together["ensemble"][name] == table["ensemble"]["compensated"]
        assert together["experts"][1][name] == table["experts"][1]["compensated"]
        assert together["per_class"][name] == table["per_class"]["compensated"]
        assert together["reliability"][name] == table["reliability"]["compensated"]
        assert together["ensemble"]["raw"] == table["ensemble"]["raw"]


def test_a_module_tells_further_priors_without_asking_its_network_again(small, loader, make_trainer):
    module, calls = MutualLTModule(**small), []
    module.network.register_forward_hook(lambda *_: calls.append(1))
    tables = []
    for further in ({}, {"there": "train", "and back": "backward"}, {}):
        calls.clear()
        module.evaluate_also_under(further, factor=10)
        make_trainer().test(module, loader, verbose=False)
        tables.append(module.test_results)
        assert len(calls) == len(loader)
    assert list(tables[1]["ensemble"]) == ["raw", "compensated", "there", "and back"]
    assert tables[0] == tables[2]
    module.set_test_prior("backward", 10)
    make_trainer().test(module, loader, verbose=False)
    assert module.test_results["experts"][0]["compensated"] == tables[1]["experts"][0]["and back"]
    assert module.half().further.dtype == torch.float32
    assert "further" not in module.state_dict()


@pytest.mark.parametrize("names", [("forward", "forward"), ("raw",)])
def test_compensations_of_one_name_are_refused(names):
    with pytest.raises(ArgumentError, match="names of compensations that differ"):
        Evaluation(torch.tensor(COUNTS), 2, compensations=names)


def test_images_that_do_not_count_leave_no_trace():
    logits, targets = some(90)
    counted = torch.arange(90) < 50
    evaluation = Evaluation(torch.tensor(COUNTS), 2)
    evaluation.update(logits, targets, OFFSET, counted=counted)
    evaluation.update(logits, targets, OFFSET, counted=torch.tensor(False))
    assert evaluation.compute() == filled((logits[:, :50], targets[:50])).compute()


def test_a_target_that_is_no_class_is_refused():
    with pytest.raises(ArgumentError, match="Expected `targets` to hold class numbers from 0 to 5, but got 6"):
        Evaluation(torch.tensor(COUNTS), 2).update(torch.zeros(2, 2, 6), torch.tensor([0, 6]), OFFSET)


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_taking_in_a_batch_asks_an_accelerator_for_no_value(ensemble):
    # on "meta", a tensor has a shape but no values, and whoever asks for one gets an error
    evaluation = Evaluation(torch.tensor(COUNTS), 2, ensemble=ensemble, compensations=("uniform", "train")).to("meta")
    logits, targets = torch.zeros(2, 5, 6, device="meta"), torch.zeros(5, dtype=torch.int64, device="meta")
    weights = torch.ones(2, 5, 1, device="meta")
    for given in (None, weights):
        evaluation.update(logits, targets, torch.zeros(2, 6, device="meta"), given, targets.new_ones((), dtype=torch.bool))
    assert evaluation.tallies.correct.shape == (3, 3, 6)
