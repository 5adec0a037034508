"""Every shipped experiment: what it composes to, that it builds its module, and that it trains with the command."""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.resources
import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from tests.data.make_images import real_data, save_coco, save_list, save_pictures

import mllt
from mllt import cli
from mllt.build import build_data, build_module, plain
from mllt.data import CIFAR10LT, CIFAR100LT
from mllt.data.base import LongTailedDataModule
from mllt.optim import milestone_epochs
from mllt.train import train

CONF = Path(str(importlib.resources.files("mllt.conf")))
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and any(path.glob("*.yaml")))


def options(group: str) -> list[str]:
    """What a group offers: found by listing, so that a new one is tested, too."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@functools.cache
def composed(*overrides: str, command: str = "train", with_hydra: bool = False) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_module(cli.CONFIG_MODULE, version_base="1.3"):
        return compose(command, overrides=list(overrides), return_hydra_config=with_hydra)


def named(target: str) -> Any:
    """The class or function of a `_target_`."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def arguments(of: Any) -> dict[str, inspect.Parameter]:
    """All arguments of a function, or of a class: where `**more` passes arguments on to the base class, that one's too."""
    if not inspect.isclass(of):
        return dict(inspect.signature(of).parameters)
    found: dict[str, inspect.Parameter] = {}
    for cls in of.__mro__:
        if "__init__" not in vars(cls):
            continue
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        for parameter in parameters:
            if parameter.kind is not parameter.VAR_KEYWORD:
                found.setdefault(parameter.name, parameter)
        if parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
            break
    return found


def unlike_defaults(settings: dict[str, Any], of: Any) -> dict[str, Any]:
    """Settings whose default is another one than the argument's."""
    known = arguments(of)
    as_list = {k: list(v.default) if isinstance(v.default, tuple) else v.default for k, v in known.items()}
    return {name: value for name, value in settings.items() if value != as_list[name]}


# ---------------------------------------------------------------------------------------------------------------
# What experiments compose to


# Table A1 of the paper: lr, global batch size, weight decay, epochs, schedule. For iNaturalist 2018 it prints a weight
# decay of 1e-1, a misprint of 1e-4. Two data sets that it does not have borrow a row.
CIFAR_ROW = (0.1, 128, 5e-4, 200, "multistep")
IMAGENET_ROW = (0.025, 64, 5e-4, 180, "cosine")
TABLE_A1 = {
    "cifar100_lt": CIFAR_ROW,
    "cifar100_lt_strong": (0.1, 128, 5e-4, 400, "multistep"),
    "cifar10_lt": CIFAR_ROW,
    "imagenet_lt": IMAGENET_ROW,
    "imagenet_lt_resnext50": IMAGENET_ROW,
    "places_lt": IMAGENET_ROW,
    "inat2018": (0.1, 256, 1e-4, 200, "cosine"),
    "inat2018_as_printed": (0.1, 256, 1e-1, 200, "cosine"),
}
NETWORKS = {
    "cifar100_lt": "resnet32",
    "cifar100_lt_strong": "resnet32",
    "cifar10_lt": "resnet32",
    "imagenet_lt": "resnet50",
    "imagenet_lt_resnext50": "resnext50",
    "places_lt": "resnet50",
    "inat2018": "resnet50",
    "inat2018_as_printed": "resnet50",
}


@pytest.mark.parametrize("name", TABLE_A1)
def test_recipe_is_that_of_table_a1(name):
    config = composed(f"experiment={name}")
    recipe = (config.optimizer.lr, config.batch_size, config.optimizer.weight_decay, config.trainer.max_epochs)
    assert (*recipe, config.schedule.name) == TABLE_A1[name]
    assert (config.optimizer.momentum, config.optimizer.nesterov) == (0.9, False)


@pytest.mark.parametrize("name", TABLE_A1)
def test_network_is_three_experts_of_the_papers_architecture(name):
    config = composed(f"experiment={name}")
    assert (config.network.name, config.network.num_experts) == (NETWORKS[name], 3)
    assert named(config.method._target_).method == "mutual"


