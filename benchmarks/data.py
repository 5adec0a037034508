"""What a CIFAR image costs before the network sees it: `python -m benchmarks.data` prints the rows.

Whole epochs of the training loader of CIFAR-100-LT (imbalance factor 100, batches of 128), against one that augments image by
image by Pillow. Processor time of one thread. With MLLT_DATA, of the real images; else of random ones of the same number and
shape, which cost the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from benchmarks.baseline import plain_loader
from benchmarks.measure import Row, Work, compare, cpu, once, wall
from benchmarks.table import show

from mllt.data import CIFAR100LT, ArraySource, Splits
from mllt.data.subsets import long_tailed_indices

BATCH, ROUNDS = 128, 5
FLOOR_IS = "one gather and one conversion to float32 of the same bytes"
ASKED = "asked for: at most 50 us"


class RandomCIFAR100LT(CIFAR100LT):
    """Random images in the place of CIFAR's."""

    def load_splits(self) -> Splits:
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (50_000, 3, 32, 32), generator=draw, dtype=torch.uint8)
        labels = torch.arange(50_000).remainder(100).numpy()
        test = ArraySource(pixels[:10_000].clone(), labels[:10_000])
        kept = long_tailed_indices(labels, self.counts, self.subset_seed)
        return Splits(ArraySource(pixels, labels, kept), test, [str(number) for number in range(100)])


def rows() -> Iterator[Row]:
    """Of training images, plain and augmented in other ways, and of test images; on a GPU, where there is one, too."""
    strong = {"autoaugment": "cifar10", "cutout": 16}
    ways: dict[str, dict[str, Any]] = {
        "crop, flip": {},
        "crop, flip, rotation": {"rotation": 15.0},
        "crop, flip, AutoAugment, Cutout": strong,
    }
    with one_thread():
        for name, settings in ways.items():
            yield of_training(f"CIFAR training image: {name}", **settings)
        yield of_test("CIFAR test image: normalised")
        if torch.cuda.is_available():
            for name, settings in ways.items():
                yield of_gpu(f"CIFAR training image on the GPU: {name}", **settings)


def of_training(what: str, **settings: Any) -> Row:
    """Epochs of training batches."""
    module = data(**settings)
    source = module.splits.train
    baseline = plain_loader(as_pillow_likes(source), source.labels.tolist(), BATCH, 0, **settings)
    ours = epoch(module.train_dataloader())
    return compare(what, epoch(baseline), ours, **of_epoch(source), note=ASKED)


def of_test(what: str) -> Row:
    """Passes through the test images."""
    module = data(eval_batch_size=BATCH)
    source = module.splits.test
    baseline = plain_loader(as_pillow_likes(source), source.labels.tolist(), BATCH, 0, train=False)
    return compare(what, epoch(baseline), epoch(module.test_dataloader()), **of_epoch(source))


def of_gpu(what: str, **settings: Any) -> Row:
    """Epochs of batches that are made on the GPU, against the same ones made on the CPU and sent there; elapsed time."""
    module, device = data(**settings), torch.device("cuda", torch.cuda.current_device())
    plain = module.train_dataloader()

    def sent() -> None:
        for batch in plain:
            batch.images.pin_memory().to(device, non_blocking=True)

    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=SimpleNamespace(root_device=device),
        state=SimpleNamespace(finished=False),
        world_size=1,
        global_rank=0,
        accumulate_grad_batches=1,
    )
    there = epoch(module.train_dataloader())
    return compare(what, sent, there, rounds=ROUNDS, clock=wall, unit="us", per=len(plain.dataset))  # type: ignore[arg-type]


def data(**settings: Any) -> CIFAR100LT:
    """The data module, of real images where they are at hand."""
    root = os.environ.get("MLLT_DATA")
    module = CIFAR100LT(root, batch_size=BATCH, **settings) if root else RandomCIFAR100LT(batch_size=BATCH, **settings)
    module.setup()
    return module


def as_pillow_likes(source: Any) -> Any:
    """A source's images as `(n, H, W, 3)`."""
    return source.images[torch.from_numpy(source.rows)].permute(0, 2, 3, 1).contiguous().numpy()


def epoch(loader: Iterable[Any]) -> Work:
    """One pass."""

    def work() -> None:
        for _ in loader:
            pass

    return work


def of_epoch(source: Any) -> dict[str, Any]:
    """How an epoch is timed: per image, and the least it can cost."""
    batches = torch.from_numpy(source.rows).split(BATCH)

    def least() -> None:
        for rows in batches:
            source.images.index_select(0, rows).float()

    least()
    floor = min(once(least, cpu, repeats=3) for _ in range(ROUNDS))
    timing = {"rounds": ROUNDS, "clock": cpu, "unit": "us", "per": len(source)}
    return {**timing, "floor": floor, "floor_is": FLOOR_IS}


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    show(rows())
