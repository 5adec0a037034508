"""A callback that ends a run as a power cut would: nothing is caught, nothing is saved."""

from __future__ import annotations

import lightning as L


class PowerCut(BaseException):
    """Not an `Exception`: nothing in the library may catch it."""


class BreakOff(L.Callback):
    """Break off within a stage, when the first batch after some finished epochs is done.

    Args:
        stage: the stage's name.
        epochs: finished epochs of it.
    """

    def __init__(self, stage: str, epochs: int) -> None:
        self.stage, self.epochs = stage, epochs

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if pl_module.stage == self.stage and trainer.current_epoch == self.epochs:
            raise PowerCut
