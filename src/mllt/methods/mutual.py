"""Mutual learning for long-tailed recognition: experts of reduced dimension learn from each other.

Park, Yim, Jun, "Mutual Learning for Long-Tailed Recognition", WACV 2023. Every expert k minimises

    L_k = CE(z_k, y) + w * T^2 * mean_{l != k} KL(softmax(z_l / T) || softmax(z_k / T))

with the targets detached, and the prior is corrected at inference only, by post-compensated softmax, on each expert's
logits and on their mean. Learning from each other raises the quality of the representation, so that even one expert of
reduced dimension does well on its own.

What the public supplement leaves open, and this file therefore decides (a reconstruction; every choice is a setting): the
number of experts (3), their topology (RIDE's: stem and first stages shared, later ones private at 3/4 width), linear heads,
w = 1, T = 1, pairwise targets on raw probabilities, detached (Zhang et al., "Deep Mutual Learning", CVPR 2018), and an
ensemble that averages logits (`ensemble="probabilities"`: compensated probabilities).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mllt.errors import check_bool, check_choice, check_integer, check_number
from mllt.losses import MUTUAL_TARGETS, expert_cross_entropy, mutual_learning_terms
from mllt.methods.base import LongTailedModule

PROBABILITIES = ("raw", "balanced")


class MutualLTModule(LongTailedModule):
    """The paper's method: cross entropy plus mutual distillation, for N experts.

    Args:
        num_experts: N; with one expert the mutual term is exactly 0.
        mutual_weight: w. 0 trains the experts apart; a negative one drives them apart, as RIDE's diversity does.
        temperature: T > 0 of the mutual term.
        mutual_target: "peers" (the mean over peers of the divergence) or "mean" (the ensemble's prediction).
        mutual_probabilities: "raw", or "balanced": softmax((z - log pi) / T), the prior taken out first.
        detach_peers: whether the targets are constants.
        mutual_warmup_epochs: epochs over which w grows linearly from 0: w * min(1, epoch / mutual_warmup_epochs).
        common: see `LongTailedModule`.

    Raises:
        ArgumentError: a value is out of range, or values do not fit each other.

    >>> import torch
    >>> module = MutualLTModule(class_counts=[30, 10, 2], network="resnet20", num_experts=3)
    >>> module(torch.zeros(4, 3, 32, 32)).shape
    torch.Size([3, 4, 3])
    """

    method = "mutual"
    reconstructed = (
        "Mutual learning's number of experts, their topology (RIDE's, at 3/4 width) and their linear heads.",
        "The weight 1 and temperature 1 of the mutual term, pairwise on raw probabilities of detached peers.",
        "The mean of logits as ensemble.",
    )

    def __init__(
        self,
        *,
        num_experts: int = 3,
        mutual_weight: float = 1.0,
        temperature: float = 1.0,
        mutual_target: str = "peers",
        mutual_probabilities: str = "raw",
        detach_peers: bool = True,
        mutual_warmup_epochs: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(num_experts=num_experts, **common)
        self.remember(
            mutual_weight=check_number("mutual_weight", mutual_weight),
            temperature=check_number("temperature", temperature, above=0),
            mutual_target=check_choice("mutual_target", mutual_target, MUTUAL_TARGETS),
            mutual_probabilities=check_choice("mutual_probabilities", mutual_probabilities, PROBABILITIES),
            detach_peers=check_bool("detach_peers", detach_peers),
            mutual_warmup_epochs=check_integer("mutual_warmup_epochs", mutual_warmup_epochs, 0),
        )

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if self._weight() == 0:
            return {"cross_entropy": expert_cross_entropy(logits, targets), "mutual": logits.new_zeros(())}
        return self._weighted(*mutual_learning_terms(logits, targets, **self._mutual_settings()))

    def _mutual_settings(self) -> dict[str, Any]:
        hp = self.hparams
        return {
            "temperature": hp["temperature"],
            "target": hp["mutual_target"],
            "class_counts": self.class_counts if hp["mutual_probabilities"] == "balanced" else None,
            "detach": hp["detach_peers"],
        }

    def _weighted(self, cross_entropy: Tensor, mutual: Tensor) -> dict[str, Tensor]:
        return {"cross_entropy": cross_entropy, "mutual": self._weight() * mutual}

    def _weight(self) -> float:
        """w in this epoch."""
        warmup = self.hparams["mutual_warmup_epochs"]
        return self.hparams["mutual_weight"] * (min(1.0, self.current_epoch / warmup) if warmup else 1.0)
