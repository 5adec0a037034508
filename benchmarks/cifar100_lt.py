"""The paper's experiment on CIFAR100-LT, whole: every method, imbalance factors, what the supplement leaves open, and more.

    python -m benchmarks.cifar100_lt list                              the parts, and how far their runs are
    python -m benchmarks.cifar100_lt run methods                       every method, three seeds, 200 epochs
    python -m benchmarks.cifar100_lt run methods --minutes 9 --jobs 6 -- trainer=fast_gpu
    python -m benchmarks.cifar100_lt run ablations -- trainer=fast_gpu
    python -m benchmarks.cifar100_lt ablations                         their table, by validation
    python -m benchmarks.cifar100_lt run contenders --variants mutual weight-2 -- trainer=fast_gpu

`run` goes on where it stopped: type it again until it ends with status 0 (3: there is more to do; 1: a run failed, its log is
shown). With `--minutes` it ends by itself. What stands behind `--` goes to every run. `--epochs 30` shortens the schedule, and
the lengths of further stages with it: for machines without a GPU, and not the paper's experiment.

CIFAR-100 lies where MLLT_DATA says, or in a file that is easily taken along: `data.root=FILE`, packed by
`python -m mllt.pack experiment=cifar100_lt data.val_images=45 output=FILE`, for `imbalance` with data.imbalance_factor=10. The
ablations are judged on those 45 official training images per class that the long-tailed subset leaves over, never on the test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.slices import Task, run_slice

SEEDS = (0, 1, 2)
EPOCHS = 200
#: Table A1's recipe for every method; the raw row of cross_entropy is "Cross Entropy", its compensated row "PC Softmax".
METHODS: dict[str, tuple[str, ...]] = {
    **{
        name: (f"method={name}",) for name in ("cross_entropy", "bbn", "lade", "mislas", "ssd", "dive", "ride", "ace", "mutual")
    },
    "independent": ("method=mutual", "method.mutual_weight=0"),  # what mutual learning adds is seen beside it
}
#: By the recipe that each method's authors released.
PUBLISHED = ("cross_entropy", "balanced_softmax", "ldam_drw", "bbn", "lade", "mislas", "dive", "ride")
#: What the supplement leaves open: each is the default of method=mutual with one thing changed.
VARIANTS: dict[str, tuple[str, ...]] = {
    "mutual": (),
    **{f"experts-{count}": (f"network.num_experts={count}",) for count in (1, 2, 4, 5, 6)},
    "weight-0": ("method.mutual_weight=0",),
    "weight-0.5": ("method.mutual_weight=0.5",),
    "weight-2": ("method.mutual_weight=2",),
    "weight-negative": ("method.mutual_weight=-0.2",),  # RIDE's sign: experts are driven apart
    "weight-from-0": ("method.mutual_warmup_epochs=67",),  # grows over the first third: experts learn, then from each other
    "temperature-2": ("method.temperature=2",),
    "temperature-4": ("method.temperature=4",),
    "balanced-probabilities": ("method.mutual_probabilities=balanced",),
    "mean-target": ("method.mutual_target=mean",),
    "not-detached": ("method.detach_peers=false",),
    "cosine-head": ("network.head=cosine",),
    "separate-trunks": ("network.shared=none",),
    "full-width": ("network.width=1",),
    "steps-of-0.01": ("schedule.gamma=0.01",),
    "rotation": ("data.rotation=15",),
}
#: Validation images per class, of the official training images that the subset leaves over.
VAL_IMAGES = 45
PARTS = ("methods", "imbalance", "published", "ablations", "contenders", "strong", "probes")
#: Whose features are looked at.
PROBED = ("cross_entropy", "ride", "mutual", "independent")


@dataclass(frozen=True)
class Planned:
    """A run.

    Args:
        part: of the experiment.
        name: what is trained.
        seed: of the run.
        overrides: of `python -m mllt.train`, beside the seed and the folder.
    """

    part: str
    name: str
    seed: int
    overrides: tuple[str, ...]

    def folder(self, root: Path) -> Path:
        """Where it lies."""
        return root / self.part / self.name / str(self.seed)


def shortened(name: str, overrides: Sequence[str], epochs: int) -> tuple[str, ...]:
    """Overrides with fewer epochs: warm-up and further stages have their share of them, at least two; RIDE trains no router.

    >>> shortened("mislas", ["method=mislas"], 30)
    ('method=mislas', 'trainer.max_epochs=30', 'schedule.warmup_epochs=2', 'method.head_epochs=2')
    >>> shortened("lade", ["method=lade"], 200)
    ('method=lade',)
    """
    if epochs == EPOCHS:
        return tuple(overrides)

    def share(of: int) -> int:
        return max(2, round(of * epochs / EPOCHS))

    further = {
        "mislas": (f"method.head_epochs={share(10)}",),
        "ssd": (f"method.label_epochs={share(5)}",),
        "ride": ("method.routing_epochs=0",),
    }
    growing = "method.mutual_warmup_epochs="
    own = [f"{growing}{share(int(one.removeprefix(growing)))}" if one.startswith(growing) else one for one in overrides]
    return (*own, f"trainer.max_epochs={epochs}", f"schedule.warmup_epochs={share(5)}", *further.get(name, ()))


def planned(part: str, epochs: int = EPOCHS, variants: Sequence[str] = (), seeds: Sequence[int] = SEEDS) -> list[Planned]:
    """The runs of a part, all methods of a seed before the next seed.

    Args:
        part: one of `PARTS`, but probes.
        epochs: of each run; "strong" has twice as many.
        variants: for "contenders", names of `VARIANTS`; for other parts, only runs of these names; (): all.
        seeds: of each; "ablations" have the first of them, "contenders" the others.
    """
    rows = _rows(part, epochs, variants)
    if variants:
        unknown = [name for name in variants if name not in rows]
        if unknown:
            names = VARIANTS if part == "contenders" else rows
            raise SystemExit(f"Part {part} has no {', '.join(unknown)}. It has: {', '.join(names)}.")
        rows = {name: rows[name] for name in variants}
    experiment = () if part == "strong" else ("experiment=cifar100_lt",)
    seeds = {"ablations": seeds[:1], "contenders": seeds[1:]}.get(part, seeds)
    return [Planned(part, name, seed, (*experiment, *more, f"seed={seed}")) for seed in seeds for name, more in rows.items()]


def _rows(part: str, epochs: int, variants: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The overrides of each run of a part by its name, beside experiment and seed."""
    if part == "methods":
        return {name: shortened(name, more, epochs) for name, more in METHODS.items()}
    if part == "imbalance":
        short = shortened("mutual", METHODS["mutual"], epochs)
        return {f"factor-{factor}": (*short, f"data.imbalance_factor={factor}") for factor in (50, 10)}
    if part == "published":
        return {name: (f"method={name}", "recipe=published", *shortened(name, (), epochs)) for name in PUBLISHED}
    if part == "strong":
        base = ("experiment=cifar100_lt_strong", "method=mutual")
        return {"mutual": base if epochs == EPOCHS else shortened("mutual", base, 2 * epochs)}
    watched = (f"data.val_images={VAL_IMAGES}", f"trainer.check_val_every_n_epoch={epochs}")
    known = {name: shortened("mutual", ("method=mutual", *more, *watched), epochs) for name, more in VARIANTS.items()}
    return known if part == "ablations" else {name: known[name] for name in variants if name in known}


