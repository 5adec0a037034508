"""`Companions`: which image goes beside each, whatever the number of devices, steps and workers, and how it is loaded."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mllt.data import ArraySource, LongTailedDataModule, Splits
from mllt.data.augment import CropFlip, Normalize
from mllt.data.order import (
    COMPANIONS,
    PARTNER,
    REVERSED,
    STEP,
    BatchRequest,
    Companions,
    EpochOrder,
    GlobalBatchSampler,
    permutation,
)
from mllt.data.sources import Batch, ImageDataset, PairedBatch
from mllt.errors import ArgumentError

COUNTS = (25, 9, 3, 1)  # 38 images: not a multiple of any batch size used here
LABELS = np.repeat(np.arange(4), COUNTS)

PINNED = {
    "indices": [8, 21, 0, 2, 35, 34, 3, 4, 12],
    "view": [8, 21, 0, 2, 35, 34, 3, 4, 12],
    "reversed": [26, 37, 35, 37, 37, 37, 37, 32, 37],
    "partner": [21, 0, 35, 12, 4, 34, 3, 2, 8],
    "draw": 0.18921397386780148,
}

every_kind = pytest.mark.parametrize("kind", COMPANIONS)


class Recording(ArraySource):
    """Notes which images are read."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.read = []

    def load(self, indices):
        self.read += indices.tolist()
        return super().load(indices)


class Mirrored:
    """A transform of second views that can be told from the first one's."""

    def __init__(self, plain):
        self.plain = plain

    def __call__(self, images, draws):
        return -self.plain(images, draws)


class Paired(LongTailedDataModule):
    """38 random pictures with a tail, each with a companion."""

    title = "Paired"

    def __init__(self, kind, mirrored=False, **common):
        super().__init__(**{"batch_size": 8, **common})
        self.companion, self.mirrored = kind, mirrored
        draw = torch.Generator().manual_seed(0)
        self.source = Recording(torch.randint(0, 256, (38, 3, 8, 8), generator=draw, dtype=torch.uint8), LABELS)

    def load_splits(self):
        return Splits(self.source, self.source.subset(np.arange(4)), list("abcd"))

    def train_transform(self):
        return CropFlip(self.eval_transform(), 1, rotation=15)

    def view_transform(self):
        return Mirrored(self.train_transform()) if self.mirrored else super().view_transform()

    def eval_transform(self):
        return Normalize([0.5] * 3, [0.25] * 3)

    @property
    def preprocessing(self):
        return {"size": 8, "resize": None, "mean": [0.5] * 3, "std": [0.25] * 3}


def batches_of(module, epoch=0):
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def sampler_of(kind, batch_size=8, epoch=0, seed=0, **options):
    companions = Companions(kind, LABELS, seed)
    sampler = GlobalBatchSampler(EpochOrder(38, seed), 38, batch_size, companions=companions, **options)
    sampler.set_epoch(epoch)
    return sampler


def assert_same(first, second):
    """Two lists of paired batches are one, to the last bit."""
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.draw == other.draw
        for mine, theirs in ((one, other), (one.companion, other.companion)):
            assert all(torch.equal(left, right) for left, right in zip(mine[:4], theirs[:4], strict=True))


def drawn(labels, count, seed=0, epoch=0):
    """The labels of `count` images drawn by reversed frequency."""
    request = BatchRequest(epoch, np.arange(count), np.zeros(count, dtype=np.int64), 1.0)
    return Companions("reversed", labels, seed)(request, np.arange(count), 0, count).indices


# --------------------------------------------------------------------------------------------------- which images


def test_the_random_numbers_never_change():
    # They are a format: runs are repeated and resumed by them. If this fails, old runs no longer repeat.
    assert (REVERSED, PARTNER, STEP) == (6, 7, 8)
    requests = {kind: next(iter(sampler_of(kind, batch_size=10, epoch=3, seed=1))) for kind in COMPANIONS}
    assert requests["view"].indices.tolist() == PINNED["indices"]
    assert {kind: request.companion.indices.tolist() for kind, request in requests.items()} == {
        kind: PINNED[kind] for kind in COMPANIONS
    }
    assert {request.draw for request in requests.values()} == {PINNED["draw"]}


@pytest.mark.parametrize("order", ["class after class", "mixed, with gaps"])
def test_a_class_is_drawn_with_probability_in_proportion_to_its_rarity(order):
    labels = LABELS if order == "class after class" else 3 * np.random.default_rng(0).permutation(LABELS) + 2
    count = 50_000
    indices = drawn(labels, count)
    classes, sizes = np.unique(labels, return_counts=True)
    probabilities = [1 / n / sum(1 / m for m in sizes) for n in sizes]
    for label, size, probability in zip(classes, sizes, probabilities, strict=True):
        times = int((labels[indices] == label).sum())
        assert abs(times - count * probability) < 5 * math.sqrt(count * probability * (1 - probability))
        # within a class, every image as often as any other
        members = np.flatnonzero(labels == label)
        each = np.bincount(indices, minlength=len(labels))[members]
        assert np.abs(each - times / size).max() <= 5 * math.sqrt(times / size)