def test_schedules_are_those_of_the_literature():
    multistep = composed("experiment=cifar100_lt").schedule
    assert milestone_epochs(multistep.milestones, 200) == [160, 180]
    assert (multistep.gamma, multistep.warmup_epochs) == (0.1, 5)
    assert composed("experiment=imagenet_lt").schedule == {"name": "cosine", "warmup_epochs": 0, "warmup_start": None}


def test_the_strong_recipe_differs_from_the_papers_in_epochs_and_augmentation_only():
    strong, own = (plain(composed(f"experiment={name}")) for name in ("cifar100_lt_strong", "cifar100_lt"))
    assert (strong["data"].pop("autoaugment"), strong["data"].pop("cutout")) == ("cifar10", 16)
    assert (own["data"].pop("autoaugment"), own["data"].pop("cutout")) == (None, 0)
    assert milestone_epochs(strong["schedule"]["milestones"], strong["trainer"].pop("max_epochs")) == [320, 360]
    del own["trainer"]["max_epochs"], own["name"], strong["name"]
    assert strong == own


@pytest.mark.parametrize("name", options("experiment"))
def test_experiment_has_the_name_of_its_file(name):
    assert composed(f"experiment={name}").name == name


def test_only_the_printed_recipe_of_inaturalist_warns():
    warnings = {name: composed(f"experiment={name}").warning for name in options("experiment")}
    assert [name for name, text in warnings.items() if text] == ["inat2018_as_printed"]
    assert "misprint of 1e-4" in warnings["inat2018_as_printed"]
    printed, repaired = (plain(composed(f"experiment={name}")) for name in ("inat2018_as_printed", "inat2018"))
    for config in (printed, repaired):
        del config["name"], config["warning"], config["optimizer"]["weight_decay"]
    assert printed == repaired


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in options(group)])
def test_every_option_of_every_group_composes(group, option):
    config = composed(f"{group}={option}")
    assert OmegaConf.to_container(config, resolve=True)["name"] in options("experiment")
    # an option may set what it likes: a slip of the pen would make a new setting that nobody reads
    assert set(config) == set(composed())
    assert set(config.trainer) - {"compile", "tf32", "on_nonfinite", "max_nonfinite"} <= set(arguments(L.Trainer))
    # only one's own pictures need a place from the start
    assert OmegaConf.missing_keys(config) == ({"data.root"} if option == "folder_lt" else set())


@pytest.mark.parametrize("option", options("sweep"))
def test_sweep_runs_over_settings_that_there_are(option):
    config = composed("experiment=cifar100_lt", f"sweep={option}", with_hydra=True)
    assert config.hydra.mode.name == "MULTIRUN"
    for key in config.hydra.sweeper.params:
        assert OmegaConf.select(config, key) is not None, key


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_other_commands_compose(command):
    assert OmegaConf.is_missing(composed(command=command), "checkpoint")


def test_cross_entropy_is_one_network_unless_told_otherwise():
    assert composed("experiment=imagenet_lt", "method=cross_entropy").network.num_experts == 1
    assert composed("experiment=imagenet_lt", "method=cross_entropy", "network.num_experts=3").network.num_experts == 3


# ---------------------------------------------------------------------------------------------------------------
# Nothing is hidden from the command line


@pytest.mark.parametrize("option", options("data"))
def test_every_argument_of_a_data_module_is_a_setting(option):
    section = OmegaConf.to_container(composed(f"data={option}").data)
    cls = named(section.pop("_target_"))
    assert set(section) == set(arguments(cls)) - {"batch_size", "seed"}


def method_settings(config: DictConfig) -> dict[str, Any]:
    """What the groups that describe a method say, by the names of the class's arguments."""
    method, network, schedule = plain(config.method), plain(config.network), plain(config.schedule)
    del method["_target_"]
    sections = [method, network, plain(config.optimizer), schedule, plain(config.evaluation)]
    network["network"], schedule["schedule"] = network.pop("name"), schedule.pop("name")
    settings = {name: value for section in sections for name, value in section.items()}
    assert len(settings) == sum(map(len, sections)), "two groups have a setting of the same name"
    return settings


METHODS = [f"method={option}" for option in options("method")]
OTHERS = [f"{group}={option}" for group in ("network", "optimizer", "evaluation") for option in options(group)]


