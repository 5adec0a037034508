"""`python -m mllt.probe`: how good a trained network's frozen features are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mllt.cli import run

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.table import Table
    from torch import Tensor

    from mllt.data import LongTailedDataModule
    from mllt.data.sources import ImageSource
    from mllt.methods import LongTailedModule
    from mllt.results import RunFolder

    #: Features by name, each `(n, D)`, and the labels `(n,)`.
    Features = tuple[dict[str, Tensor], Tensor]

#: What probes may learn from, and what it is called.
TRAINED_ON = {"balanced": "the whole balanced training set", "long_tailed": "the run's own training images"}
ALL_EXPERTS = "concatenation"


def main() -> None:
    """The command."""
    run(probe, "probe")


def probe(config: DictConfig) -> dict[str, Any]:
    """Probe the features of a checkpoint, print the tables and write them as JSON.

    Returns:
        What the JSON file holds, see `collect`.
    """
    from pathlib import Path

    from mllt.build import load_method, pick_device, stored_data
    from mllt.errors import ArgumentError, check_integer, check_number
    from mllt.reporting.tables import say  # tables as wide as they are
    from mllt.results import RunFolder, write_json

    check_integer("neighbours", config.neighbours, 1)
    check_number("l2", config.l2, 0)
    trained_on = check_trained_on(config)
    if config.output and Path(config.output).expanduser().is_dir():
        raise ArgumentError(f"Expected `output` to be a file, but {config.output} is a folder.")
    device = pick_device(config.accelerator)
    module = load_method(config).to(device).eval()
    folder = RunFolder.of_checkpoint(config.checkpoint)
    data = stored_data(config, folder)
    check_fits(module, data)
    sources, remarks = find_sources(data, trained_on, config.neighbours)
    results = collect(config, module, data, folder, sources, remarks)
    output = (
        Path(config.output).expanduser() if config.output else folder.root / "probes" / f"{name_of(config, trained_on)}.json"
    )
    write_json(output, results)
    say(*(table(results, name) for name in results["trained_on"]), geometry_table(results), caption(results))
    say(*remarks, f"Written to {output}")
    return results


def check_trained_on(config: DictConfig) -> list[str]:
    """`trained_on` as a list of known names, each once."""
    from omegaconf import OmegaConf

    from mllt.errors import ArgumentError, check_choice

    names: Any = OmegaConf.to_container(config)["trained_on"]  # type: ignore[call-overload, index]
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        raise ArgumentError(
            f"Expected `trained_on` to be a list of {' and '.join(TRAINED_ON)}, one of them or both, but got {names}."
        )
    return [check_choice("trained_on", name, TRAINED_ON) for name in names]


def check_fits(module: LongTailedModule, data: LongTailedDataModule) -> None:
    """Raise `ArgumentError` when the data is of other classes, or the network has no experts to look at."""
    from mllt.errors import ArgumentError
    from mllt.networks import ExpertNetwork

    if data.num_classes != module.num_classes:
        raise ArgumentError(
            f"Expected data of {module.num_classes} classes, as the checkpoint has, but {data.title} has {data.num_classes}."
        )
    if not isinstance(module.network, ExpertNetwork):
        raise ArgumentError(
            f"Expected the checkpoint's network to be an ExpertNetwork, whose features can be told, but it is a "
            f"{type(module.network).__name__}. Make it a subclass of mllt.networks.ExpertNetwork."
        )


def find_sources(
    data: LongTailedDataModule, trained_on: list[str], neighbours: int
) -> tuple[dict[str, ImageSource], list[str]]:
    """The images that probes learn from, by name, and what is to be said where some are not there.

    Raises:
        ArgumentError: there are none, or fewer than `neighbours`.
    """
    from mllt.errors import ArgumentError

    found: dict[str, ImageSource | None] = {
        name: data.balanced_source() if name == "balanced" else data.splits.train for name in trained_on
    }
    sources = {name: source for name, source in found.items() if source is not None}
    none = f"{data.title} was not cut from a balanced set that is there"
    if not sources:
        raise ArgumentError(f"{none}: set trained_on=[long_tailed].")
    for name, source in sources.items():
        if neighbours > len(source):
            raise ArgumentError(
                f"Expected `neighbours` to be at most {len(source):,}, the images of {TRAINED_ON[name]}, but got "
                f"{neighbours:,}. Lower `neighbours`."
            )
    return sources, [f"{none}: the long-tailed part only."] if len(sources) < len(trained_on) else []


def name_of(config: DictConfig, trained_on: list[str]) -> str:
    """The file's name: "probe", and behind it what was set otherwise than by default, so that neither is written over."""
    from pathlib import Path

    from mllt.metrics.linear_probe import DEFAULT_L2

    checkpoint = Path(config.checkpoint).stem
    parts = [checkpoint] if checkpoint not in ("model", "last") else []
    parts += [f"k{config.neighbours}"] if config.neighbours != 20 else []
    parts += [f"l2_{config.l2:g}"] if config.l2 != DEFAULT_L2 else []
    parts += [name for name in trained_on if len(trained_on) < len(TRAINED_ON)]
    return "-".join(["probe", *parts])


