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

from torch import Tensor, nn

from mllt.data.sources import Batch, PairedBatch
from mllt.errors import ArgumentError, check_bool, check_choice, check_integer, check_number
from mllt.losses import MUTUAL_TARGETS, chunked_mutual_learning_terms, expert_cross_entropy, mutual_learning_terms
from mllt.methods.base import LongTailedModule
from mllt.networks.heads import CosineHead, LinearHead

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
        class_chunk: for label sets whose logits `(N, B, C)` do not fit: in training, go through so many classes at a time,
            linear or cosine heads only. Loss and gradients are the same to rounding; the logits are computed twice, a third
            more work in the heads. Evaluation is as ever. None: all classes at once.
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
        class_chunk: int | None = None,
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
            class_chunk=None if class_chunk is None else check_integer("class_chunk", class_chunk, 1),
        )
        if class_chunk is not None:
            self._heads()  # refuse now what has no such heads

    def losses(self, batch: Batch | PairedBatch) -> dict[str, Tensor]:
        chunk = self.hparams["class_chunk"]
        if chunk is None:
            return super().losses(batch)
        heads, features = self._heads(), self.network.features(batch.images)
        terms = chunked_mutual_learning_terms(features, labels=batch.targets, chunk=chunk, **heads, **self._mutual_settings())
        return self._weighted(*terms)

    def _heads(self) -> dict[str, Any]:
        """What the heads make logits of, as arguments of `chunked_mutual_learning_terms`."""
        heads = list(self.network.heads)
        if all(type(head) is CosineHead for head in heads) and len({head.scale for head in heads}) == 1:
            return {"weights": [head.weight for head in heads], "biases": None, "cosine_scale": heads[0].scale}
        if all(type(head) in (LinearHead, nn.Linear) for head in heads) and len({head.bias is None for head in heads}) == 1:
            biases = None if heads[0].bias is None else [head.bias for head in heads]
            return {"weights": [head.weight for head in heads], "biases": biases}
        kinds = ", ".join(type(head).__name__ for head in heads)
        raise ArgumentError(
            "Expected linear or cosine heads, alike in all experts, with `class_chunk`, which computes their logits itself, "
            f"but got {kinds}. Set class_chunk=None, or head='linear' or head='cosine'."
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
