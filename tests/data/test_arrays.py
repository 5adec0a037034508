"""Batches of images in memory, made on the device that trains: the same bits, without processes, and without waiting."""

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from tests.data.make_images import training_batches
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mllt.data import ArraySource, DigitsLT, PairedBatch
from mllt.data import augment as augmentations
from mllt.data import autoaugment as autoaugmentation
from mllt.data.arrays import ArrayDataModule, DeviceArrays
from mllt.data.augment import CropFlip, Cutout, Normalize
from mllt.data.autoaugment import AutoAugment
from mllt.data.base import Splits
from mllt.data.order import Draws
from mllt.data.sources import to_device
from mllt.errors import ArgumentError

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


class Pictures(ArrayDataModule):
    """90 random pictures with a tail, augmented in every way there is."""

    title = "Pictures"
    image_size = 8
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)

    def __init__(self, rotation=15.0, source=ArraySource, **common):
        super().__init__(**{"batch_size": 16, "eval_batch_size": 7, **common})
        self.augment_by(1, flip=True, rotation=rotation, autoaugment="cifar10", cutout=3)
        self.source = source

    def load_splits(self):
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (90, 3, 8, 8), generator=draw, dtype=torch.uint8)
        every = self.source(images, np.repeat(np.arange(3), (60, 20, 10)))
        return Splits(every.subset(np.arange(0, 90, 2)), every.subset(np.arange(1, 90, 2)), ["a", "b", "c"])


def trainer_of(device, rank=0, world=1):
    """What a data module asks of the trainer that is at work."""
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=device),
        state=SimpleNamespace(finished=False),
        world_size=world,
        global_rank=rank,
        accumulate_grad_batches=2,
    )


def in_training(module, device=CPU, companion=None, **place):
    module.setup()
    module.trainer, module.companion = trainer_of(device, **place), companion
    return module


def parts_of(batch):
    own = [*batch[:4]]
    return [*own, *batch.companion, torch.tensor(batch.draw)] if isinstance(batch, PairedBatch) else own


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(parts_of(one), parts_of(other), strict=True))


@pytest.mark.parametrize("companion", [None, "reversed", "partner", "view"])
@pytest.mark.parametrize("rank", [0, 1])
def test_batches_are_the_same_bits_wherever_they_are_made(companion, rank):
    def batches(epoch=3, **settings):
        return training_batches(in_training(Pictures(**settings), companion=companion, rank=rank, world=2), epoch)

    here = batches(on_device=True, num_workers=2)
    assert_same(here, batches(on_device=False))
    assert_same(here, batches(on_device="auto", num_workers=2))
    assert not torch.equal(here[0].images, batches(epoch=4, on_device=True)[0].images)


def test_evaluation_is_of_the_same_bits_and_exactly_the_images():
    here, there = (in_training(Pictures(on_device=setting, val_fraction=0.2)) for setting in (True, False))
    assert_same(list(here.test_dataloader()), list(there.test_dataloader()))
    assert_same(list(here.val_dataloader()), list(there.val_dataloader()))
    pixels = here.splits.test.load(np.arange(45)).float() / 255
    expected = (pixels - torch.tensor(here.mean).view(3, 1, 1)) / torch.tensor(here.std).view(3, 1, 1)
    torch.testing.assert_close(torch.cat([batch.images for batch in here.test_dataloader()]), expected)


def test_an_epoch_goes_on_at_the_same_batch():
    module = in_training(Pictures(on_device=True))
    whole = training_batches(module, 1)
    loader = module.train_dataloader()
    loader.load_state_dict({"epoch": 1, "steps": 1})
    loader.sampler.set_epoch(1)
    assert_same(list(loader), whole[2:])


# ------------------------------------------------------------------------------------------------------------ where


@pytest.mark.parametrize(
    ("setting", "device", "made_on"),
    [("auto", CPU, None), ("auto", CUDA, CUDA), (True, CPU, CPU), (True, CUDA, CUDA), (False, CUDA, None), (False, CPU, None)],
)
def test_the_setting_says_where_batches_are_made_and_only_there_are_no_processes(setting, device, made_on):
    module = in_training(Pictures(on_device=setting, num_workers=2), device)
    for loader in (module.train_dataloader(), module.test_dataloader()):
        assert loader.dataset.device == made_on
        assert loader.num_workers == (2 if made_on is None else 0)
        assert loader.pin_memory == (made_on is None and device == CUDA)  # what lies on a GPU cannot be pinned


class Own(ArraySource):
    """Somebody's source, which loads in a way of its own."""

    def load(self, indices):
        return 255 - super().load(indices)

    def subset(self, indices):
        return Own(self.images, self._all_labels, self.rows[indices])


def test_what_cannot_be_made_on_a_device_is_made_by_processes_as_ever():
    view = in_training(Pictures(on_device=True, num_workers=2), companion="view")
    own = in_training(Pictures(on_device=True, num_workers=2, source=Own))
    for module in (view, own):
        assert (module.train_dataloader().dataset.device, module.train_dataloader().num_workers) == (None, 2)
    assert view.test_dataloader().dataset.device == CPU, "the test has no second view"
    plain = in_training(Pictures(on_device=True, augment=False), companion="view")
    assert plain.train_dataloader().dataset.device == CPU, "nor has it other colours where nothing is augmented"


