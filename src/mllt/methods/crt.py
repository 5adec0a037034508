"""cRT: the classifier is trained again, from scratch, on balanced classes.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020, section 4.1. Stages, shared with
the other decoupled methods: `mllt.methods.decoupling`.
"""

from __future__ import annotations

from mllt.methods.decoupling import DecoupledModule


class CRTModule(DecoupledModule):
    """Classifier re-training: new heads on frozen features, images drawn class by class.

    Args:
        head_epochs: of the second stage.
        head_lr: its first learning rate; None: that of the first stage.
        features: a checkpoint whose network takes the place of the first stage; None: the first stage is trained.
        common: see `LongTailedModule`.

    >>> [stage.name for stage in CRTModule(class_counts=[30, 10, 2], network="resnet20").stages()]
    ['features', 'head']
    """

    method = "crt"
    reconstructed = ("Batch statistics of the frozen network stay as the first stage left them.",)

    def prepare_head(self) -> None:
        for head in self.network.heads:
            head.reset_parameters()
            head.requires_grad_(True)
