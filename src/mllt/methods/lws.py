"""LWS: learnable weight scaling; the classifier keeps its directions and learns how long each class's weight is.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020, section 4.1. Stages, shared with
the other decoupled methods: `mllt.methods.decoupling`.
"""

from __future__ import annotations

from mllt.methods.decoupling import ScaledModule


class LWSModule(ScaledModule):
    """One scale per class and expert on the logits, learned on frozen features and heads, images drawn class by class.

    z_c <- s_c z_c, s_c = 1 at first. (Scaling the logits scales the bias with the weight, as MiSLAS does.)

    Args:
        head_epochs: of the second stage.
        head_lr: its first learning rate; None: that of the first stage.
        features: a checkpoint whose network takes the place of the first stage; None: the first stage is trained.
        common: see `LongTailedModule`.

    >>> LWSModule(class_counts=[30, 10, 2], network="resnet20").scales.shape
    torch.Size([1, 1, 3])
    """

    method = "lws"
    reconstructed = ("Batch statistics of the frozen network stay as the first stage left them.",)
