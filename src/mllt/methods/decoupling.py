"""What decoupled methods share: features by plain cross entropy, then a head on frozen features and balanced classes.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020. The second stage lasts 10
epochs with a cosine schedule, its images drawn class by class. Whether the batch statistics of the frozen network follow the
balanced images is not said in the paper; here they stay as they are (a reconstruction).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mllt.errors import check_integer, check_number
from mllt.losses import expert_cross_entropy
from mllt.methods.base import LongTailedModule
from mllt.methods.stages import Stage


class DecoupledModule(LongTailedModule):
    """Two stages, "features" and "head"; a subclass says in `prepare_head` what of the head learns.

    Args:
        head_epochs: of the second stage.
        head_lr: its first learning rate; None: that of the first stage.
        common: see `LongTailedModule`.
    """

    fitted_prior = "uniform"

    def __init__(self, *, head_epochs: int = 10, head_lr: float | None = None, **common: Any) -> None:
        super().__init__(**common)
        if head_lr is not None:
            check_number("head_lr", head_lr, above=0)
        self.remember(head_epochs=check_integer("head_epochs", head_epochs, 1), head_lr=head_lr)

    def stages(self) -> list[Stage]:
        return [Stage("features"), Stage("head", self.hparams["head_epochs"], "balanced")]

    def on_stage(self) -> None:
        if self.stage == "head":
            self.network.requires_grad_(False)
            self.prepare_head()

    def prepare_head(self) -> None:
        """Say what learns in the second stage, all else being frozen."""

    def recipe(self) -> dict[str, Any]:
        hp = self.hparams
        if self.stage == "features":
            return super().recipe()
        lr = hp["lr"] if hp["head_lr"] is None else hp["head_lr"]
        return {**super().recipe(), "lr": lr, "schedule": "cosine", "warmup_epochs": 0}

    def train(self, mode: bool = True) -> DecoupledModule:
        super().train(mode)
        if self.stage == "head":  # frozen, batch statistics included
            self.network.eval()
        return self

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"cross_entropy": expert_cross_entropy(logits, targets)}
