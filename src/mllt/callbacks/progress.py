"""`RunProgress`: one line that tells how far the whole run is."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mllt.checkpoint import glance
from mllt.errors import check_number


class RunProgress(ProgressBar):
    """Progress over the whole run: epoch, loss, images per second, time gone and remaining.

    On a terminal a bar that moves; elsewhere (a log file, a batch system) one line per epoch. Also keeps the numbers that
    results tell: `train_seconds` and `images_per_second` (training only, validation left out), and `cpu_seconds`, the processor
    time of the same (user and system, of this process and its finished children). It does not grow with what else the machine
    does, so that on a CPU it tells the cost better than the clock; on a GPU it does not tell it. None where it would not be the
    whole: where other processes train or read the images, and where a part was trained before it was kept.

    Args:
        refresh_seconds: how often the bar is drawn.
    """

    def __init__(self, refresh_seconds: float = 0.5) -> None:
        super().__init__()
        self.refresh_seconds = check_number("refresh_seconds", refresh_seconds, above=0)
        self._console: Console | None = None
        self.train_seconds = 0.0
        self.cpu_seconds: float | None = 0.0
        self.images = 0
        self._enabled = True
        self._bar: Progress | None = None
        self._task: Any = None
        self._epoch_start = self._drawn = self._validation_start = 0.0
        self._cpu_start = self._cpu_validation_start = 0.0
        self._in_epoch = False
        self._loss: Any = None

    @property
    def console(self) -> Console:
        """Standard error; opened on first use, since an open one cannot be sent to another process."""
        if self._console is None:
            self._console = Console(stderr=True)
        return self._console

    @property
    def images_per_second(self) -> float:
        """Training images per second, over all devices."""
        return self.images / self.train_seconds if self.train_seconds else 0.0

    def with_earlier(self, checkpoints: Sequence[Path]) -> tuple[float, float | None, int]:
        """Seconds, processor seconds and images of the training, those of earlier stages included, as their checkpoints tell.

        What is not there, since a finished stage was given by path, is not counted.
        """
        seconds, processor, images = self.train_seconds, self.cpu_seconds, self.images
        for path in checkpoints:
            told = (glance(path) or {"callbacks": {}})["callbacks"].get(self.state_key)
            if told:
                seconds, images = seconds + told.get("train_seconds", 0.0), images + told.get("images", 0)
                processor = _sum(processor, told.get("cpu_seconds"))
        return seconds, processor, images

    def enable(self) -> None:
        """Show progress (the default)."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing (Lightning calls this on all ranks but the first); the numbers are kept all the same."""
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()  # the rest of an epoch, where one goes on
        if self._enabled and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                auto_refresh=False,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self._total(trainer), completed=trainer.global_step, rate="")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()
        if trainer.world_size > 1 or getattr(trainer.train_dataloader, "num_workers", None):
            self.cpu_seconds = None  # other processes do a part of the work

    def _begin(self) -> None:
        self._epoch_start, self._cpu_start = time.perf_counter(), _processor_seconds()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._in_epoch = True
        self.images += self._images_of(batch) * trainer.world_size
        now = time.perf_counter()
        if self._bar is not None and now - self._drawn > self.refresh_seconds:
            self._drawn = now
            seconds = self.train_seconds + now - self._epoch_start
            self._bar.update(
                self._task,
                completed=trainer.global_step,
                description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}{self._loss_text()}",
                rate=f"{self.images / seconds:,.0f} images/s",
            )
            self._bar.refresh()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_start, self._cpu_validation_start = time.perf_counter(), _processor_seconds()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_start += time.perf_counter() - self._validation_start  # as if it had taken no time
        self._cpu_start += _processor_seconds() - self._cpu_validation_start

    def state_dict(self) -> dict[str, Any]:
        """Seconds and images so far, so that a run that goes on tells those of the whole."""
        running = time.perf_counter() - self._epoch_start if self._in_epoch else 0.0
        processor = _processor_seconds() - self._cpu_start if self._in_epoch else 0.0
        return {
            "train_seconds": self.train_seconds + running,
            "cpu_seconds": _sum(self.cpu_seconds, processor),
            "images": self.images,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds, self.images = float(state_dict["train_seconds"]), int(state_dict["images"])
        self.cpu_seconds = _sum(0.0, state_dict.get("cpu_seconds"))  # which earlier versions did not keep

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.train_seconds += time.perf_counter() - self._epoch_start
        self.cpu_seconds = _sum(self.cpu_seconds, _processor_seconds() - self._cpu_start)
        self._in_epoch = False
        self._loss = trainer.callback_metrics.get("train/loss")
        if self._enabled and self._bar is None:
            done = trainer.current_epoch + 1
            left = ""
            if trainer.max_epochs and trainer.max_epochs > 0:
                per_epoch = self.train_seconds / done
                left = f", {_duration(per_epoch * (trainer.max_epochs - done))} left"
            self.console.print(
                f"epoch {done}/{trainer.max_epochs}{self._loss_text()}, {self.images_per_second:,.0f} images/s{left}",
                highlight=False,
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, description=f"trained{self._loss_text()}")
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        self.console.print(*args)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()
            self._bar = None

    def _loss_text(self) -> str:
        return "" if self._loss is None else f", loss {float(self._loss):.3f}"

    @staticmethod
    def _total(trainer: L.Trainer) -> int | None:
        steps = trainer.estimated_stepping_batches
        return int(steps) if steps not in (-1, float("inf")) else None

    @staticmethod
    def _images_of(batch: Any) -> int:
        weight = getattr(batch, "weight", None)
        count = len(batch[1]) if isinstance(batch, (tuple, list)) and len(batch) > 1 else 0
        return 0 if weight is not None and count == 1 and float(weight) == 0 else count


def _processor_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _sum(first: float | None, second: float | None) -> float | None:
    """A sum that is not known where one of its parts is not."""
    return None if first is None or second is None else first + second


def _duration(seconds: float) -> str:
    """Seconds as h:mm:ss.

    >>> _duration(3723.4)
    '1:02:03'
    """
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
