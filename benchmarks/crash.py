"""Kills real training runs at random moments, starts them again by the same command, and compares them bit for bit with runs
that nobody disturbed.

    python -m benchmarks.crash --kills 25

For each method a run goes through undisturbed. A second one is killed (SIGKILL: nothing can be caught) again and again, at
moments that no one chooses: in a step, in validation, while a checkpoint is being written, between stages, while it starts.
Then it is left to finish. Weights, optimizer, schedule, counters and the state of every callback in the last checkpoint of
every stage, `metrics.csv` and `results.json` must be the same, to the last bit; only seconds may differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

COMMON = ("experiment=digits_lt", "network=resnet20", "data.val_fraction=0.2", "checkpoints.every_steps=3", "threads=1")
#: Every kind of state is in one of them: accumulated steps, a moving average, loader processes, stages, paired images, a queue.
RUNS = {
    "mutual": ("network.num_experts=2", "trainer.accumulate_grad_batches=2", "optimizer.ema_decay=0.9", "data.num_workers=2"),
    "mislas": ("network.num_experts=1", "data.num_workers=2"),
    "bbn": ("network.num_experts=1", "data.num_workers=0"),
    "ssd": ("network.num_experts=1", "data.num_workers=0", "method.rescaling_epochs=2"),
    "dive": ("network.num_experts=1", "data.num_workers=0"),
}
SECONDS = ("train_seconds", "cpu_seconds", "images_per_second")


def command(method: str, folder: Path, epochs: int, *more: str) -> list[str]:
    """The command of a run, the same for every start."""
    settings = [*COMMON, *RUNS[method], f"method={method}", f"trainer.max_epochs={epochs}", f"output_dir={folder}", *more]
    return [sys.executable, "-m", "mllt.train", *settings]


@dataclass
class Killed:
    """What became of a run that was killed."""

    kills: int = 0
    hit: Counter[str] = field(default_factory=Counter)  # what it was doing, as far as its files tell
    starts: int = 0


def run_through(arguments: list[str], log: Path) -> float:
    """Run a command to its end; the seconds it took.

    Raises:
        RuntimeError: it failed.
    """
    began = time.monotonic()
    with log.open("ab") as file:
        status = subprocess.run(arguments, stdout=file, stderr=file, env=_environment()).returncode
    if status:
        raise RuntimeError(f"exit status {status}: {' '.join(arguments)}\n{log.read_text()[-2000:]}")
    return time.monotonic() - began


def run_with_kills(
    arguments: list[str], folder: Path, log: Path, kills: int, training_seconds: float, rng: random.Random
) -> Killed:
    """Run a command to its end, killing it so many times on the way, after training for random times.

    Args:
        arguments: the command.
        folder: its output folder.
        log: where its output goes.
        kills: how many times.
        training_seconds: about how long it trains undisturbed, from which the times between kills follow.
        rng: what they are drawn by.

    Raises:
        RuntimeError: it failed by itself.
    """
    killed = Killed()
    while True:
        with log.open("ab") as file:
            process = subprocess.Popen(arguments, stdout=file, stderr=file, env=_environment(), start_new_session=True)
        killed.starts += 1
        left = kills - killed.kills
        if left and _is_killed(process, folder, rng, 0.6 * training_seconds / (kills + 1)):  # not to be done before the last
            killed.kills += 1
            killed.hit[where(folder)] += 1
            continue
        if process.wait():
            raise RuntimeError(f"exit status {process.returncode}: {' '.join(arguments)}\n{log.read_text()[-2000:]}")
        return killed


def _is_killed(process: subprocess.Popen[bytes], folder: Path, rng: random.Random, mean: float) -> bool:
    """Kill a process at a random moment: one in ten while it starts, else while it trains; False where it ended before."""
    if rng.random() < 0.1:
        delay = rng.uniform(0, 6)
    else:
        before = _newest(folder)
        while _newest(folder) == before and process.poll() is None:  # from its first own checkpoint on
            time.sleep(0.005)
        delay = rng.expovariate(1 / mean)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def where(folder: Path) -> str:
    """What a killed run had been doing: the stage that its newest checkpoint is of, and whether it was writing one."""
    if any(folder.rglob(".*.partial")):
        return "while writing"
    newest = max(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return "before any checkpoint"
    return newest.relative_to(folder).parts[1] if "stages" in newest.parts else "last stage"


def _newest(folder: Path) -> float:
    return max((path.stat().st_mtime_ns for path in folder.rglob("last.ckpt")), default=0.0)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


# ------------------------------------------------------------------------------------------------------------ comparing


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs, but for seconds; nothing where they are the same to the last bit."""
    found = []
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.name in ("last.ckpt", "best.ckpt"))
    for name in names:
        found += [f"{name}: {at}" for at in _differing(_load(one / name), _load(other / name))]
    for name in sorted(path.relative_to(one) for path in one.rglob("metrics.csv")):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(f"{name}")
    left, right = (json.loads((run / "results.json").read_text()) for run in (one, other))
    return found + [f"results.json: {key}" for key in left.keys() | right.keys() if _unlike(key, left, right)]


