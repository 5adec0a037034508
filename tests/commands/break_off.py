"""Callbacks that disturb a run: a power cut, by which nothing is caught and nothing saved; signals; a question that comes too
early."""

from __future__ import annotations

import os
import signal

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


class Signals(L.Callback):
    """Sends this process a signal, from within a run.

    Args:
        place: "step" (the first of an epoch), "last step" (of an epoch), "validation" or "test".
        epochs: finished epochs before it; of a test, any.
        times: how often, one after the other.
        name: of the signal.
    """

    def __init__(self, place: str, epochs: int = 0, times: int = 1, name: str = "SIGTERM") -> None:
        self.place, self.epochs, self.times, self.number = place, epochs, times, signal.Signals[name]

    def _send(self) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        batches = {"step": 0, "last step": trainer.num_training_batches - 1}
        if (trainer.current_epoch, batch_idx) == (self.epochs, batches.get(self.place)):
            self._send()

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if (self.place, self.epochs, 0) == ("validation", trainer.current_epoch, batch_idx):
            self._send()

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if (self.place, 0) == ("test", batch_idx):
            self._send()


class AsksEarly(L.Callback):
    """Asks for the number of steps before a checkpoint has been gone on from, as some schedules do."""

    def on_fit_start(self, trainer, pl_module) -> None:
        assert trainer.estimated_stepping_batches > 0
