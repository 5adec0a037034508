"""`virtual_example_loss`, `distillation_loss` and `virtual_examples` against a loop and PyTorch's divergence."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.reference import published_losses as reference
from torch.testing import assert_close

from mllt.errors import ArgumentError
from mllt.losses import distillation_loss, virtual_example_loss, virtual_examples

temperatures_and_powers = pytest.mark.parametrize(("temperature", "power"), [(1.0, 1.0), (3.0, 0.5), (0.5, 2.0), (6.0, 1.0)])


def random_logits(*shape, seed=0, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


@temperatures_and_powers
@pytest.mark.parametrize("experts", [None, 1, 3])
def test_the_value_is_that_of_the_loop(temperature, power, experts):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        student, teacher = random_logits(experts or 1, 6, 5, dtype=dtype), random_logits(6, 5, seed=1, dtype=dtype)
        loss = virtual_example_loss(student if experts else student[0], teacher, temperature, power)
        slow = sum(reference.virtual_examples(s, teacher.tolist(), temperature, power) for s in student.tolist())
        assert loss.shape == ()
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(slow, rel=tolerance, abs=tolerance)


@temperatures_and_powers
def test_the_gradient_is_that_of_finite_differences(temperature, power):
    student, teacher = random_logits(2, 6, 5).requires_grad_(), random_logits(6, 5, seed=1)
    assert torch.autograd.gradcheck(lambda s: virtual_example_loss(s, teacher, temperature, power), (student,))


def test_nothing_flows_into_the_teacher():
    student, teacher = random_logits(6, 5).requires_grad_(), random_logits(6, 5, seed=1).requires_grad_()
    for loss in (virtual_example_loss, distillation_loss):
        flows = torch.autograd.grad(loss(student, teacher), (student, teacher), allow_unused=True)
        assert flows[0].any()
        assert flows[1] is None
    same = random_logits(6, 5).requires_grad_()  # a network that is its own teacher: the student's part alone
    assert_close(gradient(virtual_example_loss(same, same), same), gradient(virtual_example_loss(same, same.detach()), same))


def test_plain_distillation_is_pytorchs_divergence_times_the_squared_temperature():
    student, teacher = random_logits(6, 5), random_logits(6, 5, seed=1)
    for t in (1.0, 4.0):
        plain = F.kl_div((student / t).log_softmax(-1), (teacher / t).softmax(-1), reduction="batchmean")
        assert_close(distillation_loss(student, teacher, t), t**2 * plain)
        assert_close(virtual_example_loss(student, teacher, t, power=1.0), t**2 * plain)


def test_a_power_flattens_the_teacher_as_a_temperature_does_but_not_the_student():
    student, teacher = random_logits(6, 5), random_logits(6, 5, seed=1)
    assert_close(virtual_example_loss(student, teacher, 3.0, 0.5), virtual_example_loss(student, teacher / 2, 3.0, 1.0))


def test_a_student_that_says_what_the_teacher_means_is_left_alone():
    teacher = random_logits(6, 5, seed=1)
    student = (teacher / 2 + 7).requires_grad_()  # a constant does not matter
    loss = virtual_example_loss(student, teacher, 3.0, 0.5)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert gradient(loss, student).abs().max() < 1e-12


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_huge_logits_stay_finite(power):
    student = random_logits(3, 6, 5, dtype=torch.float32).sign().mul(1e4).requires_grad_()
    for teacher in (random_logits(6, 5, seed=1, dtype=torch.float32).sign() * 1e4, torch.full((6, 5), -1e4)):
        loss = virtual_example_loss(student, teacher, 1.0, power)
        assert loss.isfinite()
        assert gradient(loss, student).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    student, teacher = random_logits(3, 6, 5, dtype=dtype).requires_grad_(), random_logits(6, 5, seed=1, dtype=dtype)
    loss = virtual_example_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, virtual_example_loss(student.float(), teacher.float()))
    assert gradient(loss, student).dtype == dtype


def test_a_teacher_of_another_precision_will_do():
    student, teacher = random_logits(6, 5, dtype=torch.float32), random_logits(6, 5, seed=1)
    loss = virtual_example_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert_close(loss, virtual_example_loss(student, teacher.float()))


def test_an_empty_batch_costs_nothing_and_can_be_stepped_through():
    student = torch.zeros(3, 0, 5, requires_grad=True)
    loss = virtual_example_loss(student, torch.zeros(0, 5))
    assert loss.item() == 0
    assert gradient(loss, student).shape == (3, 0, 5)


def test_lists_will_do():
    student, teacher = [[0.0, 1.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 3.0]]
    assert virtual_example_loss(student, teacher) == virtual_example_loss(torch.tensor(student), torch.tensor(teacher))
    assert torch.equal(virtual_examples(teacher), virtual_examples(torch.tensor(teacher)))


@temperatures_and_powers
def test_virtual_examples_are_the_summed_flattened_predictions(temperature, power):
    teacher = random_logits(6, 5)
    flat = teacher.div(temperature).softmax(dim=-1).pow(power)
    expected = (flat / flat.sum(dim=-1, keepdim=True)).sum(dim=0)
    assert_close(virtual_examples(teacher, temperature, power), expected)
    assert virtual_examples(teacher, temperature, power).sum().item() == pytest.approx(6)


def test_virtual_examples_get_flatter_with_the_temperature():
    teacher = torch.tensor([[6.0, 0.0, 0.0], [5.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    spreads = [virtual_examples(teacher, t, 1.0).std().item() for t in (1.0, 3.0, 9.0, 100.0)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.05


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "message"),
    [
        (torch.zeros(2, 6, 5), torch.zeros(6, 4), {}, r"Expected `student` .* but got \(2, 6, 5\) .* and \(6, 4\)"),
        (torch.zeros(2, 6, 5), torch.zeros(2, 6, 5), {}, "`teacher` of shape"),
        (torch.zeros(5), torch.zeros(5), {}, "Expected `student`"),
        (torch.zeros(6, 5).long(), torch.zeros(6, 5), {}, "floating, but got .*int64"),
        (torch.zeros(6, 5), torch.zeros(6, 5).long(), {}, "floating, but got .*int64"),
        ("student", torch.zeros(6, 5), {}, "Expected `student` to be numbers"),
        (torch.zeros(6, 5), torch.zeros(6, 5), {"temperature": 0}, "Expected `temperature` to be a number above 0"),
        (torch.zeros(6, 5), torch.zeros(6, 5), {"power": 0.0}, "Expected `power` to be a number above 0"),
        (torch.zeros(6, 5), torch.zeros(6, 5), {"power": math.nan}, "Expected `power`"),
    ],
)
def test_what_does_not_fit_is_refused(student, teacher, settings, message):
    with pytest.raises(ArgumentError, match=message):
        virtual_example_loss(student, teacher, **settings)


@pytest.mark.parametrize(
    ("teacher", "settings", "message"),
    [
        (torch.zeros(2, 6, 5), {}, r"Expected `teacher` of shape \(batch, classes\), floating, but got \(2, 6, 5\)"),
        (torch.zeros(6, 5).long(), {}, "Expected `teacher`"),
        (torch.zeros(6, 5), {"temperature": -1.0}, "Expected `temperature`"),
        (torch.zeros(6, 5), {"power": -1.0}, "Expected `power`"),
    ],
)
def test_virtual_examples_of_what_does_not_fit_are_refused(teacher, settings, message):
    with pytest.raises(ArgumentError, match=message):
        virtual_examples(teacher, **settings)
