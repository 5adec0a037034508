"""What may be averaged, and why the rest may not: experiments, and in them groups of runs that differ in the seed alone.

An experiment is a table: a data set, a network, a test prior. A group is a row of it: runs of one method that agree in every
setting which bears on the result, in the images and their labels, in the version and the commit of mllt, and in the epochs they
had. Settings that do not bear on it: where things lie, how many devices and processes did the work, what is logged.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllt.reporting.published import Training
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
    *("seed", "output_dir", "resume", "overwrite", "checkpoints", "threads", "warning", "name", "recipe", "recipe_source"),
    *("logger", "callbacks", "hydra", "debug", "sweep", "launcher"),
    *("data.root", "data.list_dir", "data.download", "data.verify_files", "data.verify_lists"),
    *("data.num_workers", "data.on_device", "data.eval_batch_size", "data.storage", "data.shard_cache", "data.shard_cache_gb"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.profiler"),
    *("trainer.check_val_every_n_epoch", "trainer.limit_val_batches", "trainer.max_nonfinite", "data.max_broken"),
    "evaluation.calibration_temperature",  # no class changes its rank by it, and the table does without
    *("evaluation.test_prior", "evaluation.test_prior_factor"),  # told by the experiment
    *("data.train_list", "data.test_list", "data.val_list"),  # told by the images
}
_PLACES = ("root", "train_list", "test_list", "val_list")
#: How the literature augments each data set, by setting: what "plain" stands for in `published.csv`.
_USUAL: dict[str, dict[str, Any]] = {name: {"padding": 4, "flip": True} for name in ("cifar100_lt", "cifar10_lt")} | {
    name: {"padding": None, "crop_scale": [0.08, 1.0], "color_jitter": jitter, "hue": 0.0, "image_size": 224}
    for name, jitter in (("imagenet_lt", 0.4), ("places_lt", 0.4), ("inat2018", 0.0))
}
_LONGEST_LABEL = 28  # characters
_A_PATH = "a path"
#: In place of what an earlier version of mllt did not write down.
NOT_RECORDED = "not recorded"


@dataclass
class Group:
    """Runs that differ in the seed alone: a row of a table.

    Args:
        method: its name.
        runs: one for each seed, by seed; none where no run has finished.
        settings: what the runs agree in, by name: settings, class counts, versions, commit, epochs.
        incomplete: runs of the same settings without results.
        remarks: sentences on what was taken together, or left out.
        label: where a method has several groups in an experiment, what sets this one apart, or "A", "B", ...; else "".
    """

    method: str
    runs: list[Run]
    settings: dict[str, str]
    incomplete: list[Run] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    label: str = ""

    @property
    def title(self) -> str:
        """Name of the method, and the group's label where it has several."""
        return NAMES.get(self.method, self.method) + (f" ({self.label})" if self.label else "")

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the first run, for what all of them agree in."""
        return (self.runs or self.incomplete)[0].config

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
            return int(self.config["trainer"]["max_epochs"])
        stages = [int(stage["epochs"]) for stage in self.first.get("stages", [])]
        return max([*stages[:-1], int(self.first["epochs"])])

    @property
    def augmentation(self) -> str:
        """In the words of `published.csv`."""
        return augmentation(self.config)

    @property
    def places(self) -> str:
        """Where its own images and lists lie; "" for data that are the same everywhere."""
        return _places((self.runs or self.incomplete)[0])

    @property
    def training(self) -> Training:
        """What a published figure is compared by."""
        method = self.config["method"]
        distilled = bool(method.get("distill") or method.get("teacher"))
        return Training(self.epochs, self.augmentation, self.config["network"].get("num_experts"), distilled)


@dataclass
class Experiment:
    """A table: all runs on a data set with a network under a test prior.

    Args:
        title: data set, network, and the test prior where it is not uniform.
        dataset, imbalance_factor, network: by which published figures are found; the data set is "" for one without any.
        uniform: whether the test prior is uniform, as in all published figures.
        groups: its rows, in the order of `NAMES`, then by name.
        slug: the title as an address may hold it, of no other experiment.
    """

    title: str
    dataset: str
    imbalance_factor: float | None
    network: str
    uniform: bool
    groups: list[Group]
    slug: str = ""

    @property
    def finished(self) -> list[Group]:
        """Groups with at least one finished run."""
        return [group for group in self.groups if group.runs]


def experiments(runs: Iterable[Run]) -> list[Experiment]:
    """Sort runs into experiments and groups.

    Unfinished runs stand with the group of the same settings, or, where there is none, in one of their own.

    Returns:
        Experiments by title; each with its groups, and remarks and labels set.
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
            experiment.title += f" ({titles[: number + 1].count(titles[number])})"
    found.sort(key=lambda experiment: experiment.title)
    for experiment in found:
        experiment.slug = slug_of(experiment.title, {other.slug for other in found})
    return found


