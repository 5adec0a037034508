"""What may be averaged, and why the rest may not: experiments, and in them groups of runs that differ in the seed alone.

An experiment is a table: a data set, a network, a test prior. A group is a row of it: runs of one method that agree in every
setting which bears on the result, in the classes' training images, in the version and the commit of mllt, and in the epochs
they had. Settings that do not bear on it: where things lie, how many devices and processes did the work, what is logged.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllt.reporting.runs import Run

#: The paper's order of methods, and their names in the field.
NAMES = {
    "cross_entropy": "Cross Entropy",
    "pc_softmax": "PC Softmax",
    "balanced_softmax": "Balanced Softmax",
    "ldam_drw": "LDAM-DRW",
    "crt": "cRT",
    "lws": "LWS",
    "tau_norm": "τ-norm",
    "bbn": "BBN",
    "lade": "LADE",
    "mislas": "MiSLAS",
    "ssd": "SSD",
    "dive": "DIVE",
    "ride": "RIDE",
    "ace": "ACE",
    "mutual": "Mutual Learning",
}
#: Name of the data in `published.csv`, and as it is written.
DATA = {
    "CIFAR100LT": ("cifar100_lt", "CIFAR100-LT"),
    "CIFAR10LT": ("cifar10_lt", "CIFAR10-LT"),
    "ImageNetLT": ("imagenet_lt", "ImageNet-LT"),
    "INaturalist2018": ("inat2018", "iNaturalist 2018"),
    "PlacesLT": ("places_lt", "Places-LT"),
    "DigitsLT": ("digits_lt", "Digits-LT"),
}
#: Settings that do not bear on the result; a name with a dot stands for itself, one without for all below it, too.
NO_BEARING = {
    *("seed", "output_dir", "resume", "overwrite", "threads", "warning", "name", "recipe", "recipe_source"),
    *("logger", "callbacks", "hydra", "debug", "sweep", "launcher"),
    *("data.root", "data.list_dir", "data.download", "data.verify_files", "data.verify_lists"),
    *("data.num_workers", "data.eval_batch_size"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.profiler"),
    *("trainer.check_val_every_n_epoch", "trainer.limit_val_batches"),
    *("evaluation.test_prior", "evaluation.test_prior_factor"),  # told by the experiment
}
_LISTS = ("data.train_list", "data.test_list", "data.val_list")
_A_PATH = "a path"
_NONE = "not recorded"


@dataclass
class Group:
    """Runs that differ in the seed alone: a row of a table.

    Args:
        method: its name.
        runs: one for each seed, by seed; none where no run has finished.
        settings: what the runs agree in, by name: settings, class counts, versions, commit, epochs.
        incomplete: runs of the same settings without results.
        remarks: sentences on what was taken together, or left out.
        letter: "A", "B", ... where a method has several groups in an experiment, else "".
    """

    method: str
    runs: list[Run]
    settings: dict[str, str]
    incomplete: list[Run] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    letter: str = ""

    @property
    def title(self) -> str:
        """Name of the method, and the group's letter where it has several."""
        return NAMES.get(self.method, self.method) + (f" ({self.letter})" if self.letter else "")

    @property
    def first(self) -> dict[str, Any]:
        """The results of the first run, for what all of them agree in."""
        assert self.runs[0].results is not None  # finished: only those make a group
        return self.runs[0].results

    @property
    def results(self) -> list[dict[str, Any]]:
        """The results of each seed's run."""
        return [run.results for run in self.runs if run.results is not None]

    @property
    def epochs(self) -> int:
        """Of its longest stage."""
        if not self.runs:
            return int(self.incomplete[0].config["trainer"]["max_epochs"])
        stages = [int(stage["epochs"]) for stage in self.first.get("stages", [])]
        return max([*stages[:-1], int(self.first["epochs"])])

    @property
    def augmentation(self) -> str:
        """In the words of `published.csv`."""
        return augmentation((self.runs or self.incomplete)[0].config)