def collect(
    config: DictConfig,
    module: LongTailedModule,
    data: LongTailedDataModule,
    folder: RunFolder,
    sources: Mapping[str, ImageSource],
    remarks: list[str],
) -> dict[str, Any]:
    """What the JSON file holds.

    Returns:
        What was probed and how, and "features": of each its size, spread, separation and ratio by shot group; "trained_on": of
        each set and feature "linear", "neighbours" and perhaps "neighbours_by_count", accuracies in percent by shot group, and
        of the linear probe "iterations" and "converged". None where a group has no classes or images.
    """
    import time
    from pathlib import Path

    import torch

    from mllt.files import sha256_of
    from mllt.longtail import shot_groups
    from mllt.metrics.linear_probe import MAX_ITERATIONS, TOLERANCE
    from mllt.metrics.representation import feature_geometry
    from mllt.results import device_name, git_commit, versions

    began = time.perf_counter()
    counts, rule = module.class_counts.cpu(), shot_rule(module)
    features = {name: extract(module, data, source) for name, source in {"test": data.splits.test, **sources}.items()}
    extracted = time.perf_counter()
    test, targets = features.pop("test")
    names = [*test, *([ALL_EXPERTS] if module.num_experts > 1 else [])]
    geometry = {
        name: {"size": part.shape[1], **tell(feature_geometry(part, targets, counts, **rule))}
        for name, part in ((name, pick(test, name)) for name in names)
    }
    probed = {
        which: {name: judge(config, module, (pick(test, name), targets), (pick(own, name), labels), which) for name in names}
        for which, (own, labels) in features.items()
    }
    path = Path(config.checkpoint).expanduser().resolve()
    return {
        "checkpoint": str(path),
        "checkpoint_sha256": sha256_of(path),
        "data_digest": data.fingerprint,
        "method": module.method,
        "stage": module.stage,
        "seed": int(folder.read_config().seed),
        "settings": {
            "neighbours": config.neighbours,
            "l2": float(config.l2),
            "tolerance": TOLERANCE,
            "max_iterations": MAX_ITERATIONS,
        },
        "images": {"test": len(targets), **{which: len(labels) for which, (_, labels) in features.items()}},
        "shot_groups": {name: int(mask.sum()) for name, mask in shot_groups(counts, **rule).items()},
        "features": geometry,
        "trained_on": probed,
        "remarks": remarks,
        "seconds": {"features": extracted - began, "probes": time.perf_counter() - extracted},
        "device": device_name(torch.device(module.device), 1),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def shot_rule(module: LongTailedModule) -> dict[str, Any]:
    """The run's rule of shot groups, as the metrics take it."""
    hp = module.hparams
    return {"many_above": hp["many_above"], "few_below": hp["few_below"], "inclusive": hp["shot_edges_inclusive"]}


def extract(module: LongTailedModule, data: LongTailedDataModule, source: ImageSource) -> Features:
    """The features of all images of a source, on the CPU.

    Raises:
        CheckpointError: some are no finite numbers.
    """
    import torch

    from mllt.errors import CheckpointError
    from mllt.networks.features import frozen_features

    parts, labels = [], []
    for batch in data.source_dataloader(source):
        found = frozen_features(module.network, batch.images.to(module.device))
        parts.append({name: part.cpu() for name, part in found.items()})
        labels.append(batch.targets)
    features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    for name, whole in features.items():
        if not bool(whole.isfinite().all()):
            raise CheckpointError(
                f"Expected the features of {name} to be finite, but for some images they are not: the training of this "
                "checkpoint has diverged. Take an earlier one."
            )
    return features, torch.cat(labels)


def pick(features: Mapping[str, Tensor], name: str) -> Tensor:
    """Features by name; those of all experts side by side are made when they are asked for."""
    import torch

    if name != ALL_EXPERTS:
        return features[name]
    return torch.cat([part for part_name, part in features.items() if part_name.startswith("expert ")], dim=1)


def judge(
    config: DictConfig, module: LongTailedModule, test: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], which: str
) -> dict[str, Any]:
    """Accuracies on `test` of what learned from `own`, each features and labels; on the module's device."""
    import torch

    from mllt.metrics.linear_probe import fit_linear_probe
    from mllt.metrics.representation import neighbour_classes

    (queries, targets), (features, labels) = ((part.to(module.device), whose) for part, whose in (test, own))
    labels = labels.to(module.device)
    classes = module.num_classes
    fitted = fit_linear_probe(features, labels, classes, config.l2)
    found = {
        "linear": accuracies(fitted.predict(queries), targets, module),
        "neighbours": accuracies(neighbour_classes(queries, features, labels, classes, config.neighbours), targets, module),
    }
    if which == "long_tailed":
        counts = torch.bincount(labels, minlength=classes)
        by_count = neighbour_classes(queries, features, labels, classes, config.neighbours, counts)
        found["neighbours_by_count"] = accuracies(by_count, targets, module)
    return {**found, "iterations": fitted.iterations, "converged": fitted.converged}