def _unlike(key: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    return key not in SECONDS and (key not in one or key not in other or one[key] != other[key])


def _load(path: Path) -> dict[str, Any]:
    checkpoint = torch.load(path, weights_only=True)
    for state in checkpoint["callbacks"].values():
        for name in (*SECONDS, "dirpath", "best_model_path", "kth_best_model_path", "best_k_models", "last_model_path"):
            state.pop(name, None)  # seconds, and the folder's name
    return checkpoint


def _differing(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """Where two nests of plain values and tensors differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield at
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            if key not in one or key not in other:
                yield f"{at}/{key}"
            else:
                yield from _differing(one[key], other[key], f"{at}/{key}")
    elif isinstance(one, (list, tuple)) and type(one) is type(other) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differing(left, right, f"{at}/{number}")
    elif one != other:
        yield at


# ------------------------------------------------------------------------------------------------------------ the program


def main() -> int:
    """The command; the exit status is 1 when a run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="of each run")
    parser.add_argument("--methods", nargs="+", default=["mutual", "mislas", "bbn"], choices=list(RUNS))
    parser.add_argument("--epochs", type=int, default=20, help="of each stage that takes those of the run")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; a new one each time by default")
    parser.add_argument("--folder", type=Path, default=None, help="keep the runs there")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mllt-crash-"))
    print(f"moments drawn with --seed {seed}; runs in {folder}")
    failed = False
    for method in options.methods:
        failed |= not crash(method, folder / method, options.kills, options.epochs, random.Random(f"{seed} {method}"))
    return int(failed)


def crash(method: str, folder: Path, kills: int, epochs: int, rng: random.Random) -> bool:
    """Both runs of a method, compared and told; whether they are the same."""
    folder.mkdir(parents=True)
    whole, parts = folder / "whole", folder / "parts"
    run_through(command(method, whole, epochs), folder / "whole.log")
    seconds = json.loads((whole / "results.json").read_text())["train_seconds"]
    killed = run_with_kills(command(method, parts, epochs), parts, folder / "parts.log", kills, seconds, rng)
    found = differences(whole, parts)
    hit = ", ".join(f"{count} {name}" for name, count in sorted(killed.hit.items()))
    settings = " ".join(re.sub(r"^\w+\.", "", setting) for setting in RUNS[method])
    print(f"{method} ({settings}): {seconds:.0f} s of training, {killed.kills} kills ({hit}), {killed.starts} starts:", end=" ")
    print("bit for bit the same" if not found else f"DIFFERENT in {', '.join(found[:10])}", flush=True)
    return not found and killed.kills == kills


if __name__ == "__main__":
    sys.exit(main())
