"""Reduced-dimension experts on a shared trunk.

`build_network` makes them by name; `ExpertNetwork` takes any trunk, experts and heads of your own.
"""

from mllt.networks.bilateral import BilateralNetwork, bilateral_network
from mllt.networks.build import NETWORKS, build_network
from mllt.networks.experts import ExpertNetwork
from mllt.networks.heads import HEADS, CosineHead, LinearHead, make_head
from mllt.networks.size import count_macs, count_parameters

__all__ = [
    "HEADS",
    "NETWORKS",
    "BilateralNetwork",
    "CosineHead",
    "ExpertNetwork",
    "LinearHead",
    "bilateral_network",
    "build_network",
    "count_macs",
    "count_parameters",
    "make_head",
]
