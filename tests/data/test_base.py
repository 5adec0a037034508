import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from tests.data.make_images import assert_same_batches, by_index, training_batches
from torch.utils.data import DataLoader

from mllt.data import ArraySource, DigitsLT, ImageDataset, LongTailedDataModule, Splits
from mllt.data.augment import CropFlip, Normalize
from mllt.data.order import BatchRequest, EpochOrder, GlobalBatchSampler
from mllt.errors import ArgumentError, DataError

COUNTS = (25, 9, 3, 1)  # 38 images: not a multiple of any batch size used here


def images(labels, seed=0) -> ArraySource:
    draw = torch.Generator().manual_seed(seed)
    return ArraySource(torch.randint(0, 256, (len(labels), 3, 8, 8), generator=draw, dtype=torch.uint8), labels)


def labels_of(counts) -> list[int]:
    return [label for label, count in enumerate(counts) for _ in range(count)]


class Small(LongTailedDataModule):
    """Random pictures with a tail, in memory: all that a subclass has to bring."""

    title = "Small"

    def __init__(self, train=None, test=None, val=None, names=("ant", "bee", "cat", "dog"), **common):
        super().__init__(**{"batch_size": 8, **common})
        train = images(labels_of(COUNTS)) if train is None else train
        self.sources = (train, images([0, 1, 2, 3, 3], seed=1) if test is None else test, val)
        self.names = list(names)
        self.loads = 0

    def load_splits(self) -> Splits:
        self.loads += 1
        train, test, val = self.sources
        return Splits(train, test, self.names, val)

    def train_transform(self):
        return CropFlip(self.eval_transform(), 1, rotation=15)

    def eval_transform(self):
        return Normalize([0.5] * 3, [0.25] * 3)

    @property
    def preprocessing(self):
        return {"size": 8, "resize": None, "mean": [0.5] * 3, "std": [0.25] * 3}


# --------------------------------------------------------------------------------------------------------- what it tells


def test_it_tells_names_counts_and_the_tail():
    module = Small()
    assert module.class_counts.tolist() == [25, 9, 3, 1]
    assert module.class_counts.dtype == torch.int64
    assert (module.class_names, module.num_classes) == (["ant", "bee", "cat", "dog"], 4)
    assert module.summary(many_above=9, few_below=3) == (
        "Small: 38 training images in 4 classes, 25 to 1 per class (imbalance factor 25); "
        "1 many / 2 medium / 1 few-shot classes; 5 test images, no validation split"
    )
    assert "2 many / 0 medium / 2 few-shot" in module.summary(many_above=9, few_below=3, inclusive=True)


def test_splits_are_loaded_once():
    module = Small()
    module.setup("fit")
    module.setup("test")
    _ = module.class_counts, module.train_dataloader(), module.test_dataloader()
    assert module.loads == 1


def test_validation_images_are_held_out_of_every_class_and_not_counted():
    module = Small(val_fraction=0.25)
    splits = module.splits
    held_out = [6, 2, 1, 0]  # round(n / 4), and the last image of a class always stays
    assert np.bincount(splits.val.labels, minlength=4).tolist() == held_out
    assert module.class_counts.tolist() == [n - v for n, v in zip(COUNTS, held_out, strict=True)]
    assert sorted([*splits.train.rows, *splits.val.rows]) == list(range(38))
    assert "9 validation images" in module.summary()
    assert len(splits.test) == 5


def test_the_held_out_images_depend_on_the_seed_alone():
    held_out = [
        Small(val_fraction=0.3, **options).splits.val.rows.tolist()
        for options in ({"seed": 1}, {"seed": 1, "batch_size": 4, "num_workers": 1, "shuffle": False}, {"seed": 2})
    ]
    assert held_out[0] == held_out[1] != held_out[2]


