"""What runs beside training: progress, loggers, and what a run is made by."""

from mllt.callbacks.interrupt import StopBetweenSteps
from mllt.callbacks.loggers import MetricsCSV, finish_loggers, tensorboard_logger, wandb_logger
from mllt.callbacks.progress import RunProgress
from mllt.callbacks.provenance import Provenance, SeedEpochs

__all__ = [
    "MetricsCSV",
    "Provenance",
    "RunProgress",
    "SeedEpochs",
    "StopBetweenSteps",
    "finish_loggers",
    "tensorboard_logger",
    "wandb_logger",
]
