"""The objective and the metrics at iNaturalist's size: `python -m benchmarks.loss`; with `--growth`, how cost grows.

On one thread, by processor time, since the arithmetic is the same on more; on a GPU, where there is one, by the clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.measure import Row, compare, compare_memory, cpu, wall
from benchmarks.table import show
from torch import Tensor

from mllt.losses import chunked_mutual_learning_terms, mutual_learning_terms
from mllt.methods.evaluation import Evaluation

EXPERTS, BATCH, CLASSES = 3, 256, 8142
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOCK = wall if DEVICE == "cuda" else cpu
FLOOR = "one plain cross entropy on the logits of all experts, forward and backward, timed in turns with ours"
Step = Callable[[Tensor, Tensor], Any]


# ------------------------------------------------------------------------------------------------ ways of a step


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Plain: all experts' logits as one batch."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.repeat(len(logits)))


def pair_by_pair(logits: Tensor, labels: Tensor) -> Tensor:
    """As published code has it: experts one by one, pairs one by one, and each term's value asked for to be logged."""
    total, log = torch.zeros((), device=logits.device), []
    for one in logits:
        term = F.cross_entropy(one, labels)
        log.append(term.item())
        total = total + term
    for i, student in enumerate(logits):
        for j, teacher in enumerate(logits):
            if i != j:
                target = F.softmax(teacher.detach(), dim=1)
                term = F.kl_div(F.log_softmax(student, dim=1), target, reduction="batchmean") / (len(logits) - 1)
                log.append(term.item())
                total = total + term
    return total