def test_validation_images_are_not_augmented_and_all_there():
    module = Small(val_fraction=0.25, eval_batch_size=4)
    source = module.splits.val
    batches = list(module.val_dataloader())
    assert [len(batch.targets) for batch in batches] == [4, 4, 1]
    expected = (source.load(np.arange(9)).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(torch.cat([batch.images for batch in batches]), expected)
    assert torch.cat([batch.targets for batch in batches]).tolist() == source.labels.tolist()


def test_without_validation_images_there_is_no_loader_for_them():
    assert Small().val_dataloader() == []


def test_a_validation_split_of_its_own_is_used_and_excludes_another():
    own = images([0, 1, 2, 3], seed=2)
    module = Small(val=own)
    assert module.splits.val is own
    assert module.class_counts.tolist() == list(COUNTS)
    with pytest.raises(ArgumentError, match="Small has a validation split of its own: set `val_fraction` to 0"):
        Small(val=own, val_fraction=0.1).setup()


# ----------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train": images([0, 0, 3])},
            "every class to have a training image, but 2 of 4 have none: 'bee', 'cat'. Give them images, or leave them out",
        ),
        ({"train": images([0, 1, 2, 3, 4])}, r"labels in 0 \.\. 3 .* but 1 training label is outside: 'image 4: 4'"),
        ({"train": images([0, 1, -1, 2, 3])}, "1 training label is outside: 'image 2: -1'"),
        ({"test": images([0, 9])}, "1 test label is outside: 'image 1: 9'"),
        ({"val": images([7, 7, 7, 7, 7, 7, 7])}, "7 validation labels are outside: 'image 0: 7', .*'image 4: 7'"),
        ({"test": images([0]).subset(np.array([], dtype=np.int64))}, "expected test images, but there are none"),
        ({"train": images([0]).subset(np.array([], dtype=np.int64))}, "expected training images, but there are none"),
        ({"val_fraction": 0.001}, "expected validation images, but there are none"),
    ],
)
def test_data_that_contradicts_itself_is_refused(options, message):
    module = Small(**options)
    for _ in range(2):  # not only the first time
        with pytest.raises(DataError, match=f"^Small: .*{message}"):
            module.setup()


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_that_start_at_1_get_the_advice_to_start_at_0(split):
    with pytest.raises(
        DataError, match=f"1 {split}(ing)? label is outside: 'image 3: 4'. Number the classes from 0, not from 1"
    ):
        Small(**{split: images([1, 2, 3, 4])}).setup()


def test_class_name_that_cannot_be_written_is_refused_before_the_training():
    # Such names come from folders on disks of another encoding; results are written in UTF-8.
    names = ("ant", os.fsdecode(b"caf\xe9"), "Käfer", "蜂")
    with pytest.raises(DataError, match=r"names in UTF-8, but 1 is not: 'caf\\udce9'. Rename the folders"):
        Small(names=names).setup()


def test_images_and_labels_have_to_be_as_many():
    with pytest.raises(DataError, match="one label per image, but got 3 images and 2 labels"):
        ArraySource(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), [0, 1])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("batch_size", 0),
        ("batch_size", "8"),
        ("eval_batch_size", 0),
        ("num_workers", -1),
        ("seed", 1.5),
        ("seed", None),
        ("val_fraction", 1.0),
        ("val_fraction", -0.1),
        ("drop_last", 1),
        ("shuffle", "yes"),
        ("augment", None),
    ],
)
def test_wrong_settings_are_refused_at_once(setting, value):
    with pytest.raises(ArgumentError, match=f"Expected `{setting}` to be .*, but got {value!r}"):
        Small(**{setting: value})


# ------------------------------------------------------------------------------------------------------ training batches


def test_an_epoch_holds_every_image_once_with_its_label():
    batches = training_batches(Small())
    assert [len(batch.targets) for batch in batches] == [7, 8, 7, 8, 8]
    indices = torch.cat([batch.indices for batch in batches])
    assert sorted(indices.tolist()) == list(range(38))
    assert torch.cat([batch.targets for batch in batches]).tolist() == np.array(labels_of(COUNTS))[indices].tolist()
    for batch in batches:
        assert (batch.images.dtype, batch.images.shape[1:]) == (torch.float32, (3, 8, 8))
        assert batch.targets.dtype == batch.indices.dtype == torch.int64
        assert batch.weight == 1


def test_epochs_differ_in_order_and_augmentation_and_seeds_too():
    module = Small()
    first, second, other = training_batches(module, 0), training_batches(module, 1), training_batches(Small(seed=1), 0)
    assert_same_batches(first, training_batches(Small(), 0))
    for batches in (second, other):
        assert [b.indices.tolist() for b in batches] != [b.indices.tolist() for b in first]
        mine, theirs = by_index(first), by_index(batches)
        assert sum(torch.equal(mine[row], theirs[row]) for row in range(38)) < 10


