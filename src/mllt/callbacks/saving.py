"""`SaveAndStop`: a run's last checkpoint, whole at every moment, and an end that loses nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from mllt.callbacks.agreement import largest_of_all
from mllt.callbacks.nonfinite import NonFiniteGuard
from mllt.callbacks.signals import NOTICE, Stopped, StopSignals
from mllt.errors import check_integer, check_number
from mllt.files import PARTIAL, sync_folder, written_whole

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way of writing checkpoints, but never a half one, on disk when it is done, and not twice in memory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with written_whole(path, "wb") as file:
            torch.save(checkpoint, file)


class SaveAndStop(Checkpoint):
    """Keeps `last.ckpt` and the one before it, `previous.ckpt`, and ends the run where it can be gone on from.

    A checkpoint is written after every epoch, and after the steps that the arguments name. That of an epoch takes its place
    when the loggers have written the epoch, so that a run that is killed in between tells of the epoch all the same.

    On SIGINT, SIGTERM and Slurm's notice the step is finished and saved, and the run ends (`Stopped`); after the last step of
    an epoch it is validation and the epoch that are finished. In Slurm the notice puts the job back into the queue. All
    devices save and stop at the same step, whichever of them was told to.

    Args:
        folder: of the checkpoints.
        every_steps: also after every so many optimizer steps of the run; None: not.
        every_minutes: also once so many minutes have gone by since the last one; None: not.
        requeue: whether Slurm's notice puts the job back into the queue: only where its command finds this folder again.
    """

    def __init__(
        self,
        folder: str | Path,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        *,
        requeue: bool = True,
    ) -> None:
        if every_steps is not None:
            check_integer("checkpoints.every_steps", every_steps, 1)
        if every_minutes is not None:
            check_number("checkpoints.every_minutes", every_minutes, above=0)
        self.folder = Path(folder)
        self.every_steps, self.every_minutes, self.requeue = every_steps, every_minutes, requeue
        self.signals = StopSignals()
        self._saved_at = time.monotonic()
        self._waiting = False  # a checkpoint of an epoch, for the loggers

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / LAST

    @property
    def _next(self) -> Path:
        return self.folder / f".{LAST}{PARTIAL}"

    # ------------------------------------------------------------------------------------------------------- saving

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.catch()  # after Lightning, whose own way saves nothing
        self._saved_at = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._publish(trainer)
        if asked := self._asked(trainer):
            self._stop(trainer, asked)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():  # what is accumulated is in no checkpoint
            return
        asked, due = largest_of_all(trainer, [self._told(trainer), int(self._due(trainer))])
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            if asked and trainer.is_global_zero:
                print("Asked to stop: finishing the epoch first (once more stops at once).", file=sys.stderr)
            return
        if due or asked:
            self._save(trainer)
            self._publish(trainer)
        if asked:
            self._stop(trainer, asked)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)
        self._waiting = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._publish(trainer)
        asked = self._asked(trainer)
        self.signals.restore()
        if asked:
            self._stop(trainer, asked)

    def _due(self, trainer: L.Trainer) -> bool:
        in_steps = self.every_steps is not None and trainer.global_step % self.every_steps == 0
        minutes = (time.monotonic() - self._saved_at) / 60
        return in_steps or (self.every_minutes is not None and minutes >= self.every_minutes)

    def _save(self, trainer: L.Trainer) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, NonFiniteGuard):
                callback.settle(trainer)
        self._waiting = False
        trainer.save_checkpoint(self._next, weights_only=False)
        self._saved_at = time.monotonic()
        self._waiting = True

    def _publish(self, trainer: L.Trainer) -> None:
        """Let what is written be the newest checkpoint, and the newest the one before."""
        if self._waiting and trainer.is_global_zero:
            if self.last.exists():
                beside = self.folder / f".{PREVIOUS}"
                beside.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # a file system without links: there the newest one alone is kept
                    os.link(self.last, beside)
                    os.replace(beside, self.folder / PREVIOUS)
            os.replace(self._next, self.last)
            sync_folder(self.folder)
        self._waiting = False

    # ----------------------------------------------------------------------------------------------------- stopping

    def _told(self, trainer: L.Trainer) -> int:
        return self.signals.asked or (15 if trainer.received_sigterm else 0)

    def _asked(self, trainer: L.Trainer) -> int:
        return largest_of_all(trainer, [self._told(trainer)])[0]

    def _stop(self, trainer: L.Trainer, number: int) -> None:
        self.signals.restore()
        if number == NOTICE and self.requeue and trainer.is_global_zero:
            requeue()
        progress: Any = trainer.fit_loop.epoch_progress.current
        done = progress.processed
        raise Stopped(number, f" in epoch {done + 1}" if done < (trainer.max_epochs or 0) else " after the last epoch")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.catch()

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if number := self._told(trainer):
            self.signals.restore()
            raise Stopped(number, " in the test")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.signals.restore()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.signals.restore()

    # ---------------------------------------------------------------------------------------------------- going on

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning counts the batches of the epoch: where steps are accumulated of more or fewer now, they are others."""
        loader = (checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader") or [None])[0]
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if loader is None or batches["is_last_batch"]:
            return
        done = loader["steps"] * trainer.accumulate_grad_batches
        current = batches["current"]
        current.update(ready=done, started=done, processed=done, completed=done - 1)


class BestEpoch(ModelCheckpoint):
    """Keeps the epoch that is best on validation: `best.ckpt`.

    Args:
        folder: of the checkpoints.
        name: of the file, without its ending.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        super().__init__(
            dirpath=folder,
            filename=name,
            monitor="val/compensated/all",
            mode="max",
            save_on_train_epoch_end=True,  # a whole epoch's, to go on from
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]  # or a run that goes on would tell another one than one that did not


def requeue() -> None:
    """Put the Slurm job that this process is of back into the queue; what goes wrong is told, and the run ends all the same."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        print(f"Cannot requeue job {job} ({str(reason).strip()}): submit it again by hand.", file=sys.stderr)
