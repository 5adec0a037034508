"""Which images make which batch, and which random numbers augment them.

The rule that exact resume and any number of devices rest on: a batch is a function of (seed, epoch, step), and an
augmentation of (seed, epoch, position in the epoch). Neither depends on workers, ranks, restarts or any generator's
state, because every random number here is a *hash* of its coordinates, computed alike on every machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from mllt.errors import ArgumentError, check_bool, check_choice, check_integer, check_seed

IntArray = NDArray[np.int64]

# Independent streams of random numbers under one seed. Numbers are part of the format: add, never renumber.
SHUFFLE, AUGMENT, SPLIT, SUBSET, CLASSES, MEMBERS, REVERSED, PARTNER, STEP = range(9)


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
    return _more_bits(np.asarray(np.uint64(0x9E3779B97F4A7C15)), *coordinates)


def _more_bits(state: NDArray[np.uint64], *coordinates: int | IntArray) -> NDArray[np.uint64]:
    """The bits of the coordinates that `state` is of, followed by these."""
    with np.errstate(over="ignore"):
        for coordinate in coordinates:
            value = np.asarray(coordinate).astype(np.int64).astype(np.uint64)
            state = _mix((state ^ _mix(value + np.uint64(0x9E3779B97F4A7C15))) + np.uint64(0x632BE59BD9B4E019))
    return state


def uniforms(*coordinates: int | IntArray) -> NDArray[np.float64]:
    """A number in [0, 1) for each point of the (broadcast) integer coordinates."""
    return _as_uniforms(random_bits(*coordinates))


def _as_uniforms(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(length: int, *coordinates: int) -> IntArray:
    """A random order of 0 .. length-1 that depends on the coordinates alone.

    >>> sorted(permutation(5, 0, 1).tolist())
    [0, 1, 2, 3, 4]
    """
    return np.argsort(random_bits(*coordinates, np.arange(length, dtype=np.int64)), kind="stable").astype(np.int64)


def images_by_class(labels: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Images class after class, where each class begins, and how many it has; classes without images are passed over.

    >>> images_by_class(np.array([7, 9, 7]))
    (array([0, 2, 1]), array([0, 2]), array([2, 1]))
    """
    images = np.argsort(labels, kind="stable").astype(np.int64)
    _, first, counts = np.unique(labels[images], return_index=True, return_counts=True)
    return images, first, counts


class Draws:
    """The random numbers of the augmentation of some images: functions of (seed, epoch, position) only.

    Args:
        seed: the run's seed.
        epoch: 0-based.
        positions: `(B,)` places of the images in the epoch's global order.
    """

    def __init__(self, seed: int, epoch: int, positions: IntArray) -> None:
        self._bits = random_bits(seed, AUGMENT, epoch, np.asarray(positions, dtype=np.int64))  # which all draws begin with

    def uniform(self, draw: int) -> NDArray[np.float64]:
        """One number in [0, 1) per image, float64 `(B,)`; another `draw` gives independent ones."""
        return _as_uniforms(_more_bits(self._bits, draw))

    def integers(self, draw: int, high: int) -> IntArray:
        """One whole number in 0 .. high-1 per image, int64 `(B,)`."""
        return np.floor(self.uniform(draw) * high).astype(np.int64)

    def seeds(self, draw: int) -> list[int]:
        """One non-negative 63-bit seed per image, to seed a generator that augments one image at a time."""
        return [int(bits) for bits in _more_bits(self._bits, draw) >> np.uint64(1)]


class BatchRequest(NamedTuple):
    """What a sampler asks of a data set: one device's share of one batch.

    `positions` and `indices` are `(b,)` int64; `weight` is the factor for this share's mean loss, so that the average
    over devices and accumulated steps is the mean over the global batch, also where it does not divide evenly. `companion`
    asks for an image beside each, and `draw` in [0, 1) is then one random number for the whole global batch.
    """

    epoch: int
    positions: IntArray
    indices: IntArray
    weight: float
    companion: BatchRequest | None = None
    draw: float | None = None


