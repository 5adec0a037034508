"""The methods: one file each."""

from mllt.methods.balanced_softmax import BalancedSoftmaxModule
from mllt.methods.base import LongTailedModule, load_checkpoint
from mllt.methods.cross_entropy import CrossEntropyModule
from mllt.methods.crt import CRTModule
from mllt.methods.lade import LADEModule
from mllt.methods.ldam_drw import LDAMDRWModule
from mllt.methods.lws import LWSModule
from mllt.methods.mutual import MutualLTModule
from mllt.methods.pc_softmax import PCSoftmaxModule
from mllt.methods.ride import RIDEModule
from mllt.methods.stages import Stage
from mllt.methods.tau_norm import TauNormModule

__all__ = [
    "BalancedSoftmaxModule",
    "CRTModule",
    "CrossEntropyModule",
    "LADEModule",
    "LDAMDRWModule",
    "LWSModule",
    "LongTailedModule",
    "MutualLTModule",
    "PCSoftmaxModule",
    "RIDEModule",
    "Stage",
    "TauNormModule",
    "load_checkpoint",
]
