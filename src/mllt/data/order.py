"""Which images make which batch, and which random numbers augment them.

The rule that exact resume and any number of devices rest on: a batch is a function of (seed, epoch, step), and an
augmentation of (seed, epoch, position in the epoch). Neither depends on workers, ranks, restarts or any generator's
state, because every random number here is a *hash* of its coordinates, computed alike on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from mllt.errors import ArgumentError, check_bool, check_integer, check_seed

IntArray = NDArray[np.int64]

# Independent streams of random numbers under one seed. Numbers are part of the format: add, never renumber.
SHUFFLE, AUGMENT, SPLIT, SUBSET = range(4)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014), a bijection that scatters 64 bits."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def random_bits(*coordinates: int | IntArray) -> NDArray[np.uint64]:
    """64 random bits for each point of the (broadcast) integer coordinates: a hash, hence free of any state.

    >>> int(random_bits(0, 1, 2)) == int(random_bits(0, 1, 2)) != int(random_bits(0, 2, 1))
    True
    """
    state = np.asarray(np.uint64(0x9E3779B97F4A7C15))
    with np.errstate(over="ignore"):
        for coordinate in coordinates:
            value = np.asarray(coordinate).astype(np.int64).astype(np.uint64)
            state = _mix((state ^ _mix(value + np.uint64(0x9E3779B97F4A7C15))) + np.uint64(0x632BE59BD9B4E019))
    return state


def permutation(length: int, *coordinates: int) -> IntArray:
    """A random order of 0 .. length-1 that depends on the coordinates alone.

    >>> sorted(permutation(5, 0, 1).tolist())
    [0, 1, 2, 3, 4]
    """
    return np.argsort(random_bits(*coordinates, np.arange(length, dtype=np.int64)), kind="stable").astype(np.int64)


class Draws:
    """The random numbers of the augmentation of some images: functions of (seed, epoch, position) only.

    Args:
        seed: the run's seed.
        epoch: 0-based.
        positions: `(B,)` places of the images in the epoch's global order.
    """

    def __init__(self, seed: int, epoch: int, positions: IntArray) -> None:
        self._coordinates = (seed, AUGMENT, epoch, np.asarray(positions, dtype=np.int64))

    def uniform(self, draw: int) -> NDArray[np.float64]:
        """One number in [0, 1) per image, float64 `(B,)`; another `draw` gives independent ones."""
        return (random_bits(*self._coordinates, draw) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, draw: int, high: int) -> IntArray:
        """One whole number in 0 .. high-1 per image, int64 `(B,)`."""
        return np.floor(self.uniform(draw) * high).astype(np.int64)

    def seeds(self, draw: int) -> list[int]:
        """One non-negative 63-bit seed per image, to seed a generator that augments one image at a time."""
        return [int(bits) for bits in random_bits(*self._coordinates, draw) >> np.uint64(1)]


class BatchRequest(NamedTuple):
    """What a sampler asks of a data set: one device's share of one batch.

    `positions` and `indices` are `(b,)` int64; `weight` is the factor for this share's mean loss, so that the average
    over devices and accumulated steps is the mean over the global batch, also where it does not divide evenly.
    """

    epoch: int
    positions: IntArray
    indices: IntArray
    weight: float


class EpochOrder:
    """Instance-balanced order: every image once per epoch, shuffled anew by (seed, epoch).

    An order is any callable from an epoch (0-based) to the `(n,)` int64 indices of that epoch, with a length; other
    orders (class-balanced, reversed) fit where this one does.

    >>> order = EpochOrder(4, seed=0)
    >>> sorted(order(0).tolist()), order(0).tolist() == order(0).tolist()
    ([0, 1, 2, 3], True)
    """

    def __init__(self, length: int, seed: int, *, shuffle: bool = True) -> None:
        self.length = check_integer("length", length, 1)
        self.seed = check_seed("seed", seed)
        self.shuffle = check_bool("shuffle", shuffle)

    def __len__(self) -> int:
        return self.length

    def __call__(self, epoch: int) -> IntArray:
        if not self.shuffle:
            return np.arange(self.length, dtype=np.int64)
        return permutation(self.length, self.seed, SHUFFLE, epoch)


class GlobalBatchSampler(DistributedSampler[BatchRequest]):
    """Cuts an epoch's order into global batches, and yields one device's shares of them.

    The step s of an epoch holds positions s * batch_size .. (s + 1) * batch_size - 1, whatever the number of devices
    and accumulated micro-batches: those only cut the step into `accumulate * num_replicas` consecutive shares. The
    last, smaller step is cut as evenly as it goes; a share that would be empty repeats one image at weight 0.

    It is a `DistributedSampler` so that Lightning leaves it in place on several devices.

    Args:
        order: from an epoch to its indices (`EpochOrder` or the like).
        batch_size: the *global* batch size, over all devices and accumulated micro-batches.
        num_replicas: number of devices; rank: this one's number.
        accumulate: micro-batches per optimizer step.
        drop_last: leave out the last step of an epoch when it is smaller than the others.

    Raises:
        ArgumentError: `batch_size` is not divisible by `num_replicas * accumulate`, or the epoch would be empty.
    """

    def __init__(
        self,
        order: Callable[[int], IntArray],
        length: int,
        batch_size: int,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        accumulate: int = 1,
        drop_last: bool = False,
    ) -> None:
        check_integer("batch_size", batch_size, 1)
        check_integer("accumulate", accumulate, 1)
        shares = num_replicas * accumulate
        if batch_size % shares:
            lower, upper = batch_size // shares * shares, (batch_size // shares + 1) * shares
            raise ArgumentError(
                f"Expected the global `batch_size` to divide evenly over {num_replicas} devices x {accumulate} accumulated "
                f"steps, but got {batch_size}. Set it to {f'{lower} or {upper}' if lower else upper}, or change their number."
            )
        if drop_last and length < batch_size:
            raise ArgumentError(
                f"Expected at least one full batch, but `drop_last` is on and {length} images are fewer than "
                f"batch_size={batch_size}: the epoch would be empty. Lower `batch_size` or set drop_last=false."
            )
        super().__init__(range(length), num_replicas=num_replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.order, self.length = order, length
        self.global_batch_size, self.accumulate = batch_size, accumulate
        self.steps = length // batch_size if drop_last else -(-length // batch_size)

    def __len__(self) -> int:
        """Micro-batches per epoch on this device."""
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[BatchRequest]:
        indices = self.order(self.epoch)
        for step in range(self.steps):
            start = step * self.global_batch_size
            stop = min(start + self.global_batch_size, self.length)
            edges = start + (np.arange(self.accumulate * self.num_replicas + 1) * (stop - start)) // (
                self.accumulate * self.num_replicas
            )
            for micro in range(self.accumulate):
                share = micro * self.num_replicas + self.rank
                yield self._share(indices, int(edges[share]), int(edges[share + 1]), stop - start)

    def _share(self, indices: IntArray, first: int, last: int, step_size: int) -> BatchRequest:
        weight = (last - first) * self.num_replicas * self.accumulate / step_size
        positions = np.arange(first, max(last, first + 1), dtype=np.int64) % self.length
        return BatchRequest(self.epoch, positions, indices[positions], weight)


class EvaluationSampler(DistributedSampler[BatchRequest]):
    """Every image exactly once over all devices, in order, nothing padded: device r gets images r, r + n, r + 2n, ...

    Args:
        length: number of images.
        batch_size: images per batch on *one* device.
        num_replicas: number of devices; rank: this one's number.
    """

    def __init__(self, length: int, batch_size: int, *, num_replicas: int = 1, rank: int = 0) -> None:
        check_integer("batch_size", batch_size, 1)
        super().__init__(range(length), num_replicas=num_replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.mine = np.arange(rank, length, num_replicas, dtype=np.int64)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[BatchRequest]:
        for start in range(0, len(self.mine), self.batch_size):
            indices = self.mine[start : start + self.batch_size]
            yield BatchRequest(0, indices, indices, 1.0)


def per_class_split(labels: IntArray, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Indices kept and indices held out: of each class with n images round(n * fraction), but never the last one.

    Returns:
        (kept, held_out), each int64 and ascending; together every index once. A function of its arguments only.

    >>> kept, held_out = per_class_split(np.array([0, 0, 0, 0, 1]), 0.5, seed=0)
    >>> len(kept), len(held_out)
    (3, 2)
    """
    shuffled = permutation(len(labels), seed, SPLIT)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        held_out[members[: min(round(len(members) * fraction), len(members) - 1)]] = True
    every = np.arange(len(labels), dtype=np.int64)
    return every[~held_out], every[held_out]
