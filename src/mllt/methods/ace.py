"""ACE: experts for ever rarer classes, each held still on the classes that are not its own.

Cai, Wang, Hwang, "ACE: Ally Complementary Experts for Solving Long-Tailed Recognition in One-Shot", ICCV 2021. Expert 1 owns
all classes, T_1; every further expert fewer and rarer ones, T_1 > T_2 > ... > T_N. On a shared trunk, expert k minimises

    L_k = CE(z_k, y) on images of T_k + w / C * sum_{c not in T_k} z_k,c^2

(`mllt.losses.owned_cross_entropy`, `mllt.losses.complement_loss`). Only L_1 moves the trunk: the other experts take its
features as constants. Expert k's own parts learn at the rate lr * s_k, with s_k the share of the training images that are of
T_k (the distribution-adaptive optimizer: the linear scaling rule for an expert that sees fewer images per batch). To predict,
the logits of each class are averaged over the experts that own it, z_k rescaled by |W_1| / |W_k|, Frobenius norms of the heads'
weights.

The code was never published. A reconstruction of what the paper and notes on it tell; `ACEModule.reconstructed` lists what was
decided here. The authors use four experts on CIFAR-LT, three on the large sets, and set the classes by hand.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mllt.errors import ArgumentError, check_bool, check_choice, check_integer, check_number
from mllt.longtail import shot_groups
from mllt.losses import COMPLEMENTS, complement_loss, owned_cross_entropy
from mllt.methods.base import LongTailedModule
from mllt.networks import ExpertNetwork

_PRIVATE = re.compile(r"network\.(?:experts|heads)\.(\d+)\.")


class ComplementaryExperts(ExpertNetwork):
    """An `ExpertNetwork` in which the first expert alone moves the trunk; the others take its output as a constant."""

    def features(self, images: Tensor) -> Tensor:
        shared = self.trunk(images)
        first, *others = self.experts
        return torch.stack([first(shared), *(expert(shared.detach()) for expert in others)])


class ACEModule(LongTailedModule):
    """Experts on nested subsets of the classes.

    The authors report the plain ensemble, in which rare classes have experts of their own against the imbalance. So
    `fitted_prior` is "uniform", and there is something to compensate for another test prior only.

    Args:
        num_experts: N.
        max_counts: N - 1 falling whole numbers: expert k + 1 owns the classes of at most `max_counts[k - 1]` training images.
            None: with three experts medium and few, then few, by the shot-group rule; with another number, or where no class
            is many-shot, expert k owns the rarest (N - k + 1) / N of the classes, rounded up.
        complement_weight: w >= 0.
        complement: what is held at 0, "classes" (the logits of classes that an expert does not own) or "samples" (all logits of
            images whose class it does not own), see `mllt.losses.complement_loss`.
        distribution_lr: whether experts learn at lr * s_k; else all at lr.
        rescale: whether to rescale logits to predict. Cosine heads are of one length anyway; and where probabilities are
            averaged (ensemble="probabilities"), softmax has brought them to one scale.
        common: see `LongTailedModule`.

    Raises:
        ArgumentError: a value is out of range, values do not fit each other, or an expert would own no class, or not fewer
            than the one before.

    >>> module = ACEModule(class_counts=[300, 30, 10, 2], network="resnet20")
    >>> module.owned.int().tolist()
    [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    """

    method = "ace"
    fitted_prior = "uniform"
    reconstructed = (
        "No official code: the whole method is built from its description.",
        "The classes of each expert: by the shot-group rule with three experts, else (and where no class is many-shot) equal "
        "steps in the number of classes; the authors set them by hand.",
        "The cross entropy of expert k is summed over the images of its classes and divided by the number of them that a batch "
        "holds on average, so that it does not depend on how a batch is cut over devices.",
        "The complement loss has weight 1 and is averaged over all images of the batch and all C classes, since the plain sum "
        "over classes makes experts fail at the learning rates of the cross entropy.",
        "The shared trunk and the width of the experts are RIDE's.",
        "The learning rate of an expert's whole private part, its head included, scales with its share of the images; momentum "
        "and weight decay do not.",
        "Logits are rescaled by Frobenius norms of the heads' weights, without biases.",
    )

    owned: Tensor

    def __init__(
        self,
        *,
        num_experts: int = 3,
        max_counts: Sequence[int] | None = None,
        complement_weight: float = 1.0,
        complement: str = "classes",
        distribution_lr: bool = True,
        rescale: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(num_experts=num_experts, **common)
        limits = None if max_counts is None else check_max_counts(max_counts, num_experts)
        self.remember(
            max_counts=limits,
            complement_weight=check_number("complement_weight", complement_weight, 0),
            complement=check_choice("complement", complement, COMPLEMENTS),
            distribution_lr=check_bool("distribution_lr", distribution_lr),
            rescale=check_bool("rescale", rescale),
        )
        owned = self._subsets(self._default_limits() if limits is None else limits)
        self.register_buffer("owned", owned, persistent=False)
        images = (owned * self.class_counts).sum(dim=1)
        #: s_k: the share of the training images that are of each expert's classes
        self.image_shares: list[float] = (images / self.class_counts.sum()).tolist()

    def make_network(self, **changes: Any) -> ComplementaryExperts:
        network = super().make_network(**changes)
        return ComplementaryExperts(network.trunk, network.experts, network.heads, network.stage_names)

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        hp = self.hparams
        complement = complement_loss(logits, targets, self.owned, hp["complement"])
        return {
            "cross_entropy": owned_cross_entropy(logits, targets, self.owned, self.class_counts),
            "complement": hp["complement_weight"] * complement,
        }

    def lr_factor(self, name: str) -> float:
        private = _PRIVATE.match(name)
        return self.image_shares[int(private[1])] if private and self.hparams["distribution_lr"] else 1.0

    def judge(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), self.expert_weights().unsqueeze(1)

    def expert_weights(self) -> Tensor:
        """How much each expert counts for each class, float32 `(N, C)`: 1 over the number of owners, times the rescaling."""
        hp, owned = self.hparams, self.owned.float()
        weights = owned / owned.sum(dim=0)
        if hp["rescale"] and hp["head"] == "linear" and hp["ensemble"] == "logits":
            lengths = torch.stack([head.weight.float().norm() for head in self.network.heads])
            weights = weights * (lengths[0] / lengths.clamp(min=1e-12)).unsqueeze(1)
        return weights

    def details(self) -> dict[str, Any]:
        return {"classes_per_expert": self.owned.sum(dim=1).tolist(), "image_shares": self.image_shares}

    def _subsets(self, limits: Sequence[int]) -> Tensor:
        """Which classes each expert owns, bool `(N, C)`: fewer than the one before."""
        counts = self.class_counts
        for number, limit in enumerate(limits, start=2):
            if limit < counts.min():
                raise ArgumentError(
                    f"Expected every expert to own a class, but expert {number} would own those of at most {limit} training "
                    f"images, and the rarest class has {int(counts.min())}. Set larger `max_counts`, or fewer experts."
                )
        owned = torch.stack([torch.ones_like(counts, dtype=torch.bool), *(counts <= limit for limit in limits)])
        sizes = owned.sum(dim=1).tolist()
        if not _falling(sizes):
            raise ArgumentError(
                f"Expected every expert to own fewer classes than the one before, but all, and those of at most {list(limits)} "
                f"training images, are {sizes} classes. Set other `max_counts`, or fewer experts."
            )
        return owned

    def _default_limits(self) -> list[int]:
        """The largest class of every expert but the first, by the rule for `max_counts=None`."""
        hp, counts, experts = self.hparams, self.class_counts, self.num_experts
        groups = shot_groups(counts, hp["many_above"], hp["few_below"], inclusive=hp["shot_edges_inclusive"])
        if experts == 3 and groups["many"].any():
            if not groups["few"].any():
                raise ArgumentError(
                    "Expected few-shot classes for the third expert to own, but there are none: the rarest class has "
                    f"{int(counts.min())} training images. Set `max_counts` to two numbers, such as [100, 60], or another "
                    "number of experts."
                )
            return [int(counts[~groups["many"]].max()), int(counts[groups["few"]].max())]
        rarest_first = counts.sort().values
        sizes = [-(-len(counts) * (experts - k) // experts) for k in range(1, experts)]
        return [int(rarest_first[size - 1]) for size in sizes]


def check_max_counts(max_counts: Sequence[int], num_experts: int) -> list[int]:
    """N - 1 falling whole numbers of at least 1."""
    if isinstance(max_counts, str) or not isinstance(max_counts, Sequence):
        raise ArgumentError(f"Expected `max_counts` to be a list of whole numbers such as [100, 20], but got {max_counts!r}.")
    limits = [check_integer("max_counts", limit, 1) for limit in max_counts]
    if len(limits) != num_experts - 1 or not _falling(limits):
        raise ArgumentError(
            f"Expected `max_counts` to be {num_experts - 1} falling numbers for {num_experts} experts (the first owns all "
            f"classes), but got {limits}."
        )
    return limits


def _falling(limits: Sequence[int]) -> bool:
    return all(larger > smaller for larger, smaller in itertools.pairwise(limits))
