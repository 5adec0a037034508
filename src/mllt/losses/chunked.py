"""The mutual-learning objective from features and classifier weights, without ever holding the logits of all classes.

For label sets so large that the logits of a batch do not fit: with 1,000,000 classes, 3 experts and a batch of 256 they are
3 GB, and as much again for their gradient. Here the classes are gone through in chunks, once for the loss and once more for
the gradient, which needs the logits again: a third more arithmetic in the classifier.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mllt.errors import ArgumentError, check_bool, check_choice, check_integer, check_number
from mllt.losses.checks import balancing_offset, check_classes, check_logits
from mllt.losses.fused import check_differentiated_once, from_mean, log_sum_exp, pairs, scale, softmax, total
from mllt.losses.mutual import MUTUAL_TARGETS


def chunked_mutual_learning_terms(
    features: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    labels: Tensor,
    temperature: float = 1.0,
    *,
    chunk: int,
    cosine_scale: float | None = None,
    target: str = "peers",
    class_counts: Tensor | None = None,
    detach: bool = True,
) -> tuple[Tensor, Tensor]:
    """`mutual_learning_terms` of the logits of linear or cosine heads, `chunk` classes at a time.

    Loss and gradients are those of the whole logits, to rounding. Beside the gradients of the weights, which are as large as
    these, the memory needed is some ten times that of the logits of a chunk, `(N, B, chunk)`, whatever C. The logits are
    computed twice. They can be differentiated once, not twice.

    Args:
        features: `(N, B, D)` floating; computed in float32 when half precision comes, and under autocast.
        weights: of each expert, `(C, D)`.
        biases: of each expert, `(C,)`; None: no bias.
        labels: `(B,)` whole numbers in 0 .. C-1.
        temperature, target, class_counts, detach: as of `mutual_distillation_loss`.
        chunk: classes at a time, at least 1.
        cosine_scale: s of logits s <x / |x|, w / |w|>; None: logits <x, w> + b.

    Returns:
        Cross entropy and mutual distillation, scalars of `features`' type (float32 for half precision).

    Raises:
        ArgumentError: shapes do not fit, a number is out of range, or a label is no class.

    >>> features, weights = torch.eye(2)[:, None], [torch.eye(3, 2), torch.ones(3, 2)]  # two experts, one image
    >>> [round(float(term), 4) for term in chunked_mutual_learning_terms(features, weights, None, torch.tensor([0]), chunk=2)]
    [1.6501, 0.2428]
    """
    check_integer("chunk", chunk, 1)
    check_number("temperature", temperature, above=0)
    check_choice("target", target, MUTUAL_TARGETS)
    check_bool("detach", detach)
    if cosine_scale is not None:
        check_number("cosine_scale", cosine_scale, above=0)
    features, labels = check_logits(features, labels)
    classes = _check_heads(features, weights, biases)
    check_classes(labels, classes)
    if labels.device.type == "cuda":  # no kernel below would fail of a label that is no class; this does not wait
        torch._assert_async(((labels >= 0) & (labels < classes)).all())
    offset = None
    if class_counts is not None:
        offset = balancing_offset(class_counts, classes, features.device, features.dtype)
    rule = _Rule(chunk, temperature, target, target == "peers" and not detach, cosine_scale)
    return _apply(rule, labels, offset, features, *weights, *(biases or ()))


def _check_heads(features: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> int:
    """C."""
    experts, _, size = features.shape
    shapes = [tuple(weight.shape) for weight in weights]
    fits = len(shapes) == experts and all(len(shape) == 2 and shape[1] == size for shape in shapes) and len(set(shapes)) == 1
    if not fits:
        raise ArgumentError(
            f"Expected `weights` of shape (classes, {size}), one of each of {experts} experts as `features` are of shape "
            f"{tuple(features.shape)}, but got {shapes}."
        )
    classes = shapes[0][0]
    if biases is not None and [tuple(bias.shape) for bias in biases] != [(classes,)] * experts:
        raise ArgumentError(
            f"Expected `biases` of shape ({classes},), one of each of {experts} experts, but got "
            f"{[tuple(bias.shape) for bias in biases]}."
        )
    return classes


class _Rule(NamedTuple):
    """What the objective is, apart from numbers that are learned."""

    chunk: int
    temperature: float
    target: str
    joint: bool  #: whether gradient flows into the teaching peers
    cosine_scale: float | None


class _ChunkedTerms(torch.autograd.Function):
    """`apply(rule, labels, offset, features, *weights, *biases)` -> (cross entropy, mutual distillation)."""

    @staticmethod
    def forward(
        ctx: Any, rule: _Rule, labels: Tensor, offset: Tensor | None, features: Tensor, *heads: Tensor
    ) -> tuple[Tensor, Tensor]:
        experts, batch, _ = features.shape
        shared = rule.temperature == 1 and offset is None  # one softmax serves both terms
        of_raw, of_scaled, of_mean = _Running(), _Running(), _Running()
        own = features.new_zeros(experts, batch)
        for classes in _chunks(heads[0], rule.chunk):
            raw = torch.stack([_logits(*part, rule) for part in _by_expert(features, heads, classes)])
            place, here = _places(labels, classes)
            own += raw[:, torch.arange(batch, device=place.device), place] * here
            scaled = raw if shared else scale(raw, None if offset is None else offset[classes], rule.temperature)
            soft = softmax(scaled)
            of_scaled.add(log_sum_exp(scaled, soft), (from_mean(scaled) * soft).sum(dim=-1) if experts > 1 else None)
            if not shared:
                of_raw.add(log_sum_exp(raw, softmax(raw, soft)))
            if rule.target == "mean" and experts > 1:
                together = total(scaled).div_(experts).unsqueeze(0)
                of_mean.add(log_sum_exp(together, softmax(together)))
        entropy = ((of_scaled if shared else of_raw).log - own).sum()
        mutual = features.new_zeros(())
        if experts > 1:
            mutual = (of_scaled.log - of_mean.log).sum() if rule.target == "mean" else of_scaled.mean.sum()
        sums = (of_raw.log, of_scaled.log, of_scaled.mean, of_mean.log)
        ctx.save_for_backward(labels, offset, features, *sums, *heads)
        ctx.rule, ctx.shared = rule, shared
        ctx.factor = pairs(experts, rule.target) * rule.temperature / max(batch, 1) if experts > 1 else 0.0
        return entropy / max(batch, 1), mutual * (ctx.factor * rule.temperature)

    @staticmethod
    def backward(ctx: Any, of_entropy: Tensor, of_mutual: Tensor) -> tuple[Tensor | None, ...]:
        check_differentiated_once()
        _, _, features, _, _, _, _, *heads = ctx.saved_tensors
        pull, push = of_mutual * ctx.factor, of_entropy / max(features.shape[1], 1)
        wanted = ctx.needs_input_grad[3:]
        gradients = [
            torch.zeros_like(tensor) if wants else None for tensor, wants in zip((features, *heads), wanted, strict=True)
        ]
        for classes in _chunks(heads[0], ctx.rule.chunk):
            with torch.enable_grad():
                parts = [[part.detach().requires_grad_() for part in parts] for parts in _by_expert(features, heads, classes)]
                raw = [_logits(*part, ctx.rule) for part in parts]
            into_raw = _gradient(ctx, torch.stack([of_one.detach() for of_one in raw]), classes, pull, push)
            for expert, (of_one, part, into) in enumerate(zip(raw, parts, into_raw, strict=True)):
                of_part = torch.autograd.grad(of_one, part, into)
                if gradients[0] is not None:
                    gradients[0][expert] += of_part[0]
                for whole, of_chunk in zip(gradients[1 + expert :: features.shape[0]], of_part[1:], strict=True):
                    if whole is not None:
                        whole[classes] = of_chunk
        return None, None, None, *gradients


def _gradient(ctx: Any, raw: Tensor, classes: slice, pull: Tensor, push: Tensor) -> Tensor:
    """The gradient of the logits `(N, B, chunk)` of some classes."""
    labels, offset, _, log_raw, log_scaled, mean_apart, log_mean, *_ = ctx.saved_tensors
    rule, experts = ctx.rule, len(raw)
    scaled = raw if ctx.shared else scale(raw, None if offset is None else offset[classes], rule.temperature)
    soft = (scaled - log_scaled.unsqueeze(-1)).exp_()
    if experts > 1:
        peers = rule.target == "peers"
        teacher = total(soft if peers else scaled).div_(experts)
        if not peers:
            teacher = teacher.sub_(log_mean[0].unsqueeze(-1)).exp_()
        if rule.joint:
            teacher = teacher - from_mean(scaled).sub_(mean_apart.unsqueeze(-1)).mul_(soft)
        result = (soft - teacher).mul_(pull)
    else:
        result = torch.zeros_like(soft)
    result += (soft if ctx.shared else (raw - log_raw.unsqueeze(-1)).exp_()).mul_(push)
    place, here = _places(labels, classes)
    result[:, torch.arange(len(place), device=place.device), place] -= push * here
    return result


_apply = torch.compiler.disable(_ChunkedTerms.apply)  # its passes over the classes are no graph to be compiled


class _Running:
    """log sum_c exp z_c `(N, B)`, and the mean of something under softmax(z), over the classes so far; None before any."""

    log: Any = None
    mean: Any = None

    def add(self, log: Tensor, mean: Tensor | None = None) -> None:
        """Take in more classes: their log sum, and the mean under their softmax."""
        if self.log is None:
            self.log, self.mean = log, mean
            return
        both = torch.logaddexp(self.log, log)
        if mean is not None:
            self.mean = self.mean * (self.log - both).exp() + mean * (log - both).exp()
        self.log = both


def _chunks(weight: Tensor, chunk: int) -> Iterator[slice]:
    for first in range(0, len(weight), chunk):
        yield slice(first, min(first + chunk, len(weight)))


def _by_expert(features: Tensor, heads: Sequence[Tensor], classes: slice) -> list[list[Tensor]]:
    """Of each expert its features, and of some classes its weights and, where there are any, biases."""
    experts = len(features)
    return [[features[k], *(tensor[classes] for tensor in heads[k::experts])] for k in range(experts)]


def _logits(features: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """Logits `(B, chunk)`; the last argument is the rule, and a bias may stand before it."""
    *bias, rule = rest
    device = features.device.type
    exact: Any = contextlib.nullcontext()
    if device != "meta" and torch.is_autocast_enabled(device):
        exact = torch.autocast(device, enabled=False)
    with exact:
        weight = weight.to(features.dtype)
        if rule.cosine_scale is not None:
            return F.linear(F.normalize(features, dim=1), F.normalize(weight, dim=1)) * rule.cosine_scale
        return F.linear(features, weight, *(one.to(features.dtype) for one in bias))


def _places(labels: Tensor, classes: slice) -> tuple[Tensor, Tensor]:
    """Where in a chunk each image's class is, and whether it is there at all; somewhere within where it is not."""
    place = labels - classes.start
    return place.clamp(0, classes.stop - classes.start - 1), (place >= 0) & (labels < classes.stop)
