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
        companion: what goes beside each image, one of `mllt.data.order.COMPANIONS`: "view" (the same in another view),
            "reversed" (one drawn by reversed frequency) or "partner" (another of the batch); None: nothing.
        batch_size: of the stage; None: that of the run.
        fitted_prior: the class prior that raw logits fit in this stage, "train" or "uniform"; None: the method's.
    """

    name: str
    epochs: int | None = None
    sampling: str = "instance"
    companion: str | None = None
    batch_size: int | None = None
    fitted_prior: str | None = None