def slug_of(title: str, taken: Collection[str]) -> str:
    """A title as an address may hold it; numbered where another title has the same letters.

    >>> slug_of("Birds 鳥, ResNet-20", {"birds-resnet-20"})
    'birds-resnet-20-2'
    """
    plain = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "table"
    numbered = (f"{plain}-{number}" for number in itertools.count(2))
    return next(slug for slug in itertools.chain([plain], numbered) if slug not in taken)


def _identity(run: Run) -> tuple[Any, ...]:
    """What makes runs belong in one table; the classes last, which only finished runs tell."""
    data, results = run.config["data"], run.results or {}
    target = _data_class(run)
    label = "" if target in DATA else Path(str(data.get("root") or "")).name
    classes = (len(results["class_counts"]), tuple(results.get("class_names") or ())) if results else None
    return target, label, data.get("profile"), data.get("imbalance_factor"), _network(run), _prior(run), classes


def _data_class(run: Run) -> str:
    return str(run.config["data"]["_target_"]).rpartition(".")[2]


def _network(run: Run) -> str:
    return " ".join(run.config["network"]["name"].split())


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

    def place(group: Group) -> tuple[int, str]:
        return order.index(group.method) if group.method in order else len(order), group.method

    groups.sort(key=place)
    for group in groups:
        _finish(group)
    for method in {group.method for group in groups}:
        _label([group for group in groups if group.method == method])
    groups.sort(key=lambda group: (place(group), _numbers_in(group.label)))
    return Experiment(title, published, factor, network, prior == "uniform", groups)


def _label(groups: Sequence[Group]) -> None:
    """Set apart the groups of a method: by what they differ in where that is short, else by letters."""
    if len(groups) < 2:
        return
    shared = [name for name in groups[0].settings if all(name in group.settings for group in groups)]
    table = differences(groups, shared)
    labels = [", ".join(_setting(name, values[number]) for name, values in table) for number in range(len(groups))]
    if len(set(labels)) < len(groups) or max(map(len, labels)) > _LONGEST_LABEL:
        labels = [letter_of(number) for number in range(len(groups))]
    for group, label in zip(groups, labels, strict=True):
        group.label = label


def _numbers_in(label: str) -> list[float]:
    """The numbers in a label, to sort by.

    >>> _numbers_in("lr 0.02, num_experts 3")
    [0.02, 3.0]
    """
    return [float(text) for text in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)", label)]


def _setting(name: str, value: str) -> str:
    """A setting in a label: without the section that it stands in."""
    return value if name == "images" else f"{name.rpartition('.')[2]} {value}"


