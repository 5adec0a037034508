"""The methods: one file each."""

from mllt.methods.ace import ACEModule
from mllt.methods.balanced_softmax import BalancedSoftmaxModule
from mllt.methods.base import LongTailedModule, load_checkpoint
from mllt.methods.bbn import BBNModule
from mllt.methods.cross_entropy import CrossEntropyModule
from mllt.methods.crt import CRTModule
from mllt.methods.dive import DIVEModule
from mllt.methods.lade import LADEModule
from mllt.methods.ldam_drw import LDAMDRWModule
from mllt.methods.lws import LWSModule
from mllt.methods.mislas import MiSLASModule
from mllt.methods.mutual import MutualLTModule
from mllt.methods.pc_softmax import PCSoftmaxModule
from mllt.methods.ride import RIDEModule
from mllt.methods.ssd import SSDModule
from mllt.methods.stages import Stage, fit_stages
from mllt.methods.tau_norm import TauNormModule

__all__ = [
    "ACEModule",
    "BBNModule",
    "BalancedSoftmaxModule",
    "CRTModule",
    "CrossEntropyModule",
    "DIVEModule",
    "LADEModule",
    "LDAMDRWModule",
    "LWSModule",
    "LongTailedModule",
    "MiSLASModule",
    "MutualLTModule",
    "PCSoftmaxModule",
    "RIDEModule",
    "SSDModule",
    "Stage",
    "TauNormModule",
    "fit_stages",
    "load_checkpoint",
]
