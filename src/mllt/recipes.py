"""Recipes: what `recipe=published` and the files under `conf/recipe/` mean for a run.

Two folders hold settings by experiment and method, `recipe/{tuning,published}/EXPERIMENT/METHOD.yaml`. Those of `tuning` are a
method's own hyper-parameters on a data set, and go with every recipe; those of `published` are its authors' optimizer,
schedule, epochs and augmentation, and go with `recipe=published`. A user's `--config-dir` may hold more of both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mllt.errors import ArgumentError


def by_factor(table: Mapping[float, Any], *, _root_: DictConfig) -> Any:
    """`${mllt.by_factor:{100: 0.1, 50: 0.01}}`: the value for the data's imbalance factor, or for the nearest one in ratio.

    >>> by_factor({100: 0.1, 50: 0.01}, _root_=OmegaConf.create({"data": {"imbalance_factor": 60.0}}))
    0.01
    """
    return table[nearest(table, OmegaConf.select(_root_, "data.imbalance_factor"))]


def nearest(factors: Iterable[float], factor: float | None) -> float:
    """The nearest of some imbalance factors, in ratio; the first where the data tells none.

    >>> nearest([100, 50, 10], 25), nearest([100, 50, 10], None)
    (50, 100)
    """
    return min(factors, key=lambda known: abs(math.log(known / factor)) if factor is not None and factor > 0 else 0)


def when(condition: bool, then: Any, otherwise: Any) -> Any:
    """`${mllt.when:${method.distill},20,5}`: one of two values."""
    return then if condition else otherwise


def borrowed_values(config: DictConfig) -> list[str]:
    """A line for each of the method's settings that is published for other imbalance factors than the data's."""
    lines, factor = [], config.data.get("imbalance_factor")
    settings: dict[str, Any] = OmegaConf.to_container(config.method, resolve=False)  # type: ignore[assignment]
    for name, text in settings.items():
        table = re.match(r"\$\{mllt\.by_factor:(.*)\}$", text) if isinstance(text, str) else None
        factors = [float(known) for known in re.findall(r"([\d.]+)\s*:", table.group(1))] if table else []
        if factors and factor not in factors:
            known, data = nearest(factors, factor), "these data" if factor is None else f"data.imbalance_factor={factor:g}"
            value = config.method[name]
            lines.append(f"method.{name}={value} is published for an imbalance factor of {known:g}; for {data} nothing is.")
    return lines


def untuned(experiment: str, method: str) -> list[str]:
    """A line when a method's own settings are published for other data than the experiment's."""
    there = files("tuning")
    known = [name for name, methods in there.items() if method in methods]
    if not known or experiment in known:
        return []
    return [
        f"the settings of method={method} itself are known for experiment={', '.join(known)}; for experiment={experiment} "
        "they are its defaults."
    ]


def settle_recipe(config: DictConfig) -> None:
    """Look whether there is a recipe as asked for; a schedule that was typed takes the place of the recipe's as a whole.

    Raises:
        ArgumentError: `recipe=published`, and nothing is published of this method for this experiment.
    """
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    typed = list(hydra.overrides.task)
    if config.recipe != "paper" and any(override.startswith("schedule=") for override in typed):
        without = [override for override in typed if not override.startswith("recipe=")]
        loader = GlobalHydra.instance().config_loader()
        config.schedule = loader.load_configuration("train", overrides=without, run_mode=RunMode.RUN).schedule
    if config.recipe == "published":
        check_published(choices["experiment"], choices["method"])


def check_published(experiment: str, method: str) -> None:
    """Raise `ArgumentError` if there is no published recipe of a method for an experiment; says which there are."""
    there = files("published")
    folder, _, name = f"{experiment}/{method}".rpartition("/")
    if name in there.get(folder, []):
        return
    experiments = [known for known, methods in there.items() if method in methods]
    choices = [f"experiment={', '.join(experiments)}"] if experiments else []
    choices += [f"method={', '.join(there[experiment])}"] if experiment in there else []
    with_it = f"With recipe=published you may choose {', or '.join(choices)}."
    raise ArgumentError(
        f"There is no published recipe of method={method} for experiment={experiment}. "
        f"{with_it if choices else 'Nothing is published of that method, nor for that experiment.'} "
        "recipe=paper, the default, trains every method by the experiment's own recipe."
    )


def files(kind: str) -> dict[str, list[str]]:
    """The methods that have a file of that kind ("published" or "tuning"), by experiment; from where Hydra finds its files."""
    loader, there = GlobalHydra.instance().config_loader(), {}
    folders = [""]
    while folders:
        folder = folders.pop()
        group = f"recipe/{kind}/{folder}".rstrip("/")
        folders += [f"{folder}/{name}".lstrip("/") for name in loader.list_groups(group)]
        there[folder] = loader.get_group_options(group)
    return {experiment: sorted(methods) for experiment, methods in sorted(there.items()) if methods}
