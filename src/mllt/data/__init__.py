"""Data modules that build long-tailed splits."""

from mllt.data.base import LongTailedDataModule, Splits
from mllt.data.cifar import CIFAR10LT, CIFAR100LT
from mllt.data.digits import DigitsLT
from mllt.data.folder import ImageFolderLT
from mllt.data.images import FileSource
from mllt.data.lists import ImageNetLT, INaturalist2018, PlacesLT
from mllt.data.sources import ArraySource, Batch, ImageDataset, ImageSource, PairedBatch, Transform

__all__ = [
    "CIFAR10LT",
    "CIFAR100LT",
    "ArraySource",
    "Batch",
    "DigitsLT",
    "FileSource",
    "INaturalist2018",
    "ImageDataset",
    "ImageFolderLT",
    "ImageNetLT",
    "ImageSource",
    "LongTailedDataModule",
    "PairedBatch",
    "PlacesLT",
    "Splits",
    "Transform",
]
