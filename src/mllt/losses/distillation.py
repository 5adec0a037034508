"""Learning from a teacher: the virtual examples of DiVE, and plain distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from mllt.errors import ArgumentError, check_number
from mllt.longtail import as_tensor


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)), averaged over the batch (Hinton et al., 2015); the teacher is a constant.

    Args:
        student: logits `(..., B, C)`; leading dimensions are summed over.
        teacher: logits `(B, C)`.
        temperature: T > 0.

    Returns:
        Scalar; float32 for half precision; 0 for an empty batch.

    >>> import torch
    >>> round(float(distillation_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986123]]))), 4)
    0.1308
    """
    return virtual_example_loss(student, teacher, temperature, power=1.0)


def virtual_example_loss(student: Tensor, teacher: Tensor, temperature: float = 3.0, power: float = 0.5) -> Tensor:
    """DiVE: distil the teacher's predictions, flattened so that they are virtual examples of the rare classes, too.

    T^2 KL(q || softmax(s / T)) with q ~ softmax(t / T)^power, averaged over the batch (He et al., "Distilling Virtual
    Examples for Long-tailed Recognition", ICCV 2021, section 3.2). Power p flattens the teacher as 1/p times the
    temperature would, but leaves the student's alone.

    Args:
        student: raw logits `(..., B, C)`; leading dimensions are summed over.
        teacher: logits `(B, C)`; a constant: no gradient flows into it.
        temperature: T > 0.
        power: p > 0; 1 for plain distillation.

    Returns:
        Scalar; float32 for half precision; 0 for an empty batch.

    Raises:
        ArgumentError: shapes do not fit, or a number is not positive.

    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
    >>> float(virtual_example_loss(logits, logits, temperature=2.0, power=1.0))
    0.0
    """
    check_number("temperature", temperature, above=0)
    check_number("power", power, above=0)
    student, teacher = as_tensor("student", student), as_tensor("teacher", teacher)
    floating = student.is_floating_point() and teacher.is_floating_point()
    if student.ndim < 2 or student.shape[-2:] != teacher.shape or not floating:
        raise ArgumentError(
            "Expected `student` of shape (..., batch, classes) and `teacher` of shape (batch, classes), floating, but got "
            f"{tuple(student.shape)} of {student.dtype} and {tuple(teacher.shape)} of {teacher.dtype}."
        )
    wide = torch.promote_types(student.dtype, torch.float32)
    log_q = (teacher.detach().to(wide) * (power / temperature)).log_softmax(dim=-1)
    log_p = (student.to(wide) / temperature).log_softmax(dim=-1)
    return (log_q.exp() * (log_q - log_p)).sum() * (temperature**2 / max(len(teacher), 1))


def virtual_examples(teacher: Tensor, temperature: float = 3.0, power: float = 0.5) -> Tensor:
    """How many virtual examples each class gets from a batch: the sum of the flattened predictions, `(C,)`.

    DiVE's rule for the temperature: raise it until this histogram, over the training set, is flat or leans to the tail a
    little.

    Args:
        teacher: logits `(B, C)`.
        temperature, power: as in `virtual_example_loss`.

    >>> import torch
    >>> virtual_examples(torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
    tensor([1., 1.])
    """
    check_number("temperature", temperature, above=0)
    check_number("power", power, above=0)
    teacher = as_tensor("teacher", teacher)
    if teacher.ndim != 2 or not teacher.is_floating_point():
        raise ArgumentError(
            f"Expected `teacher` of shape (batch, classes), floating, but got {tuple(teacher.shape)} of {teacher.dtype}."
        )
    wide = torch.promote_types(teacher.dtype, torch.float32)
    return (teacher.to(wide) * (power / temperature)).softmax(dim=-1).sum(dim=0)
