"""Optimizer and learning-rate schedule: SGD and the schedules of the long-tailed literature, from plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mllt.errors import ArgumentError, check_bool, check_choice, check_integer, check_number

SCHEDULES = ("multistep", "cosine", "constant")


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    decay_norm_and_bias: bool = True,
    lr: float | None = None,
    lr_factor: Callable[[str], float] | None = None,
) -> list[dict[str, Any]]:
    """Trainable parameters in groups for an optimizer, one for each weight decay and learning rate there is.

    Args:
        module: whose parameters.
        weight_decay: of the weights.
        decay_norm_and_bias: whether normalisation parameters and biases (all tensors of fewer than two dimensions)
            decay too. The long-tailed recipes decay everything.
        lr: the learning rate; None: the optimizer's.
        lr_factor: from a parameter's name to the factor on its learning rate; None: 1 for all.

    >>> [len(group["params"]) for group in parameter_groups(nn.Linear(2, 2), 0.1, decay_norm_and_bias=False)]
    [1, 1]
    >>> groups = parameter_groups(nn.Linear(2, 2), 0.1, lr=1.0, lr_factor=lambda name: 0.5 if name == "bias" else 1.0)
    >>> [group["lr"] for group in groups]
    [1.0, 0.5]
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        name = name.replace("_fsdp_wrapped_module.", "")  # of a part of the network that is sharded
        if not parameter.requires_grad:
            continue
        decay = float(weight_decay) if decay_norm_and_bias or parameter.ndim >= 2 else 0.0
        factor = 1.0 if lr_factor is None else lr_factor(name)
        group = groups.setdefault((decay, factor), {"params": [], "weight_decay": decay})
        group["params"].append(parameter)
        if lr is not None:
            group["lr"] = lr * factor
    return list(groups.values())


def check_sgd(lr: float, momentum: float, weight_decay: float, *, nesterov: bool) -> None:
    """Raise `ArgumentError` for settings that SGD cannot have."""
    check_number("lr", lr, above=0)
    check_number("momentum", momentum, 0, below=1)
    check_number("weight_decay", weight_decay, 0)
    if check_bool("nesterov", nesterov) and momentum == 0:
        raise ArgumentError("Expected `momentum` above 0 with nesterov=true, but got 0. Set momentum=0.9 or nesterov=false.")


def sgd(groups: list[dict[str, Any]], lr: float, momentum: float, *, nesterov: bool, fused: bool | None = None) -> Optimizer:
    """`torch.optim.SGD`, with coupled weight decay (L2) as in all of the literature's recipes.

    Args:
        groups: of `parameter_groups`.
        lr, momentum, nesterov: of SGD.
        fused: one pass over memory for decay, momentum and step; None: where the parameters' device has it.
    """
    if fused is None:
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for group in groups for p in group["params"])
    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)


class MovingAverage:
    """The step of an exponential moving average: decay * average + (1 - decay) * now (`avg_fn` of `WeightAveraging`).

    Equal numbers stay exactly what they are, and whole ones (class counts, numbers of batches seen) are not averaged;
    `EMAWeightAveraging` rounds those down.

    >>> import torch
    >>> MovingAverage(0.75)(torch.tensor(2.0), torch.tensor(4.0), 1), MovingAverage(0.9)(torch.tensor(3), torch.tensor(3), 1)
    (tensor(2.5000), tensor(3))
    """

    def __init__(self, decay: float) -> None:
        self.decay = check_number("ema_decay", decay, above=0, below=1)

    def __call__(self, average: Tensor, now: Tensor, num_averaged: Any) -> Tensor:
        return torch.lerp(average, now, 1 - self.decay) if average.is_floating_point() else now


def milestone_epochs(milestones: Sequence[float], max_epochs: int) -> list[int]:
    """Milestones in epochs: numbers under 1 are shares of the run, the others epochs.

    >>> milestone_epochs([0.8, 180], max_epochs=200)
    [160, 180]
    """
    return [round(m * max_epochs) if m < 1 else int(m) for m in milestones]


def check_schedule(
    schedule: str, milestones: Sequence[float], gamma: float, warmup_epochs: int, warmup_start: float | None = None
) -> None:
    """Raise `ArgumentError` for settings that no schedule can have."""
    check_choice("schedule", schedule, SCHEDULES)
    if isinstance(milestones, str) or not isinstance(milestones, Sequence):
        raise ArgumentError(f"Expected `milestones` to be a list of numbers such as [160, 180], but got {milestones!r}.")
    for milestone in milestones:
        check_number("milestones", milestone, above=0)
        if milestone > 1 and milestone != int(milestone):
            raise ArgumentError(f"Expected `milestones` to be whole epochs, or shares of the run under 1, but got {milestone}.")
    check_number("gamma", gamma, above=0)
    check_integer("warmup_epochs", warmup_epochs, 0)
    if warmup_start is not None:
        check_number("warmup_start", warmup_start, 0, below=1)


def learning_rate_factor(
    epoch: int,
    max_epochs: int,
    schedule: str,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
    warmup_epochs: int = 0,
    warmup_start: float | None = None,
) -> float:
    """The factor on the learning rate in an epoch (constant within it).

    - warm-up in the first W = `warmup_epochs`: (e + 1) / W (LDAM-DRW, MiSLAS), the full rate in the last of them; or, from
      f = `warmup_start`, f + (1 - f) e / W (BBN, LADE, DiVE: f = 1/3), the full rate in the first epoch after them;
    - "multistep": gamma to the number of milestones reached;
    - "cosine": (1 + cos(pi e / E)) / 2 with e and E counted from the end of the warm-up;
    - "constant": 1.

    Args:
        epoch: e, 0-based.
        max_epochs: E, of the whole run.
        schedule, milestones, gamma, warmup_epochs: see above.
        warmup_start: f in 0 .. 1, 1 excluded; None: the first rule of warm-up.

    >>> [learning_rate_factor(e, 200, "multistep", [160, 180], 0.1, 5) for e in (0, 4, 159, 160)]
    [0.2, 1.0, 1.0, 0.1]
    >>> [round(learning_rate_factor(e, 200, "multistep", [0.6, 0.8], 0.01, 5, 1 / 3), 3) for e in (0, 4, 5, 119, 120)]
    [0.333, 0.867, 1.0, 1.0, 0.01]
    >>> [round(learning_rate_factor(e, 180, "cosine"), 3) for e in (0, 90, 179)]
    [1.0, 0.5, 0.0]
    """
    if epoch < warmup_epochs:
        if warmup_start is None:
            return (epoch + 1) / warmup_epochs
        return warmup_start + (1 - warmup_start) * epoch / warmup_epochs
    if schedule == "multistep":
        return gamma ** sum(epoch >= milestone for milestone in milestone_epochs(milestones, max_epochs))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max(max_epochs - warmup_epochs, 1)))
    return 1.0


def epoch_schedule(optimizer: Optimizer, max_epochs: int, **settings: Any) -> LambdaLR:
    """`learning_rate_factor` as a scheduler that is stepped once per epoch."""
    return LambdaLR(optimizer, lambda epoch: learning_rate_factor(epoch, max_epochs, **settings))