@dataclass
class Experiment:
    """A table: all runs on a data set with a network under a test prior.

    Args:
        title: data set, network, and the test prior where it is not uniform.
        dataset, imbalance_factor, network: by which published figures are found; the data set is "" for one without any.
        uniform: whether the test prior is uniform, as in all published figures.
        groups: its rows, in the order of `NAMES`, then by name.
    """

    title: str
    dataset: str
    imbalance_factor: float | None
    network: str
    uniform: bool
    groups: list[Group]

    @property
    def finished(self) -> list[Group]:
        """Groups with at least one finished run."""
        return [group for group in self.groups if group.runs]

    @property
    def slug(self) -> str:
        """The title as a file or an address may hold it."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def experiments(runs: Iterable[Run]) -> list[Experiment]:
    """Sort runs into experiments and groups.

    Unfinished runs stand with the group of the same settings, or, where there is none, in one of their own.

    Returns:
        Experiments by title; each with its groups, and remarks and letters set.
    """
    tables: dict[tuple[Any, ...], list[Run]] = {}
    runs = sorted(runs, key=lambda run: (not run.finished, str(run.folder.root)))
    for run in runs:
        key = _identity(run)
        if not run.finished:  # its classes are not known: those of the first experiment that fits otherwise
            key = next((known for known in tables if known[:-1] == key[:-1]), key)
        tables.setdefault(key, []).append(run)
    found = [_experiment(members) for members in tables.values()]
    titles = [experiment.title for experiment in found]
    for number, experiment in enumerate(found):
        if titles.count(experiment.title) > 1:  # the same names, but other classes
            experiment.title += f" ({titles[: number + 1].count(experiment.title)})"
    return sorted(found, key=lambda experiment: experiment.title)


def _identity(run: Run) -> tuple[Any, ...]:
    """What makes runs belong in one table; the classes last, which only finished runs tell."""
    data, results = run.config["data"], run.results or {}
    target = str(data.get("_target_")).rpartition(".")[2]
    label = "" if target in DATA else Path(str(data.get("root") or "")).name
    classes = (len(results["class_counts"]), tuple(results.get("class_names") or ())) if results else None
    return target, label, data.get("profile"), data.get("imbalance_factor"), _network(run), _prior(run), classes


def _network(run: Run) -> str:
    return str(run.config["network"]["name"])


def _prior(run: Run) -> str:
    """The test prior as text: a name, with the factor of those that have one, a file's stem, or digits that tell lists apart.

    What the settings say, and not the results: an unfinished run has only those.
    """
    settings = run.config.get("evaluation") or {}
    prior = settings.get("test_prior") or "uniform"
    if isinstance(prior, str):
        factor = settings.get("test_prior_factor")
        return Path(prior).stem + (f"-{factor:g}" if prior in ("forward", "backward") and factor else "")
    return "numbers-" + hashlib.sha256(repr(prior).encode()).hexdigest()[:8]


def _experiment(runs: Sequence[Run]) -> Experiment:
    target, label, profile, factor, network, prior, _ = _identity(runs[0])
    dataset, name = DATA.get(target, ("", f"{target} {label}".strip()))
    tail = "" if factor is None else f" ({'step, ' if profile == 'step' else ''}imbalance {factor:g})"
    title = f"{name}{tail}, {network_title(network)}" + ("" if prior == "uniform" else f", test prior {prior}")
    published = dataset if profile != "step" else ""
    groups: list[Group] = []
    for run in runs:
        _place(run, groups)
    order = list(NAMES)
    groups.sort(key=lambda group: (order.index(group.method) if group.method in order else len(order), group.method))
    for group in groups:
        _finish(group)
    for method in {group.method for group in groups}:
        of_method = [group for group in groups if group.method == method]
        for number, group in enumerate(of_method if len(of_method) > 1 else []):
            group.letter = _letter(number)
    return Experiment(title, published, factor, network, prior == "uniform", groups)


def _letter(number: int) -> str:
    """A .. Z, AA .. as in spreadsheets."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _place(run: Run, groups: list[Group]) -> None:
    """Put a run into the group it belongs to, or into a new one. Finished runs come first."""
    own = settings(run)
    for group in groups:
        same = group.settings == own if run.finished else {**group.settings, **own} == group.settings
        if group.method == run.method and same:
            (group.runs if run.finished else group.incomplete).append(run)
            return
    groups.append(Group(run.method, [run] if run.finished else [], own, [] if run.finished else [run]))


