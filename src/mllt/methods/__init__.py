"""The methods: one file each."""

from mllt.methods.base import LongTailedModule, load_checkpoint
from mllt.methods.cross_entropy import CrossEntropyModule
from mllt.methods.mutual import MutualLTModule

__all__ = ["CrossEntropyModule", "LongTailedModule", "MutualLTModule", "load_checkpoint"]
