"""What holds for every method by the commands: it trains all its stages, and a power cut anywhere changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from benchmarks.crash import differences
from tests.commands.break_off import PowerCut
from tests.commands.conftest import read_json

from mllt import LongTailedModule, load_checkpoint

METHODS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "conf" / "method").glob("*.yaml"))
SHORT = ("trainer.max_epochs=2", "trainer.limit_train_batches=3", "schedule.warmup_epochs=1")
#: Settings that make all stages of a method short, and that let it have all there are.
STAGES = {
    "crt": ("method.head_epochs=2",),
    "lws": ("method.head_epochs=2",),
    "mislas": ("method.head_epochs=2",),
    "ride": ("method.routing_epochs=2", "method.distill=true", "method.teacher_experts=2"),
    "ssd": ("method.label_epochs=2", "method.rescaling_epochs=2", "method.queue_size=40"),
}


def settings(method, *more):
    return (f"method={method}", *SHORT, *STAGES.get(method, ()), "checkpoints.every_steps=1", *more)


def stages_of(run):
    return [stage["name"] for stage in read_json(run / "results.json")["stages"]]


#: Those of crt are cut off in test_stages.py, too.
CUT = [pytest.param(method, marks=pytest.mark.slow) if method == "crt" else method for method in METHODS]


@pytest.mark.parametrize("method", CUT)
def test_a_power_cut_within_any_stage_changes_nothing(method, mllt_command, tmp_path):
    whole = tmp_path / "whole"
    done = mllt_command("train", *settings(method), f"output_dir={whole}")
    assert done.status == 0, done.err
    names = stages_of(whole)
    for number, name in enumerate(names):
        run = tmp_path / name
        cut = f"+callbacks.cut={{_target_: tests.commands.break_off.BreakOff, stage: {name}, epochs: 1, batches: 2}}"
        with pytest.raises(PowerCut):
            mllt_command("train", *settings(method), cut, f"output_dir={run}")
        done = mllt_command("train", *settings(method), f"output_dir={run}")
        assert done.status == 0, done.err
        assert done.out.count("Stage ") == (len(names) - number if len(names) > 1 else 0), "what is finished is not done again"
        assert differences(whole, run) == [], name


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_on_cifar100_and_every_stage_loads_with_one_call(method, mllt_command, tmp_path):
    root = os.environ.get("MLLT_DATA")
    if not root or not Path(root, "cifar-100-python").is_dir():
        pytest.skip("MLLT_DATA names no folder with cifar-100-python/")
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_test_batches=1", "batch_size=32")
    once = [setting.replace("_epochs=2", "_epochs=1") for setting in STAGES.get(method, ())]
    recipe = ("experiment=cifar100_lt", f"method={method}", f"data.root={root}", *short, *once, "threads=1")
    done = mllt_command("train", *recipe, f"output_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    assert "35 many / 35 medium / 30 few" in done.out
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = stages_of(tmp_path / "run")
    for name in names:
        place = () if name == names[-1] else ("stages", name)
        module = load_checkpoint(tmp_path.joinpath("run", *place, "checkpoints", "last.ckpt"))
        assert (module.method, module.stage, type(module)) == (method, name, LongTailedModule.registry[method])
        probabilities = module.probabilities(images)
        assert probabilities.shape == (4, 100)
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4))
