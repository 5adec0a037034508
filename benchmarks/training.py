"""Training and testing experts on CIFAR100-LT: the library as it is run, beside the plain way.

python -m benchmarks.training
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import lightning as L
import torch
from benchmarks.baseline import PlainCifarExperts, endless, plain_loader, plain_sgd, plain_step, plain_test
from benchmarks.cifar import cifar100_lt, pixels_and_labels
from benchmarks.measure import Row, compare, middle_half, once, tells_seconds
from benchmarks.peak import float32_flops
from benchmarks.table import show
from lightning.pytorch.callbacks import Callback
from torch import nn

from mllt import MutualLTModule
from mllt.build import quiet_lightning
from mllt.callbacks import EpochLearningRate, MetricsCSV, NonFiniteGuard, SaveAndStop, SeedSteps, Speed, WholeCheckpoints
from mllt.callbacks.speed import multiplies_bfloat16
from mllt.networks import build_network, count_macs
from mllt.networks.experts import ExpertNetwork
from mllt.optim import parameter_groups, sgd

BATCH, EXPERTS = 128, 3
RECIPE = {"network": "resnet32", "num_experts": EXPERTS, "lr": 0.1, "weight_decay": 5e-4, "warmup_epochs": 5}


class Stopwatch(Callback):
    """Seconds of all steps but the first few, which make ready."""

    def __init__(self, skip: int) -> None:
        self.skip, self.seconds = skip, 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.skip:
            self.seconds = -now()
        if trainer.is_last_batch:
            self.seconds += now()


def now() -> float:
    """The time, when a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def quiet_trainer(folder: str, *callbacks: Callback, **arguments: Any) -> L.Trainer:
    """A trainer with the callbacks that `mllt.train` gives it."""
    quiet_lightning()
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    own = [Speed(arguments.pop("compile", False)), EpochLearningRate(), SeedSteps(0), NonFiniteGuard(folder)]
    return L.Trainer(
        **{"deterministic": "warn", **arguments},
        callbacks=[*own, SaveAndStop(folder, every_minutes=10, every_steps=None, requeue=False), *callbacks],
        plugins=[WholeCheckpoints()],
        default_root_dir=folder,
        logger=[MetricsCSV(folder)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def library_steps(steps: int, skip: int = 2, **trainer: Any) -> Callable[[], float]:
    """Training by the library: seconds per step, of `steps` steps of one epoch."""
    data = cifar100_lt(batch_size=BATCH)
    module = MutualLTModule(class_counts=data.class_counts, class_names=data.class_names, **RECIPE)

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            watch = Stopwatch(skip)
            arguments = {"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": skip + steps, **trainer}
            quiet_trainer(folder, watch, **arguments).fit(module, datamodule=data)
        return watch.seconds / steps

    return run


def plain_steps(steps: int, workers: int, skip: int = 2) -> Callable[[], float]:
    """Training the plain way: seconds per step."""
    data = cifar100_lt(batch_size=BATCH)
    model = PlainCifarExperts(EXPERTS).train()
    optimizer = plain_sgd(model)
    batches = endless(plain_loader(*pixels_and_labels(data.splits.train), BATCH, workers))

    def run() -> float:
        for _ in range(skip):
            plain_step(model, optimizer, *next(batches))
        began = now()
        for _ in range(steps):
            plain_step(model, optimizer, *next(batches))
        return (now() - began) / steps

    return run


def step_floor() -> float:
    """Seconds of a step's arithmetic at the machine's peak: forward, and twice as much backward."""
    macs = count_macs(build_network("resnet32", 100, EXPERTS), 32)
    return 3 * 2 * macs * BATCH / float32_flops(torch.get_num_threads())


def rows_of_training() -> Iterator[Row]:
    """The whole step with its data; the floor is arithmetic alone."""
    floor_is = f"{3 * 2 * count_macs(build_network('resnet32', 100, EXPERTS), 32) * BATCH / 1e9:.0f} GFLOP at the measured peak"
    shared: dict[str, Any] = {"clock": tells_seconds, "rounds": 5}
    float32: dict[str, Any] = {**shared, "floor": step_floor(), "floor_is": floor_is, "target": 1.4}
    plain, ours = plain_steps(8, workers=2), library_steps(8)
    what = "training step with data, CIFAR100-LT, ResNet-32, 3 experts, batch 128"
    yield compare(f"{what}; baseline with 2 loader processes", plain, ours, **float32)
    yield compare(f"{what}; baseline without", plain_steps(8, workers=0), ours, **float32)
    if multiplies_bfloat16():
        yield compare(f"{what}, trainer.precision=bf16-mixed", plain, library_steps(8, precision="bf16-mixed"), **shared)


def rows_of_testing(images: int = 2560) -> Iterator[Row]:
    """Testing every expert and the ensemble, raw and compensated."""
    data = cifar100_lt(batch_size=BATCH)
    module = MutualLTModule(class_counts=data.class_counts, class_names=data.class_names, **RECIPE)
    model = PlainCifarExperts(EXPERTS)
    pixels, labels = pixels_and_labels(data.splits.test)
    loader = plain_loader(pixels[:images], labels[:images], BATCH, 2, train=False)
    counts = data.class_counts.tolist()

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            trainer = quiet_trainer(folder, accelerator="cpu", limit_test_batches=images // BATCH)
            began = now()
            trainer.test(module, datamodule=data, verbose=False)
            return now() - began

    def plainly() -> float:
        began = now()
        plain_test(model, loader, counts)
        return now() - began

    floor = 2 * count_macs(build_network("resnet32", 100, EXPERTS), 32) * images / float32_flops(torch.get_num_threads())
    yield compare(
        f"testing {images:,} images: 3 experts and ensemble, raw and compensated, whole call",
        plainly,
        run,
        clock=tells_seconds,
        rounds=3,
        unit="s",
        floor=floor,
        floor_is="the forward pass at the measured peak",
    )


def rows_of_overhead(steps: int = 150) -> Iterator[Row]:
    """What trainer, callbacks and data take of a step, beside network and loss: a network that computes next to nothing."""
    data = cifar100_lt(batch_size=BATCH)
    module = MutualLTModule(class_counts=data.class_counts, class_names=data.class_names, **RECIPE)
    heads = [nn.Linear(48, 100) for _ in range(EXPERTS)]
    pool = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(1))
    module.use_network(ExpertNetwork(pool, [nn.Identity() for _ in range(EXPERTS)], heads))
    alone = step_of(module, torch.randn(BATCH, 3, 32, 32), torch.randint(0, 100, (BATCH,)))

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            watch = Stopwatch(5)
            quiet_trainer(folder, watch, accelerator="cpu", max_epochs=3, limit_train_batches=80).fit(module, datamodule=data)
        return watch.seconds / 75 - once(alone, repeats=steps)

    seconds = sorted(run() for _ in range(5))
    yield Row(
        what="trainer, callbacks and data of a step, CIFAR100-LT, batch 128, on the processor",
        unit="ms",
        baseline=None,
        ours=seconds[2] * 1e3,
        note=f"{seconds[0] * 1e3:.1f} .. {seconds[-1] * 1e3:.1f} in 5 runs",
    )


def step_of(module: MutualLTModule, images: torch.Tensor, targets: torch.Tensor, lr: float = 0.01) -> Callable[[], object]:
    """A step of a module's network, loss and optimizer, without data and trainer."""
    optimizer = sgd(parameter_groups(module, 5e-4), lr, 0.9, nesterov=False)

    def step() -> None:
        loss = torch.stack(list(module.objective(module(images), targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def bare_step(num_experts: int) -> Callable[[], object]:
    """A step of the library's network, loss and optimizer, without data and trainer."""
    torch.manual_seed(0)
    counts = cifar100_lt().class_counts
    module = MutualLTModule(class_counts=counts, **{**RECIPE, "num_experts": num_experts, "width": 0.75})
    return step_of(module, torch.randn(BATCH, 3, 32, 32), torch.randint(0, 100, (BATCH,)))


def bare_plain_step(num_experts: int) -> Callable[[], object]:
    """The same, plainly."""
    model = PlainCifarExperts(num_experts)
    optimizer = plain_sgd(model, 0.01)
    images, targets = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 100, (BATCH,))
    return lambda: plain_step(model, optimizer, images, targets)


def rows_of_experts(numbers: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8), rounds: int = 5) -> Iterator[Row]:
    """How a step grows with the number of experts, beside how its arithmetic grows."""
    yield from _growth(
        {number: bare_step(number) for number in numbers},
        {number: count_macs(build_network("resnet32", 100, number, width=0.75), 32) for number in numbers},
        "bare step with {0} experts; baseline: that of {1}, times {2:.2f}, as arithmetic grows",
        rounds,
        BATCH,
    )


def _growth(steps: dict[int, Callable[[], object]], macs: dict[int, int], what: str, rounds: int, batch: int) -> Iterator[Row]:
    """Steps beside the first of them, times the arithmetic that they have more; all in turns."""
    first, *others = steps
    for step in steps.values():
        step()
    seconds = [{key: once(step) for key, step in steps.items()} for _ in range(rounds)]
    for key in others:
        allowed = [told[first] * macs[key] / macs[first] for told in seconds]
        ratios = [limit / told[key] for limit, told in zip(allowed, seconds, strict=True)]
        low, high = middle_half(ratios)
        yield Row(
            what=what.format(key, first, macs[key] / macs[first]),
            unit="ms",
            baseline=median(allowed) * 1e3,
            ours=median(told[key] for told in seconds) * 1e3,
            ratio=median(ratios),
            low=low,
            high=high,
            floor=3 * 2 * macs[key] * batch / float32_flops(torch.get_num_threads()) * 1e3,
            floor_is="arithmetic at the measured peak",
            target=round(1 / 1.1, 2),
        )


def resnet50_step(size: int, batch: int = 4) -> Callable[[], object]:
    """A step of ResNet-50 with three experts on a few images of that size."""
    torch.manual_seed(0)
    module = MutualLTModule(class_counts=[100] * 1000, network="resnet50", num_experts=EXPERTS)
    return step_of(module, torch.randn(batch, 3, size, size), torch.randint(0, 1000, (batch,)), lr=0.001)


def rows_of_resolution(sizes: tuple[int, ...] = (112, 160, 224), rounds: int = 5, batch: int = 4) -> Iterator[Row]:
    """How a step grows with the size of the images, beside how its arithmetic grows."""
    steps = {size: resnet50_step(size, batch) for size in sizes}
    yield from _growth(
        steps,
        {size: count_macs(build_network("resnet50", 1000, EXPERTS), size) for size in sizes},
        "bare ResNet-50 step, 3 experts, 4 images of {0} pixels; baseline: that of {1}, times {2:.2f}, as arithmetic grows",
        rounds,
        batch,
    )


def rows() -> Iterator[Row]:
    """All of them."""
    yield from rows_of_training()
    yield compare(
        "bare step (network, loss, optimizer), 3 experts",
        bare_plain_step(EXPERTS),
        bare_step(EXPERTS),
        rounds=9,
        floor=step_floor(),
        floor_is="arithmetic at the measured peak",
    )
    yield from rows_of_overhead()
    yield from rows_of_experts()
    yield from rows_of_resolution()
    yield from rows_of_testing()


if __name__ == "__main__":
    show(rows())
