"""Published figures, each with where it stands, and a check of the paper's own table.

`published.csv` holds every figure of the paper's Tables A2 and A3 and of the literature around them: top-1 accuracy in
percent on a balanced test set. Its columns beside the obvious ones:

method        mllt's name of the method; empty for a system that mllt does not have
name          as it is printed at the source
part          "each": the mean over a multi-expert method's experts, each alone; empty: the network or ensemble
experts       how many, 1 for a method of a single network; empty where the source does not say
distilled     of RIDE: "yes" where it learnt from a teacher, else "no"; empty: unknown, or no such variant
epochs        of the longest stage; empty where the source does not say
augmentation  "plain": crop and flip (and colour jitter on ImageNet-LT); empty where the source does not say
trust         paper: the paper's own tables; literature: a table or abstract of another paper; readme: the authors'
              repository; list: a list kept by hand; aggregator: a site that gathers figures, which may mix in repetitions by
              others; recollection: remembered and confirmed by nothing. The last are kept apart from every table
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass

GROUPS = ("many", "medium", "few", "all")
TRUST = ("paper", "literature", "readme", "list", "aggregator", "recollection")
#: Training images of each data set, by name and imbalance factor, as the published figures are of them.
TRAINING_IMAGES: dict[tuple[str, float | None], int] = {
    ("cifar100_lt", 100): 10_847,
    ("cifar100_lt", 50): 12_608,
    ("cifar100_lt", 10): 19_573,
    ("imagenet_lt", None): 115_846,
    ("inat2018", None): 437_513,
}
#: Classes of ImageNet-LT with more than 100, with 20 to 100, and with fewer than 20 training images.
IMAGENET_LT_CLASSES = (385, 479, 136)
# Four numbers rounded to one decimal: the three columns may move their mean by 0.05, "all" by 0.05 more.
TOLERANCE = 0.1
_WHY = {
    ("RIDE", "resnext50"): "more than rounding explains; printed so at the source",
    ("MiSLAS", "resnet50"): "its shot groups are its own, of 390 / 445 / 165 classes",
}


@dataclass(frozen=True)
class Training:
    """How runs were trained, as far as published figures can be compared by it.

    Args:
        epochs: of the longest stage.
        augmentation: in the words of `published.csv`.
        experts: how many; None where that is not told, or of another method, which has its own.
        distilled: whether they learnt from a teacher; None likewise.
    """

    epochs: int
    augmentation: str
    experts: int | None = None
    distilled: bool | None = None


@dataclass(frozen=True)
class Published:
    """One row of `published.csv`; the accuracies in percent, None where the source has none."""

    dataset: str
    imbalance_factor: int | None
    network: str
    method: str
    name: str
    part: str
    experts: int | None
    distilled: str
    many: float | None
    medium: float | None
    few: float | None
    all: float
    epochs: int | None
    augmentation: str
    source: str
    trust: str
    note: str

    @property
    def accuracies(self) -> tuple[float | None, ...]:
        """many, medium, few, all."""
        return self.many, self.medium, self.few, self.all

    @property
    def confirmed(self) -> bool:
        """Whether it stands anywhere: a recollection is no source."""
        return self.trust != "recollection"

    def described(self) -> str:
        """Where the figure stands and how it came about.

        >>> published("cifar100_lt", 100, "resnet32")[0].described()
        'CE: DiVE Table 1; 200 epochs, plain augmentation'
        """
        epochs = f"{self.epochs} epochs" if self.epochs else "epochs not stated"
        augmentation = _augmented(self.augmentation) if self.augmentation else "augmentation not stated"
        return f"{self.name}: {self.source}; {epochs}, {augmentation}{f' ({self.note})' if self.note else ''}"

    def differences(self, runs: Sequence[Training]) -> list[str]:
        """How its training differs from that of the runs beside it, as far as the source says: [] where it does not.

        Args:
            runs: how they were trained, one for each kind of run.

        >>> row = published("cifar100_lt", 100, "resnet32")[0]
        >>> row.differences([Training(200, "plain")])
        []
        >>> row.differences([Training(20, "plain + rotation"), Training(200, "plain, no flip")])
        ['200 epochs', 'plain augmentation (runs: no flip)']
        """
        found = [f"{self.epochs} epochs"] if self.epochs and any(self.epochs != run.epochs for run in runs) else []
        if self.augmentation:
            others = dict.fromkeys(run.augmentation for run in runs if run.augmentation != self.augmentation)
            odd = "; ".join(dict.fromkeys(filter(None, (other.partition(", ")[2] for other in others))))
            found += [_augmented(self.augmentation) + (f" (runs: {odd})" if odd else "")] * bool(others)
        if self.experts and any(run.experts not in (None, self.experts) for run in runs):
            found.append(f"{self.experts} experts" if self.experts > 1 else "a single network")
        if self.distilled and any(run.distilled not in (None, self.distilled == "yes") for run in runs):
            found.append("distilled" if self.distilled == "yes" else "not distilled")
        return found


def _augmented(augmentation: str) -> str:
    return f"{augmentation} augmentation" if augmentation.startswith("plain") else augmentation


@functools.cache
def all_published() -> tuple[Published, ...]:
    """Every row of `published.csv`, those that are confirmed by nothing included."""
    text = importlib.resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(_parse(row) for row in csv.DictReader(text.splitlines()))


def _parse(row: dict[str, str]) -> Published:
    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    def whole(name: str) -> int | None:
        return int(row[name]) if row[name] else None

    names = ("dataset", "network", "method", "name", "part", "distilled", "augmentation", "source", "trust", "note")
    return Published(
        imbalance_factor=whole("imbalance_factor"),
        many=number("many"),
        medium=number("medium"),
        few=number("few"),
        all=float(row["all"]),
        epochs=whole("epochs"),
        experts=whole("experts"),
        **{name: row[name] for name in names},
    )


def published(dataset: str, imbalance_factor: float | None, network: str) -> list[Published]:
    """The confirmed figures of an experiment, the paper's own first, then in the order of the file.

    Figures whose source does not state the network, or that are of one which mllt's tables have no place for, come with every
    network of the data set.

    >>> [row.name for row in published("inat2018", None, "resnet50")][-3:]
    ['BalPoE', 'SHIKE', 'LIFT']
    """
    known = {row.network for row in all_published() if row.method}
    if network not in known:
        return []
    rows = [
        row
        for row in all_published()
        if (row.dataset, row.imbalance_factor) == (dataset, imbalance_factor)
        and (row.network == network or row.network not in known)
        and row.confirmed
    ]
    return sorted(rows, key=lambda row: (row.network != network, row.trust != "paper"))


@dataclass(frozen=True)
class Check:
    """A row of Table A2: "all" as printed, and as it follows from the columns beside it."""

    name: str
    network: str
    printed: float
    recomputed: float
    why: str

    @property
    def difference(self) -> float:
        """Recomputed less printed, in points."""
        return self.recomputed - self.printed

    @property
    def agrees(self) -> bool:
        """Whether rounding to one decimal explains the difference."""
        return abs(self.difference) <= TOLERANCE


def check_table(class_counts: Sequence[int] = IMAGENET_LT_CLASSES) -> list[Check]:
    """Compute "all" of every row of Table A2 from its group columns: all = sum_g C_g acc_g / C.

    Every row agrees within 0.1, which is what rounding can do, except RIDE with ResNeXt-50 (0.13) and MiSLAS, whose groups
    are its own.

    Args:
        class_counts: C_g, how many classes are many, medium and few.

    Returns:
        A check for each row that prints all four columns, in the table's order.

    >>> [(check.name, check.network, round(check.difference, 2)) for check in check_table() if not check.agrees]
    [('MiSLAS', 'resnet50', 0.5), ('RIDE', 'resnext50', 0.13)]
    """
    checks = []
    for row in all_published():
        columns = [value for value in (row.many, row.medium, row.few) if value is not None]
        if row.dataset == "imagenet_lt" and row.trust == "paper" and len(columns) == 3:
            mean = sum(count * value for count, value in zip(class_counts, columns, strict=True)) / sum(class_counts)
            checks.append(Check(row.name, row.network, row.all, mean, _WHY.get((row.name, row.network), "")))
    return checks