def training(run: Planned, root: Path, more: Iterable[str]) -> Task:
    """The command that trains a run."""
    folder = run.folder(root)
    arguments = (*run.overrides, *more, "resume=auto", f"output_dir={folder}")
    name = f"{run.part}/{run.name}/{run.seed}"
    return Task(name, (sys.executable, "-m", "mllt.train", *arguments), folder / "results.json")


def probing(run: Planned, root: Path, more: Iterable[str]) -> Task:
    """The command that looks at the features of a trained run."""
    folder = run.folder(root)
    checkpoint = folder / "checkpoints/model.ckpt"
    command = (sys.executable, "-m", "mllt.probe", f"checkpoint={checkpoint}", *more)
    return Task(f"probes/{run.name}/{run.seed}", command, folder / "probes/probe.json")


def tasks_of(part: str, arguments: argparse.Namespace) -> list[Task]:
    """What is to be done for a part."""
    if part == "probes":
        runs = planned("methods", arguments.epochs, arguments.variants or PROBED, arguments.seeds)
        return [
            probing(run, arguments.root, arguments.overrides)
            for run in runs
            if (run.folder(arguments.root) / "results.json").is_file()
        ]
    runs = planned(part, arguments.epochs, arguments.variants, arguments.seeds)
    return [training(run, arguments.root, arguments.overrides) for run in runs]


def check_same_plan(root: Path, part: str, epochs: int, overrides: Sequence[str]) -> None:
    """Runs of a folder are of one schedule and of the same overrides, or they would be taken for what they are not.

    Raises:
        SystemExit: they were begun otherwise; says what to type.
    """
    about = {"epochs": epochs, "overrides": [text for text in overrides if not text.startswith("data.root=")]}
    path = root / part / "plan.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about) + "\n", encoding="utf-8")
        return
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if before != about:
        told = f"--epochs {before['epochs']} -- {' '.join(before['overrides'])}"
        raise SystemExit(f"The runs in {path.parent} were begun with {told}. Type the same, or another --root.")


