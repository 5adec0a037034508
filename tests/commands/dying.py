"""A callback that ends one of a run's processes, in several ways, and notes which processes there were."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import lightning as L

from mllt.errors import DataError


class Dying(L.Callback):
    """End the process of this rank when it begins the second batch.

    Args:
        rank: of the process.
        how: "killed" (nothing is caught), "fault" (an error of the program), "data" (one of the user's data).
        notes: a folder, for a file named by each process.
    """

    def __init__(self, rank: int, how: str, notes: str) -> None:
        self.rank, self.how, self.notes = rank, how, Path(notes)

    def on_train_start(self, trainer, pl_module) -> None:
        self.notes.mkdir(exist_ok=True)
        (self.notes / str(os.getpid())).touch()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_rank != self.rank or batch_idx != 1:
            return
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "data":
            raise DataError("the picture tulip.jpg is broken")
        raise ZeroDivisionError("something that nobody thought of")
