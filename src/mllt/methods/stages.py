"""`Stage`: a part of a run. Most methods have one; decoupled ones train features first, and a head on top of them then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """What one stage of a run needs of the outside; what it needs of the method, `LongTailedModule.begin` does.

    Args:
        name: what it is called, in print and as a folder.
        epochs: how many; None: those of the run (`trainer.max_epochs`).
        sampling: the order of the training images, "instance" (each once per epoch) or "balanced" (each class as often).
    """

    name: str
    epochs: int | None = None
    sampling: str = "instance"
