"""Callbacks that disturb a run: a power cut, by which nothing is caught and nothing saved; a question that comes too early."""

from __future__ import annotations

import lightning as L


class PowerCut(BaseException):
    """Not an `Exception`: nothing in the library may catch it."""


class BreakOff(L.Callback):
    """Break off within a stage, when so many batches after some finished epochs are done; of the last, nothing is saved.

    Args:
        stage: the stage's name.
        epochs: finished epochs of it.
        batches: of the epoch.
    """

    def __init__(self, stage: str, epochs: int, batches: int = 1) -> None:
        self.stage, self.epochs, self.batches = stage, epochs, batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (pl_module.stage, trainer.current_epoch, batch_idx + 1) == (self.stage, self.epochs, self.batches):
            raise PowerCut


class AsksEarly(L.Callback):
    """Asks for the number of steps before a checkpoint has been gone on from, as some schedules do."""

    def on_fit_start(self, trainer, pl_module) -> None:
        assert trainer.estimated_stepping_batches > 0
