"""`Stage`: a part of a run. Most methods have one; decoupled ones train features first, and a head on top of them then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mllt.errors import ArgumentError

if TYPE_CHECKING:
    import lightning as L

    from mllt.methods.base import LongTailedModule


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


def fit_stages(module: LongTailedModule, make_trainer: Callable[[Stage], L.Trainer], *args: Any, **fit: Any) -> L.Trainer:
    """Train a method through all its stages, each with a trainer of its own.

    Args:
        module: the method; stages that have been trained already, one after the other, are passed over.
        make_trainer: from a stage to a new trainer, such as
            `lambda stage: L.Trainer(max_epochs=stage.epochs or 100)`.
        args, fit: of `Trainer.fit`, such as `datamodule=data`. Loaders of your own must give what the stages ask for
            (`Stage.sampling`, `Stage.companion`); our data modules do so by themselves.

    Returns:
        The trainer of the last stage.

    Raises:
        ArgumentError: all stages have been trained.

    >>> import lightning as L, logging
    >>> from mllt import CRTModule, DigitsLT
    >>> logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    >>> data = DigitsLT(batch_size=107)
    >>> model = CRTModule(class_counts=data.class_counts, network="resnet20", width=0.25, shared="none", head_epochs=1)
    >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    >>> trainer = fit_stages(model, lambda stage: L.Trainer(max_epochs=1, **quiet), datamodule=data)
    >>> model.stage
    'head'
    """
    stages = module.stages()
    names = [stage.name for stage in stages]
    left = stages if module.begun is None else stages[names.index(module.begun) + 1 :]
    if not left:
        raise ArgumentError(f"Expected a stage after {module.begun!r} to train, but there is none. Begin with a new module.")
    for stage in left:
        module.begin(stage.name)
        trainer = make_trainer(stage)
        trainer.fit(module, *args, **fit)
    return trainer
