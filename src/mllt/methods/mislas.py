"""MiSLAS: features learned on mixed images, then a classifier on balanced ones, smoothed by how frequent a class is.

Zhong et al., "Improving Calibration for Long-Tailed Recognition", CVPR 2021. Stages:

- "features": mixup. lam ~ Beta(a, a), one for each global batch; each image is mixed with another one of the batch, and
  L = lam CE(z, y) + (1 - lam) CE(z, y of the other), on z of lam x + (1 - lam) x of the other.
- "head": 10 epochs of images drawn class by class, without mixup, by a cosine schedule. The classifier learns on, at a small
  share of the learning rate, and on top of it a scale per class, at the full one: z_c <- s_c (<x, w_c> + b_c), s_c = 1 at
  first. The loss is cross entropy with smoothed labels (`mllt.losses.label_aware_smoothing_loss`). All else is frozen, but for
  the batch statistics, which follow the balanced images ("shifted batch normalisation").

As released, where it differs from the paper: the mean within the smoothing includes the true class; the scales multiply the
bias, too. a = 1 on CIFAR-100-LT and 0.2 on ImageNet-LT and iNaturalist 2018; the other settings by data set are in
`conf/recipe/tuning`. An epoch of the second stage has as many images as one of the first; in the released code, up to a batch
more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from scipy.special import betaincinv
from torch import Tensor

from mllt.data.sources import Batch, PairedBatch
from mllt.errors import check_bool, check_number
from mllt.losses import expert_cross_entropy, label_aware_smoothing_loss
from mllt.losses.smoothing import check_smoothing
from mllt.methods.batches import companion_of
from mllt.methods.decoupling import ScaledModule
from mllt.methods.stages import Stage


class MiSLASModule(ScaledModule):
    """Mixup in the first stage; label-aware smoothing, scales and shifted batch normalisation in the second.

    Args:
        mixup_alpha: a of the Beta distribution, at least 0; 0: images are not mixed.
        smooth_head, smooth_tail: smoothing of the largest and of the smallest class, in [0, 1].
        smoothing: how it runs between them: "concave", "linear", "convex" or "exp".
        smoothing_power: the power of "exp", and only there; above 0.
        head_epochs: of the second stage.
        head_lr: its first learning rate; None: that of the first stage.
        head_lr_factor: the classifier's share of it, at least 0; the scales have all of it.
        shifted_bn: whether batch statistics follow the balanced images of the second stage.
        features: a checkpoint whose network takes the place of the first stage; None: the first stage is trained.
        common: see `LongTailedModule`.

    Raises:
        ArgumentError: a value is out of range, or values do not fit each other.

    >>> module = MiSLASModule(class_counts=[30, 10, 2], network="resnet20")
    >>> [(stage.name, stage.sampling, stage.companion) for stage in module.stages()]
    [('features', 'instance', 'partner'), ('head', 'balanced', None)]
    """

    method = "mislas"

    def __init__(
        self,
        *,
        mixup_alpha: float = 1.0,
        smooth_head: float = 0.4,
        smooth_tail: float = 0.1,
        smoothing: str = "concave",
        smoothing_power: float | None = None,
        head_lr_factor: float = 0.2,
        shifted_bn: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_smoothing(smoothing, smoothing_power, ("smoothing", "smoothing_power"))
        self.remember(
            mixup_alpha=check_number("mixup_alpha", mixup_alpha, 0),
            smooth_head=check_number("smooth_head", smooth_head, 0, 1),
            smooth_tail=check_number("smooth_tail", smooth_tail, 0, 1),
            smoothing=smoothing,
            smoothing_power=smoothing_power,
            head_lr_factor=check_number("head_lr_factor", head_lr_factor, 0),
            shifted_bn=check_bool("shifted_bn", shifted_bn),
        )
        self.shifted_bn = shifted_bn

    def stages(self) -> list[Stage]:
        *features, head = super().stages()
        companion = "partner" if self.hparams["mixup_alpha"] > 0 else None
        return [*(replace(stage, companion=companion) for stage in features), head]

    def prepare_head(self) -> None:
        super().prepare_head()
        self.network.heads.requires_grad_(True)

    def lr_factor(self, name: str) -> float:
        return self.hparams["head_lr_factor"] if self.stage == "head" and name.startswith("network.heads.") else 1.0

    def losses(self, batch: Batch | PairedBatch) -> dict[str, Tensor]:
        if self.stage == "head" or self.hparams["mixup_alpha"] == 0:
            return super().losses(batch)
        partner, share = self._partner(batch), self._share(batch)
        logits = self(share * batch.images + (1 - share) * partner.images)
        own, other = (expert_cross_entropy(logits, targets) for targets in (batch.targets, partner.targets))
        return {"cross_entropy": share * own + (1 - share) * other}

    def _partner(self, batch: Batch | PairedBatch) -> Batch:
        """What a batch is mixed with; where the loader gives nothing, its own images in another order."""
        if isinstance(batch, PairedBatch):
            return companion_of(batch, "partner")
        turn = torch.randperm(len(batch.targets)).to(batch.targets.device)
        return batch._replace(images=batch.images[turn], targets=batch.targets[turn], indices=batch.indices[turn])

    def _share(self, batch: Batch | PairedBatch) -> float:
        """lam: the batch's random number, or where the loader gives none torch's, brought to Beta(a, a) by its quantiles."""
        draw = batch.draw if isinstance(batch, PairedBatch) else None
        alpha = self.hparams["mixup_alpha"]
        return float(betaincinv(alpha, alpha, torch.rand(()).item() if draw is None else draw))

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if self.stage == "features":
            return super().objective(logits, targets)
        hp = self.hparams
        settings = (hp["smooth_head"], hp["smooth_tail"], hp["smoothing"], hp["smoothing_power"])
        return {"label_aware_smoothing": label_aware_smoothing_loss(logits, targets, self.class_counts, *settings)}
