"""Data modules that build long-tailed splits."""

from mllt.data.base import LongTailedDataModule, Splits
from mllt.data.cifar import CIFAR10LT, CIFAR100LT
from mllt.data.digits import DigitsLT
from mllt.data.sources import ArraySource, Batch, ImageDataset, ImageSource, Transform

__all__ = [
    "ArraySource",
    "Batch",
    "CIFAR10LT",
    "CIFAR100LT",
    "DigitsLT",
    "ImageDataset",
    "ImageSource",
    "LongTailedDataModule",
    "Splits",
    "Transform",
]