class EpochOrder:
    """Instance-balanced order: every image once per epoch, shuffled anew by (seed, epoch).

    Without `shuffle` every epoch has the order of epoch 0. It is a random one too: sources hold class after class, and in
    their own order a batch would be of one class.

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
        return permutation(self.length, self.seed, SHUFFLE, epoch if self.shuffle else 0)


class ClassBalancedOrder:
    """Class-balanced order: every class as often as any other, the images of a class in turn.

    An epoch of n images is ceil(n / C) rounds, the last one cut off; a round takes one image of each of the C classes, in a
    random order. Class c's images come in random cycles: none comes again before all have come. Kang et al., "Decoupling
    Representation and Classifier", ICLR 2020 ("class-balanced sampling").

    Args:
        labels: `(n,)` class of each image; classes without images are passed over.
        seed: with the epoch, all that the order depends on.
        shuffle: a new order every epoch; without it, that of epoch 0.

    >>> labels = np.array([0, 0, 0, 0, 0, 1])
    >>> labels[ClassBalancedOrder(labels, seed=0)(0)].tolist().count(1)
    3
    """

    def __init__(self, labels: IntArray, seed: int, *, shuffle: bool = True) -> None:
        self.length = check_integer("length", len(labels), 1)
        self.by_class, self.first, self.counts = images_by_class(labels)
        self.seed = check_seed("seed", seed)
        self.shuffle = check_bool("shuffle", shuffle)

    def __len__(self) -> int:
        return self.length

    def __call__(self, epoch: int) -> IntArray:
        epoch = epoch if self.shuffle else 0
        classes = len(self.counts)
        rounds = -(-self.length // classes)
        place = np.arange(rounds, dtype=np.int64)[:, None], np.arange(classes, dtype=np.int64)[None]
        turns = np.argsort(random_bits(self.seed, CLASSES, epoch, *place), axis=1, kind="stable")
        return np.take_along_axis(self._drawn(epoch, rounds), turns, axis=1).reshape(-1)[: self.length]

    def _drawn(self, epoch: int, rounds: int) -> IntArray:
        """The image of each class in each round, `(rounds, C)`: its members, shuffled anew for each time through.

        All at once, since there may be thousands of classes: class after class, as many whole cycles as the rounds take.
        """
        lengths = -(-rounds // self.counts) * self.counts
        starts = np.cumsum(lengths) - lengths
        label = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
        cycle, member = np.divmod(np.arange(len(label), dtype=np.int64) - starts[label], self.counts[label])
        shuffled = np.lexsort((random_bits(self.seed, MEMBERS, epoch, label, cycle, member), cycle, label))
        images = self.by_class[self.first[label] + member][shuffled]
        return images[starts + np.arange(rounds)[:, None]]


COMPANIONS = ("view", "reversed", "partner")


class Companions:
    """Which image goes beside each image of a batch; like the batch itself, a function of (seed, epoch, position) only.

    - "view": the same image again, to be augmented in another way;
    - "reversed": one drawn by reversed frequency, with replacement: a class with probability proportional to 1 / n_c, then
      any of its images (Zhou et al., "BBN", CVPR 2020, section 4.1);
    - "partner": one of the same global batch, each once (by chance perhaps itself), with that one's own augmentation; to be
      mixed with it.

    Args:
        kind: one of `COMPANIONS`.
        labels: `(n,)` class of each training image.
        seed: of the run.
        shuffle: others in every epoch; without it, those of epoch 0.

    >>> labels = np.array([0] * 99 + [1])
    >>> request = BatchRequest(0, np.arange(100), np.arange(100), 1.0)
    >>> drawn = Companions("reversed", labels, seed=0)(request, np.arange(100), 0, 100).indices
    >>> (labels[drawn] == 1).mean().item() > 0.9  # 1 image of 100, but 99 of 100 draws
    True
    """

    def __init__(self, kind: str, labels: IntArray, seed: int, *, shuffle: bool = True) -> None:
        self.kind = check_choice("companion", kind, COMPANIONS)
        self.shuffle = check_bool("shuffle", shuffle)
        self.length = len(labels)
        self.seed = check_seed("seed", seed)
        self.by_class, self.first, self.counts = images_by_class(labels)
        self.edges = np.cumsum(1 / self.counts) / np.sum(1 / self.counts)

    def __call__(self, request: BatchRequest, order: IntArray, start: int, stop: int) -> BatchRequest:
        """The companions of a share of the global batch at positions `start` .. `stop` of the epoch's `order`."""
        epoch = request.epoch if self.shuffle else 0
        if self.kind == "partner":
            turn = permutation(stop - start, self.seed, PARTNER, epoch, start)
            positions = start + turn[request.positions - start]
            return request._replace(positions=positions, indices=order[positions])
        # Past the end of the epoch, so that its augmentation is another one
        positions = request.positions + self.length
        indices = request.indices if self.kind == "view" else self._drawn(epoch, request.positions)
        return request._replace(positions=positions, indices=indices)

    def draw(self, epoch: int, start: int) -> float:
        """One number in [0, 1) for the global batch that begins at position `start`."""
        return float(uniforms(self.seed, STEP, epoch if self.shuffle else 0, start))

    def _drawn(self, epoch: int, positions: IntArray) -> IntArray:
        chance = uniforms(self.seed, REVERSED, epoch, positions, 0)
        label = np.minimum(np.searchsorted(self.edges, chance, side="right"), len(self.counts) - 1)
        place = np.floor(uniforms(self.seed, REVERSED, epoch, positions, 1) * self.counts[label]).astype(np.int64)
        return self.by_class[self.first[label] + place]


