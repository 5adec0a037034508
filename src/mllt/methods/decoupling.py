"""What decoupled methods share: features by plain cross entropy, then a head on frozen features and balanced classes.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020. The second stage lasts 10
epochs with a cosine schedule, its images drawn class by class. Whether the batch statistics of the frozen network follow the
balanced images is not said in the paper; here they stay as they are (a reconstruction), unless a method says `shifted_bn`.

The first stage may come from elsewhere: `features` names a checkpoint of any method with the same network, on the same data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mllt.errors import ArgumentError, check_integer, check_number
from mllt.losses import expert_cross_entropy
from mllt.methods.base import LongTailedModule
from mllt.methods.identity import NETWORK_SETTINGS
from mllt.methods.stages import Stage
from mllt.methods.teacher import load_trained, origin, shapes


class DecoupledModule(LongTailedModule):
    """Two stages, "features" and "head"; a subclass says in `prepare_head` what of the head learns.

    Args:
        head_epochs: of the second stage.
        head_lr: its first learning rate; None: that of the first stage.
        features: a checkpoint whose network takes the place of the first stage (or what is remembered of one: its weights are
            then about to be loaded); None: the first stage is trained.
        common: see `LongTailedModule`.

    Raises:
        ArgumentError: a value is out of range, or the network of `features` does not fit.
        CheckpointError: the checkpoint of `features` is missing, damaged or not ours.
    """

    fitted_prior = "uniform"
    #: whether the batch statistics of the frozen network follow the images of the second stage
    shifted_bn = False

    def __init__(
        self,
        *,
        head_epochs: int = 10,
        head_lr: float | None = None,
        features: str | Path | Mapping[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if head_lr is not None:
            check_number("head_lr", head_lr, above=0)
        self.remember(
            head_epochs=check_integer("head_epochs", head_epochs, 1), head_lr=head_lr, features=self._take_features(features)
        )

    def _take_features(self, source: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Take the network's weights from a checkpoint; what to remember of it."""
        if source is None or (isinstance(source, Mapping) and "weights" in source):
            return source
        other = load_trained("features", source, self.class_counts)
        scales = [getattr(module.network.heads[0], "scale", None) for module in (self, other)]  # not among the weights
        if shapes(other.network) != shapes(self.network) or scales[0] != scales[1]:
            raise ArgumentError(self._misfit(other, source))
        self.network.load_state_dict(other.network.state_dict())
        return origin(other)

    def _misfit(self, other: LongTailedModule, source: Any) -> str:
        differences = [
            f"its {name} is {other.hparams[name]!r}, and here it is {self.hparams[name]!r}"
            for name in NETWORK_SETTINGS
            if other.hparams[name] != self.hparams[name]
        ]
        found = "; ".join(differences) or f"a network of {other.method!r} has other parts"
        return (
            f"Expected `features` to be of the same network, but {source} is not: {found}. Give the network the same settings, "
            "or give another checkpoint."
        )

    def stages(self) -> list[Stage]:
        hp = self.hparams
        features = [Stage("features", fitted_prior="train")] if hp["features"] is None else []
        return [*features, Stage("head", hp["head_epochs"], "balanced")]

    def on_stage(self) -> None:
        if self.stage == "head":
            self.network.requires_grad_(False)
            self.train(self.training)  # as below
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
        if self.stage == "head" and not self.shifted_bn:  # frozen, batch statistics included
            self.network.eval()
        return self

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"cross_entropy": expert_cross_entropy(logits, targets)}


class ScaledModule(DecoupledModule):
    """The second stage learns a scale per class and expert: z_c <- s_c z_c, s_c = 1 at first.

    Scaling the logits scales the bias with the weight, as MiSLAS's released code does.

    Args:
        common: see `DecoupledModule`.
    """

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.scales = nn.Parameter(torch.ones(self.num_experts, 1, self.num_classes), requires_grad=False)

    def prepare_head(self) -> None:
        self.scales.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.scales