def ours(logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    """The library's."""
    return torch.stack(mutual_learning_terms(logits, labels, **settings)).sum()


def step(way: Step, experts: int = EXPERTS, batch: int = BATCH, classes: int = CLASSES, **settings: Any) -> Callable[[], None]:
    """Forward and backward on the same logits for every way."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(experts, batch, classes, generator=generator)).to(DEVICE).requires_grad_()
    labels = torch.randint(classes, (batch,), generator=generator).to(DEVICE)

    def once() -> None:
        logits.grad = None
        way(logits, labels, **settings).backward()
        logits.grad = None

    return once


# ------------------------------------------------------------------------------------------- a million of classes


def head_step(
    chunk: int | None, classes: int, batch: int = 16, dtype: torch.dtype = torch.float32, experts: int = 3, size: int = 16
) -> Callable[[], list[Tensor]]:
    """From features, through linear heads, to the gradients of their weights; the logits at once, or in chunks."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(experts, batch, size, generator=generator).to(DEVICE, dtype).requires_grad_()
    weights = [torch.randn(classes, size, generator=generator).to(DEVICE, dtype).requires_grad_() for _ in range(experts)]
    labels = torch.randint(classes, (batch,), generator=generator).to(DEVICE)

    def once() -> list[Tensor]:
        if chunk is None:
            terms = mutual_learning_terms(torch.stack([x @ w.T for x, w in zip(features, weights, strict=True)]), labels)
        else:
            terms = chunked_mutual_learning_terms(features, weights, None, labels, chunk=chunk)
        found = torch.autograd.grad(sum(terms), [features, *weights])
        return [torch.stack(terms).detach(), *found]

    return once


def largest_difference(classes: int, chunk: int, dtype: torch.dtype) -> float:
    """Between chunks and the whole: of loss and gradients, over the largest value of each."""
    pairs = zip(*(head_step(size, classes, batch=8, dtype=dtype)() for size in (None, chunk)), strict=True)
    return max(float((whole - part).abs().max() / whole.abs().max()) for whole, part in pairs)


# ------------------------------------------------------------------------------------------------------- metrics


class ByNumpy:
    """As published code has it: every expert's and the ensemble's arg max fetched and counted class by class at the end."""

    def __init__(self, offset: Tensor) -> None:
        self.offset, self.guesses, self.confidences, self.targets = offset, [], [], []

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take in a batch."""
        for added in (0.0, self.offset):
            for scores in (*(one + added for one in logits), (logits + added).mean(dim=0)):
                confidence, guess = torch.softmax(scores, dim=1).max(dim=1)
                self.guesses.append(guess.cpu().numpy())
                self.confidences.append(confidence.cpu().numpy())
        self.targets.append(targets.cpu().numpy())

    def compute(self, classes: int) -> list[float]:
        """Balanced accuracy of the first row."""
        targets = self.targets[0]
        guesses = self.guesses[0]
        return [float(np.mean(guesses[targets == label] == label)) for label in range(classes) if (targets == label).any()]


def metrics_steps(classes: int = CLASSES) -> tuple[Callable[[], None], Callable[[], None]]:
    """Updates with a batch: by numpy, and ours."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(EXPERTS, BATCH, classes, generator=generator).to(DEVICE)
    targets = torch.randint(classes, (BATCH,), generator=generator).to(DEVICE)
    offset = torch.randn(classes, generator=generator).to(DEVICE)
    evaluation = Evaluation(torch.arange(1, classes + 1), EXPERTS).to(DEVICE)

    def theirs() -> None:
        ByNumpy(offset).update(logits, targets)

    def own() -> None:
        evaluation.update(logits, targets, offset)

    return torch.inference_mode()(theirs), torch.inference_mode()(own)


def tables() -> tuple[Callable[[], None], Callable[[], None]]:
    """The table at the end, of 24,426 images (iNaturalist 2018's): by numpy, one row of eight; ours, all of it."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(CLASSES).repeat(3)
    plain, evaluation = ByNumpy(torch.zeros(CLASSES)), Evaluation(torch.arange(1, CLASSES + 1), EXPERTS)
    plain.guesses.append(torch.randint(CLASSES, targets.shape, generator=generator).numpy())
    plain.targets.append(targets.numpy())
    evaluation.update(torch.zeros(EXPERTS, 1, CLASSES), targets[:1], torch.zeros(CLASSES))

    def own() -> None:
        evaluation.tallies._computed = None  # or the second call would be given the first one's result
        evaluation.compute()

    return lambda: [plain.compute(CLASSES) for _ in range(2 * (EXPERTS + 1))] and None, own


# ---------------------------------------------------------------------------------------------------------- rows


def rows() -> Iterator[Row]:
    """The lines of this module."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _objective()
        yield from _chunks()
        yield from _metrics()
    finally:
        torch.set_num_threads(threads)


def _objective() -> Iterator[Row]:
    size = f"{EXPERTS} x {BATCH} x {CLASSES:,} logits"
    plain, own, pairs = step(cross_entropy), step(ours), step(pair_by_pair)
    shared: dict[str, Any] = {"clock": CLOCK, "warm_up": 3}
    note = "asked for: at most 1.5 times plain cross entropy, a ratio of 0.67"
    yield compare(f"mutual + CE against plain CE, {size}", plain, own, rounds=21, target=1 / 1.5, note=note, **shared)
    floor = measured_floor(plain)
    yield compare(f"mutual + CE against pair by pair, {size}", pairs, own, rounds=9, floor=floor, floor_is=FLOOR, **shared)
    for name, settings in {
        "T = 2": {"temperature": 2.0},
        "balanced": {"class_counts": torch.arange(1, CLASSES + 1)},
        "ensemble as target": {"target": "mean"},
        "peers not detached": {"detach": False},
    }.items():
        yield compare(f"the same, {name}, against plain CE", plain, step(ours, **settings), rounds=7, **shared)
    logits = EXPERTS * BATCH * CLASSES * 4 / 1e6
    memory: dict[str, Any] = {"floor": logits, "floor_is": "the gradient of the logits, which must be written down"}
    note = "asked for: at most 2 times plain cross entropy, a ratio of 0.5"
    yield compare_memory(f"peak memory of mutual + CE against plain CE, {size}", plain, own, target=0.5, note=note, **memory)
    yield compare_memory(f"peak memory of mutual + CE against pair by pair, {size}", pairs, own, **memory)


def _chunks(classes: int = 1_000_000, chunk: int = 8192) -> Iterator[Row]:
    size, weights = "3 experts, batch 16, 16 features", 3 * classes * 16 * 4 / 1e6
    whole, part = head_step(None, classes), head_step(chunk, classes)
    apart = [f"{largest_difference(classes, chunk, dtype):.0e} in {dtype}" for dtype in (torch.float64, torch.float32)]
    note = f"loss and gradients differ by {' and '.join(apart)}, of their largest value"
    yield compare(
        f"{classes:,} classes in chunks of {chunk:,} against at once, {size}", whole, part, rounds=3, clock=CLOCK, note=note
    )
    floor: dict[str, Any] = {"floor": weights, "floor_is": "the gradients of the weights"}
    yield compare_memory(
        f"peak memory of {classes:,} classes in chunks against at once, {size}", whole, part, rounds=2, **floor
    )
    for fewer in (classes // 4, classes // 2):
        floor["floor"] = 3 * fewer * 16 * 4 / 1e6
        yield compare_memory(
            f"peak memory of {fewer:,} classes in chunks, {size}", None, head_step(chunk, fewer), rounds=2, **floor
        )


def _metrics() -> Iterator[Row]:
    theirs, own = metrics_steps()
    what = f"metrics of a batch of {BATCH}, {CLASSES:,} classes: 4 rows, raw and compensated, with calibration"
    yield compare(f"{what}; against arg max by arg max", theirs, own, clock=CLOCK, rounds=9)
    theirs, own = tables()
    yield compare(f"the table of 8 rows, {CLASSES:,} classes; against a loop over classes", theirs, own, clock=CLOCK, rounds=3)


def measured_floor(work: Callable[[], object]) -> float:
    """Seconds of a call, the median of nine."""
    return compare("", work, work, clock=CLOCK, rounds=9, unit="s").ours


def growth() -> Iterator[Row]:
    """Our step against plain cross entropy, at other numbers of experts, images and classes."""
    torch.set_num_threads(1)
    sizes = [(1, BATCH, CLASSES), (2, BATCH, CLASSES), (6, BATCH, CLASSES), (3, 32, CLASSES), (3, 1024, CLASSES)]
    for size in [*sizes, (3, BATCH, 100), (3, BATCH, 1000), (3, BATCH, 32000)]:
        name = "{} x {} x {:,} logits".format(*size)
        yield compare(name, step(cross_entropy, *size), step(ours, *size), rounds=9, clock=CLOCK, warm_up=3)
    for chunk in (512, 2048, 8192, 32768, 131072):
        what = f"250,000 classes in chunks of {chunk:,} against at once"
        yield compare(what, head_step(None, 250_000), head_step(chunk, 250_000), rounds=3, clock=CLOCK)


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--growth", action="store_true")
    show(growth() if parser.parse_args().growth else rows())


if __name__ == "__main__":
    main()
