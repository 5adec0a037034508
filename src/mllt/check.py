"""`python -m mllt.check`: look through a data set ahead of a long run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mllt.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from omegaconf import DictConfig

    from mllt.data import ImageSource, LongTailedDataModule, Splits
    from mllt.data.scan import Findings

_NAMED = 5  # of images that are the same
_PLAIN_EVERY = 10  # seconds between lines where there is no terminal


def main() -> None:
    """The command. The exit status is 1 when the data has faults."""
    faults = run(check, "check")
    sys.exit(1 if faults else 0)


@dataclass
class Remark:
    """Something that was found: what, and which images or files, by path."""

    text: str
    which: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        from mllt.errors import name_some

        return self.text + (f": {name_some(self.which)}" if self.which else "")


@dataclass
class Verdict:
    """What is to be mended, what should be known, and what is only told."""

    faults: list[Remark] = field(default_factory=list)
    warnings: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)


def check(config: DictConfig) -> int:
    """Look through the data set of an experiment, print a report, and write it where asked.

    Returns:
        How many kinds of faults the data has.
    """
    import time
    from pathlib import Path

    from mllt.data.scan import examine
    from mllt.errors import ArgumentError, DataError
    from mllt.results import write_json

    if config.output and Path(config.output).expanduser().is_dir():
        raise ArgumentError(f"Expected `output` to be a file, but {config.output} is a folder.")
    processes, max_shared = check_settings(config)
    data = make_data(config)
    verdict, found, start = Verdict(), {}, time.monotonic()
    sources: dict[str, ImageSource] = {}
    try:
        data.prepare_data()
        splits = data.load_splits()
    except DataError as error:
        verdict.faults.append(Remark(str(error)))
    else:
        sources = by_name(splits)
        for name, source in sources.items():
            with progress(name, len(source)) as advance:
                found[name] = examine(source, processes, advance)
        judge(verdict, data, splits, found, max_shared)
    seconds = time.monotonic() - start
    report = collect(config, data, sources, found, verdict, seconds, processes)
    tell(report, verdict)
    if config.output:
        write_json(Path(config.output).expanduser(), report)
    return len(verdict.faults)


def check_settings(config: DictConfig) -> tuple[int, int | None]:
    """How many processes, and how many shared images are allowed (None: as many as are known of the data set)."""
    import os

    from mllt.errors import check_integer

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = cores if config.processes is None else check_integer("processes", config.processes, 1, 1024)
    return processes, None if config.max_shared is None else check_integer("max_shared", config.max_shared, 0)


def make_data(config: DictConfig) -> LongTailedDataModule:
    """The data module of the experiment, which leaves looking at the files to us.

    Raises:
        ArgumentError: its folder is not there.
    """
    from pathlib import Path

    from mllt.build import absolute_paths, build_data, plain
    from mllt.errors import ArgumentError

    absolute_paths(config.data)
    section = plain(config.data)
    if "verify_files" in section:
        section["verify_files"] = False
    data = build_data(section, batch_size=config.batch_size, seed=config.seed)
    root = section.get("root")
    if root is not None and not Path(root).exists() and not section.get("download"):
        raise ArgumentError(f"Expected the data of {data.title} in a folder {root}, but there is none. Type data.root=FOLDER.")
    return data


def by_name(splits: Splits) -> dict[str, ImageSource]:
    """The splits that there are, by name."""
    named = {"training": splits.train, "validation": splits.val, "test": splits.test}
    return {name: source for name, source in named.items() if source is not None}


# ---------------------------------------------------------------------------------------------------------------
# Judging


def judge(
    verdict: Verdict, data: LongTailedDataModule, splits: Splits, found: Mapping[str, Findings], max_shared: int | None
) -> None:
    """Add to the verdict what the splits and the looks at their images show."""
    from mllt.data.base import counted
    from mllt.errors import DataError

    sources = by_name(splits)
    try:
        data.check_splits(splits)
    except DataError as error:
        verdict.faults.append(Remark(str(error)))
    for name, source in sources.items():
        broken = found[name].broken
        if broken:
            which = [f"{shown(source.name_of(index))}: {cause}" for index, cause in broken.items()]
            many = counted(len(broken), f"{name} image", f"{name} images")
            verdict.faults.append(Remark(f"{many} cannot be read", which))
    judge_counts(verdict, data, splits)
    judge_repeated(verdict, data, sources, found, max_shared)
    verdict.notes += [Remark(note) for note in getattr(data, "notes", [])]
    small = smaller_than_seen(data, found)
    if small:
        seen = f"than the {data.preprocessing['size']} pixels that the network sees"
        verdict.notes.append(Remark(f"{counted(small, 'image is', 'images are')} narrower or lower {seen}"))


def judge_counts(verdict: Verdict, data: LongTailedDataModule, splits: Splits) -> None:
    """Compare images and classes with the known figures of the official data set."""
    official = data.official_figures()
    if official is None:
        verdict.notes.append(Remark("of this data set no official figures are known"))
        return
    counts = class_counts(splits.train.labels, len(splits.class_names))
    pairs = {
        "training images": (len(splits.train), official.train),
        "classes": (len(splits.class_names), official.classes),
        "images in the largest class": (max(counts), official.largest),
        "images in the smallest class": (min(counts), official.smallest),
        "test images": (len(splits.test), official.test),
    }
    if splits.val is not None and official.val is not None:
        pairs["validation images"] = (len(splits.val), official.val)
    wrong = [f"{got:,} {what}, not {wanted:,}" for what, (got, wanted) in pairs.items() if got != wanted]
    if wrong:
        verdict.faults.append(Remark(f"this is not the official {data.title}: {'; '.join(wrong)}"))
    else:
        verdict.notes.append(Remark(f"images and classes are as many as the official {data.title} has"))


def judge_repeated(
    verdict: Verdict,
    data: LongTailedDataModule,
    sources: Mapping[str, ImageSource],
    found: Mapping[str, Findings],
    max_shared: int | None,
) -> None:
    """Images that come again: in another split (a test on training images is none), in the same, under another label."""
    from mllt.data.base import counted
    from mllt.data.scan import repeated

    groups = repeated(found)
    shared = [group for group in groups if len({split for split, _ in group}) > 1]
    official = data.official_figures()
    allowed = (0 if official is None else official.shared) if max_shared is None else max_shared
    for split, other in (("training", "test"), ("training", "validation"), ("validation", "test")):
        both = [group for group in shared if {split, other} <= {name for name, _ in group}]
        if both:
            many = counted(len(both), f"image of the {other} split is", f"images of the {other} split are")
            known = f" (up to {allowed:,} are known of, or allowed)" if allowed else ""
            remark = Remark(f"{many} in the {split} split, too{known}", [told(group, sources) for group in both])
            (verdict.warnings if len(both) <= allowed else verdict.faults).append(remark)
    within = [group for group in groups if len({split for split, _ in group}) < len(group)]
    if within:
        many = counted(len(within), "image comes", "images come")
        verdict.warnings.append(Remark(f"{many} more than once in a split", [told(group, sources) for group in within]))
    unlike = [group for group in groups if len({int(sources[split].labels[index]) for split, index in group}) > 1]
    if unlike:
        many = counted(len(unlike), "image comes", "images come")
        verdict.warnings.append(Remark(f"{many} under several labels", [told(group, sources, labels=True) for group in unlike]))


def told(group: Sequence[tuple[str, int]], sources: Mapping[str, ImageSource], *, labels: bool = False) -> str:
    """The images of one content, on one line, the first few by name and one of each split at least."""
    first = dict(reversed(group))
    named = [one for number, one in enumerate(group) if number < _NAMED or first[one[0]] == one[1]]
    names = [
        f"{split} {shown(sources[split].name_of(index))}" + (f" (label {sources[split].labels[index]})" if labels else "")
        for split, index in named
    ]
    if len(group) > len(named):
        names.append(f"{len(group) - len(named):,} more")
    return " = ".join(names)


def shown(name: str) -> str:
    """A path in letters that every file and terminal can hold."""
    return name.encode("utf-8", "backslashreplace").decode()


def class_counts(labels: Any, num_classes: int) -> list[int]:
    """Images of each class; labels out of range count for none."""
    import numpy as np

    return np.bincount(labels[(labels >= 0) & (labels < num_classes)], minlength=num_classes).tolist()


def smaller_than_seen(data: LongTailedDataModule, found: Mapping[str, Findings]) -> int:
    """How many images have a side shorter than the square that the network sees."""
    return sum(int((one.sizes[one.readable].min(axis=1) < data.preprocessing["size"]).sum()) for one in found.values())


# ---------------------------------------------------------------------------------------------------------------
# Telling


def collect(
    config: DictConfig,
    data: LongTailedDataModule,
    sources: Mapping[str, ImageSource],
    found: Mapping[str, Findings],
    verdict: Verdict,
    seconds: float,
    processes: int,
) -> dict[str, Any]:
    """What the JSON file holds."""
    from dataclasses import asdict

    from mllt.build import plain

    images = sum(len(source) for source in sources.values())
    official = data.official_figures()
    return {
        "experiment": config.name,
        "data": shown(data.title),
        "root": plain(config.data).get("root"),
        "faults": [asdict(remark) for remark in verdict.faults],
        "warnings": [asdict(remark) for remark in verdict.warnings],
        "notes": [asdict(remark) for remark in verdict.notes],
        "splits": {name: split_figures(source, found[name], data) for name, source in sources.items()},
        "official": None if official is None else asdict(official),
        "images": images,
        "seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        "processes": processes,
    }


def split_figures(source: ImageSource, found: Findings, data: LongTailedDataModule) -> dict[str, Any]:
    """What is to be told of a split: images, classes, sizes in pixels (width and height), modes."""
    import numpy as np

    _, counts = np.unique(source.labels, return_counts=True)
    sizes = found.sizes[found.readable]
    areas = sizes[:, 0].astype(int) * sizes[:, 1]
    return {
        "images": len(source),
        "readable": len(sizes),
        "classes": len(counts),
        "largest_class": int(counts.max(initial=0)),
        "smallest_class": int(counts.min()) if len(counts) else 0,
        "smallest_image": sizes[areas.argmin()].tolist() if len(sizes) else None,
        "largest_image": sizes[areas.argmax()].tolist() if len(sizes) else None,
        "smaller_than_the_network_sees": smaller_than_seen(data, {"": found}),
        "modes": dict(found.modes.most_common()),
    }


def tell(report: Mapping[str, Any], verdict: Verdict) -> None:
    """Print the report."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from mllt.results import plural, say

    table = Table(title=report["data"], title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("split", no_wrap=True)
    for heading in ("images", "readable", "classes", "per class", "pixels"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, split in report["splits"].items():
        per_class = f"{split['largest_class']:,} to {split['smallest_class']:,}"
        pixels = [" x ".join(map(str, split[key])) for key in ("smallest_image", "largest_image") if split[key]]
        numbers = (f"{split[key]:,}" for key in ("images", "readable", "classes"))
        table.add_row(name, *numbers, per_class, " to ".join(pixels))
    if report["splits"]:
        say(table)
    for name, split in report["splits"].items():
        modes = ", ".join(f"{count:,} of {mode}" for mode, count in split["modes"].items())
        say(f"Modes, {name}: {modes or 'none'}")
    for kind, remarks in (("Fault", verdict.faults), ("Warning", verdict.warnings), ("Note", verdict.notes)):
        say(*(f"{kind}: {remark}" for remark in remarks))
    outcome = plural(len(verdict.faults), "fault") if verdict.faults else "All is well"
    warnings = f", {plural(len(verdict.warnings), 'warning')}" if verdict.warnings else ""
    speed = f" ({report['images_per_second']:,.0f}/s)" if report["images"] else ""
    say(f"{outcome}{warnings}. Looked at {report['images']:,} images in {report['seconds']:.1f} s{speed}.")


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """On standard error: a bar on a terminal, elsewhere a line now and then."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(name, total=total)
            yield lambda images: bar.advance(task, images)
        return
    start = last = time.monotonic()
    done = 0

    def advance(images: int) -> None:
        nonlocal done, last
        done, now = done + images, time.monotonic()
        if now - last >= _PLAIN_EVERY:
            last, rate = now, done / (now - start)
            print(f"{name}: {done:,} of {total:,} images, {rate:,.0f}/s, {(total - done) / rate:,.0f} s left", file=sys.stderr)

    yield advance


if __name__ == "__main__":
    main()
