"""The recipe on two processes is the recipe on one: real processes over gloo, on CPU."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.types import RunMode
from tests.commands.conftest import SMALL, read_json
from tests.data.make_images import save_pictures

from mllt import cli, launch
from mllt.errors import ArgumentError

# A transformer, since it has no batch statistics: those differ between devices (on GPUs, sync_batchnorm mends that).
# 257 images in batches of 16 leave one for the last batch: less than one for each device.
VIT = "{img_size: 8, patch_size: 2, depth: 2, embed_dim: 48, num_heads: 3}"
RECIPE = (
    "network=timm",
    "network.name=timm/vit_tiny_patch16_224",
    f"network.network_options={VIT}",
    "network.num_experts=2",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "schedule.warmup_epochs=1",
    "data.val_fraction=0.2",
)


def start(name, *arguments, folder, before=("-m",), **environment):
    """A command in a process of its own, which starts the others; `before`: of the command, such as torchrun's arguments."""
    ours = ("MLLT_RUN", "MLLT_FULL", "SLURM_", "TORCHELASTIC", "MASTER_", "LOCAL_RANK", "NODE_RANK")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    root = str(Path(__file__).parents[2])  # for the callbacks of these tests
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, *before, f"mllt.{name}", *arguments],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, seconds=300):
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(name, *arguments, folder, **more):
    return finish(start(name, *arguments, folder=folder, **more))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of the same recipe on one and on two processes, and what the latter printed."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("devices")
    for devices in (1, 2):
        strategy = ("trainer=ddp", f"trainer.devices={devices}") if devices > 1 else ()
        done = run("train", *strategy, *RECIPE, f"output_dir={folder / str(devices)}", folder=folder)
        assert done.returncode == 0, done.stderr
    return folder, done


def column(path, name):
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.parametrize("name", ["train/loss", "train/cross_entropy", "train/mutual", "val/raw/ece"])
def test_two_processes_see_the_same_curves_as_one(runs, name):
    folder, _ = runs
    one, two = (column(folder / devices / "metrics.csv", name) for devices in "12")
    assert len(one) == 2
    assert one == pytest.approx(two, rel=1e-5)


def test_two_processes_end_with_the_same_weights_as_one(runs):
    folder, _ = runs
    one, two = (torch.load(folder / devices / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for devices in "12")
    start = {name: value.abs().max() for name, value in one.items()}
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5 * max(float(start[name]), 1))


def test_one_folder_holds_the_run_and_the_table_is_printed_once(runs):
    folder, done = runs
    files = {str(path.relative_to(folder / "2")) for path in (folder / "2").rglob("*") if path.is_file()}
    checkpoints = {
        f"checkpoints/{name}" for name in ("last.ckpt", "previous.ckpt", "best.ckpt", "model.ckpt", "model.ckpt.sha256")
    }
    assert files == {"config.yaml", *checkpoints, "metrics.csv", "results.json"}
    assert done.stdout.count("Everything lies in") == 1
    assert done.stdout.count("training images in 10 classes") == 1
    assert "sync_dist" not in done.stderr
    assert read_json(folder / "2" / "results.json")["device"].startswith("2 x cpu")
    assert read_json(folder / "2" / "results.json")["epochs"] == 2


@pytest.mark.slow  # as is the one on up to four
def test_a_checkpoint_tests_to_the_same_numbers_on_one_and_two_processes(runs, tmp_path):
    """250 images on each: every one counted once, nothing padded; to the last digit."""
    folder, _ = runs
    checkpoint = f"checkpoint={folder / '2' / 'checkpoints' / 'last.ckpt'}"
    tables = []
    for devices in (1, 2):
        output = tmp_path / f"{devices}.json"
        arguments = (checkpoint, f"devices={devices}", "accelerator=cpu", "eval_batch_size=99", f"output={output}")
        done = run("evaluate", *arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        tables.append(read_json(output)["test"])
    assert tables[0] == tables[1] == read_json(folder / "2" / "results.json")["test"]


def test_a_global_batch_that_does_not_divide_is_refused_with_those_that_do(tmp_path):
    arguments = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "batch_size=15", "output_dir=run")
    done = run("train", *arguments, "trainer.max_epochs=1", folder=tmp_path)
    assert done.returncode != 0
    assert "Set it to 14 or 16" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------- any number of processes