def test_the_augmentation_depends_on_epoch_and_place_not_on_the_image():
    in_order = Small(shuffle=False)
    order = EpochOrder(38, 0)(0)
    first, second = (by_index(training_batches(in_order, epoch)) for epoch in (0, 1))
    assert sum(torch.equal(first[row], second[row]) for row in range(38)) < 10
    # an order that repeats an image, as a class-balanced one does, shows it in another way each time
    dataset = ImageDataset(in_order.splits.train, in_order.train_transform(), seed=0)
    again = dataset[BatchRequest(0, np.arange(20), np.full(20, 5), 1.0)].images
    assert len({image.numpy().tobytes() for image in again}) > 10
    again = dataset[BatchRequest(0, np.arange(38), np.full(38, 5), 1.0)].images
    assert torch.equal(again[order.tolist().index(5)], first[5])  # at its own place: as in the plain order


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(workers):
    alone, many = Small().train_dataloader(), Small(num_workers=workers).train_dataloader()
    for epoch in (0, 1):
        alone.sampler.set_epoch(epoch)
        many.sampler.set_epoch(epoch)
        assert_same_batches(list(many), list(alone))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_are_the_same_for_any_number_of_devices(world, accumulate):
    module = Small()
    source = module.splits.train
    dataset = ImageDataset(source, module.train_transform(), module.seed)
    whole = training_batches(module, epoch=3)
    per_device = []
    for rank in range(world):
        sampler = GlobalBatchSampler(EpochOrder(38, module.seed), 38, 8, num_replicas=world, rank=rank, accumulate=accumulate)
        sampler.set_epoch(3)
        per_device.append(list(DataLoader(dataset, batch_size=None, sampler=sampler)))
    for step, batch in enumerate(whole):
        micro = range(step * accumulate, (step + 1) * accumulate)
        shares = [per_device[rank][m] for m in micro for rank in range(world) if per_device[rank][m].weight > 0]
        for field in ("images", "targets", "indices"):
            assert torch.equal(torch.cat([getattr(share, field) for share in shares]), getattr(batch, field))


def test_drop_last_and_augment_can_be_switched():
    assert [len(batch.targets) for batch in training_batches(Small(drop_last=True))] == [8] * 4
    module = Small(augment=False)
    plain = (module.splits.train.load(np.arange(38)).float() / 255 - 0.5) / 0.25
    for row, image in by_index(training_batches(module)).items():
        torch.testing.assert_close(image, plain[row])


def test_without_shuffling_batches_are_the_same_in_every_epoch_and_of_several_classes():
    # Sources hold class after class: in their order, overfitting one batch would fit one class
    train = images(labels_of((40, 40, 40, 40)))
    module = Small(train, shuffle=False, augment=False)
    batches = training_batches(module)
    assert all(len(batch.targets.unique()) > 1 for batch in batches)
    assert_same_batches(training_batches(module, epoch=5), batches)
    assert_same_batches(training_batches(Small(train, augment=False)), batches)  # the order of epoch 0


def test_a_batch_larger_than_the_set_is_the_whole_set():
    batches = training_batches(Small(batch_size=64))
    assert [len(batch.targets) for batch in batches] == [38]
    with pytest.raises(ArgumentError, match="38 images are fewer than batch_size=64"):
        Small(batch_size=64, drop_last=True).train_dataloader()


def test_batches_own_their_images():
    # Changing a batch in place, as a method may, must not change the images in memory.
    module = Small(shuffle=False, augment=False)
    before = training_batches(module)
    for batch in training_batches(module):
        batch.images.zero_()
        batch.targets.zero_()
    assert_same_batches(training_batches(module), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_all_global_generators_alone(workers):
    module = Small(num_workers=workers, val_fraction=0.2)
    digits = DigitsLT()

    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    module.setup()
    digits.setup()
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        for _ in range(2):
            iterator = iter(loader)
            next(iterator)
    list(digits.train_dataloader())
    assert states() == before


def test_a_loader_can_be_handed_to_another_process():
    # as `ddp_spawn` does: it is pickled then
    loader = Small().train_dataloader()
    assert loader.generator is None  # not every PyTorch pickles one
    assert_same_batches(list(pickle.loads(pickle.dumps(loader))), list(loader))


@pytest.mark.slow
def test_batches_are_the_same_from_loader_processes_that_are_spawned():
    alone, spawned = Small().train_dataloader(), Small(num_workers=1).train_dataloader()
    spawned.multiprocessing_context = "spawn"
    assert_same_batches(list(spawned), list(alone))


def test_processes_persist_where_a_loader_is_used_again():
    module = Small(num_workers=1, val_fraction=0.2)
    assert module.train_dataloader().persistent_workers
    assert module.val_dataloader().persistent_workers
    assert not module.test_dataloader().persistent_workers


# ---------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_test_batches_hold_every_image_once_in_order(workers):
    module = Small(test=images(labels_of((5, 5, 5, 4)), seed=1), eval_batch_size=6, num_workers=workers)
    for loader in (module.test_dataloader(), module.predict_dataloader()):
        batches = list(loader)
        assert [len(batch.targets) for batch in batches] == [6, 6, 6, 1]
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(19))
        assert torch.cat([batch.targets for batch in batches]).tolist() == labels_of((5, 5, 5, 4))


