"""What runs beside training: progress, loggers, checkpoints and a safe end, and what a run is made by."""

from mllt.callbacks.loggers import EpochLearningRate, MetricsCSV, finish_loggers, tensorboard_logger, wandb_logger
from mllt.callbacks.nonfinite import NonFiniteGuard
from mllt.callbacks.progress import RunProgress
from mllt.callbacks.provenance import Provenance, SeedSteps
from mllt.callbacks.saving import BestEpoch, SaveAndStop, WholeCheckpoints
from mllt.callbacks.signals import Stopped
from mllt.callbacks.speed import Speed

__all__ = [
    "BestEpoch",
    "EpochLearningRate",
    "MetricsCSV",
    "NonFiniteGuard",
    "Provenance",
    "RunProgress",
    "SaveAndStop",
    "SeedSteps",
    "Speed",
    "Stopped",
    "WholeCheckpoints",
    "finish_loggers",
    "tensorboard_logger",
    "wandb_logger",
]