def test_draws_are_with_replacement_and_have_nothing_to_do_with_the_image_beside():
    indices = drawn(LABELS, 38)
    assert len(set(indices.tolist())) < 38  # the single image of the rarest class alone is drawn about 25 times
    beside = {tuple(Companions("reversed", LABELS, 0)(request, np.arange(38), 0, 38).indices) for request in two_orders()}
    assert len(beside) == 1


def two_orders():
    return (BatchRequest(0, np.arange(38), order, 1.0) for order in (np.arange(38), np.arange(38)[::-1].copy()))


@pytest.mark.parametrize("epoch", [0, 7])
def test_partners_are_the_global_batch_in_another_order_each_once(epoch):
    orders = []
    for request in sampler_of("partner", epoch=epoch):
        companion = request.companion
        assert sorted(companion.indices) == sorted(request.indices)
        assert sorted(companion.positions) == sorted(request.positions)
        assert companion.indices.tolist() == EpochOrder(38, 0)(epoch)[companion.positions].tolist()
        orders.append(tuple(companion.positions - request.positions[0]))
    assert len(set(orders)) == len(orders), "another order in every step"
    assert any(order != tuple(range(len(order))) for order in orders)


def test_every_image_of_a_batch_is_as_likely_as_any_other_to_be_the_partner():
    counts = np.zeros((8, 8))
    for epoch in range(2000):
        counts[np.arange(8), permutation(8, 0, PARTNER, epoch, 0)] += 1
        request = BatchRequest(epoch, np.arange(8), np.arange(8), 1.0)
        partner = Companions("partner", LABELS, 0)(request, np.arange(38), 0, 8).indices
        assert partner.tolist() == permutation(8, 0, PARTNER, epoch, 0).tolist()
    assert np.abs(counts - 250).max() < 5 * math.sqrt(250)


def test_a_view_is_of_the_same_image_at_a_place_past_the_epoch():
    for kind in ("view", "reversed"):
        for request in sampler_of(kind):
            assert (request.companion.positions == request.positions + 38).all()  # other random numbers than any image's
            assert (request.companion.indices.tolist() == request.indices.tolist()) == (kind == "view")


@every_kind
def test_companions_depend_on_seed_and_epoch(kind):
    def of(**coordinates):
        return [request.companion.indices.tolist() for request in sampler_of(kind, **coordinates)]

    assert of(epoch=4, seed=2) == of(epoch=4, seed=2)
    assert len({str(of(epoch=epoch, seed=seed)) for epoch in range(3) for seed in range(3)}) == 9


def test_the_number_of_a_step_is_uniform_and_its_own():
    draws = [request.draw for epoch in range(200) for request in sampler_of("view", epoch=epoch)]
    assert len(set(draws)) == len(draws) == 1000
    assert all(type(draw) is float and 0 <= draw < 1 for draw in draws)
    assert np.abs(np.histogram(draws, bins=10, range=(0, 1))[0] - 100).max() < 5 * math.sqrt(100)
    assert {request.draw for request in GlobalBatchSampler(EpochOrder(38, 0), 38, 8)} == {None}, "none without companions"


# ------------------------------------------------------------------------------------------------- however it is cut


@every_kind
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_and_companions_are_the_same_for_any_number_of_devices(kind, world, accumulate):
    module = Paired(kind, mirrored=kind == "view")
    transform = module.train_transform()
    dataset = ImageDataset(module.source, transform, module.seed, module.view_transform() if kind == "view" else transform)
    whole = batches_of(module, epoch=3)
    devices = []
    for rank in range(world):
        sampler = sampler_of(kind, epoch=3, num_replicas=world, rank=rank, accumulate=accumulate)
        devices.append(list(DataLoader(dataset, batch_size=None, sampler=sampler)))
    assert len(whole) == 5
    for step, batch in enumerate(whole):
        micro = range(step * accumulate, (step + 1) * accumulate)
        shares = [devices[rank][m] for m in micro for rank in range(world)]
        assert {share.draw for share in shares} == {batch.draw}
        filled = [share for share in shares if share.weight > 0]
        for name in ("images", "targets", "indices"):
            assert torch.equal(torch.cat([getattr(share, name) for share in filled]), getattr(batch, name))
            companions = torch.cat([getattr(share.companion, name) for share in filled])
            assert torch.equal(companions, getattr(batch.companion, name))


@every_kind
def test_a_share_without_images_has_a_companion_all_the_same(kind):
    sampler = GlobalBatchSampler(EpochOrder(3, 0), 3, 8, num_replicas=4, rank=0, companions=Companions(kind, LABELS[-3:], 0))
    dataset = ImageDataset(Paired(kind).source.subset(np.arange(35, 38)), Paired(kind).train_transform(), 0)
    (share,) = DataLoader(dataset, batch_size=None, sampler=sampler)
    assert share.weight == 0
    assert share.companion.images.shape == share.images.shape == (1, 3, 8, 8)


