"""Losses as pure functions of logits and class counts."""

from mllt.losses.ace import COMPLEMENTS, complement_loss, owned_cross_entropy
from mllt.losses.chunked import chunked_mutual_learning_terms
from mllt.losses.contrastive import guided_contrastive_loss
from mllt.losses.cross_entropy import expert_cross_entropy
from mllt.losses.distillation import distillation_loss, virtual_example_loss, virtual_examples
from mllt.losses.margin import drw_weights, ldam_loss
from mllt.losses.mutual import MUTUAL_TARGETS, mutual_distillation_loss, mutual_learning_terms
from mllt.losses.prior import balanced_softmax_loss, lade_regularizer
from mllt.losses.ride import ride_loss, routing_loss
from mllt.losses.smoothing import SMOOTHINGS, label_aware_smoothing_loss

__all__ = [
    "COMPLEMENTS",
    "MUTUAL_TARGETS",
    "SMOOTHINGS",
    "balanced_softmax_loss",
    "chunked_mutual_learning_terms",
    "complement_loss",
    "distillation_loss",
    "drw_weights",
    "expert_cross_entropy",
    "guided_contrastive_loss",
    "label_aware_smoothing_loss",
    "lade_regularizer",
    "ldam_loss",
    "mutual_distillation_loss",
    "mutual_learning_terms",
    "owned_cross_entropy",
    "ride_loss",
    "routing_loss",
    "virtual_example_loss",
    "virtual_examples",
]
