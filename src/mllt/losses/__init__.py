"""Losses as pure functions of logits and class counts."""

from mllt.losses.cross_entropy import expert_cross_entropy
from mllt.losses.mutual import MUTUAL_TARGETS, mutual_distillation_loss

__all__ = ["MUTUAL_TARGETS", "expert_cross_entropy", "mutual_distillation_loss"]
