"""What runs beside training: progress and loggers."""

from mllt.callbacks.interrupt import StopBetweenSteps
from mllt.callbacks.loggers import MetricsCSV, finish_loggers, tensorboard_logger, wandb_logger
from mllt.callbacks.progress import RunProgress

__all__ = ["MetricsCSV", "RunProgress", "StopBetweenSteps", "finish_loggers", "tensorboard_logger", "wandb_logger"]
