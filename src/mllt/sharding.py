"""`trainer=fsdp`: a network that one device cannot hold, its parameters sharded over all of them."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import MixedPrecision
from torchmetrics import Metric

from mllt.errors import ArgumentError
from mllt.methods import LongTailedModule
from mllt.networks import count_parameters as count
from mllt.networks.heads import CosineHead, LinearHead

#: Parameters that a part of the network must have to be gathered and given up on its own.
UNIT = 1_000_000
#: What stays together with the module as a whole: what is asked for more than its output, and the heads.
_WHOLE = (LongTailedModule, LinearHead, CosineHead, Metric, nn.ModuleList, nn.ModuleDict)


def units(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Whether a part of the network is a unit of its own (an `auto_wrap_policy` of PyTorch's FSDP)."""
    whole = isinstance(module, _WHOLE) or hasattr(module, "num_experts")
    return recurse or (not whole and nonwrapped_numel >= UNIT)


class ShardedStrategy(FSDPStrategy):
    """Lightning's FSDP for our modules: checkpoints are single files as any other, and what must stay float32 does.

    Args:
        precision: of the trainer. Under mixed precision, parameters and buffers stay float32 and autocast does the rest, as
            on one device; Lightning's own choice would round heads and compensation.
    """

    def __init__(self, precision: str = "32-true", **kwargs: Any) -> None:
        exact = MixedPrecision(param_dtype=torch.float32, reduce_dtype=torch.float32, buffer_dtype=torch.float32)
        super().__init__(
            auto_wrap_policy=units,
            state_dict_type="full",
            mixed_precision=exact if str(precision).endswith("-mixed") else None,
            **kwargs,
        )
        self._sharded: nn.Module | None = None

    def connect(self, model: L.LightningModule) -> None:
        """Take the module, if it can be sharded."""
        if isinstance(model, LongTailedModule):
            check_can_be_sharded(model)
        super().connect(model)

    def _setup_model(self, model: nn.Module) -> nn.Module:
        """Shard the module, once: what was trained is tested as it is (Lightning would take its pieces for the whole)."""
        if self._sharded is None:
            self._sharded = super()._setup_model(model)
        return self._sharded


def count_parameters(trainer: L.Trainer, network: nn.Module) -> int:
    """Parameters of a network, of which each device may have a share."""
    mine = count(network)
    if not isinstance(trainer.strategy, ShardedStrategy):
        return mine
    return int(trainer.strategy.reduce(torch.tensor(mine, device=trainer.strategy.root_device), reduce_op="sum"))


def check_can_be_sharded(module: LongTailedModule) -> None:
    """Raise `ArgumentError` for what needs a whole network on a device."""
    problems = {
        f"method={module.method} has several stages, and a stage begins with the whole network of the one before": (
            len(module.stages()) > 1
        ),
        "ema_decay averages whole networks": module.hparams["ema_decay"] is not None,
        "decay_norm_and_bias=false tells weights by their shape, which shards do not keep": (
            not module.hparams["decay_norm_and_bias"]
        ),
        "class_chunk reads the weights of the heads, of which a device has but a share": (
            module.hparams.get("class_chunk") is not None
        ),
    }
    for problem, holds in problems.items():
        if holds:
            raise ArgumentError(f"The network cannot be sharded (trainer=fsdp): {problem}. Set trainer=ddp, or leave that out.")
