"""`DIVEModule`: a teacher that never changes, a student that learns from it, and the virtual examples that are told."""

import pytest
import torch
from tests.reference import published_losses as reference
from torch.testing import assert_close
from torch.utils.data import DataLoader

from mllt import BalancedSoftmaxModule, CrossEntropyModule, DIVEModule, load_checkpoint
from mllt.data import Batch
from mllt.errors import ArgumentError, CheckpointError

COUNTS = [120, 24, 6]


def batch_of(images, targets, weight=1.0):
    return Batch(images, targets, torch.arange(len(targets)), torch.tensor(weight))


def with_teacher(module, loader, make_trainer, epochs=2):
    """The module at the beginning of its second stage."""
    module.begin("teacher")
    make_trainer(epochs).fit(module, loader)
    module.begin("student")
    return module


def flat_examples(module, images, effective):
    """Virtual examples per class at an effective temperature, number by number."""
    total = [0.0, 0.0, 0.0]
    for row in module.teacher(images).tolist():
        for label, share in enumerate(reference.softmax([z / effective for z in row])):
            total[label] += share
    return total


# --------------------------------------------------------------------------------------------------------- learning


def test_the_first_stage_is_balanced_softmax_bit_for_bit(small, problem, loader, make_trainer):
    weights = []
    for cls in (BalancedSoftmaxModule, DIVEModule):
        torch.manual_seed(0)
        module = cls(**small)
        make_trainer(1).fit(module, loader)
        weights.append(module.network.state_dict())
    assert_close(weights[0], weights[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("temperature", "power", "weight"), [(3.0, 0.5, 0.5), (6.0, 1.0, 0.25), (1.0, 2.0, 1.0), (2.0, 0.5, 0.0)]
)
@pytest.mark.parametrize("experts", [1, 2])
def test_the_students_loss_is_that_of_labels_and_of_virtual_examples(small, problem, temperature, power, weight, experts):
    settings = {"temperature": temperature, "power": power, "distillation_weight": weight}
    module = DIVEModule(**small, **settings, num_experts=experts)
    module.begin("student")
    module.eval()
    batch = batch_of(problem[0][:6], problem[1][:6])
    with torch.no_grad():
        terms = {name: value.item() for name, value in module.losses(batch).items()}
        taught, students = module.teacher(batch.images).tolist(), module(batch.images).tolist()
    labels = sum(reference.balanced_softmax(rows, batch.targets.tolist(), COUNTS) for rows in students)
    learned = sum(reference.virtual_examples(rows, taught, temperature, power) for rows in students)
    assert terms == pytest.approx(
        {"balanced_softmax": (1 - weight) * labels, "distillation": weight * learned}, rel=1e-4, abs=1e-6
    )


def test_the_student_begins_anew_and_its_teacher_never_changes(small, loader, make_trainer):
    module = DIVEModule(**small)
    module.begin("teacher")
    make_trainer(2).fit(module, loader)
    first = {name: value.clone() for name, value in module.network.state_dict().items()}
    module.begin("student")
    for name, value in module.teacher.network.state_dict().items():
        assert torch.equal(value, first[name]), name
    assert not torch.equal(module.network.heads[0].weight, first["heads.0.weight"])
    make_trainer(2).fit(module, loader)
    for name, value in module.teacher.network.state_dict().items():
        assert torch.equal(value, first[name]), name
    assert module.reported == "compensated"
    assert module.compensation.abs().max() < 1e-6, "plain logits are the prediction"


def test_gradients_reach_the_student_alone(small, problem):
    module = DIVEModule(**small)
    module.begin("student")
    sum(module.losses(batch_of(problem[0][:8], problem[1][:8])).values()).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher."), name


# ------------------------------------------------------------------------------------------------- virtual examples


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_it_tells_the_virtual_examples_of_the_last_epoch_for_some_temperatures(small, problem, loader, make_trainer, ema_decay):
    module = with_teacher(DIVEModule(**small, temperature=2.5, power=0.5, ema_decay=ema_decay), loader, make_trainer)
    assert module.details() == {}
    make_trainer(2).fit(module, loader)
    found = module.details()
    assert found["effective_temperature"] == 5.0
    assert found["virtual_examples"] == pytest.approx(flat_examples(module, problem[0], 5.0), rel=1e-4)
    assert sum(found["virtual_examples"]) == pytest.approx(150)
    assert list(found["virtual_examples_at"]) == ["1", "2", "3", "4", "5", "6", "8", "12"]
    for name, groups in found["virtual_examples_at"].items():
        expected = flat_examples(module, problem[0], float(name))
        assert groups == pytest.approx(
            dict(zip(("many", "medium", "few"), expected, strict=True)), rel=1e-4
        )  # one class of each
    spread = [max(groups.values()) - min(groups.values()) for groups in found["virtual_examples_at"].values()]
    assert spread == sorted(spread, reverse=True), "flatter as the temperature rises"


def test_a_temperature_of_the_list_is_not_told_twice_and_an_empty_group_not_at_all(small, loader, make_trainer):
    module = with_teacher(DIVEModule(**small, many_above=200), loader, make_trainer)
    make_trainer(1).fit(module, loader)
    assert list(module.details()["virtual_examples_at"]) == ["1", "2", "3", "4", "6", "8", "12"]
    assert module.details()["virtual_examples_at"]["6"]["many"] is None


def test_an_image_that_only_fills_up_an_empty_share_is_no_virtual_example(small, problem, make_trainer):
    batches = [batch_of(problem[0][:8], problem[1][:8]), batch_of(problem[0][8:9], problem[1][8:9], weight=0.0)]
    module = DIVEModule(**small)
    module.begin("student")
    make_trainer(1).fit(module, DataLoader(batches, batch_size=None))
    assert sum(module.details()["virtual_examples"]) == pytest.approx(8)


def test_they_survive_a_break_between_training_and_test(small, problem, loader, make_trainer, tmp_path):
    module = with_teacher(DIVEModule(**small), loader, make_trainer)
    trainer = make_trainer(2)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    again = DIVEModule(**small)
    again.begin("student")
    trainer = make_trainer(2)
    trainer.fit(again, loader, ckpt_path=tmp_path / "student.ckpt", weights_only=True)
    trainer.test(again, loader, verbose=False)
    assert again.details() == module.details() != {}


# -------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_checkpoint_of_each_stage_comes_back_by_one_call(small, problem, loader, make_trainer, tmp_path, stage):
    module = DIVEModule(**small)
    module.begin(stage)
    trainer = make_trainer(1)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = load_checkpoint(tmp_path / "model.ckpt")
    assert again.stage == stage
    assert torch.equal(again.probabilities(problem[0]), module.probabilities(problem[0]))
    if stage == "student":
        assert torch.equal(again.teacher(problem[0]), module.teacher(problem[0]))


def test_a_teacher_by_path_takes_the_place_of_the_first_stage_and_is_needed_only_once(
    small, problem, loader, make_trainer, tmp_path
):
    other, trainer = CrossEntropyModule(**{**small, "width": 0.5}, num_experts=2), make_trainer(1)  # of any method and network
    trainer.fit(other, loader)
    trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    module = DIVEModule(**small, teacher=tmp_path / "teacher.ckpt")
    assert [stage.name for stage in module.stages()] == ["student"]
    expected = other.eval()(problem[0][:8]).mean(0) - torch.tensor(COUNTS).log()
    assert_close(module.teacher(problem[0][:8]).log_softmax(-1), expected.log_softmax(-1))
    trainer = make_trainer(1)
    trainer.fit(module, loader)
    assert_close(module.teacher(problem[0][:8]).log_softmax(-1), expected.log_softmax(-1))
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    (tmp_path / "teacher.ckpt").unlink()
    again = load_checkpoint(tmp_path / "student.ckpt")
    assert torch.equal(again.probabilities(problem[0]), module.probabilities(problem[0]))
    assert torch.equal(again.teacher(problem[0]), module.teacher(problem[0]))
    make_trainer(2).fit(again, loader, ckpt_path=tmp_path / "student.ckpt", weights_only=True)


def test_another_teacher_than_the_one_it_began_with_is_refused(small, loader, make_trainer, tmp_path):
    for name in ("one", "two"):
        trainer = make_trainer(1)
        trainer.fit(CrossEntropyModule(**small), loader)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
    trainer = make_trainer(1)
    trainer.fit(DIVEModule(**small, teacher=tmp_path / "one.ckpt"), loader)
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    make_trainer(2).fit(
        DIVEModule(**small, teacher=tmp_path / "one.ckpt"), loader, ckpt_path=tmp_path / "student.ckpt", weights_only=True
    )
    with pytest.raises(CheckpointError, match="the same teacher"):
        make_trainer(2).fit(
            DIVEModule(**small, teacher=tmp_path / "two.ckpt"), loader, ckpt_path=tmp_path / "student.ckpt", weights_only=True
        )


def test_losses_are_finite_in_half_precision(small, loader, make_trainer):
    module = with_teacher(DIVEModule(**small), loader, make_trainer, epochs=1)
    trainer = make_trainer(1, precision="bf16-mixed")
    trainer.fit(module, loader)
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert sum(module.details()["virtual_examples"]) == pytest.approx(150, rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 0.0}, "`temperature`"),
        ({"power": -1.0}, "`power`"),
        ({"distillation_weight": 1.5}, "`distillation_weight`"),
        ({"teacher": 3}, "`teacher` to be the path of a checkpoint"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(small, changed, message):
    with pytest.raises(ArgumentError, match=message):
        DIVEModule(**small, **changed)