def run(arguments: argparse.Namespace) -> int:
    """Work on a part for a slice; an exit status, see `Outcome.status`."""
    if arguments.part != "probes":
        check_same_plan(arguments.root, arguments.part, arguments.epochs, arguments.overrides)
    tasks = tasks_of(arguments.part, arguments)
    if not tasks:
        sys.exit("There is nothing to do: name --variants of the contenders, or train what is to be probed first.")
    outcome = run_slice(
        tasks, arguments.root / "logs", None if arguments.minutes is None else 60 * arguments.minutes, arguments.jobs
    )
    done = sum(task.is_done for task in tasks)
    print(f"{arguments.part}: {done} of {len(tasks)} done" + (f", {len(outcome.failed)} failed" if outcome.failed else ""))
    return outcome.status


def list_parts(arguments: argparse.Namespace) -> int:
    """Print how far every part is."""
    for part in PARTS:
        if part == "contenders":
            folders = sorted(path for path in (arguments.root / part).glob("*") if path.is_dir())
            runs = planned(part, arguments.epochs, [path.name for path in folders]) if folders else []
        else:
            runs = [] if part == "probes" else planned(part, arguments.epochs)
        tasks = tasks_of("probes", arguments) if part == "probes" else [training(run, arguments.root, ()) for run in runs]
        begun = [task.name for task in tasks if not task.is_done and task.done.parent.is_dir()]
        print(f"{part:12} {sum(task.is_done for task in tasks):3} of {len(tasks):3} done", *begun)
    return 0


# ---------------------------------------------------------------------------------------------------------------
# Choosing


def validated(root: Path, part: str, name: str) -> dict[int, dict[str, float]]:
    """By seed, the accuracies of a variant's finished runs on validation, over all classes, compensated, in percent."""
    found = {}
    for path in sorted((root / part / name).glob("*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        if "val" in results:
            experts = [expert["compensated"]["all"] for expert in results["val"]["experts"]]
            ensemble = results["val"]["ensemble"]["compensated"]
            found[int(results["seed"])] = {
                "ensemble": ensemble["all"],
                "each": statistics.fmean(experts),
                "few": ensemble["few"],
                "seconds": results["train_seconds"] or float("nan"),
            }
    return found


def ablation_table(root: Path) -> str:
    """Markdown: every variant with its change of the default at the same seeds."""
    lines = ["| variant | seeds | ensemble | less the default | each expert | few |", "|---|---:|---:|---:|---:|---:|"]
    for name in VARIANTS:
        own, default = ({**validated(root, "ablations", one), **validated(root, "contenders", one)} for one in (name, "mutual"))
        if own:
            told = [_mean(own[seed][what] for seed in own) for what in ("ensemble", "each", "few")]
            less = [own[seed]["ensemble"] - default[seed]["ensemble"] for seed in own if seed in default]
            gain = "" if name == "mutual" or not less else _mean(less, "+.1f")
            lines.append(f"| {name} | {len(own)} | {told[0]} | {gain} | {told[1]} | {told[2]} |")
    return "\n".join(lines)


def _mean(values: Iterable[float], form: str = ".1f") -> str:
    numbers = list(values)
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):{form}}{spread}"


def show_ablations(arguments: argparse.Namespace) -> int:
    """Print the table of the ablations."""
    table = ablation_table(arguments.root)
    if table.count("\n") < 2:
        sys.exit(f"No ablation has finished in {arguments.root}: python -m benchmarks.cifar100_lt run ablations")
    print(table)
    return 0


# ---------------------------------------------------------------------------------------------------------------
# The command


def parser() -> argparse.ArgumentParser:
    """Of the command."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--root", type=Path, default=Path("runs/cifar100_lt"), help="the folder of all runs (%(default)s)")
    common.add_argument("--epochs", type=int, default=EPOCHS, help="of each run (%(default)s)")
    common.add_argument("--variants", nargs="+", default=(), metavar="NAME", help="only these")
    common.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="0 1 2")
    whole = argparse.ArgumentParser(
        prog="python -m benchmarks.cifar100_lt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(dest="command", required=True)
    working = commands.add_parser("run", parents=[common], help="train a part, or look at its features")
    working.add_argument("part", choices=PARTS)
    working.add_argument("--minutes", type=float, help="after which it ends, to go on when it is typed again")
    working.add_argument("--jobs", type=int, default=1, help="runs side by side (%(default)s)")
    working.set_defaults(does=run)
    commands.add_parser("list", parents=[common], help="how far every part is").set_defaults(does=list_parts)
    commands.add_parser("ablations", parents=[common], help="their table").set_defaults(does=show_ablations)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    end = typed.index("--") if "--" in typed else len(typed)
    parsed = parser().parse_args(typed[:end])
    parsed.overrides = tuple(typed[end + 1 :])
    parsed.root = parsed.root.expanduser().resolve()
    return parsed.does(parsed)


if __name__ == "__main__":
    sys.exit(main())
