"""`python -m mllt.train`."""

from __future__ import annotations

import csv
import hashlib
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from tests.commands.break_off import PowerCut
from tests.commands.conftest import SMALL, read_json

from mllt import load_checkpoint


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# ---------------------------------------------------------------------------------------------------------------
# A run


def test_a_run_leaves_settings_checkpoints_curves_and_results_and_nothing_else(trained):
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    checkpoints = {
        f"checkpoints/{name}" for name in ("last.ckpt", "previous.ckpt", "best.ckpt", "model.ckpt", "model.ckpt.sha256")
    }
    assert files == {"config.yaml", *checkpoints, "metrics.csv", "results.json"}


def test_the_model_of_a_run_is_its_last_checkpoint_and_carries_its_sha256(trained, tmp_path):
    model, last = trained / "checkpoints" / "model.ckpt", trained / "checkpoints" / "last.ckpt"
    told = read_json(trained / "results.json")["model"]
    assert hashlib.sha256(model.read_bytes()).hexdigest() == told["sha256"]
    assert told["bytes"] == model.stat().st_size < last.stat().st_size
    assert (trained / "checkpoints" / "model.ckpt.sha256").read_text() == f"{told['sha256']}  model.ckpt\n"
    assert same_weights(weights(trained), torch.load(model, weights_only=True)["state_dict"])
    assert load_checkpoint(model).method == "mutual"


def test_a_model_that_is_not_what_its_sha256_tells_is_refused(mllt_command, trained, tmp_path):
    for name in ("model.ckpt", "model.ckpt.sha256"):
        (tmp_path / name).write_bytes((trained / "checkpoints" / name).read_bytes())
    shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "model.ckpt")  # whole, but another file
    done = mllt_command("evaluate", f"checkpoint={tmp_path / 'model.ckpt'}")
    assert done.status == 2
    assert "to have the SHA-256 that model.ckpt.sha256 tells" in done.err


def test_a_model_alone_is_nothing_to_go_on_from(mllt_command, trained, tmp_path):
    done = mllt_command(
        "train",
        *SMALL,
        "data.val_fraction=0.2",
        f"resume={trained / 'checkpoints' / 'model.ckpt'}",
        f"output_dir={tmp_path / 'run'}",
    )
    assert done.status == 2
    assert "do not tell how far its training was" in done.err


def test_results_say_what_was_trained_and_what_came_out(trained):
    results = read_json(trained / "results.json")
    assert (results["experiment"], results["method"], results["seed"]) == ("digits_lt", "mutual", 0)
    assert (results["epochs"], results["global_batch_size"], results["num_experts"]) == (2, 16, 2)
    assert sum(results["class_counts"]) == 257
    assert results["shot_groups"] == {"many": 0, "medium": 4, "few": 6}
    assert len(results["test"]["experts"]) == 2
    for row in (results["test"]["ensemble"], *results["test"]["experts"]):
        for kind in ("raw", "compensated"):
            assert row[kind]["many"] is None, "no class has more than 100 images: n/a, not 0"
            # the mean over classes is the mean over groups, each by its number of classes
            expected = (4 * row[kind]["medium"] + 6 * row[kind]["few"]) / 10
            assert row[kind]["all"] == pytest.approx(expected, abs=1e-3)
            assert 0 <= row[kind]["ece"] <= 100
    assert results["train_seconds"] > 0
    # 257 images in 17 steps of 15 or 16; the first four are of 15
    assert results["images_per_second"] == pytest.approx(2 * 4 * 15 / results["train_seconds"])
    assert results["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_settings_are_kept_resolved(trained):
    config = OmegaConf.load(trained / "config.yaml")
    assert (config.name, config.batch_size, config.optimizer.lr) == ("digits_lt", 16, 0.02)
    assert "${" not in (trained / "config.yaml").read_text()


def test_curves_hold_one_row_per_epoch(trained):
    with (trained / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    parts = [float(row["train/cross_entropy"]) + float(row["train/mutual"]) for row in rows if row["train/loss"]]
    assert losses == pytest.approx(parts, rel=1e-5)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(row["val/compensated/all"] for row in rows)
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.02, 0.02])  # warm-up of one epoch, cosine
    tested = read_json(trained / "results.json")["test"]["ensemble"]["raw"]["all"]
    assert [row["test/raw/all"] for row in rows] == ["", str(tested)]


def test_it_prints_the_tail_and_the_table_and_where_everything_lies(mllt_command, tmp_path):
    done = mllt_command("train", *SMALL, f"output_dir={tmp_path / 'run'}")
    assert done.status == 0
    assert "Digits-LT (exponential profile): 321 training images in 10 classes, 120 to 2 per class" in done.out
    assert "1 many / 3 medium / 6 few-shot classes" in done.out
    ensemble = read_json(tmp_path / "run" / "results.json")["test"]["ensemble"]
    (row,) = (line.split() for line in done.out.splitlines() if line.strip().startswith("ensemble"))
    numbers = [ensemble[kind][group] for kind in ("raw", "compensated") for group in ("many", "medium", "few", "all")]
    assert row[1:] == [f"{number:.1f}" for number in numbers]
    assert sum(line.strip().startswith("expert ") for line in done.out.splitlines()) == 2
    assert f"Everything lies in {tmp_path / 'run'}:" in done.out
    assert "epoch 2/2, loss" in done.err
    assert "images/s" in done.err
    assert "left" in done.err


