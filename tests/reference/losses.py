"""Slow, plain re-implementations of the losses: loops over images and ordered pairs of experts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Logits = list[list[list[float]]]  # [N][B][C]


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    highest = max(row)
    weights = [math.exp((value - highest) / temperature) for value in row]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mutual_distillation(
    logits: Logits, temperature: float = 1.0, target: str = "peers", class_counts: list[int] | None = None
) -> float:
    """sum_i mean_{j != i} T^2 KL(p_j || p_i), or sum_i T^2 KL(p_mean || p_i); the mean over the batch."""
    experts, batch, classes = len(logits), len(logits[0]), len(logits[0][0])
    if class_counts is not None:
        log_prior = [math.log(count / sum(class_counts)) for count in class_counts]
        logits = [[[z - lp for z, lp in zip(row, log_prior, strict=True)] for row in expert] for expert in logits]
    terms = []
    for b in range(batch):
        p = [softmax(logits[i][b], temperature) for i in range(experts)]
        ensemble = softmax([math.fsum(logits[i][b][c] for i in range(experts)) / experts for c in range(classes)], temperature)
        for i in range(experts):
            teachers = [p[j] for j in range(experts) if j != i] if target == "peers" else [ensemble]
            terms.append(temperature**2 * math.fsum(kl(teacher, p[i]) for teacher in teachers) / len(teachers))
    return math.fsum(terms) / batch


def mutual_distillation_pairs(
    logits: Tensor, temperature: float, target: str, log_prior: Tensor | None, *, detach: bool
) -> Tensor:
    """The same, one ordered pair at a time on float64 tensors, so that autograd gives the gradient."""
    if log_prior is not None:
        logits = logits - log_prior
    experts, batch, _ = logits.shape
    p = torch.softmax(logits / temperature, dim=-1)
    ensemble = torch.softmax(logits.mean(dim=0) / temperature, dim=-1)
    total = logits.new_zeros(())
    for i in range(experts):
        teachers = [p[j] for j in range(experts) if j != i] if target == "peers" else [ensemble]
        for teacher in teachers:
            constant = teacher.detach() if detach else teacher
            total = total + temperature**2 * (constant * (constant / p[i]).log()).sum() / len(teachers)
    return total / batch


def cross_entropy(logits: Logits, target: list[int]) -> float:
    """sum_i of the mean over the batch of -log softmax(z_i)_y."""
    nll = [-math.log(softmax(row)[label]) for expert in logits for row, label in zip(expert, target, strict=True)]
    return math.fsum(nll) / len(target)