class _DeviceSampler(DistributedSampler[BatchRequest]):
    """Base of the samplers: which device this is, of how many.

    It is a `DistributedSampler` so that Lightning leaves it in place on several devices, and tells it the epoch.

    Args:
        length: number of images.
        num_replicas: number of devices; None: as many as `torch.distributed` runs when the sampler is *used*, one
            where it does not run. So a loader may be made before a trainer starts the processes.
        rank: this device's number; only with `num_replicas`.
    """

    def __init__(self, length: int, num_replicas: int | None, rank: int) -> None:
        super().__init__(range(length), num_replicas=num_replicas or 1, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.length = length
        self.given = None if num_replicas is None else (num_replicas, rank)

    def devices(self) -> tuple[int, int]:
        """Number of devices and this one's."""
        if self.given is not None:
            return self.given
        return (dist.get_world_size(), dist.get_rank()) if dist.is_available() and dist.is_initialized() else (1, 0)


class GlobalBatchSampler(_DeviceSampler):
    """Cuts an epoch's order into global batches, and yields one device's shares of them.

    An epoch of n images is cut into ceil(n / batch_size) consecutive steps whose sizes differ by at most one, so that no
    step is left with a few images: that would be a full step of the optimizer, with batch statistics of next to nothing
    (321 images in batches of 16 would end every epoch on a batch of one). With `drop_last`, all steps are of `batch_size`.

    The steps are the same whatever the number of devices and accumulated micro-batches: those only cut a step into
    `accumulate * num_replicas` consecutive shares, as evenly as it goes; a share that would be empty repeats one image at
    weight 0.

    Args:
        order: from an epoch to its indices (`EpochOrder` or the like).
        length: number of images of an epoch.
        batch_size: the *global* batch size, over all devices and accumulated micro-batches.
        num_replicas: number of devices; None: those that run when the sampler is used. rank: this one's number.
        accumulate: micro-batches per optimizer step.
        drop_last: take only floor(n / batch_size) steps of exactly `batch_size`, and leave out the rest of the epoch's order.
        companions: which image goes beside each; None: none.

    Raises:
        ArgumentError: `batch_size` is not divisible by `num_replicas * accumulate` (with `num_replicas` None, at the first
            use), or the epoch would be empty.
    """

    def __init__(
        self,
        order: Callable[[int], IntArray],
        length: int,
        batch_size: int,
        *,
        num_replicas: int | None = None,
        rank: int = 0,
        accumulate: int = 1,
        drop_last: bool = False,
        companions: Companions | None = None,
    ) -> None:
        check_integer("batch_size", batch_size, 1)
        check_integer("accumulate", accumulate, 1)
        _check_divisible(batch_size, num_replicas or 1, accumulate)
        if drop_last and length < batch_size:
            raise ArgumentError(
                f"Expected at least one full batch, but `drop_last` is on and {length} images are fewer than "
                f"batch_size={batch_size}: the epoch would be empty. Lower `batch_size` or set drop_last=false."
            )
        super().__init__(length, num_replicas, rank)
        self.order = order
        self._taken = (0, 0)  # an epoch, and how many of its first steps are left out
        self.global_batch_size, self.accumulate = batch_size, accumulate
        self.drop_last, self.companions = drop_last, companions
        self.steps = length // batch_size if drop_last else -(-length // batch_size)

    def __len__(self) -> int:
        """Micro-batches per epoch on this device, those included that `go_on` leaves out."""
        return self.steps * self.accumulate

    def go_on(self, epoch: int, steps: int) -> None:
        """Leave out the first `steps` of this epoch, which were taken before; other epochs are whole."""
        self._taken = (check_integer("epoch", epoch, 0), check_integer("steps", steps, 0, self.steps))

    @property
    def taken(self) -> int:
        """How many steps of the epoch are left out."""
        return self._taken[1] if self._taken[0] == self.epoch else 0

    def __iter__(self) -> Iterator[BatchRequest]:
        world, rank = self.devices()
        _check_divisible(self.global_batch_size, world, self.accumulate)
        indices = self.order(self.epoch)
        used = self.steps * self.global_batch_size if self.drop_last else self.length
        steps = np.arange(self.steps + 1) * used // self.steps
        shares = self.accumulate * world
        for start, stop in itertools.pairwise(steps[self.taken :].tolist()):
            edges = start + np.arange(shares + 1) * (stop - start) // shares
            for share in range(rank, shares, world):  # this device's, micro-batch after micro-batch
                first, last = int(edges[share]), int(edges[share + 1])
                # An empty share takes an image of its step, at weight 0
                positions = np.arange(first, last, dtype=np.int64) if last > first else np.array([stop - 1], dtype=np.int64)
                request = BatchRequest(self.epoch, positions, indices[positions], (last - first) * shares / (stop - start))
                yield request if self.companions is None else self._paired(request, indices, start, stop)

    def _paired(self, request: BatchRequest, indices: IntArray, start: int, stop: int) -> BatchRequest:
        companions: Companions = self.companions  # type: ignore[assignment]
        beside = companions(request, indices, start, stop)
        return request._replace(companion=beside, draw=companions.draw(request.epoch, start))


def _check_divisible(batch_size: int, devices: int, accumulate: int) -> None:
    shares = devices * accumulate
    if batch_size % shares:
        lower, upper = batch_size // shares * shares, (batch_size // shares + 1) * shares
        raise ArgumentError(
            f"Expected the global `batch_size` to divide evenly over {devices} devices x {accumulate} accumulated "
            f"steps, but got {batch_size}. Set it to {f'{lower} or {upper}' if lower else upper}, or change their number."
        )


class EvaluationSampler(_DeviceSampler):
    """Every image exactly once over all devices: consecutive batches, which are dealt to the devices in turn.

    The batches are the same for any number of devices: what a network says of an image depends, in the last digits, on how
    many others it comes with. All devices have as many, so that none waits for another in vain; where they do not come out
    even, the last ones repeat an image at weight 0, which does not count.

    Args:
        length: number of images, at least 1.
        batch_size: images per batch on *one* device.
        num_replicas: number of devices; None: those that run when the sampler is used. rank: this one's number.
    """

    def __init__(self, length: int, batch_size: int, *, num_replicas: int | None = None, rank: int = 0) -> None:
        self.batch_size = check_integer("batch_size", batch_size, 1)
        super().__init__(length, num_replicas, rank)

    def __len__(self) -> int:
        world, _ = self.devices()
        return -(-self.length // (self.batch_size * world))

    def __iter__(self) -> Iterator[BatchRequest]:
        world, rank = self.devices()
        for turn in range(len(self)):
            start = (turn * world + rank) * self.batch_size
            stop = min(start + self.batch_size, self.length)
            indices = np.arange(start, stop, dtype=np.int64) if start < stop else np.array([self.length - 1], dtype=np.int64)
            yield BatchRequest(0, indices, indices, float(start < stop))


def per_class_split(labels: IntArray, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Indices kept and indices held out: of each class with n images round(n * fraction), but never the last one.

    Returns:
        (kept, held_out), each int64 and ascending; together every index once. A function of its arguments only.

    >>> kept, held_out = per_class_split(np.array([0, 0, 0, 0, 1]), 0.5, seed=0)
    >>> len(kept), len(held_out)
    (3, 2)
    """
    shuffled = permutation(len(labels), seed, SPLIT)
    by_class, first, counts = images_by_class(labels[shuffled])
    place = np.arange(len(labels)) - np.repeat(first, counts)  # of each image among those of its class
    out = np.minimum(np.rint(counts * fraction), counts - 1)
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[shuffled[by_class[place < np.repeat(out, counts)]]] = True
    every = np.arange(len(labels), dtype=np.int64)
    return every[~held_out], every[held_out]
