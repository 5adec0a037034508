"""The frame around the commands: completion, types of overrides, folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(sys.executable).parent


def complete(line):
    """What the shell would be offered for a line that was begun."""
    done = subprocess.run(
        [str(SCRIPTS / line.split()[0]), "--shell-completion", "query=bash"],
        env={**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(not (SCRIPTS / "mllt-train").exists(), reason="mllt is not installed here, only importable")
def test_the_shell_completes_groups_options_and_settings():
    assert {"experiment=cifar10_lt", "experiment=cifar100_lt"} <= set(complete("mllt-train experiment=ci"))
    assert {"optimizer.lr=", "optimizer.momentum="} <= set(complete("mllt-train optimizer."))


def test_help_and_completion_do_not_wait_for_torch():
    code = "import sys, mllt.train, mllt.evaluate, mllt.predict, mllt.probe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimizer.lr=1"],  # a whole number is a number
        ["optimizer.ema_decay=0.9"],  # the default is null: any type
        ["trainer.limit_train_batches=3"],
        ["trainer.devices=[0]"],
        ["trainer.precision=bf16-mixed"],
        ["name=2024"],
        ["data.imbalance_factor=12.5"],
        ["evaluation.test_prior_factor=12.5"],
        ["evaluation.test_prior=[1,2]"],
        ["schedule=multistep", "schedule.milestones=[10, 20]"],
        ["+extra.thing=1"],
        ["~callbacks.progress"],
    ],
    ids=str,
)
def test_overrides_of_a_fitting_type_are_taken(mllt_compose, arguments):
    assert mllt_compose(arguments) is None, "no error"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optimizer.lr=true"], "`optimizer.lr` to be a number"),
        (["seed=1.5"], "`seed` to be a whole number"),
        (["schedule=multistep", "schedule.milestones=3"], "`schedule.milestones` to be a list"),
        (["data.augment=yes please"], "`data.augment` to be true or false"),
    ],
    ids=str,
)
def test_overrides_of_another_type_are_refused(mllt_compose, arguments, said):
    with pytest.raises(Exception, match=said):
        mllt_compose(arguments)


@pytest.fixture
def mllt_compose():
    """Compose and check overrides as `mllt.cli.run` does before the task runs."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from mllt.cli import CONFIG_MODULE, check_override_types

    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):

        def composed(arguments):
            config = compose("train", overrides=arguments, return_hydra_config=True)
            check_override_types("train", arguments, OmegaConf.to_container(config.hydra.runtime.choices))

        yield composed