FOLDER = (
    "experiment=folder_lt",
    "network=resnet20",
    "network.num_experts=2",
    "data.image_size=24",
    "data.num_workers=0",
    "data.eval_batch_size=7",
    "batch_size=12",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "schedule.warmup_epochs=0",
)


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory):
    """A run on pictures, 101 of which are test images, in batches of 7: these come out even on no number of devices."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, counts in (("train", (24, 12, 6, 4, 2)), ("test", (60, 20, 18, 2, 1))):  # the last batch holds three classes
        save_pictures(folder / "data", [f"{split}/{c}/{i}.png" for c, count in enumerate(counts) for i in range(count)])
    done = run("train", *FOLDER, f"data.root={folder / 'data'}", f"output_dir={folder / 'run'}", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_checkpoint_tests_to_the_same_numbers_on_any_number_of_processes(of_pictures):
    def as_text(path):
        return json.dumps(read_json(path)["test"], indent=1)

    checkpoint, texts = f"checkpoint={of_pictures / 'run' / 'checkpoints' / 'last.ckpt'}", []
    for devices in (1, 2, 3, 4):
        output = of_pictures / f"{devices}.json"
        done = run("evaluate", checkpoint, f"devices={devices}", "accelerator=cpu", f"output={output}", folder=of_pictures)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Written to") == 1
        texts.append(as_text(output))
    results = read_json(of_pictures / "run" / "results.json")
    assert sum(results["test"]["reliability"]["raw"]["count"]) == 101
    assert set(texts) == {json.dumps(results["test"], indent=1)}


@pytest.fixture
def on_four(runs):
    folder, _ = runs
    if not (folder / "4").exists():
        done = run("train", "trainer=ddp", "trainer.devices=4", *RECIPE, f"output_dir={folder / '4'}", folder=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_four_processes_train_as_one(on_four):
    for name in ("train/loss", "train/cross_entropy", "train/mutual", "val/raw/ece"):
        one, four = (column(on_four / devices / "metrics.csv", name) for devices in "14")
        assert one == pytest.approx(four, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_a_run_of_two_processes_goes_on_with_another_number(devices, runs, tmp_path):
    folder, _ = runs
    stop = ("+callbacks.stop._target_=tests.commands.break_off.BreakOff", "+callbacks.stop.stage=training")
    ddp = ("trainer=ddp", "trainer.devices=2")
    arguments = (*RECIPE, f"output_dir={tmp_path / 'run'}")
    done = run("train", *ddp, *arguments, *stop, "+callbacks.stop.epochs=1", folder=tmp_path)
    assert done.returncode != 0
    assert not (tmp_path / "run" / "results.json").exists()
    other = ("trainer=ddp", f"trainer.devices={devices}") if devices > 1 else ()
    done = run("train", *other, *arguments, "resume=auto", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, resumed = (
        torch.load(at / "checkpoints" / "last.ckpt", weights_only=True) for at in (folder / "2", tmp_path / "run")
    )
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=1e-4, atol=1e-5)
    one, two = (column(at / "metrics.csv", "train/loss") for at in (folder / "2", tmp_path / "run"))
    assert one == pytest.approx(two, rel=1e-5)


# -------------------------------------------------------------------------------------------------------- a sweep, a launcher

TWO = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
COMPLETE = {"config.yaml", "metrics.csv", "results.json", "checkpoints"}


def assert_sweep_is_right(sweep, alone):
    found = {read_json(path)["seed"]: path.parent for path in sweep.glob("*/results.json")}
    assert sorted(found) == [0, 1]
    for folder in found.values():
        assert {path.name for path in folder.iterdir()} == COMPLETE
        assert read_json(folder / "results.json")["device"].startswith("2 x cpu")
    assert read_json(found[1] / "results.json")["test"] == read_json(alone / "results.json")["test"]
    assert len([path for path in sweep.iterdir() if path.is_dir()]) == 2


@pytest.mark.slow
def test_each_job_of_a_sweep_has_a_folder_and_processes_of_its_own(mllt_command, tmp_path):
    assert mllt_command("train", *TWO, *SMALL, "seed=1", f"output_dir={tmp_path / 'alone'}").status == 0
    done = mllt_command("train", "-m", "seed=0,1", *TWO, *SMALL, f"output_dir={tmp_path / 'sweep'}")
    assert done.status == 0, done.err
    assert done.out.count("Everything lies in") == 2
    assert_sweep_is_right(tmp_path / "sweep", tmp_path / "alone")


def torchrun(*more):
    return ("-m", "torch.distributed.run", *(more or ("--standalone",)), "--nproc_per_node=2", "-m")


@pytest.mark.slow
def test_torchrun_starts_a_run_and_a_sweep_in_one_folder_each(tmp_path):
    done = run("train", *TWO, *SMALL, "seed=1", folder=tmp_path, before=torchrun())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Everything lies in") == 1
    (alone,) = (tmp_path / "runs" / "digits_lt" / "mutual").iterdir()
    assert {path.name for path in alone.iterdir()} == COMPLETE
    done = run("train", "-m", "seed=0,1", *TWO, *SMALL, folder=tmp_path, before=torchrun())
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "sweeps" / "digits_lt").iterdir()
    assert_sweep_is_right(sweep, alone)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def by_hand(node, port):
    return {"environment": {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(node)}}


def by_torchrun(node, port):
    nodes = ("--nnodes=2", f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}")
    return {"before": torchrun(*nodes)}


@pytest.mark.slow
@pytest.mark.parametrize("how", [by_hand, by_torchrun])
def test_two_machines_of_two_processes_make_one_run_of_four(how, tmp_path):
    port, output = free_port(), () if how is by_torchrun else ("output_dir=run",)
    nodes = []
    for node in (0, 1):
        more = how(node, port)
        environment = more.pop("environment", {})
        arguments = (*TWO, "trainer.num_nodes=2", "batch_size=24", *SMALL, *output)
        nodes.append(start("train", *arguments, folder=tmp_path, **more, **environment))
    done = [finish(node) for node in nodes]
    assert [node.returncode for node in done] == [0, 0], done[0].stderr + done[1].stderr
    assert sum(node.stdout.count("Everything lies in") for node in done) == 1
    (results,) = tmp_path.rglob("results.json")
    assert read_json(results)["device"].startswith("4 x cpu")


def slurm(task, job="4711"):
    """What srun tells each of two tasks on one node."""
    told = {"JOB_ID": job, "JOB_NAME": "train", "STEP_ID": "0", "NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1"}
    told |= {"PROCID": str(task), "LOCALID": str(task), "NODEID": "0", "NODELIST": "127.0.0.1"}
    return {f"SLURM_{name}": value for name, value in told.items()}


@pytest.mark.slow
def test_tasks_of_slurm_make_one_run_in_the_folder_of_their_job(tmp_path):
    port = free_port()
    tasks = [start("train", *TWO, *SMALL, folder=tmp_path, MASTER_PORT=port, **slurm(task)) for task in (0, 1)]
    done = [finish(task) for task in tasks]
    assert [task.returncode for task in done] == [0, 0], done[0].stderr + done[1].stderr
    assert [task.stdout.count("Everything lies in") for task in done] == [1, 0]
    (results,) = tmp_path.rglob("results.json")
    assert results.parent == tmp_path / "runs" / "digits_lt" / "mutual" / "slurm-4711-0"


@pytest.mark.parametrize(("by", "name"), [("torchrun", "--nproc_per_node"), ("srun", "--ntasks-per-node")])
def test_another_number_of_processes_than_devices_is_refused(by, name, mllt_command, monkeypatch):
    """Each of them would train by itself, in the same folder; or wait for others that nobody starts."""
    told = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"} if by == "torchrun" else slurm(0)
    for variable, value in told.items():
        monkeypatch.setenv(variable, value)
    done = mllt_command("train", "trainer.accelerator=cpu", *SMALL)
    assert done.status == 2
    assert f"{by} has started 2" in done.err
    assert name in done.err


def test_machines_that_do_not_know_of_each_other_are_refused(mllt_command, tmp_path):
    done = mllt_command("train", *TWO, *SMALL, "trainer.num_nodes=2")
    assert done.status == 2
    assert "Expected an output_dir for a run on 2 machines" in done.err
    done = mllt_command("train", *TWO, *SMALL, "trainer.num_nodes=2", f"output_dir={tmp_path / 'run'}")
    assert done.status == 2
    assert "it lacks MASTER_ADDR, MASTER_PORT, NODE_RANK" in done.err


@pytest.mark.parametrize(
    ("sweeper", "launcher", "by", "refused"),
    [
        ("optuna", "basic", "torchrun", "the sweeper optuna"),
        ("basic", "joblib", "torchrun", "the launcher joblib"),
        ("basic", "basic", "torchrun", None),
        ("optuna", "joblib", None, None),
        ("optuna", "submitit_slurm", "srun", None),
    ],
)
def test_a_sweep_that_each_process_would_go_through_differently_is_refused(sweeper, launcher, by, refused, monkeypatch):
    monkeypatch.setattr(launch, "launched_by", lambda: by)
    choices = {"hydra/sweeper": sweeper, "hydra/launcher": launcher}
    settings = SimpleNamespace(mode=RunMode.MULTIRUN, runtime=SimpleNamespace(choices=choices))
    if refused is None:
        cli._check_sweep(settings)
        return
    with pytest.raises(ArgumentError, match=f"With {refused}"):
        cli._check_sweep(settings)


def test_more_processes_than_cores_are_warned_of_and_far_more_refused():
    from mllt.build import check_cores

    cores = os.cpu_count() or 1
    with pytest.warns(UserWarning, match="take turns"):
        check_cores("`devices`", cores + 1)
    with pytest.raises(ArgumentError, match="Lower `devices`"):
        check_cores("`devices`", 4 * cores + 1)


# ---------------------------------------------------------------------------------------------------- a process that dies


def dying(rank, how, folder):
    settings = {"_target_": "tests.commands.dying.Dying", "rank": rank, "how": how, "notes": folder / "notes"}
    return [f"+callbacks.dying.{name}={value}" for name, value in settings.items()]


def assert_all_ended(notes, seconds):
    pids = [int(path.name) for path in notes.iterdir()]
    assert len(pids) == 2
    deadline = time.monotonic() + seconds
    while any(runs_still(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.2)


def runs_still(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


SAID = {
    "killed": {0: "The first process of the run has gone", 1: "Process 2 of 2 was ended by SIGKILL"},
    "fault": {0: "ZeroDivisionError: something that nobody", 1: "ZeroDivisionError: something that nobody"},
    "data": {0: "Error: the picture tulip.jpg is broken", 1: "Error: the picture tulip.jpg is broken"},
}
STATUS = {"killed": {0: -9, 1: 137}, "fault": {0: 1, 1: 1}, "data": {0: 2, 1: 2}}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "fault", "data"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_run_and_says_why(rank, how, tmp_path):
    process = start("train", *TWO, *SMALL, *dying(rank, how, tmp_path), "output_dir=run", folder=tmp_path)
    done = finish(process, seconds=120)
    assert_all_ended(tmp_path / "notes", seconds=5)
    assert done.returncode == STATUS[how][rank]
    assert done.stderr.count(SAID[how][rank]) == 1
    assert "gloo" not in done.stderr
    if how == "data":
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_ends_a_run_of_which_a_process_dies(rank, tmp_path):
    arguments = (*TWO, *SMALL, *dying(rank, "fault", tmp_path), "output_dir=run")
    done = finish(start("train", *arguments, folder=tmp_path, before=torchrun()), seconds=120)
    assert_all_ended(tmp_path / "notes", seconds=5)
    assert done.returncode != 0
    assert "ZeroDivisionError: something that nobody thought of" in done.stderr


# ------------------------------------------------------------------------------------------------------------ every method

SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=6", "data.val_fraction=0")
STAGES = {
    "ace": (),
    "bbn": (),
    "crt": ("method.head_epochs=1",),
    "dive": (),
    "mislas": ("method.head_epochs=1",),
    "ride": ("method.routing_epochs=1", "method.distill=true", "method.teacher_experts=2"),
    "ssd": ("method.label_epochs=1", "method.rescaling_epochs=1", "method.queue_size=50"),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", STAGES)
def test_two_processes_go_through_all_stages_to_the_weights_of_one(method, tmp_path):
    pytest.importorskip("timm")
    experts = "2" if method in ("ace", "ride") else "1"
    own = (f"network.num_experts={experts}", *STAGES[method], *(("method.max_counts=[20]",) if method == "ace" else ()))
    for devices in (1, 2):
        strategy = ("trainer=ddp", f"trainer.devices={devices}") if devices > 1 else ()
        recipe = (*strategy, f"method={method}", *RECIPE, *SHORT, *own)
        done = run("train", *recipe, f"output_dir={tmp_path / str(devices)}", folder=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (tmp_path / devices for devices in "12")
    checkpoints = sorted(path.relative_to(one) for path in one.rglob("*.ckpt"))
    assert checkpoints
    for path in checkpoints:
        first, second = (torch.load(folder / path, weights_only=True)["state_dict"] for folder in (one, two))
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(
                second[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, at=(path, name): f"{at}: {text}"
            )
    details = [read_json(folder / "results.json")["details"] for folder in (one, two)]
    assert details[0].keys() == details[1].keys()
