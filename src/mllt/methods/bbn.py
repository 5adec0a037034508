"""BBN: a branch for the classes as they come and one for the rare ones, mixed less and less in favour of the former.

Zhou et al., "BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed Visual Recognition", CVPR 2020. Beside each
image x_a of the usual order stands one x_b that is drawn by reversed frequency: a class with probability proportional to 1/n_c,
then any of its images (`mllt.data.order.Companions`), augmented on its own. The two branches (`mllt.networks.bilateral`) share
all but their last residual block, and one classifier W reads both:

    z = W 2 concat(alpha f_cb(x_a), (1 - alpha) f_rb(x_b)) + b
    L = alpha CE(z, y_a) + (1 - alpha) CE(z, y_b)        alpha = 1 - ((t - 1) / T)^2

with t the epoch, from 1, and T the number of epochs. To predict, one image goes through both branches, whose features are
concatenated as they are, which is alpha = 1/2.

As released, where it differs from the paper: t - 1 in place of t, and in runs of 90 or 180 epochs T is 100 or 200, so that the
conventional branch keeps a part until the end; `adaptor_epochs` sets another T. The features are doubled when they are mixed
(the paper's equation 1 has no factor 2). The classifier starts as PyTorch's layers do.

The released recipe on CIFAR-LT: learning rate 0.1, batch 128, weight decay 2e-4, Nesterov momentum, 200 epochs, x0.01 at epochs
120 and 160, 5 epochs of warm-up from a third of the rate; on iNaturalist 2018 rate 0.05, weight decay 1e-4, 180 epochs, x0.1 at
the same epochs, no warm-up.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from mllt.data.sources import Batch, PairedBatch
from mllt.errors import ArgumentError, check_number
from mllt.losses import expert_cross_entropy
from mllt.methods.base import LongTailedModule
from mllt.methods.batches import companion_of
from mllt.methods.stages import Stage
from mllt.networks.bilateral import BilateralNetwork, bilateral_network

#: Lengths of runs for which the released code takes another T.
RELEASED_ADAPTOR_EPOCHS = {90: 100, 180: 200}


class BBNModule(LongTailedModule):
    """Two branches and one classifier: one predictor, so `num_experts` is 1.

    The authors report its plain logits: half of training is on reversed frequencies, which takes the imbalance out. So
    `fitted_prior` is "uniform", and there is something to compensate for another test prior only.

    Args:
        adaptor_epochs: T > 0 of alpha; once it is over, only the re-balancing branch learns. None: the epochs of the run, but
            100 for 90 and 200 for 180 (the released rule).
        shared, width: of the network; `shared` only says which stages come before those that `width` narrows, since the
            branches share all but their last block.
        common: see `LongTailedModule`.

    Raises:
        ArgumentError: a value is out of range, or values do not fit each other.

    >>> import torch
    >>> module = BBNModule(class_counts=[30, 10, 2], network="resnet20")
    >>> module(torch.zeros(4, 3, 32, 32)).shape, module.network.feature_dim
    (torch.Size([1, 4, 3]), 128)
    """

    method = "bbn"
    fitted_prior = "uniform"

    network: BilateralNetwork

    def __init__(self, *, adaptor_epochs: float | None = None, **common: Any) -> None:
        super().__init__(**common)
        if adaptor_epochs is not None:
            check_number("adaptor_epochs", adaptor_epochs, above=0)
        self.remember(adaptor_epochs=adaptor_epochs)

    def make_network(self, **changes: Any) -> BilateralNetwork:
        return bilateral_network(partial(super().make_network, **changes))

    def stages(self) -> list[Stage]:
        return [Stage("training", companion="reversed")]

    def losses(self, batch: Batch | PairedBatch) -> dict[str, Tensor]:
        reversed_batch, alpha = companion_of(batch, "reversed"), self.alpha()
        logits = self.network.mixed(batch.images, reversed_batch.images, alpha)
        return {
            "conventional": alpha * expert_cross_entropy(logits, batch.targets),
            "rebalancing": (1 - alpha) * expert_cross_entropy(logits, reversed_batch.targets),
        }

    def alpha(self) -> float:
        """The conventional branch's part in this epoch, 0 .. 1; 1 where there is no trainer."""
        if self._trainer is None:
            return 1.0
        return max(0.0, 1 - (self.current_epoch / self._adaptor_epochs()) ** 2)

    def _adaptor_epochs(self) -> float:
        """T."""
        chosen, max_epochs = self.hparams["adaptor_epochs"], self.trainer.max_epochs
        if chosen is not None:
            return chosen
        if max_epochs is None or max_epochs < 1:
            raise ArgumentError(
                f"Expected the Trainer to have `max_epochs`, over which the branches change places, but got {max_epochs}. Set "
                "Trainer(max_epochs=...), or adaptor_epochs=..."
            )
        return RELEASED_ADAPTOR_EPOCHS.get(max_epochs, max_epochs)
