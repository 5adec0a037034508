"""Files that mean harm, given to each command: nothing of theirs runs, and the answer is one line and exit status 2."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from PIL import Image
from tests import hostile
from tests.commands.conftest import SMALL

from mllt.checkpoint import read_checkpoint


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run that a test may write into, with its last checkpoint only: there is none to fall back on."""
    copy = shutil.copytree(trained, tmp_path / "run")
    for path in (copy / "checkpoints").iterdir():
        if path.name != "last.ckpt":
            path.unlink()
    return copy


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def last(run):
    return run / "checkpoints" / "last.ckpt"


def picture(folder):
    folder.mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(folder / "a.png")
    return folder


#: The run was trained so, but for its epochs.
MORE = ("trainer.max_epochs=3", "data.val_fraction=0.2")
#: Each command that opens a checkpoint, as it is typed.
DOORS = {
    "evaluate": lambda run, tmp: ["evaluate", f"checkpoint={last(run)}"],
    "predict": lambda run, tmp: [
        "predict",
        f"checkpoint={last(run)}",
        f"input={picture(tmp / 'pictures')}",
        f"output={tmp / 'predicted.csv'}",
    ],
    "probe": lambda run, tmp: ["probe", f"checkpoint={last(run)}"],
    "resume=PATH": lambda run, tmp: ["train", *SMALL, *MORE, f"resume={last(run)}", f"output_dir={tmp / 'new'}"],
    "resume=auto": lambda run, tmp: ["train", *SMALL, *MORE, "resume=auto", f"output_dir={run}"],
    "method.teacher=PATH": lambda run, tmp: [
        *("train", *SMALL, "method=dive", "network.num_experts=1"),
        *(f"method.teacher={last(run)}", f"output_dir={tmp / 'new'}"),
    ],
    "method.features=PATH": lambda run, tmp: [
        *("train", *SMALL, "method=crt", "network.num_experts=1"),
        *(f"method.features={last(run)}", f"output_dir={tmp / 'new'}"),
    ],
}


def check_refused(done, canary):
    assert done.status == 2, done.err
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert lines[-1].startswith("Error: ")
    assert "Traceback" not in done.err
    assert "\x1b" not in done.err
    assert len(done.err) < 4000
    assert not canary.exists()
    return lines[-1]


@pytest.mark.parametrize("door", DOORS)
def test_no_door_runs_what_a_checkpoint_holds(mllt_command, run, tmp_path, canary, door):
    torch.save({**torch.load(last(run)), "extra": hostile.GADGETS["os.system"](canary)}, last(run))
    message = check_refused(mllt_command(*DOORS[door](run, tmp_path)), canary)
    assert "posix.system" in message


@pytest.mark.parametrize("door", DOORS)
def test_no_door_opens_to_what_is_no_checkpoint_or_asks_for_much(mllt_command, run, tmp_path, canary, door):
    content = read_checkpoint(last(run))
    weight = next(name for name, value in content["state_dict"].items() if value.dim() == 4)
    for changed in (
        {**content, "state_dict": {**content["state_dict"], weight: torch.zeros(1).expand(2**16, 2**16)}},
        hostile.put(content, "mllt.class_names", [["nested"]]),
        hostile.put(content, "epoch", "last"),
    ):
        torch.save(changed, last(run))
        check_refused(mllt_command(*DOORS[door](run, tmp_path)), canary)
    last(run).write_bytes(last(run).read_bytes()[:5000])
    assert "cut off" in check_refused(mllt_command(*DOORS[door](run, tmp_path)), canary)