def test_evaluation_batches_are_of_the_training_size_unless_told_otherwise():
    assert Small(batch_size=3).eval_batch_size == 3
    assert Small(batch_size=3, eval_batch_size=5).eval_batch_size == 5


# ---------------------------------------------------------------------------------------------------- with a trainer


class Recorder(L.LightningModule):
    """Notes what Lightning hands to each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[str, list] = {"fit": [], "validate": [], "test": [], "predict": []}

    def training_step(self, batch, batch_index):
        self.seen["fit"].append((self.current_epoch, self.global_step, batch))
        return self.layer(batch.images.mean().view(1)).sum()

    def validation_step(self, batch, batch_index):
        self.seen["validate"].append(batch)

    def test_step(self, batch, batch_index):
        self.seen["test"].append(batch)

    def predict_step(self, batch, batch_index):
        self.seen["predict"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer_of(folder, **options) -> L.Trainer:
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, num_sanity_val_steps=0, **silent, **options)


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:predict returned None")
@pytest.mark.parametrize(("accumulate", "workers"), [(1, 0), (2, 2)])
def test_lightning_trains_on_these_batches_and_evaluates_every_image_once(tmp_path, accumulate, workers):
    module, recorder = Small(val_fraction=0.25, num_workers=workers, eval_batch_size=4), Recorder()
    trainer = trainer_of(tmp_path, max_epochs=3, accumulate_grad_batches=accumulate, reload_dataloaders_every_n_epochs=0)
    trainer.fit(recorder, module)
    fresh = Small(val_fraction=0.25)
    expected = [(epoch, batch) for epoch in range(3) for batch in training_batches(fresh, epoch)]
    assert trainer.global_step == len(expected)  # as many steps, however many micro-batches
    for step, (epoch, batch) in enumerate(expected):
        shares = [share for at, done, share in recorder.seen["fit"] if done == step and at == epoch and share.weight > 0]
        for field in ("images", "targets", "indices"):
            assert torch.equal(torch.cat([getattr(share, field) for share in shares]), getattr(batch, field))
    assert torch.cat([batch.indices for batch in recorder.seen["validate"]]).tolist() == list(range(9)) * 3
    trainer.test(recorder, module, verbose=False)
    trainer.predict(recorder, module, return_predictions=False)
    for stage in ("test", "predict"):
        assert torch.cat([batch.indices for batch in recorder.seen[stage]]).tolist() == list(range(5))


def test_an_indivisible_batch_is_refused_with_the_trainers_numbers(tmp_path):
    module = Small(batch_size=8)
    module.trainer = trainer_of(tmp_path, accumulate_grad_batches=3)
    with pytest.raises(ArgumentError, match=r"over 1 devices x 3 accumulated steps, but got 8\. Set it to 6 or 9"):
        module.train_dataloader()
    module.trainer = trainer_of(tmp_path, accumulate_grad_batches=4)
    assert len(module.train_dataloader()) == 4 * 5


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:You requested to overfit", "ignore:Total length")
def test_overfit_batches_is_refused_with_what_to_do_instead(tmp_path):
    trainer = trainer_of(tmp_path, overfit_batches=1, max_epochs=1)
    with pytest.raises(ArgumentError, match=r"leave `overfit_batches` at 0 .* limit_train_batches=1 .* debug=overfit"):
        trainer.fit(Recorder(), Small())


# ------------------------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two processes saw: see `loader_worker.py`."""
    folder = tmp_path_factory.mktemp("loaders")
    worker = Path(__file__).with_name("loader_worker.py")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, str(worker)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return [torch.load(folder / f"seen-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("when", ["made before the processes met", "made after", "handed to a trainer"])
def test_loaders_made_by_hand_take_their_share_on_two_processes(two_processes, when):
    expected = [batch.indices.tolist() for batch in DigitsLT(batch_size=16).train_dataloader()]
    first, second = (seen[when]["train"] for seen in two_processes)
    assert [one + other for one, other in zip(first, second, strict=True)] == expected
    assert sorted(row for seen in two_processes for batch in seen[when]["test"] for row in batch) == list(range(500))


def test_a_batch_that_two_processes_cannot_share_is_refused_when_it_is_used(two_processes):
    for seen in two_processes:
        assert "over 2 devices x 1 accumulated steps, but got 15. Set it to 14 or 16" in seen["refused"]