def accuracies(predicted: Tensor, targets: Tensor, module: LongTailedModule) -> dict[str, float | None]:
    """Of one predictor by shot group, in percent."""
    import torch

    from mllt.methods.evaluation import GROUPS, percent
    from mllt.metrics import shot_accuracy

    total = torch.bincount(targets, minlength=module.num_classes)
    correct = torch.bincount(targets[predicted.cpu() == targets], minlength=module.num_classes)
    found = shot_accuracy(correct, total, module.class_counts.cpu(), **shot_rule(module))
    return {group: percent(found[group]) for group in GROUPS}


def tell(values: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Numbers as JSON has them: None for those that are none.

    >>> tell({"spread": {"many": 0.5, "few": float("nan")}})
    {'spread': {'many': 0.5, 'few': None}}
    """
    return {
        name: {group: value if math.isfinite(value) else None for group, value in row.items()} for name, row in values.items()
    }


def table(results: Mapping[str, Any], which: str) -> Table:
    """Accuracies of what learned from one set: rows features, columns by shot group."""
    kinds = {"linear": "linear", "neighbours": "kNN", "neighbours_by_count": "kNN / n"}
    rows = results["trained_on"][which]
    kinds = {kind: title for kind, title in kinds.items() if kind in next(iter(rows.values()))}
    cells = {name: [row[kind] for kind in kinds] for name, row in rows.items()}
    title = f"top-1 in %, learned from {TRAINED_ON[which]} ({results['images'][which]:,} images)"
    return _table(title, list(kinds.values()), cells, 1)


def geometry_table(results: Mapping[str, Any]) -> Table:
    """Spread, separation and ratio: rows features, columns by shot group."""
    kinds = ["spread", "separation", "ratio"]
    cells = {name: [row[kind] for kind in kinds] for name, row in results["features"].items()}
    return _table(f"test images ({results['images']['test']:,}), features of unit length", kinds, cells, 2)


def _table(title: str, kinds: list[str], rows: Mapping[str, list[Mapping[str, float | None]]], digits: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from mllt.methods.evaluation import GROUPS

    result = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    result.add_column("features", no_wrap=True)
    for kind in kinds:
        for group in GROUPS:
            result.add_column(f"{kind}\n{group}", justify="right", no_wrap=True)
    for name, found in rows.items():
        cells = ["n/a" if row[group] is None else f"{row[group]:.{digits}f}" for row in found for group in GROUPS]
        result.add_row(name, *cells)
    return result


def caption(results: Mapping[str, Any]) -> str:
    """What the columns mean."""
    groups = ", ".join(f"{count:,} {name}" for name, count in results["shot_groups"].items())
    settings = results["settings"]
    return (
        f"linear: logistic regression, classes alike, l2 {settings['l2']:g}; kNN: {settings['neighbours']} nearest by cosine, "
        "/ n: votes divided by class counts; spread: mean squared distance to the class mean; separation: to the nearest other "
        f"class mean; ratio: separation / sqrt(spread). Classes: {groups}"
    )


if __name__ == "__main__":
    main()
