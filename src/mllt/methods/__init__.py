"""The methods: one file each."""

from mllt.methods.balanced_softmax import BalancedSoftmaxModule
from mllt.methods.base import LongTailedModule, load_checkpoint
from mllt.methods.cross_entropy import CrossEntropyModule
from mllt.methods.lade import LADEModule
from mllt.methods.ldam_drw import LDAMDRWModule
from mllt.methods.mutual import MutualLTModule
from mllt.methods.pc_softmax import PCSoftmaxModule
from mllt.methods.ride import RIDEModule

__all__ = [
    "BalancedSoftmaxModule",
    "CrossEntropyModule",
    "LADEModule",
    "LDAMDRWModule",
    "LongTailedModule",
    "MutualLTModule",
    "PCSoftmaxModule",
    "RIDEModule",
    "load_checkpoint",
]