@pytest.mark.parametrize("choice", [*METHODS, *OTHERS])
def test_every_argument_of_a_method_is_a_setting_with_its_default(choice):
    config = composed("experiment=cifar100_lt", choice)
    settings, cls = method_settings(config), named(config.method._target_)
    assert set(settings) == set(arguments(cls)) - {"class_counts", "class_names", "preprocessing"}
    del settings["network"]
    assert unlike_defaults(settings, cls) == ({"num_experts": 4} if choice == "method=ace" else {}), "ACE's number on CIFAR"


@pytest.mark.parametrize("schedule", options("schedule"))
def test_only_the_multistep_schedule_has_milestones(schedule):
    there, everything = (method_settings(composed(f"schedule={name}")) for name in (schedule, "multistep"))
    missing = set(everything) - set(there)
    assert missing == (set() if schedule == "multistep" else {"milestones", "gamma"})


def test_every_argument_of_a_callback_is_a_setting():
    for callback in plain(composed().callbacks).values():
        assert set(callback) - {"_target_"} == set(arguments(named(callback["_target_"])))


@pytest.mark.parametrize("option", ["tensorboard", "wandb"])
def test_every_argument_of_a_logger_is_a_setting(option):
    section = plain(composed(f"logger={option}").logger)
    make = named(section.pop("_target_"))
    assert set(section) == set(arguments(make)) - {"folder", "config"}
    assert unlike_defaults(section, make) == {}


# Where a command is better served otherwise than a line of Python: loaders of their own size and with processes.
IN_MEMORY, ON_DISK = {"eval_batch_size": 500}, {"num_workers": 8}
DATA_UNLIKE_CLASS = {
    "digits_lt": IN_MEMORY,
    "cifar10_lt": IN_MEMORY,
    "cifar100_lt": IN_MEMORY,
    "imagenet_lt": ON_DISK,
    "places_lt": ON_DISK,
    "inat2018": ON_DISK,
    "folder_lt": {"num_workers": 2},
}


@pytest.mark.parametrize("option", options("data"))
def test_data_settings_have_the_defaults_of_their_class(option):
    section = OmegaConf.to_container(composed(f"data={option}").data)
    cls = named(section.pop("_target_"))
    section.pop("root", None)
    assert unlike_defaults(section, cls) == DATA_UNLIKE_CLASS[option]


@pytest.mark.parametrize("option", options("data"))
def test_data_settings_that_may_be_fractions_do_not_default_to_whole_numbers(option):
    # a default of 100 would have the command line refuse 12.5; one of 100.0 takes both
    section = OmegaConf.to_container(composed(f"data={option}").data)
    for name, parameter in arguments(named(section["_target_"])).items():
        value = section.get(name)
        if "float" in str(parameter.annotation) and isinstance(value, int | float):
            assert isinstance(value, float), name


# ---------------------------------------------------------------------------------------------------------------
# Pictures in the layout of each data set

# One class of each shot group
COUNTS = (101, 20, 5)
PATHS = {
    "ImageNetLT": {
        "ImageNet_LT_train.txt": "train/n{k}/n{k}_{i}.JPEG",
        "ImageNet_LT_val.txt": "train/n{k}/n{k}_9{i}00.JPEG",
        "ImageNet_LT_test.txt": "val/n{k}/ILSVRC2012_val_{k}{i}.JPEG",
    },
    "PlacesLT": {
        "Places_LT_train.txt": "train/barn{k}/0000{i}.jpg",
        "Places_LT_val.txt": "train/barn{k}/1000{i}.jpg",
        "Places_LT_test.txt": "val/barn{k}/Places365_val_0{i}.jpg",
    },
    "INaturalist2018": {
        "iNaturalist18_train.txt": "train_val2018/Aves/{k}/{i}.jpg",
        "iNaturalist18_val.txt": "train_val2018/Aves/{k}/test{i}.jpg",
    },
    "ImageFolderLT": {"train": "train/cell{k}/{i}.jpg", "test": "test/cell{k}/{i}.jpg"},
}


