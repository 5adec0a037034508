"""mllt: mutual learning for long-tailed recognition.

    from mllt import MutualLTModule

What is named here, and the packages below (`mllt.losses`, `mllt.longtail`, ...), is loaded on first use, so that
`import mllt` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mllt.version import __version__

if TYPE_CHECKING:
    from mllt import callbacks as callbacks
    from mllt import data as data
    from mllt import errors as errors
    from mllt import longtail as longtail
    from mllt import losses as losses
    from mllt import methods as methods
    from mllt import metrics as metrics
    from mllt import networks as networks
    from mllt import optim as optim
    from mllt.data import CIFAR10LT as CIFAR10LT
    from mllt.data import CIFAR100LT as CIFAR100LT
    from mllt.data import DigitsLT as DigitsLT
    from mllt.data import ImageFolderLT as ImageFolderLT
    from mllt.data import ImageNetLT as ImageNetLT
    from mllt.data import INaturalist2018 as INaturalist2018
    from mllt.data import LongTailedDataModule as LongTailedDataModule
    from mllt.data import PlacesLT as PlacesLT
    from mllt.longtail import compensate as compensate
    from mllt.methods import ACEModule as ACEModule
    from mllt.methods import BalancedSoftmaxModule as BalancedSoftmaxModule
    from mllt.methods import BBNModule as BBNModule
    from mllt.methods import CrossEntropyModule as CrossEntropyModule
    from mllt.methods import CRTModule as CRTModule
    from mllt.methods import DIVEModule as DIVEModule
    from mllt.methods import LADEModule as LADEModule
    from mllt.methods import LDAMDRWModule as LDAMDRWModule
    from mllt.methods import LongTailedModule as LongTailedModule
    from mllt.methods import LWSModule as LWSModule
    from mllt.methods import MiSLASModule as MiSLASModule
    from mllt.methods import MutualLTModule as MutualLTModule
    from mllt.methods import PCSoftmaxModule as PCSoftmaxModule
    from mllt.methods import RIDEModule as RIDEModule
    from mllt.methods import SSDModule as SSDModule
    from mllt.methods import Stage as Stage
    from mllt.methods import TauNormModule as TauNormModule
    from mllt.methods import fit_stages as fit_stages
    from mllt.methods import load_checkpoint as load_checkpoint
    from mllt.metrics import ExpectedCalibrationError as ExpectedCalibrationError
    from mllt.metrics import ShotAccuracy as ShotAccuracy
    from mllt.networks import build_network as build_network

_WHERE = {
    "ACEModule": "mllt.methods",
    "BalancedSoftmaxModule": "mllt.methods",
    "BBNModule": "mllt.methods",
    "build_network": "mllt.networks",
    "CIFAR100LT": "mllt.data",
    "CIFAR10LT": "mllt.data",
    "compensate": "mllt.longtail",
    "CrossEntropyModule": "mllt.methods",
    "CRTModule": "mllt.methods",
    "DigitsLT": "mllt.data",
    "DIVEModule": "mllt.methods",
    "ExpectedCalibrationError": "mllt.metrics",
    "fit_stages": "mllt.methods",
    "ImageFolderLT": "mllt.data",
    "ImageNetLT": "mllt.data",
    "INaturalist2018": "mllt.data",
    "LADEModule": "mllt.methods",
    "LDAMDRWModule": "mllt.methods",
    "load_checkpoint": "mllt.methods",
    "LongTailedDataModule": "mllt.data",
    "LongTailedModule": "mllt.methods",
    "LWSModule": "mllt.methods",
    "MiSLASModule": "mllt.methods",
    "MutualLTModule": "mllt.methods",
    "PCSoftmaxModule": "mllt.methods",
    "PlacesLT": "mllt.data",
    "RIDEModule": "mllt.methods",
    "ShotAccuracy": "mllt.metrics",
    "SSDModule": "mllt.methods",
    "Stage": "mllt.methods",
    "TauNormModule": "mllt.methods",
}

_MODULES = (
    "callbacks",
    "data",
    "errors",
    "longtail",
    "losses",
    "methods",
    "metrics",
    "networks",
    "optim",
)

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"mllt.{name}")
    raise AttributeError(f"module 'mllt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