def test_without_a_trainer_at_work_batches_are_made_on_the_cpu():
    module = Pictures(on_device=True, num_workers=1)
    module.setup()
    assert module.train_dataloader().dataset.device is None
    module.trainer = trainer_of(torch.device("meta"))
    module.trainer.state.finished = True
    for loader in (module.train_dataloader(), module.test_dataloader()):
        assert (loader.dataset.device, loader.num_workers) == (None, 1)
        images = next(iter(loader)).images
        assert (images.device, images.dtype) == (CPU, torch.float32)


@pytest.mark.parametrize("setting", ["cuda", 1, None, "false"])
def test_another_word_is_refused(setting):
    with pytest.raises(ArgumentError, match="`on_device` to be true, false or auto, but got"):
        DigitsLT(on_device=setting)


# ----------------------------------------------------------------------------------------------------------- on a GPU


@pytest.fixture
def fresh_constants():
    """Tensors that are kept for the next batch, of this test only."""
    kept = (augmentations.crops, augmentations._scale_and_shift, *autoaugmentation.KEPT)
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


class OneDevice(TorchDispatchMode):
    """Operations on tensors of several devices are an error; some would copy a tensor of the CPU, and wait for that."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.ndim}
        assert len(devices) <= 1, operation
        return operation(*args, **(kwargs or {}))


@pytest.mark.usefixtures("fresh_constants")
@pytest.mark.parametrize("companion", [None, "reversed", "partner"])
def test_on_a_gpu_everything_is_done_there_and_nothing_waits_for_it(companion, monkeypatch):
    # PyTorch's imitation of a GPU knows shapes and devices, not numbers: reading one, for which a real GPU would have to
    # finish first, is an error. It cannot pin.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    module = in_training(Pictures(), CUDA, companion, world=2)
    loaders = module.train_dataloader(), module.test_dataloader()
    with FakeTensorMode(allow_non_fake_inputs=True), OneDevice():
        for batch in (loader.dataset[request] for loader in loaders for request in loader.sampler):
            assert {part.device for part in parts_of(batch)[:8]} == {CUDA}  # the last is a number
            assert batch.images.dtype == torch.float32
            assert batch.images.shape == (len(batch.targets), 3, 8, 8)
    assert len(module._arrays) == 1, "training and test images are parts of one array, which is sent once"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("companion", [None, "reversed", "partner"])
@pytest.mark.parametrize("rotation", [0.0, 180.0])
def test_a_gpu_makes_the_same_bits(companion, rotation):
    gpu, cpu = (in_training(Pictures(rotation), device, companion) for device in (CUDA, CPU))
    for first, second in (training_batches(gpu, 5), training_batches(cpu, 5)), (gpu.test_dataloader(), cpu.test_dataloader()):
        moved = [[part.cpu() for part in parts_of(batch)] for batch in first]
        for mine, batch in zip(moved, second, strict=True):
            assert all(torch.equal(left, right) for left, right in zip(mine, parts_of(batch), strict=True))


def test_rows_of_a_source_may_be_counted_from_the_end_and_must_be_there():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(-1, 3, 2, 2)
    assert ArraySource(images, range(5), np.array([-1, 1])).load(np.array([0, 1]))[:, 0, 0, 0].tolist() == [4, 1]
    with pytest.raises(IndexError):
        ArraySource(images, range(5), np.array([5]))


def test_an_array_is_sent_once_and_let_go_of():
    arrays, images = DeviceArrays(), torch.zeros(5, 3, 2, 2, dtype=torch.uint8)
    assert arrays.of(images, CPU) is images
    assert len(arrays) == 0
    meta = torch.device("meta")
    assert arrays.of(images, meta) is arrays.of(images, meta)
    assert arrays.of(images[:2], meta).shape == (2, 3, 2, 2)
    assert len(arrays) == 2
    arrays.let_go()
    assert len(arrays) == 0
    assert to_device(images, CPU) is images


# ------------------------------------------------------------------------------------------------------ with a trainer


class Recorder(L.LightningModule):
    """Notes what Lightning hands to each step."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 3)
        self.seen = []

    def training_step(self, batch, batch_index):
        self.seen.append(batch)
        return self.layer(batch.images).mean()

    def validation_step(self, batch, batch_index):
        self.seen.append(batch)

    def test_step(self, batch, batch_index):
        self.seen.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.usefixtures("fresh_constants")
@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*does not have many workers")
def test_a_trainer_is_handed_the_same_images_and_the_device_is_cleared_behind_it(tmp_path):
    runs = []
    for setting in (True, False):
        module, recorder = Pictures(on_device=setting, val_fraction=0.2), Recorder()
        silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, max_epochs=2, **silent)
        trainer.validate(recorder, module, verbose=False)  # in inference mode: what is kept of it must do for training, too
        trainer.fit(recorder, module)
        trainer.test(recorder, module, verbose=False)
        module._arrays.of(torch.zeros(1), torch.device("meta"))
        trainer.test(recorder, module, verbose=False)
        assert len(module._arrays) == 0
        runs.append(recorder.seen)
    assert_same(*runs)


@pytest.mark.usefixtures("fresh_constants")
def test_what_was_kept_in_inference_mode_serves_training():
    images, draws = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), Draws(0, 0, np.arange(4))
    then = [AutoAugment(), Cutout(3)]
    augment, layer = CropFlip(Normalize([0.5] * 3, [0.2] * 3), 1, rotation=15, then=then), torch.nn.Conv2d(3, 1, 3)
    with torch.inference_mode():
        first = augment(images, draws)
    layer(augment(images, draws)).sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert torch.equal(first, augment(images, draws))
