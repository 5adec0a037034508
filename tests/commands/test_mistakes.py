"""A user's mistake becomes one line that says what to type instead."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optimizer.lrr=1"], ["`optimizer` has no setting `lrr`", "Did you mean 'lr'?", "momentum, nesterov"]),
        (["optimiser.lr=1"], ["no setting or group `optimiser`", "Did you mean 'optimizer'?"]),
        (["batchsize=4"], ["Did you mean 'batch_size'?"]),
        (
            ["experiment=cifar100"],
            ["There is no experiment=cifar100.", "Did you mean 'cifar100_lt'?", "folder_lt, imagenet_lt"],
        ),
        (["method=mutal"], ["There is no method=mutal.", "Did you mean 'mutual'?"]),
        (["network=resnet21"], ["There is no network=resnet21.", "resnet20"]),
        (["network.name=resnet21"], ["There is no network 'resnet21'.", "Did you mean", "resnet20"]),
        (["schedule.name=cosin"], ["`schedule` to be one of multistep, cosine, constant", "Did you mean 'cosine'?"]),
        (["optimizer.lr=fast"], ["`optimizer.lr` to be a number", "0.02", "'fast'"]),
        (["batch_size=2.5"], ["`batch_size` to be a whole number", "2.5"]),
        (["optimizer.nesterov=1"], ["`optimizer.nesterov` to be true or false"]),
        (["optimizer.lr=-1"], ["`lr` to be a number above 0", "-1"]),
        (["optimizer.weight_decay=-1e-4"], ["`weight_decay` to be a number of at least 0"]),
        (["optimizer.momentum=1"], ["`momentum`", "below 1"]),
        (["optimizer.nesterov=true", "optimizer.momentum=0"], ["nesterov", "momentum=0.9"]),
        (["seed=-1"], ["`seed`", "at least 0"]),
        (["threads=0"], ["`threads`", "at least 1"]),
        (["threads=100000"], ["Expected at most ", " `threads` on ", "but got 100000. Type threads="]),
        (["batch_size=0"], ["`batch_size`", "at least 1"]),
        (["trainer.max_epochs=0"], ["`trainer.max_epochs`", "at least 1"]),
        (["trainer.accumulate_grad_batches=3"], ["divide evenly", "Set it to 15 or 18"]),
        (["network.num_experts=0"], ["`num_experts`", "at least 1"]),
        (["network.scale=30"], ["A linear head has no scale", "head='cosine'"]),
        (["network.shared=stage9"], ["`shared` to be one of none, stem, stage1"]),
        (["network.width=0"], ["`width`"]),
        (["method.temperature=0"], ["`temperature` to be a number above 0"]),
        (["method.mutual_target=peer"], ["Did you mean 'peers'?"]),
        (["method._target_=os.system"], ["`method._target_` to be a LongTailedModule", "os.system"]),
        (["method._target_=nowhere.Method"], ["importing 'nowhere.Method' failed"]),
        (["+method.foo=1"], ["settings of `method` do not fit", "foo"]),
        (["evaluation.test_prior=unifrm"], ["`test_prior`", "Did you mean 'uniform'?"]),
        (["evaluation.few_below=200"], ["few_below"]),
        (["data.imbalance_factor=0.5"], ["`imbalance_factor`"]),
        (["data.profile=exp"], ["`profile` to be one of exponential, step"]),
        (["data.val_fraction=2"], ["`val_fraction`"]),
        (["experiment=folder_lt"], ["`data.root` has no default", "data.root=..., or set it in your experiment"]),
        (["experiment=folder_lt", "data.root=/nowhere"], ["/nowhere"]),
        (
            ["experiment=cifar100_lt", "data.root=nowhere"],
            ["CIFAR100 (python version) under /", "nowhere", "data.download=true", "md5sum"],
        ),
        (["trainer.accelerator=quantum"], ["`trainer`"]),
        (["optimizer.lr"], ["optimizer.lr"]),
        (["lr=0.1"], ["no setting or group `lr`", "Did you mean 'optimizer.lr'? Known: ", "batch_size, "]),
        (["trainer.max_epochs 3"], ["Cannot read 'trainer.max_epochs 3'", "without spaces"]),
        (["data.root=My pictures (1)"], ["two pairs of quotes", "data.root='My pictures (1)'"]),
        (["data=null"], ["Config group override must be a string"]),
        (["~evaluation"], ["choice for `evaluation`", "evaluation=..."]),
        (["trainer.strategy=ddp_spawn"], ["`trainer.strategy`", "Set it to ddp"]),
        (["trainer.limit_test_batches=0"], ["`trainer.limit_test_batches` to be a number above 0"]),
        (["trainer.check_val_every_n_epoch=0"], ["`trainer.check_val_every_n_epoch`", "at least 1"]),
        (["trainer.gradient_clip_val=-1"], ["`trainer.gradient_clip_val`", "above 0"]),
        (["trainer.compile=fast"], ["`trainer.compile` to be true, false or one of", "reduce-overhead"]),
        (["trainer.tf32=some"], ["`trainer.tf32`", "true or false"]),
        (["trainer.deterministic=foo"], ["`trainer.deterministic` to be true, false or warn"]),
        (["trainer.accelerator=cpu", "trainer.devices=999", "trainer.strategy=ddp"], ["999 processes", "Lower `devices`"]),
        (["trainer.accelerator=cpu", "trainer.sync_batchnorm=true"], ["on GPUs only"]),
        (["trainer.strategy=fsdp_cpu_offload"], ["`trainer.strategy` to be fsdp", "Type trainer=fsdp"]),
        (["trainer=fsdp", "trainer.accelerator=cpu"], ["Expected GPUs", "trainer.accelerator=cpu", "Set trainer=ddp"]),
        (["resume=3"], ["there is none at 3"]),
        (["method=own/class"], ["`method._target_` has no default"]),
        (["method._target_=mllt.methods.CrossEntropyModule"], ["do not fit", "method=own/class"]),
        (
            ["experiment=imagenet_lt", "data.root=nowhere"],
            ["/nowhere/", "ImageNet_LT_train.txt", "data.root=FOLDER", "hash-object"],
        ),
        (["schedule.milestones=[a]", "schedule=multistep"], ["`milestones`"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_one_line_says_what_was_expected(mllt_command, tmp_path, arguments, said):
    done = mllt_command("train", "trainer.max_epochs=1", *arguments, f"output_dir={tmp_path / 'run'}")
    assert done.status == 2
    message = done.err.strip().splitlines()[-1]
    assert message.startswith("Error: ")
    for part in said:
        assert part in message
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err
    left = [path.name for path in tmp_path.glob("run/*")]
    assert left in ([], ["config.yaml"]), "what never began leaves nothing that a second try would stumble over"


def test_the_whole_traceback_is_shown_when_asked_for(mllt_command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="`lr` to be a number above 0"):
        mllt_command("train", "optimizer.lr=-1")


@pytest.mark.parametrize("name", ["evaluate", "predict", "probe"])
def test_the_other_commands_say_which_setting_is_missing(mllt_command, name):
    done = mllt_command(name)
    assert done.status == 2
    assert done.err.startswith("Error: `checkpoint` has no default and needs a value. Type checkpoint=...")


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_the_folder_one_stands_in_stays_even_when_it_is_empty(mllt_command, tmp_path, name):
    assert mllt_command(name, "checkpoint=nowhere.ckpt", *(["input=."] if name == "predict" else [])).status == 2
    assert (tmp_path / "here").is_dir()


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "probe"])
def test_help_shows_examples_and_every_setting(mllt_command, name):
    done = mllt_command(name, "--help")
    assert done.status == 0
    assert f"python -m mllt.{name} " in done.out
    assert {"train": "num_experts", "probe": "neighbours"}.get(name, "test_prior_factor") in done.out