def letter_of(number: int) -> str:
    """A .. Z, AA .. as in spreadsheets."""
    return (letter_of(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _place(run: Run, groups: list[Group]) -> None:
    """Put a run into the group it belongs to, or into a new one. Finished runs come first."""
    own = settings(run)
    for group in groups:
        same = group.settings == own
        if not run.finished:  # which images it is of can only be told by their places
            same = own.items() <= group.settings.items() and _places(run) in map(_places, [*group.runs, *group.incomplete])
        if group.method == run.method and same:
            (group.runs if run.finished else group.incomplete).append(run)
            return
    groups.append(Group(run.method, [run] if run.finished else [], own, [] if run.finished else [run]))


def _places(run: Run) -> str:
    """Where a run's own images and lists lie; "" for data that are the same everywhere."""
    if _data_class(run) in DATA:
        return ""
    data = run.config["data"]
    return ", ".join(f"{name} {data[name]}" for name in _PLACES if data.get(name))


def settings(run: Run) -> dict[str, str]:
    """What runs must agree in to be averaged, by name: its settings, and once it has finished what came of them.

    Every value as text. A path stands for any path, since the same file may lie elsewhere. Which images they are of is told by
    the digest of images and labels, or, where an earlier version of mllt recorded none, by the folders and lists they lay in.
    """
    found = {}
    for name, value in flatten(run.config):
        if name in NO_BEARING or name.split(".")[0] in NO_BEARING:
            continue
        found[name] = _A_PATH if is_path(value) else setting_text(value)
    recipe = (run.results or {}).get("recipe") or run.config.get("recipe")
    if recipe:
        found["recipe"] = str(recipe)
    if run.results is not None:
        found["images"] = run.results.get("data_digest") or _places(run) or NOT_RECORDED
        found["training images"] = _images(run.results["class_counts"])
        found["mllt"] = str(run.results.get("versions", {}).get("mllt", NOT_RECORDED))
        found["code"] = run.results.get("git_commit") or NOT_RECORDED
        found["epochs"] = " + ".join(map(str, _epochs(run.results)))
    return found


def setting_text(value: Any) -> str:
    """A setting as text, the same for numbers that are the same, however they were typed.

    >>> setting_text(1.0), setting_text(1), setting_text(0.25), setting_text(True), setting_text(None)
    ('1', '1', '0.25', 'True', 'None')
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _epochs(results: Mapping[str, Any]) -> list[int]:
    """Of each stage; of the last one those that it had, which are fewer where a run was tested early."""
    return [*(int(stage["epochs"]) for stage in results.get("stages", [])[:-1]), int(results["epochs"])]


def _images(class_counts: Sequence[int]) -> str:
    """Class counts as text: how many, and digits that tell equal sums apart."""
    digits = hashlib.sha256(repr(list(class_counts)).encode()).hexdigest()[:4]
    return f"{sum(class_counts):,} in {len(class_counts):,} classes ({digits})"


def commit(text: str | None) -> str:
    """A commit, or the several that a run was trained by, in short.

    >>> commit("3fc4f2e6bc34a1-dirty-1a2b3c4d"), commit("3fc4f2e6bc34a1 + 0123456789ab"), commit(None)
    ('3fc4f2e-dirty-1a2b3c4d', '3fc4f2e + 0123456', 'not recorded')
    """
    if not text or text == NOT_RECORDED:
        return NOT_RECORDED
    parts = (part.partition("-") for part in text.split(" + "))
    return " + ".join(digits[:7] + dash + dirty for digits, dash, dirty in parts)


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
    """How a run augments, in the words of `published.csv`; a comma before what is not customary for the data.

    >>> augmentation({"data": {"padding": 4, "flip": True, "rotation": 15.0}, "method": {}})
    'plain + rotation'
    >>> augmentation({"data": {"_target_": "mllt.data.CIFAR100LT", "padding": 0, "flip": False}, "method": {}})
    'plain, no crop, no flip'
    >>> augmentation({"data": {"padding": 4, "autoaugment": "cifar10", "cutout": 16}, "method": {}})
    'AutoAugment + Cutout'
    """
    data = config["data"]
    if data.get("augment") is False:
        return "none"
    usual = _USUAL.get(DATA.get(str(data.get("_target_")).rpartition(".")[2], ("", ""))[0], {})
    odd = [_odd(name, data[name]) for name, value in usual.items() if name in data and data[name] != value]
    if any("mixup" in name and isinstance(value, (int, float)) and value > 0 for name, value in flatten(config["method"])):
        words = ["mixup"]
    else:
        words = [] if data.get("autoaugment") else ["plain"]
    words += ["AutoAugment"] if data.get("autoaugment") else []
    words += ["rotation"] if data.get("rotation") and words != ["mixup"] else []
    words += [{16: "Cutout"}.get(data["cutout"], f"Cutout of {data['cutout']}")] if data.get("cutout") else []
    others = [name for name in data if "aug" in name and name not in ("augment", "autoaugment")]
    words += [f"{name} {data[name]}" for name in others if data[name]]
    return ", ".join([" + ".join(words), *odd])


def _odd(name: str, value: Any) -> str:
    """A setting of the augmentation in words, where it is not the customary one."""
    words = {"padding": "crop", "crop_scale": "crop", "color_jitter": "colour jitter", "hue": "hue jitter"}.get(name, name)
    if not value:
        return f"no {words}"
    if name == "crop_scale":
        return f"crops of {' to '.join(f'{share:g}' for share in value)}"
    return {"padding": f"padding {value}", "image_size": f"{value} pixels"}.get(name, f"{words} {value}")


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
        group.remarks += [*_code_remarks(group), *_mixed(group), *_shortened(group), *_curve_remarks(group)]
        sentences = group.first.get("reconstructed") or []
        group.remarks += [f"reconstructed where nothing is public: {' '.join(_sentence(text) for text in sentences)}"] * bool(
            sentences
        )


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _code_remarks(group: Group) -> list[str]:
    """Where the code is not that of one commit, or cannot be told."""
    code = group.settings["code"]
    if code == NOT_RECORDED:
        told = f"no commit is recorded: taken for one code by the version alone, mllt {group.settings['mllt']}."
        return [told] * (len(group.runs) > 1)
    parts = code.split(" + ")
    found = [f"trained partly by one commit and partly by another: {commit(code)}."] * (len(parts) > 1)
    for digits, dirty, which in (part.partition("-dirty") for part in parts):
        together = ", so that its runs may be of different code" if len(group.runs) > 1 and not which else ""
        found += [f"made with files that differ from commit {commit(digits)}{together}."] * bool(dirty)
    return found


def _curve_remarks(group: Group) -> list[str]:
    return [f"the curves of seed {run.seed} are left out: {run.curves_problem}." for run in group.runs if run.curves_problem]


def _mixed(group: Group) -> list[str]:
    """What the runs of a group differ in although they were averaged: paths, devices, versions of torch.

    A digest tells images by their names: that other pictures lie elsewhere under the same ones is for the reader to judge.
    """
    facts: dict[str, list[str]] = {}
    for run in group.runs:
        paths = {name: value for name, value in flatten(run.config) if group.settings.get(name) == _A_PATH}
        versions = (run.results or {}).get("versions", {})
        device = str((run.results or {}).get("device", ""))
        for name, value in {
            **paths,
            "place of the images": _places(run),
            "torch": versions.get("torch"),
            "device": device,
        }.items():
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
    return [(name, _in_short(name, values)) for name, values in table if len(set(values)) > 1]


def _in_short(name: str, values: Sequence[str]) -> list[str]:
    """Values that differ, as a reader needs them: commits and digests by first digits where these tell them apart."""
    shorten = {"code": commit, "images": _images_in_short}.get(name)
    short = [shorten(value) for value in values] if shorten else list(values)
    return short if len(set(short)) == len(set(values)) else list(values)


def _images_in_short(text: str) -> str:
    return f"digest {text[:8]}" if re.fullmatch("[0-9a-f]{6,}", text) else text