def settings(run: Run) -> dict[str, str]:
    """What runs must agree in to be averaged, by name: its settings, and once it has finished what came of them.

    Every value as text. A path stands for any path, since the same file may lie elsewhere; that of a list file for its name.
    """
    found = {}
    for name, value in flatten(run.config):
        if name in NO_BEARING or name.split(".")[0] in NO_BEARING:
            continue
        if name in _LISTS and value:
            value = Path(str(value)).name
        found[name] = _A_PATH if is_path(value) else str(value)
    recipe = (run.results or {}).get("recipe") or run.config.get("recipe")
    if recipe:
        found["recipe"] = str(recipe)
    if run.results is not None:
        found["training images"] = _images(run.results["class_counts"])
        found["mllt"] = str(run.results.get("versions", {}).get("mllt", _NONE))
        found["code"] = commit(run.results.get("git_commit"))
        found["epochs"] = " + ".join(map(str, _epochs(run.results)))
    return found


def _epochs(results: Mapping[str, Any]) -> list[int]:
    """Of each stage; of the last one those that it had, which are fewer where a run was tested early."""
    return [*(int(stage["epochs"]) for stage in results.get("stages", [])[:-1]), int(results["epochs"])]


def _images(class_counts: Sequence[int]) -> str:
    """Class counts as text: how many, and digits that tell equal sums apart."""
    digits = hashlib.sha256(repr(list(class_counts)).encode()).hexdigest()[:4]
    return f"{sum(class_counts):,} in {len(class_counts):,} classes ({digits})"


def commit(text: str | None) -> str:
    """A commit in short.

    >>> commit("3fc4f2e6bc34a1-dirty"), commit(None)
    ('3fc4f2e-dirty', 'not recorded')
    """
    if not text:
        return _NONE
    digits, dash, dirty = text.partition("-")
    return digits[:7] + dash + dirty


