"""PC softmax: cross entropy, with the training prior taken out at inference.

Hong et al., "Disentangling Label Distribution for Long-tailed Visual Recognition" (LADE), CVPR 2021, section 3.2: a network
trained by plain cross entropy predicts softmax(z - log pi_train + log pi_test). Training is that of `cross_entropy`, whose
compensated row is the same figure; this method exists so that tables and sweeps can name it.
"""

from __future__ import annotations

from mllt.methods.cross_entropy import CrossEntropyModule


class PCSoftmaxModule(CrossEntropyModule):
    """`CrossEntropyModule`, reported after compensation.

    Args:
        common: see `LongTailedModule`.

    >>> PCSoftmaxModule(class_counts=[30, 10, 2], network="resnet20").reported
    'compensated'
    """

    method = "pc_softmax"
    reported = "compensated"
