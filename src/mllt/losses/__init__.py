"""Losses as pure functions of logits and class counts."""

from mllt.losses.cross_entropy import expert_cross_entropy
from mllt.losses.distillation import distillation_loss, virtual_example_loss, virtual_examples
from mllt.losses.margin import drw_weights, ldam_loss
from mllt.losses.mutual import MUTUAL_TARGETS, mutual_distillation_loss
from mllt.losses.prior import balanced_softmax_loss, lade_regularizer
from mllt.losses.ride import ride_loss
from mllt.losses.smoothing import SMOOTHINGS, label_aware_smoothing_loss

__all__ = [
    "MUTUAL_TARGETS",
    "SMOOTHINGS",
    "balanced_softmax_loss",
    "distillation_loss",
    "drw_weights",
    "expert_cross_entropy",
    "label_aware_smoothing_loss",
    "lade_regularizer",
    "ldam_loss",
    "mutual_distillation_loss",
    "ride_loss",
    "virtual_example_loss",
    "virtual_examples",
]