def rows(layout: str) -> dict[str, list[tuple[str, int]]]:
    """Path and label of the pictures in each list: training pictures by `COUNTS`, two per class in the others."""
    return {
        name: [(path.format(k=k, i=i), k) for k, count in enumerate(COUNTS) for i in range(count if "train" in name else 2)]
        for name, path in PATHS[layout].items()
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Path]:
    """Folders with generated pictures, by the name of the class that reads them."""
    found = {}
    for layout in PATHS:
        found[layout] = root = tmp_path_factory.mktemp(layout)
        for name, entries in rows(layout).items():
            save_pictures(root, [path for path, _ in entries])
            if name.endswith(".txt"):
                save_list(root / name, entries)
    return found


def blank_cifar(num_classes: int) -> Callable[..., Any]:
    """Stands in for torchvision's class: the real labels' counts, black pictures."""

    def dataset(root: str, *, train: bool, download: bool) -> Any:
        labels = np.repeat(np.arange(num_classes), (50_000 if train else 10_000) // num_classes)
        images = np.zeros((len(labels), 32, 32, 3), np.uint8)
        return SimpleNamespace(data=images, targets=labels.tolist(), classes=[f"class {k}" for k in range(num_classes)])

    dataset.__name__ = f"CIFAR{num_classes}"
    return dataset


@pytest.fixture
def without_cifar(monkeypatch):
    """CIFAR's files are large, and those of CIFAR-10 seldom at hand: here their contents do not matter."""
    for cls in (CIFAR10LT, CIFAR100LT):
        monkeypatch.setattr(cls, "dataset", staticmethod(blank_cifar(50_000 // cls.max_count)))


def data_of(config: DictConfig, pictures: dict[str, Path]) -> LongTailedDataModule:
    section = OmegaConf.to_container(config.data)
    name = named(section["_target_"]).__name__
    if name in pictures:
        section["root"] = pictures[name]
        section["num_workers"] = 0
    return build_data(section, batch_size=config.batch_size, seed=config.seed)


# ---------------------------------------------------------------------------------------------------------------
# Instantiation


@pytest.mark.usefixtures("without_cifar")
@pytest.mark.parametrize("name", options("experiment"))
def test_experiment_builds_its_module_for_its_data(name, pictures):
    config = composed(f"experiment={name}")
    data = data_of(config, pictures)
    module = build_module(config, data)
    assert (module.num_experts, module.num_classes) == (config.network.num_experts, data.num_classes)
    assert module.class_counts.tolist() == data.class_counts.tolist()
    assert module.preprocessing == data.preprocessing
    hp = module.hparams
    assert (hp["network"], hp["lr"], hp["weight_decay"]) == (
        config.network.name,
        config.optimizer.lr,
        config.optimizer.weight_decay,
    )


def test_logits_are_experts_by_batch_by_classes_for_pictures_of_224(pictures):
    config = composed("experiment=imagenet_lt", "batch_size=2")
    data = data_of(config, pictures)
    batch = next(iter(data.test_dataloader()))
    assert batch.images.shape == (2, 3, 224, 224)
    with torch.inference_mode():
        assert build_module(config, data).eval()(batch.images).shape == (3, 2, 3)


# ---------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def command(monkeypatch):
    """`python -m mllt.train` in this process, which is quicker than a new one; leaves no trace in it."""

    def run(*overrides: str) -> Any:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["mllt-train", *overrides])
        return cli.run(train, "train")

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with patch.dict(os.environ):
        yield run
    GlobalHydra.instance().clear()
    root.handlers[:], root.level = handlers, level
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def folder(tmp_path):
    """Where a run goes; checkpoints are large, so they do not stay."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


SHORT = [
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_test_batches=1",
    "trainer.accelerator=cpu",
    "data.num_workers=0",
    "data.eval_batch_size=6",
    "batch_size=4",
]
SMALL = ["data.image_size=64", "network=resnet20"]


def results_of(folder: Path, name: str) -> dict[str, Any]:
    """The results of a finished run, after a look at all that its folder must hold."""
    assert OmegaConf.load(folder / "config.yaml").name == name
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        measured = {column for row in csv.DictReader(file) for column, value in row.items() if value}
    assert {"train/loss", "test/raw/all", "test/compensated/all"} <= measured
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    fixed = {key: results[key] for key in ("experiment", "seed", "epochs", "global_batch_size")}
    assert fixed == {"experiment": name, "seed": 0, "epochs": 1, "global_batch_size": 4}
    assert mllt.load_checkpoint(folder / "checkpoints/last.ckpt").class_counts.tolist() == results["class_counts"]
    assert sum(results["shot_groups"].values()) == len(results["class_counts"])
    assert set(results["shot_groups"]) == {"many", "medium", "few"}
    for row in [results["test"]["ensemble"], *results["test"]["experts"]]:
        for kind in ("raw", "compensated"):
            assert {"many", "medium", "few", "all", "ece"} <= set(row[kind])
            assert all(value is None or 0 <= value <= 100 for value in row[kind].values())
            assert row[kind]["all"] is not None
            assert row[kind]["ece"] is not None
    assert results["train_seconds"] > 0
    assert results["images_per_second"] > 0
    assert {"python", "mllt", "torch", "lightning"} <= set(results["versions"])
    assert results["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty-[0-9a-f]{8})?", results["git_commit"])
    return results


def assert_tells_all_groups(results: dict[str, Any]) -> None:
    """For the generated pictures, whose test images are few enough to fit one batch."""
    assert results["class_counts"] == list(COUNTS)
    assert results["shot_groups"] == {"many": 1, "medium": 1, "few": 1}
    for row in [results["test"]["ensemble"], *results["test"]["experts"]]:
        assert None not in [*row["raw"].values(), *row["compensated"].values()]


@pytest.mark.parametrize("name", ["imagenet_lt", "inat2018", "places_lt", "folder_lt"])
def test_experiment_of_pictures_trains_and_leaves_its_folder(name, pictures, command, folder):
    data = pictures[composed(f"experiment={name}").data._target_.rpartition(".")[2]]
    score = command(f"experiment={name}", f"data.root={data}", f"output_dir={folder}", *SHORT, *SMALL)
    results = results_of(folder, name)
    assert_tells_all_groups(results)
    assert (results["method"], len(results["test"]["experts"])) == ("mutual", 3)
    assert 0 <= score <= 100
    # the data sets with a list of validation pictures also keep the best epoch
    assert (folder / "checkpoints/best.ckpt").exists() == (name in ("imagenet_lt", "places_lt"))


def test_inaturalist_trains_from_the_official_json(pictures, command, folder, tmp_path):
    (tmp_path / "lists").mkdir()
    categories = {10: "finch", 20: "wren", 30: "crow"}
    for name, entries in zip(("train2018", "val2018"), rows("INaturalist2018").values(), strict=True):
        save_coco(tmp_path / f"lists/{name}.json", [(path, 10 * (k + 1)) for path, k in entries], categories)
    where = [f"data.root={pictures['INaturalist2018']}", f"data.list_dir={tmp_path / 'lists'}", f"output_dir={folder}"]
    command("experiment=inat2018", *where, *SHORT, *SMALL)
    results = results_of(folder, "inat2018")
    assert_tells_all_groups(results)
    assert results["class_names"] == ["finch", "wren", "crow"]


def test_printed_recipe_says_its_warning_before_it_trains(pictures, command, folder, capsys):
    where = [f"data.root={pictures['INaturalist2018']}", f"output_dir={folder}"]
    command("experiment=inat2018_as_printed", *where, *SHORT, *SMALL)
    said = capsys.readouterr().out
    assert said.index("Note: Table A1 prints a weight decay of 1e-1") < said.index("top-1")


@pytest.mark.parametrize("layout", ["class folders", "lists"])
def test_folder_experiment_trains_on_blood_cells(layout, command, folder):
    data = real_data("bccd-cells")
    where = [f"data.root={data / 'images'}"]
    if layout == "lists":
        where = [f"data.root={data}", "data.train_list=bccd_train.txt", "data.test_list=bccd_test.txt"]
    command("experiment=folder_lt", *where, f"output_dir={folder}", *SHORT, *SMALL)
    results = results_of(folder, "folder_lt")
    assert results["class_names"] == ["Platelets", "RBC", "WBC"]
    # of 361, 4,153 and 372 pictures in folders a fifth is held out; the lists have a test split of their own
    assert results["class_counts"] == ([289, 3322, 298] if layout == "class folders" else [209, 2381, 214])


def test_cifar100_trains_on_the_real_pictures(command, folder):
    root = real_data("cifar-100-python").parent
    command("experiment=cifar100_lt", f"data.root={root}", f"output_dir={folder}", *SHORT)
    results = results_of(folder, "cifar100_lt")
    assert (results["network"], len(results["test"]["experts"])) == ("resnet32", 3)
    assert sum(results["class_counts"]) == 10_847
    assert results["shot_groups"] == {"many": 35, "medium": 35, "few": 30}


def test_digits_train(command, folder):
    command("experiment=digits_lt", f"output_dir={folder}", *SHORT)
    results = results_of(folder, "digits_lt")
    assert results["class_counts"] == [120, 76, 48, 30, 19, 12, 7, 4, 3, 2]
    assert results["shot_groups"] == {"many": 1, "medium": 3, "few": 6}


@pytest.mark.usefixtures("without_cifar")
def test_cifar10_trains(command, folder):
    command("experiment=cifar10_lt", f"output_dir={folder}", *SHORT, "network=resnet20")
    results = results_of(folder, "cifar10_lt")
    assert results["class_counts"] == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet_lt", "imagenet_lt_resnext50", "folder_lt"])
def test_experiment_trains_with_its_own_network(name, pictures, command, folder):
    config = composed(f"experiment={name}")
    data = pictures[config.data._target_.rpartition(".")[2]]
    command(f"experiment={name}", f"data.root={data}", f"output_dir={folder}", *SHORT, "data.image_size=64")
    results = results_of(folder, name)
    assert_tells_all_groups(results)
    assert results["network"] == config.network.name


def in_new_process(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLLT_", "HYDRA_"))}
    command = [sys.executable, "-m", "mllt.train", *overrides]
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_default_trains_as_a_command(folder, tmp_path):
    done = in_new_process(f"output_dir={folder}", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results_of(folder, "digits_lt")
    for said in ("Digits-LT", "ensemble", "expert 3", str(folder)):
        assert said in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "a run stays in its folder"


# ---------------------------------------------------------------------------------------------------------------
# Without the data


@pytest.mark.slow
def test_command_without_imagenet_tells_how_to_get_it_and_fails(tmp_path):
    done = in_new_process("experiment=imagenet_lt", cwd=tmp_path)
    assert done.returncode == 2
    assert_one_line(done.stderr)
    assert_says_how_to_get(done.stderr, "imagenet_lt", Path("data/ImageNet_LT"))
    assert list(tmp_path.rglob("*.ckpt")) == []


HOW_TO_GET = {
    "imagenet_lt": [
        "image-net.org",
        "OpenLongTailRecognition-OLTR",
        "train/<wnid>/",
        "git hash-object",
        "ImageNet_LT_train.txt",
    ],
    "places_lt": ["places2.csail.mit.edu", "train/<category>/", "git hash-object", "Places_LT_train.txt"],
    "inat2018": ["visipedia/inat_comp", "train_val2018/", "git hash-object", "iNaturalist18_train.txt", "train2018.json"],
    "cifar100_lt": ["www.cs.toronto.edu", "cifar-100-python/", "md5sum", "data.download=true"],
    "cifar10_lt": ["www.cs.toronto.edu", "cifar-10-batches-py/", "md5sum", "data.download=true"],
    "folder_lt": ["train/<class>/", "test/<class>/", "train_list"],
}


@pytest.mark.parametrize("name", HOW_TO_GET)
def test_missing_data_is_one_line_that_tells_how_to_get_it(name, command, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(f"experiment={name}", f"data.root={tmp_path / 'nothing'}", f"output_dir={tmp_path / 'run'}")
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert_one_line(said)
    assert_says_how_to_get(said, name, tmp_path / "nothing")


def assert_one_line(said: str) -> None:
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert said.endswith("\n")


def assert_says_how_to_get(said: str, name: str, root: Path) -> None:
    for words in [*HOW_TO_GET[name], str(root)]:
        assert words in said


def test_folder_experiment_without_a_folder_asks_for_one(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("experiment=folder_lt", f"output_dir={tmp_path / 'run'}")
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert_one_line(said)
    assert "Type data.root=" in said
