"""Real small runs on digits, and copies of them that are made to say something else."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from tests.commands.conftest import SMALL

# The quick ones, where PyYAML has them.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def train(folder, *arguments):
    """`python -m mllt.train ...` in this process."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", ["mllt-train", *SMALL, f"output_dir={folder}", *arguments])
        folder.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder.parent)
        importlib.import_module("mllt.train").main()
        GlobalHydra.instance().clear()
        for variable in ("MLLT_RUN_STAMP", "MLLT_FULL_ERROR"):
            os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Folders of finished runs by name; read them, do not change them."""
    root = tmp_path_factory.mktemp("real")
    for method, seeds in (("cross_entropy", (0,)), ("mutual", (0, 1)), ("crt", (0,))):
        experts = ["network.num_experts=1"] if method != "mutual" else []
        stage = ["method.head_epochs=1"] if method == "crt" else []
        for seed in seeds:
            train(root / f"{method}{seed}", f"method={method}", f"seed={seed}", *experts, *stage)
    return {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}


def copy(run: Path, place: Path, config=None, results=None, *, finished=True) -> Path:
    """A run copied to a place, with settings (by dotted name) and results changed."""
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("*.ckpt"))
    settings = yaml.load((place / "config.yaml").read_text(encoding="utf-8"), Loader)
    for name, value in (config or {}).items():
        *above, leaf = name.split(".")
        section = settings
        for part in above:
            section = section.setdefault(part, {})
        section[leaf] = value
    (place / "config.yaml").write_text(yaml.dump(settings, Dumper=Dumper), encoding="utf-8")
    told = json.loads((place / "results.json").read_text(encoding="utf-8"))
    told.update(seed=settings["seed"], **(results or {}))
    (place / "results.json").write_text(json.dumps(told), encoding="utf-8")
    if not finished:
        (place / "results.json").unlink()
    return place


@pytest.fixture
def made(tmp_path):
    """`made(run, "name", config={...}, results={...})` is a changed copy in the test's own folder `runs`."""

    def make(run, name, config=None, results=None, **more):
        return copy(run, tmp_path / "runs" / name, config, results, **more)

    return make


def read(run: Path):
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


#: Settings of a run on CIFAR100-LT as the literature has it.
CIFAR = {
    "name": "cifar100_lt",
    "data._target_": "mllt.data.CIFAR100LT",
    "data.imbalance_factor": 100.0,
    "data.padding": 4,
    "data.flip": True,
    "data.rotation": 0.0,
    "network.name": "resnet32",
    "trainer.max_epochs": 200,
    "trainer.limit_train_batches": 1.0,
}


def as_cifar(run: Path, **more):
    """Config and results that make a run on digits look as if it were one on CIFAR100-LT."""
    counts = [int(500 * 100 ** (-c / 99)) for c in range(100)]
    told = read(run)
    per_class = {kind: [float(c) for c in range(100)] for kind in ("raw", "compensated")}
    results = {
        "class_counts": counts,
        "class_names": [f"class {c}" for c in range(100)],
        "shot_groups": {"many": 35, "medium": 35, "few": 30},
        "epochs": 200,
        "stages": [{"name": "training", "epochs": 200}],
        "test": {**told["test"], "per_class": per_class},
        **more,
    }
    return dict(CIFAR), results
