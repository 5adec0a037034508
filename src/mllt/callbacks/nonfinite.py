"""`NonFiniteGuard`: what to do when a loss or a gradient is infinite or not a number."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from mllt.callbacks.agreement import largest_of_all
from mllt.checkpoint import glance
from mllt.data.sources import Batch, PairedBatch
from mllt.errors import ArgumentError, NonFiniteError, check_choice, check_integer
from mllt.files import written_whole

REACTIONS = ("stop", "skip")
_NEVER = 2**62  # a step that no run gets to


class _Step(NamedTuple):
    """An optimizer step: its number, learning rate, losses and images, and whether all was finite."""

    epoch: int
    number: int
    lr: float
    losses: list[Tensor]
    images: list[Any]
    finite: Tensor


class NonFiniteGuard(Callback):
    """Looks at the loss and the gradients of every optimizer step.

    "stop": the run ends (`NonFiniteError`) before anything is saved that came after it, so that the newest checkpoint is of a
    step before. What the step was made of lies in `nonfinite/` then. On a GPU that is found out one step later, so as not to
    wait for it. "skip": the step is left out, all of it: weights, momentum and batch statistics stay what they were, and the
    means of the epoch are of the other steps; more than `most` of them end the run, too.

    Args:
        folder: of the run.
        reaction: "stop" or "skip".
        most: how many steps may be left out in a run; only for "skip".
    """

    def __init__(self, folder: str | Path, reaction: str = "stop", most: int = 10) -> None:
        self.folder = Path(folder) / "nonfinite"
        self.reaction = check_choice("trainer.on_nonfinite", reaction, REACTIONS)
        self.most = check_integer("trainer.max_nonfinite", most, 0)
        #: numbers of the optimizer steps that were left out, from 1
        self.skipped: list[int] = []
        self._losses: list[Tensor] = []
        self._images: list[Any] = []
        self._open: deque[_Step] = deque()
        self._buffers: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.reaction == "skip" and trainer.precision in ("16-mixed", "16-true"):
            raise ArgumentError(
                f"Expected trainer.on_nonfinite=stop with trainer.precision={trainer.precision}, but got skip: scaling of the "
                "loss looks for infinite gradients itself, and leaves those steps out."
            )

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if self.reaction == "skip" and not self._images:  # the first share of a step
            self._buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
            self._sums = {name: value.clone() for name, value in getattr(pl_module, "epoch_sums", dict)().items()}
        self._images.append(batch)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        losses = torch.stack([loss.float() for loss in self._losses])
        finite = losses.isfinite().all()
        if trainer.precision != "16-mixed":  # there, infinite gradients are looked for, and met now and then
            finite &= _norm(optimizer).isfinite()
        step = _Step(
            trainer.current_epoch,
            trainer.global_step + 1,
            float(optimizer.param_groups[0]["lr"]),
            self._losses,
            self._images,
            finite,
        )
        self._losses, self._images = [], []
        if self.reaction == "skip":
            self._leave_out_if_bad(trainer, pl_module, optimizer, step)
        else:
            self._open.append(step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        self._look(trainer, leave=int(pl_module.device.type != "cpu"))

    def settle(self, trainer: L.Trainer) -> None:
        """Look at all steps so far, whose weights are about to be saved; on all devices."""
        self._look(trainer, leave=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.settle(trainer)

    # ----------------------------------------------------------------------------------------------------------------

    def _look(self, trainer: L.Trainer, leave: int) -> None:
        """Stop when a step was bad, but for the last few, which may not be done; all devices say the same, to be told once."""
        looked: list[_Step] = []
        while len(self._open) > leave and (not looked or looked[-1].finite):
            looked.append(self._open.popleft())
        bad = {step.number: step for step in looked if not step.finite}
        first = -largest_of_all(trainer, [-min(bad, default=_NEVER)])[0]
        if first == _NEVER:
            return
        for step in bad.values():
            self._keep(trainer, step)
        rank = largest_of_all(trainer, [trainer.global_rank if first in bad else -1])[0]
        lr = next(step.lr for step in looked if step.number == first)
        raise NonFiniteError(
            f"The loss or a gradient of step {first} (epoch {trainer.current_epoch + 1}, learning rate {lr:g}) is infinite or "
            f"not a number; which images it was made of lies in {self._place(first, rank)}. Checkpoints are of steps before "
            "it. Look at these images, lower optimizer.lr or set trainer.gradient_clip_val; or leave such steps out by "
            "trainer.on_nonfinite=skip."
        )

    def _leave_out_if_bad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer, step: _Step) -> None:
        if not step.finite:
            self._keep(trainer, step)
        rank = largest_of_all(trainer, [-1 if step.finite else trainer.global_rank])[0]
        if rank < 0:
            return
        self.skipped.append(step.number)
        if len(self.skipped) > self.most:
            raise NonFiniteError(
                f"Expected at most trainer.max_nonfinite={self.most} steps with an infinite loss or gradient, but step "
                f"{step.number} is one more (learning rate {step.lr:g}); see {self._place(step.number, rank)}. Look at the "
                "images of these steps, lower optimizer.lr, or set trainer.gradient_clip_val."
            )
        for parameter in _parameters(optimizer):  # one without a gradient is not touched by an optimizer
            parameter.grad = None
        with torch.no_grad():
            for name, buffer in pl_module.named_buffers():
                buffer.copy_(self._buffers[name])
        if hasattr(pl_module, "on_step_left_out"):
            module: Any = pl_module
            module.load_epoch_sums(self._sums)
            module.on_step_left_out()

    def _place(self, number: int, rank: int) -> Path:
        return self.folder / f"step-{number:08d}-rank-{rank}.json"

    def _keep(self, trainer: L.Trainer, step: _Step) -> None:
        """Write down what a bad step was made of, on this device."""
        content = {
            "epoch": step.epoch + 1,
            "step": step.number,
            "rank": trainer.global_rank,
            "learning_rate": step.lr,
            "losses": [str(float(loss)) for loss in step.losses],
            "images": [image for batch in step.images for image in _images_of(trainer, batch)],
        }
        with written_whole(self._place(step.number, trainer.global_rank)) as file:
            json.dump(content, file, indent=2, ensure_ascii=False)

    def with_earlier(self, checkpoints: Sequence[Path]) -> list[list[int]]:
        """The steps that were left out of each stage: of those before, by their checkpoints, and of this one."""
        told = [glance(path) or {"callbacks": {}} for path in checkpoints]  # none where a stage was given by path
        return [*(list(stage["callbacks"].get(self.state_key, {}).get("skipped", [])) for stage in told), self.skipped]

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = [int(number) for number in state_dict["skipped"]]


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _norm(optimizer: Optimizer) -> Tensor:
    gradients = [parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _images_of(trainer: L.Trainer, batch: Any) -> Iterator[dict[str, Any]]:
    """The images of a batch: path or number, class, and whether its pixels are finite."""
    if not isinstance(batch, (Batch, PairedBatch)):
        return
    source = trainer.datamodule.splits.train if hasattr(trainer.datamodule, "splits") else None  # type: ignore[attr-defined]
    for part, is_companion in ((batch, False), *([(batch.companion, True)] if isinstance(batch, PairedBatch) else [])):
        finite = part.images.flatten(1).isfinite().all(1).tolist()
        for index, target, whole in zip(part.indices.tolist(), part.targets.tolist(), finite, strict=True):
            name = source.name_of(index) if source is not None else f"image {index}"
            yield {"image": name, "class": target, "companion": is_companion, "finite": whole}
