"""One of two processes that train methods sharded and whole, on CPU: `torchrun --nproc_per_node=2 sharded_worker.py FOLDER`."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import lightning as L
import torch
from torch.distributed.fsdp import FullyShardedDataParallel

from mllt import sharding
from mllt.data import DigitsLT
from mllt.errors import ArgumentError
from mllt.methods import LongTailedModule

VIT = {"img_size": 8, "patch_size": 2, "depth": 2, "embed_dim": 48, "num_heads": 3}
METHODS = ("mutual", "cross_entropy", "ldam_drw", "lade", "bbn", "ace")
COMMON = {"network": "timm/vit_tiny_patch16_224", "network_options": VIT, "warmup_epochs": 0, "lr": 0.01}
#: Named parameters that would need the whole network
REFUSED = ({"method": "crt"}, {"ema_decay": 0.9}, {"decay_norm_and_bias": False})


def on_cpu(sharded, module, *args, device_id=None, **kwargs):
    """PyTorch shards on a CPU, too, but has to be told."""
    shard(sharded, module, *args, device_id=torch.device("cpu"), **kwargs)


shard, FullyShardedDataParallel.__init__ = FullyShardedDataParallel.__init__, on_cpu
sharding.UNIT = 20_000  # so that a small network has units, too


def trainer(strategy, epochs, **more):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=epochs, accelerator="cpu", devices=2, strategy=strategy, **quiet, **more)


def make(data, method="mutual", **more):
    L.seed_everything(0, verbose=False)
    experts = 2 if method in ("mutual", "ace") else 1
    own = {"max_counts": [20]} if method == "ace" else {}
    settings = {**COMMON, "num_experts": experts, **own, **more}
    return LongTailedModule.registry[method](
        class_counts=data.class_counts, class_names=data.class_names, preprocessing=data.preprocessing, **settings
    )


def train(data, method, strategy, path):
    module = make(data, method)
    work = trainer(strategy, 2, gradient_clip_val=0.5, limit_train_batches=3)
    work.fit(module, datamodule=data)
    units = sum(isinstance(part, FullyShardedDataParallel) for part in module.modules())
    work.save_checkpoint(path)
    work.test(module, datamodule=data, verbose=False)
    return {"test": module.test_results, "parameters": sharding.count_parameters(work, module.network), "units": units}


def resume(data, path):
    """An epoch sharded, and one more, sharded too, by another trainer."""
    module = make(data)
    first = trainer(sharding.ShardedStrategy(), 1, limit_train_batches=3)
    first.fit(module, datamodule=data)
    first.save_checkpoint(path)
    for name, strategy in (("sharded", sharding.ShardedStrategy()), ("ddp", "ddp")):
        second = trainer(strategy, 2, limit_train_batches=3)
        second.fit(make(data), datamodule=data, ckpt_path=path, weights_only=True)
        second.save_checkpoint(path.with_name(f"resumed-{name}.ckpt"))


def refusal(data, settings):
    try:
        trainer(sharding.ShardedStrategy(), 1).fit(make(data, **settings), datamodule=data)
    except ArgumentError as error:
        return str(error)
    return "none"


def main(folder):
    torch.set_num_threads(1)
    data = DigitsLT(batch_size=64, eval_batch_size=33)
    results = {}
    for method in METHODS:
        for name in ("ddp", "sharded"):
            strategy = sharding.ShardedStrategy() if name == "sharded" else name
            results[method, name] = train(data, method, strategy, folder / f"{method}-{name}.ckpt")
    resume(data, folder / "one.ckpt")
    results["refusals"] = [refusal(data, settings) for settings in REFUSED]
    torch.save(results, folder / "results.pt") if torch.distributed.get_rank() == 0 else None


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
        raise
