"""Metrics of long-tailed recognition: accuracy by shot group, and calibration.

`ShotAccuracy` and `ExpectedCalibrationError` add up whole numbers only, so that their results do not depend on batch size,
order or number of processes, to the last digit.
"""

from mllt.metrics.calibration import ExpectedCalibrationError, calibration_error
from mllt.metrics.disagreement import expert_disagreement
from mllt.metrics.ensemble import ENSEMBLES, ensemble_logits
from mllt.metrics.image_mean import ImageMean
from mllt.metrics.shot_accuracy import ShotAccuracy, shot_accuracy

__all__ = [
    "ENSEMBLES",
    "ExpectedCalibrationError",
    "ImageMean",
    "ShotAccuracy",
    "calibration_error",
    "ensemble_logits",
    "expert_disagreement",
    "shot_accuracy",
]
