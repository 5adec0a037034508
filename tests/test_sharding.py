"""trainer=fsdp. PyTorch shards on a CPU, too: two real processes stand in for two GPUs, where our command asks for GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from tests import sharded_worker

import mllt
from mllt.cli import CONFIG_MODULE
from mllt.errors import ArgumentError
from mllt.methods import MutualLTModule, load_checkpoint
from mllt.sharding import ShardedStrategy, check_can_be_sharded


def test_the_group_asks_for_gpus():
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        config = compose("train", overrides=["trainer=fsdp"])
    assert (config.trainer.strategy, config.trainer.accelerator) == ("fsdp", "gpu")


@pytest.mark.parametrize(("precision", "kept"), [("32-true", None), ("bf16-mixed", torch.float32), ("16-mixed", torch.float32)])
def test_heads_and_compensation_stay_float32_under_mixed_precision(precision, kept):
    strategy = ShardedStrategy(precision)
    mixed = strategy.mixed_precision
    assert (mixed and {mixed.param_dtype, mixed.buffer_dtype, mixed.reduce_dtype}) == (kept and {kept})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("sharded")
    source = os.pathsep.join([str(Path(mllt.__file__).parents[1]), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", sharded_worker.__file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder, torch.load(folder / "results.pt", weights_only=True)


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("method", sharded_worker.METHODS)
def test_a_sharded_network_trains_and_tests_as_a_whole_one(method, trained):
    folder, results = trained
    whole, sharded = results[method, "ddp"], results[method, "sharded"]
    assert whole["units"] == 0
    assert sharded["units"] > 1, "else this tests less than it says"
    assert sharded["parameters"] == whole["parameters"]
    for kind in ("raw", "compensated"):
        assert sharded["test"]["ensemble"][kind]["all"] == whole["test"]["ensemble"][kind]["all"]
        assert sharded["test"]["ensemble"][kind]["ece"] == pytest.approx(whole["test"]["ensemble"][kind]["ece"], rel=1e-4)
    one, other = weights(folder / f"{method}-ddp.ckpt"), weights(folder / f"{method}-sharded.ckpt")
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)
    assert load_checkpoint(folder / f"{method}-sharded.ckpt").method == method


@pytest.mark.slow
def test_a_sharded_run_goes_on_sharded_or_whole(trained):
    folder, _ = trained
    one, other = weights(folder / "resumed-sharded.ckpt"), weights(folder / "resumed-ddp.ckpt")
    first = weights(folder / "one.ckpt")
    assert any(not torch.equal(one[name], first[name]) for name in one)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_what_needs_a_whole_network_is_refused(trained):
    _, results = trained
    for refusal, word in zip(results["refusals"], ("several stages", "ema_decay", "decay_norm_and_bias"), strict=True):
        assert "cannot be sharded (trainer=fsdp)" in refusal
        assert word in refusal


def test_chunks_of_classes_are_refused_where_no_device_has_whole_heads():
    module = MutualLTModule(class_counts=[9, 3, 1], network="resnet20", class_chunk=2)
    with pytest.raises(ArgumentError, match=r"cannot be sharded \(trainer=fsdp\): class_chunk"):
        check_can_be_sharded(module)