@every_kind
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_and_companions_are_the_same_for_any_number_of_workers(kind, workers):
    for epoch in (0, 1):
        assert_same(batches_of(Paired(kind, num_workers=workers), epoch), batches_of(Paired(kind), epoch))


@every_kind
def test_the_images_themselves_do_not_know_of_their_companions(kind):
    plain = batches_of(Paired(None))
    assert all(type(batch) is Batch for batch in plain)
    for batch, alone in zip(batches_of(Paired(kind)), plain, strict=True):
        assert type(batch) is PairedBatch
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(batch[:4], alone, strict=True))


@every_kind
def test_full_batches_only_and_batches_of_one_will_do(kind):
    assert [len(b.companion.targets) for b in batches_of(Paired(kind, drop_last=True))] == [8] * 4
    ones = batches_of(Paired(kind, batch_size=1))
    assert len(ones) == 38
    if kind == "partner":
        assert all(torch.equal(b.images, b.companion.images) for b in ones), "nobody else is there"


# --------------------------------------------------------------------------------------------------------- pixels


@every_kind
def test_targets_and_rows_are_those_of_the_companions(kind):
    for batch in batches_of(Paired(kind)):
        companion = batch.companion
        assert type(companion) is Batch
        assert torch.equal(companion.targets, torch.from_numpy(LABELS)[companion.indices])
        assert companion.targets.shape == batch.targets.shape
        assert companion.images.dtype == torch.float32


def test_a_partner_is_the_other_image_to_the_last_pixel():
    for batch in batches_of(Paired("partner")):
        own = {int(row): image for row, image in zip(batch.indices, batch.images, strict=True)}
        for row, image in zip(batch.companion.indices, batch.companion.images, strict=True):
            assert torch.equal(image, own[int(row)])


def test_a_view_is_the_same_image_in_another_way():
    batches = batches_of(Paired("view"))
    pairs = [pair for batch in batches for pair in zip(batch.images, batch.companion.images, strict=True)]
    assert sum(torch.equal(image, view) for image, view in pairs) < 5
    for batch in batches:
        assert torch.equal(batch.indices, batch.companion.indices)
    plain = batches_of(Paired("view", augment=False))
    assert all(torch.equal(batch.images, batch.companion.images) for batch in plain), "in the only way there is"


def test_a_view_is_made_by_the_views_own_transform():
    for batch, mirrored in zip(batches_of(Paired("view")), batches_of(Paired("view", mirrored=True)), strict=True):
        assert torch.equal(mirrored.images, batch.images)
        assert torch.equal(mirrored.companion.images, -batch.companion.images)
    for kind in ("reversed", "partner"):
        assert_same(batches_of(Paired(kind, mirrored=True)), batches_of(Paired(kind)))


def test_an_image_that_is_drawn_again_is_augmented_anew():
    shown = [
        image.numpy().tobytes()
        for epoch in range(3)
        for batch in batches_of(Paired("reversed"), epoch)
        for row, image in zip(batch.companion.indices, batch.companion.images, strict=True)
        if row == 37  # the only one of its class
    ]
    assert len(shown) > 40
    assert len(set(shown)) > 20  # of 18 crops and flips, each in several angles


# ---------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(("kind", "times"), [(None, 1), ("partner", 1), ("view", 2), ("reversed", 2)])
def test_on_one_device_a_partner_is_not_read_again(kind, times):
    module = Paired(kind)
    batches_of(module)
    assert len(module.source.read) == times * 38


def test_on_several_devices_only_partners_of_other_shares_are_read_again():
    module = Paired("partner")
    dataset = ImageDataset(module.source, module.train_transform(), 0)
    for request in sampler_of("partner", num_replicas=2, rank=1):
        module.source.read.clear()
        dataset[request]
        others = set(request.companion.indices.tolist()) - set(request.indices.tolist())
        assert sorted(module.source.read) == sorted([*request.indices.tolist(), *others])


# --------------------------------------------------------------------------------------------------------- mistakes


def test_an_unknown_kind_is_refused_with_those_there_are():
    with pytest.raises(ArgumentError, match="`companion` to be one of view, reversed, partner, but got 'reverse'"):
        Companions("reverse", LABELS, 0)
    with pytest.raises(ArgumentError, match="`companion`"):
        Paired("mixup").train_dataloader()


def test_evaluation_has_no_companions():
    module = Paired("partner")
    module.setup()
    assert all(type(batch) is Batch for batch in module.test_dataloader())


@every_kind
def test_without_shuffling_every_epoch_has_the_companions_of_the_first(kind):
    shuffled, fixed = (Paired(kind, augment=False, shuffle=shuffle) for shuffle in (True, False))
    assert_same(batches_of(fixed, 0), batches_of(fixed, 3))
    assert_same(batches_of(fixed, 0), batches_of(shuffled, 0))
    assert [batch.draw for batch in batches_of(shuffled, 0)] != [batch.draw for batch in batches_of(shuffled, 3)]