@pytest.mark.parametrize("door", ["evaluate", "predict", "method.teacher=PATH"])
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("hyper_parameters.num_experts", 10**9),
        ("hyper_parameters.network", "\x1b[31mresnet20"),
        ("hyper_parameters._target_", "os.system"),
        ("mllt.method", "\x1b[2J"),
    ],
)
def test_settings_in_a_checkpoint_build_nothing_but_its_network(mllt_command, run, tmp_path, canary, door, place, value):
    torch.save(hostile.put(read_checkpoint(last(run)), place, value), last(run))
    check_refused(mllt_command(*DOORS[door](run, tmp_path)), canary)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("optimizer_states.0.param_groups.0.lr", "fast"),
        ("optimizer_states.0.state.0", {"momentum_buffer": torch.zeros(3)}),
        ("lr_schedulers.0.last_epoch", "x"),
        ("loops.fit_loop", {}),
        ("loops.fit_loop.epoch_progress.current.processed", 0),  # as before its two epochs
        ("epoch", 2),
        ("callbacks.RunProgress", {"train_seconds": "x", "images": 0}),
        ("callbacks.Provenance", {"commits": [], "settings": []}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_does_not_go_on_from_what_no_run_writes(mllt_command, run, tmp_path, canary, place, value):
    torch.save(hostile.put(read_checkpoint(last(run)), place, value), last(run))
    message = check_refused(mllt_command(*DOORS["resume=auto"](run, tmp_path)), canary)
    assert place.split(".")[0] in message


def test_a_run_that_goes_on_from_a_good_one_ends(mllt_command, run, tmp_path):
    assert mllt_command(*DOORS["resume=auto"](run, tmp_path)).status == 0


def test_a_run_that_goes_on_deletes_no_file_that_a_checkpoint_names(mllt_command, run, tmp_path, canary):
    precious = tmp_path / "precious"
    precious.mkdir()
    content = read_checkpoint(last(run))
    for name, state in content["callbacks"].items():
        if "best_model_path" in state:
            path = f"{run / 'checkpoints'}/../../precious"
            content = {**content, "callbacks": {**content["callbacks"], name: {**state, "best_model_path": path}}}
    torch.save(content, last(run))
    assert "could delete" in check_refused(mllt_command(*DOORS["resume=auto"](run, tmp_path)), canary)
    assert precious.exists()


STORED = [
    ("the environment", {"data.root": "${oc.env:SECRET}"}, "refers to"),
    ("a resolver", {"seed": "${oc.decode:'1'}"}, "refers to"),
    ("hydra's choice", {"hydra.run.dir": "${hydra:runtime.cwd}"}, "refers to"),
    ("another class", {"data._target_": "os.system"}, "data module of mllt.data"),
    ("a class of a module beside", {"data._target_": "mllt.data.os.abort"}, "importing 'mllt.data.os.abort' failed"),
    ("a function of ours", {"data._target_": "mllt.data.base.fingerprint"}, "to be a LongTailedDataModule"),
    ("a class that is no data module", {"data._target_": "mllt.data.FileSource"}, "to be a LongTailedDataModule"),
    ("a class that is not whole", {"data._target_": "mllt.data.LongTailedDataModule"}, "to hold settings of `data` that fit"),
    ("no text", {"data._target_": ["mllt.data.DigitsLT"]}, "data module of mllt.data"),
    ("a target within", {"data.profile": {"_target_": "os.system", "command": "touch canary"}}, "`profile`"),
    ("a target beside", {"data.more": {"_target_": "os.system"}}, "do not fit"),
    ("a partial", {"data._partial_": True}, "do not fit"),
    ("positional arguments", {"data._args_": ["touch canary"]}, "do not fit"),
    ("no data", {"data": None}, "settings of `data`"),
    ("a list for data", {"data": [1]}, "settings of `data`"),
    ("a text for a number", {"data.imbalance_factor": "x"}, "`imbalance_factor`"),
    ("a table for a number", {"data.imbalance_factor": {"a": 1}}, "`imbalance_factor`"),
    ("a text for the seed", {"seed": "x"}, "the run's seed"),
    ("a text for the batch", {"batch_size": "x"}, "`batch_size`"),
    ("data elsewhere", {"data._target_": "mllt.data.CIFAR100LT", "data.root": "/etc"}, "/etc"),
    ("a path that is none", {"data._target_": "mllt.data.CIFAR100LT", "data.root": "a\0b"}, ""),
    ("a number for a path", {"data._target_": "mllt.data.CIFAR100LT", "data.root": 5}, ""),
    ("lists elsewhere", {"data._target_": "mllt.data.ImageFolderLT", "data.train_list": "/etc/passwd", "data.root": "/"}, ""),
]


@pytest.mark.parametrize(("changes", "said"), [case[1:] for case in STORED], ids=[case[0] for case in STORED])
def test_stored_settings_choose_no_code_and_no_secret(mllt_command, run, canary, monkeypatch, changes, said):
    monkeypatch.setenv("SECRET", "s3cr3t")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    if str(changes.get("data._target_")).startswith("mllt.data."):
        settings["data"] = {}
    for name, value in changes.items():
        *above, leaf = name.split(".")
        section = settings
        for part in above:
            section = section.setdefault(part, {})
        section[leaf] = value
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    message = check_refused(mllt_command("evaluate", f"checkpoint={last(run)}"), canary)
    assert said in message
    assert "s3cr3t" not in message


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['touch canary']\n", "a: &a [*a]\n", "[1]\n", "3\n", "data: [\n", "\x00", ""],
    ids=lambda text: repr(text)[:30],
)
def test_a_config_that_is_no_settings_is_one_line(mllt_command, run, canary, text):
    (run / "config.yaml").write_text(text)
    assert str(run / "config.yaml") in check_refused(mllt_command("evaluate", f"checkpoint={last(run)}"), canary)


def test_the_machine_and_not_the_folder_says_how_many_processes_load_images(mllt_command, run, monkeypatch):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["num_workers"] = 100_000
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert mllt_command("evaluate", f"checkpoint={last(run)}", "limit_batches=1").status == 0


def test_report_opens_no_checkpoint(mllt_command, run, canary):
    last(run).write_bytes(b"")
    torch.save({"x": hostile.GADGETS["os.system"](canary)}, run / "checkpoints" / "best.ckpt")
    done = mllt_command("report", run)
    assert done.status == 0, done.err
    assert not canary.exists()