def test_the_folder_is_named_by_experiment_method_and_time(mllt_command, tmp_path):
    assert mllt_command("train", "method=cross_entropy", *SMALL[1:]).status == 0
    (results,) = (tmp_path / "here" / "runs" / "digits_lt" / "cross_entropy").glob("*/results.json")
    assert read_json(results)["num_experts"] == 1
    assert len(read_json(results)["test"]["experts"]) == 1


def test_the_same_seed_gives_the_same_model_bit_for_bit_and_another_seed_another(mllt_command, tmp_path):
    for name, seed in (("first", 3), ("second", 3), ("third", 4)):
        assert mllt_command("train", *SMALL, f"seed={seed}", f"output_dir={tmp_path / name}").status == 0
    assert same_weights(weights(tmp_path / "first"), weights(tmp_path / "second"))
    assert not same_weights(weights(tmp_path / "first"), weights(tmp_path / "third"))
    tests = [read_json(tmp_path / name / "results.json")["test"] for name in ("first", "second")]
    assert tests[0] == tests[1]


def test_two_loader_processes_change_nothing(mllt_command, tmp_path):
    for workers in (0, 2):
        done = mllt_command("train", *SMALL, f"data.num_workers={workers}", f"output_dir={tmp_path / str(workers)}")
        assert done.status == 0
    assert same_weights(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_accumulated_steps_see_the_same_images(mllt_command, tmp_path):
    """Batch statistics differ, the order of the images and the number of optimizer steps do not."""
    for steps in (1, 4):
        arguments = (f"trainer.accumulate_grad_batches={steps}", f"trainer.limit_train_batches={4 * steps}")
        assert mllt_command("train", *SMALL[:2], *arguments, f"output_dir={tmp_path / str(steps)}").status == 0
    results = [read_json(tmp_path / str(steps) / "results.json") for steps in (1, 4)]
    assert results[0]["class_counts"] == results[1]["class_counts"]
    steps = [torch.load(tmp_path / str(n) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] for n in (1, 4)]
    assert steps == [8, 8]


def test_a_moving_average_of_the_weights_is_what_is_tested_and_saved(mllt_command, tmp_path):
    done = mllt_command("train", *SMALL, "optimizer.ema_decay=0.5", f"output_dir={tmp_path / 'ema'}")
    assert done.status == 0
    assert mllt_command("train", *SMALL, f"output_dir={tmp_path / 'plain'}").status == 0
    assert not same_weights(weights(tmp_path / "ema"), weights(tmp_path / "plain"))
    checked = mllt_command("evaluate", f"checkpoint={tmp_path / 'ema' / 'checkpoints' / 'last.ckpt'}")
    assert checked.status == 0
    again = read_json(tmp_path / "ema" / "evaluations" / "test-uniform.json")
    assert again["test"] == read_json(tmp_path / "ema" / "results.json")["test"]


# ---------------------------------------------------------------------------------------------------------------
# Stopping, going on, writing over


def test_a_folder_that_holds_a_run_is_not_written_over_unless_asked(mllt_command, tmp_path):
    arguments = ("train", *SMALL, f"output_dir={tmp_path / 'run'}")
    assert mllt_command(*arguments).status == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    refused = mllt_command(*arguments, "seed=1")
    assert refused.status == 2
    assert "holds a run already" in refused.err
    assert "overwrite=true" in refused.err
    refused = mllt_command(*arguments, "resume=null")
    assert refused.status == 2
    assert "resume=auto" in refused.err
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    assert mllt_command(*arguments, "seed=1", "overwrite=true").status == 0
    assert read_json(tmp_path / "run" / "results.json")["seed"] == 1


def test_what_is_written_over_is_gone_before_the_new_run_begins(mllt_command, tmp_path):
    run = tmp_path / "run"
    crt = ("train", *SMALL, "network.num_experts=1", f"output_dir={run}")
    assert mllt_command(*crt, "method=crt", "method.head_epochs=1").status == 0
    (run / "mine.txt").write_text("not a run's")
    first = "+callbacks.cut={_target_: tests.commands.break_off.BreakOff, stage: training, epochs: 0}"
    with pytest.raises(PowerCut):
        mllt_command(*crt, "method=cross_entropy", "overwrite=true", first)
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert left == {"config.yaml", "mine.txt"}, "nothing to go on from that is not of the new run"


def test_a_run_that_goes_on_ends_where_one_without_a_break_does(mllt_command, tmp_path):
    common = ("train", "network.num_experts=2", "trainer.limit_train_batches=4", "schedule=constant")
    assert mllt_command(*common, "trainer.max_epochs=4", f"output_dir={tmp_path / 'whole'}").status == 0
    assert mllt_command(*common, "trainer.max_epochs=2", f"output_dir={tmp_path / 'parts'}").status == 0
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    assert mllt_command(*common, "trainer.max_epochs=4", f"output_dir={tmp_path / 'parts'}", f"resume={last}").status == 0
    assert same_weights(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert read_json(tmp_path / "whole" / "results.json")["test"] == read_json(tmp_path / "parts" / "results.json")["test"]
    whole, parts = ((tmp_path / name / "metrics.csv").read_text() for name in ("whole", "parts"))
    assert whole == parts, "the curves of the first epochs stay"
    assert len(whole.splitlines()) == 5


def test_nothing_left_to_train_is_an_error_and_a_test_that_is_missing_is_made_up_for(mllt_command, tmp_path):
    run = tmp_path / "run"
    arguments = ("train", *SMALL, f"resume={run / 'checkpoints' / 'last.ckpt'}")
    assert mllt_command("train", *SMALL, f"output_dir={run}").status == 0
    done = mllt_command(*arguments, f"output_dir={tmp_path / 'other'}")
    assert done.status == 2
    assert "has had 2 epochs" in done.err
    before = read_json(run / "results.json")
    (run / "results.json").unlink()
    assert mllt_command(*arguments, f"output_dir={run}").status == 0
    after = read_json(run / "results.json")
    assert after["test"] == before["test"]
    assert after["images_per_second"] == before["images_per_second"], "the seconds of the whole run"


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is none at"), (b"", "it is empty"), (b"no checkpoint", "it is a text")],
)
def test_a_checkpoint_to_go_on_from_that_does_not_load_is_named(mllt_command, tmp_path, content, said):
    path = tmp_path / "broken.ckpt"
    if content is not None:
        path.write_bytes(content)
    done = mllt_command("train", *SMALL, f"resume={path}", f"output_dir={tmp_path / 'run'}")
    assert done.status == 2
    assert str(path) in done.err
    assert said in done.err
    assert len(done.err.splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------------
# Presets, and settings of one's own


def test_the_fast_preset_runs_one_epoch_of_three_batches(mllt_command, tmp_path):
    assert mllt_command("train", "debug=fast", f"output_dir={tmp_path / 'run'}").status == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (0, 3)


def test_the_overfit_preset_learns_its_batch_by_heart(mllt_command, tmp_path):
    done = mllt_command("train", "debug=overfit", "network.num_experts=1", f"output_dir={tmp_path / 'run'}")
    assert done.status == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses[0] > 2
    assert losses[-1] < 0.05


def test_the_profile_preset_says_where_the_time_goes(mllt_command, tmp_path):
    done = mllt_command("train", "debug=profile", "trainer.limit_train_batches=2", f"output_dir={tmp_path / 'run'}")
    assert done.status == 0
    assert "run_training_batch" in (tmp_path / "run" / "fit-profile.txt").read_text()


def test_experiments_of_ones_own_are_found_in_a_folder_of_ones_own(mllt_command, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "gentle.yaml").write_text(
        "# @package _global_\ndefaults: [digits_lt, _self_]\nname: gentle\noptimizer: {lr: 0.001}\n"
    )
    done = mllt_command(
        "train", "--config-dir", tmp_path / "mine", "experiment=gentle", *SMALL, f"output_dir={tmp_path / 'run'}"
    )
    assert done.status == 0
    assert read_json(tmp_path / "run" / "results.json")["experiment"] == "gentle"
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").hparams["lr"] == 0.001


def test_settings_without_effect_are_remarked_on(mllt_command, tmp_path):
    done = mllt_command("train", "trainer.max_epochs=1", "trainer.limit_train_batches=1", f"output_dir={tmp_path / 'run'}")
    assert "Note: schedule.warmup_epochs=5 covers the whole run" in done.out


def test_a_checkpoint_of_another_network_is_not_gone_on_from(mllt_command, tmp_path, trained):
    last = trained / "checkpoints" / "last.ckpt"
    arguments = ("data.val_fraction=0.2", f"resume={last}", f"output_dir={tmp_path / 'run'}")
    done = mllt_command("train", "network.num_experts=3", *SMALL[2:], "trainer.max_epochs=3", *arguments)
    assert done.status == 2
    assert "of the same num_experts to go on from, but its num_experts is 2, and here it is 3" in done.err


@pytest.mark.parametrize("every", [1, 2])
def test_results_tell_the_validation_of_the_last_weights_whenever_it_was_watched(mllt_command, tmp_path, every):
    run = tmp_path / "run"
    setting = f"trainer.check_val_every_n_epoch={every}"
    done = mllt_command("train", *SMALL, "trainer.max_epochs=3", "data.val_fraction=0.2", setting, f"output_dir={run}")
    assert done.status == 0, done.err
    assert mllt_command("evaluate", f"checkpoint={run / 'checkpoints' / 'model.ckpt'}", "split=val").status == 0
    again = read_json(run / "evaluations" / "val-uniform.json")
    results = read_json(run / "results.json")
    assert results["val"] == again["test"] != results["test"]