def flatten(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    """Nested settings by their dotted names.

    >>> list(flatten({"data": {"padding": 1}, "seed": 0}))
    [('data.padding', 1), ('seed', 0)]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def is_path(value: Any) -> bool:
    """Whether a setting is the path of a file, not a name with a slash in it, such as timm's networks have.

    >>> is_path("/runs/teacher/checkpoints/last.ckpt"), is_path("timm/resnet18")
    (True, False)
    """
    return isinstance(value, str) and (os.path.isabs(value) or value.startswith((".", "~")) or value.endswith((".ckpt", ".pt")))


def augmentation(config: Mapping[str, Any]) -> str:
    """How a run augments, in the words of `published.csv`.

    >>> augmentation({"data": {"padding": 4, "flip": True, "rotation": 15.0}, "method": {}})
    'plain + rotation'
    """
    data = config["data"]
    if data.get("augment") is False:
        return "none"
    if any("mixup" in name and isinstance(value, (int, float)) and value > 0 for name, value in flatten(config["method"])):
        return "mixup"
    more = ["rotation"] if data.get("rotation") else []
    more += [f"{name} {value}" for name, value in data.items() if "aug" in name and name != "augment" and value]
    return " + ".join(["plain", *more])


def network_title(name: str) -> str:
    """A network as the field writes it.

    >>> network_title("resnext50"), network_title("timm/convnext_tiny")
    ('ResNeXt-50', 'timm/convnext_tiny')
    """
    return re.sub(r"^(resnet|resnext)(\d+)$", lambda m: {"resnet": "ResNet-", "resnext": "ResNeXt-"}[m[1]] + m[2], name)


# ---------------------------------------------------------------------------------------------------------------
# What to say about a group


def _finish(group: Group) -> None:
    """Keep one run of each seed, the newest, and say what else the reader must know."""
    by_seed: dict[int, list[Run]] = {}
    for run in sorted(group.runs, key=lambda run: (run.written, str(run.folder.root))):
        by_seed.setdefault(run.seed, []).append(run)
    group.runs = [by_seed[seed][-1] for seed in sorted(by_seed)]
    for seed, repeated in sorted(by_seed.items()):
        if len(repeated) > 1:
            older = ", ".join(str(run.folder.shown) for run in repeated[:-1])
            group.remarks.append(f"seed {seed} ran {len(repeated)} times; the newest counts, {older} does not.")
    group.remarks += [f"seed {run.seed} is incomplete, {run.problem} ({run.folder.shown})." for run in group.incomplete]
    if group.runs:
        group.remarks += [*_code_remarks(group), *_mixed(group), *_shortened(group)]
        sentences = group.first.get("reconstructed") or []
        group.remarks += [f"reconstructed where nothing is public: {' '.join(_sentence(text) for text in sentences)}"] * bool(
            sentences
        )


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _code_remarks(group: Group) -> list[str]:
    """Where the code cannot be told exactly, equal words do not make it the same."""
    code = group.settings["code"]
    if code.endswith("-dirty"):
        together = "" if len(group.runs) < 2 else ", so that its runs may be of different code"
        return [f"made with files that differ from commit {code.removesuffix('-dirty')}{together}."]
    if code == _NONE and len(group.runs) > 1:
        return [f"no commit is recorded: taken for one code by the version alone, mllt {group.settings['mllt']}."]
    return []


def _mixed(group: Group) -> list[str]:
    """What the runs of a group differ in although they were averaged: paths, devices, versions of torch."""
    facts: dict[str, list[str]] = {}
    for run in group.runs:
        paths = {name: value for name, value in flatten(run.config) if group.settings.get(name) == _A_PATH}
        versions = (run.results or {}).get("versions", {})
        device = str((run.results or {}).get("device", ""))
        for name, value in {**paths, "torch": versions.get("torch"), "device": device}.items():
            if value and str(value) not in facts.setdefault(name, []):
                facts[name].append(str(value))
    return [f"{name} differs between its seeds: {' | '.join(values)}." for name, values in facts.items() if len(values) > 1]


def _shortened(group: Group) -> list[str]:
    """Runs on a part of the images."""
    trainer = group.runs[0].config["trainer"]
    parts = {"limit_train_batches": "trained on a part of every epoch", "limit_test_batches": "tested on a part of the images"}
    return [
        f"{words} (trainer.{name}={trainer[name]})."
        for name, words in parts.items()
        if trainer.get(name, 1.0) not in (1.0, None)
    ]


def differences(groups: Sequence[Group], only: Iterable[str] | None = None) -> list[tuple[str, list[str]]]:
    """In what groups differ.

    Args:
        groups: at least two.
        only: settings to look at, a name that ends in a dot for all below it; None: all.

    Returns:
        Names of settings, each with the groups' values in order; "-" where a group does not have it.
    """
    names = dict.fromkeys(name for group in groups for name in group.settings)
    if only is not None:
        wanted = tuple(only)
        parents = tuple(name for name in wanted if name.endswith("."))
        names = dict.fromkeys(name for name in names if name in wanted or name.startswith(parents))
    table = [(name, [group.settings.get(name, "-") for group in groups]) for name in names]
    return [(name, values) for name, values in table if len(set(values)) > 1]
