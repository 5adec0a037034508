"""A callback that spoils a training batch, as a broken sensor or a division by zero in somebody's transform would."""

from __future__ import annotations

import lightning as L
import torch


class Poison(L.Callback):
    """Make pixels of some batches infinite.

    Args:
        batches: numbers of the batches, counted over the whole run from 1.
        gradient: spoil a gradient instead, where the loss is finite.
        rank: of the only process that is spoiled; None: all.
    """

    def __init__(self, batches: list[int], *, gradient: bool = False, rank: int | None = None) -> None:
        self.batches, self.gradient, self.rank = list(batches), gradient, rank

    def _now(self, trainer) -> bool:
        return trainer.fit_loop.total_batch_idx + 1 in self.batches and self.rank in (None, trainer.global_rank)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if not self.gradient and self._now(trainer):
            batch.images[0] = torch.inf

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if self.gradient and self._now(trainer):
            next(pl_module.parameters()).grad[0] = torch.nan
