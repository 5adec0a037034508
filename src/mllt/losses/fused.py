"""The mutual-learning objective of logits, as one step of autograd.

Left to autograd, every intermediate result is a tensor of the logits' size: ten of them, each written to memory and read
again. Here one is kept, the softmax, which becomes the gradient where it lies; whatever else is needed of that size is made
for a few images at a time, so that it stays in the processor's cache. `mllt.losses.mutual` has the formulas.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mllt.blocks import blocks_of_images
from mllt.errors import ArgumentError
from mllt.losses.checks import exact_type


class MutualTerms(torch.autograd.Function):
    """`apply(logits, labels, offset, temperature, target, detach)` -> (cross entropy, mutual distillation), two scalars.

    Arguments are as of `mllt.losses.mutual.mutual_learning_terms`, checked before; of two experts and one image at least.
    `offset` is what is added to logits before the distillation's softmax, `(C,)` or None. Without `labels`, the first result is
    0. Nothing waits for an accelerator.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor | None,
        offset: Tensor | None,
        temperature: float,
        target: str,
        detach: bool,
    ) -> tuple[Tensor, Tensor]:
        experts, batch, _ = logits.shape
        shared = temperature == 1 and offset is None  # one softmax serves both terms
        soft = torch.empty_like(logits, dtype=exact_type(logits.dtype), memory_format=torch.contiguous_format)
        entropy, mutual = soft.new_zeros(()), soft.new_zeros(())
        for rows in blocks_of_images(logits):
            raw = logits[:, rows].to(soft.dtype)
            scaled = raw if shared else scale(raw, offset, temperature)
            its_soft = softmax(scaled, soft[:, rows])
            if labels is not None:
                own = labels[rows].expand(experts, -1).unsqueeze(-1)
                log_p = log_of_some(raw, its_soft, own) if shared else raw.log_softmax(dim=-1).gather(-1, own)
                entropy -= log_p.sum()
            if target == "peers":
                mutual += from_mean(scaled).mul_(its_soft).sum()
            else:
                together = total(scaled).div_(experts).unsqueeze(0)
                mutual += (log_sum_exp(scaled, its_soft) - log_sum_exp(together, softmax(together))).sum()
        ctx.save_for_backward(logits, labels, offset)
        ctx.soft, ctx.shared, ctx.temperature, ctx.target = soft, shared, temperature, target
        ctx.factor, ctx.joint = pairs(experts, target) * temperature / batch, target == "peers" and not detach
        return entropy / batch, mutual * (ctx.factor * temperature)

    @staticmethod
    def backward(ctx: Any, of_entropy: Tensor, of_mutual: Tensor) -> tuple[Tensor | None, ...]:
        check_differentiated_once()
        logits, labels, offset = ctx.saved_tensors
        experts, batch, _ = logits.shape
        pull, push = of_mutual * ctx.factor, of_entropy / batch
        once_more = ctx.soft is None  # the graph was retained, and the softmax has become the first gradient
        gradient = torch.empty_like(logits, dtype=exact_type(logits.dtype)) if once_more else ctx.soft
        ctx.soft = None

        for rows in blocks_of_images(logits):
            own, raw = gradient[:, rows], logits[:, rows].to(gradient.dtype)
            needed = once_more or ctx.joint or ctx.target == "mean"
            scaled = scale(raw, offset, ctx.temperature) if needed and not ctx.shared else raw
            if once_more:
                softmax(scaled, own)
            if ctx.target == "peers":
                away = total(own).mul_(pull / -experts)
            else:
                away = softmax(total(scaled).div_(experts).unsqueeze(0)).squeeze(0).mul_(-pull)
            if ctx.joint:
                apart = from_mean(scaled)
                away = apart.sub_((own * apart).sum(dim=-1, keepdim=True)).mul_(own).mul_(pull).add_(away)
            torch.addcmul(away, own, pull + push if labels is not None and ctx.shared else pull, out=own)
            if labels is not None and not ctx.shared:
                own += softmax(raw).mul_(push)
        if labels is not None:
            gradient[:, torch.arange(batch, device=labels.device), labels] -= push
        return gradient.to(logits.dtype), None, None, None, None, None


# ---------------------------------------------------------------------------------------------------------------
# What the fused and the chunked form share


def check_differentiated_once() -> None:
    """Raise `ArgumentError` where a gradient is to be differentiated again, as a penalty on gradients does.

    PyTorch's `once_differentiable` lets that pass where the loss is what is differentiated, and gives constants.
    """
    if torch.is_grad_enabled():
        raise ArgumentError(
            "Expected the mutual-learning objective to be differentiated once, but got create_graph=True. Leave that out; for "
            "gradients of gradients, write the terms in PyTorch's own functions (log_softmax, kl_div)."
        )


def softmax(logits: Tensor, out: Tensor | None = None) -> Tensor:
    """Softmax over the classes of `(N, b, C)`, expert by expert, as they lie in memory as the kernel wants them."""
    out = torch.empty_like(logits, memory_format=torch.contiguous_format) if out is None else out
    for of_one, its_out in zip(logits, out, strict=True):
        torch.softmax(of_one, dim=-1, out=its_out)
    return out


def log_sum_exp(logits: Tensor, soft: Tensor) -> Tensor:
    """log sum_c exp z_c, `(N, b)`, of logits `(N, b, C)` and their softmax: its largest is 1 / sum_c exp(z_c - max z)."""
    return logits.amax(dim=-1) - soft.amax(dim=-1).log()


def log_of_some(logits: Tensor, soft: Tensor, places: Tensor) -> Tensor:
    """log softmax(z) at `places` of the last axis, from both, also where the softmax is too small for a number to hold."""
    some = soft.gather(-1, places)
    if some.device.type == "cpu" and bool((some > 1e-30).all()):  # saves looking for the largest of all
        return some.log()
    return logits.gather(-1, places) - log_sum_exp(logits, soft).unsqueeze(-1)


def scale(logits: Tensor, offset: Tensor | None, temperature: float) -> Tensor:
    """(z + offset) / T, anew."""
    if offset is None:
        return logits * (1 / temperature)
    moved = logits + offset
    return moved if temperature == 1 else moved.mul_(1 / temperature)


def total(values: Tensor) -> Tensor:
    """The sum over the first axis, of two or more, anew; whole slices are added three times as fast as by `Tensor.sum`."""
    result = values[0] + values[1]
    for value in values[2:]:
        result += value
    return result


def from_mean(values: Tensor) -> Tensor:
    """How far each of the first axis lies from their mean, anew."""
    return values.sub(total(values), alpha=1 / len(values))


def pairs(experts: int, target: str) -> float:
    """What a sum over experts is to be multiplied with: N / (N - 1) for peers, where it has N terms that are 0."""
    return experts / (experts - 1) if target == "peers" else 1.0
