"""What a method takes from anyone's loader."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mllt import MutualLTModule
from mllt.data import Batch
from mllt.errors import ArgumentError
from mllt.methods.batches import as_batch, as_images, companion_of

IMAGES, TARGETS = torch.rand(3, 3, 4, 4), torch.tensor([2, 0, 1])


@pytest.mark.parametrize("batch", [(IMAGES, TARGETS), [IMAGES, TARGETS], (IMAGES, TARGETS, ["a", "b", "c"], None)])
def test_a_tuple_is_a_batch_of_weight_one(batch):
    result = as_batch(batch)
    assert isinstance(result, Batch)
    assert torch.equal(result.images, IMAGES)
    assert torch.equal(result.targets, TARGETS)
    assert result.weight == 1


def test_a_batch_keeps_its_weight_and_indices():
    batch = Batch(IMAGES, TARGETS, torch.tensor([7, 8, 9]), torch.tensor(0.5))
    assert [torch.equal(one, other) for one, other in zip(as_batch(batch), batch, strict=True)] == [True] * 4


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int8])
def test_targets_of_any_integer_type_become_int64(dtype):
    targets = as_batch((IMAGES, TARGETS.to(dtype))).targets
    assert targets.dtype == torch.int64
    assert torch.equal(targets, TARGETS)


@pytest.mark.parametrize("targets", [TARGETS.float(), TARGETS.bool(), TARGETS[:, None], torch.tensor(1)], ids=str)
def test_targets_that_are_no_class_numbers_are_refused(targets):
    with pytest.raises(ArgumentError, match="Expected targets to be class numbers"):
        as_batch((IMAGES, targets))


@pytest.mark.parametrize("batch", [IMAGES, [IMAGES], (IMAGES,), (IMAGES, TARGETS), (IMAGES, ["a.png"])])
def test_images_are_found_with_targets_or_without(batch):
    assert torch.equal(as_images(batch), IMAGES)


def test_images_come_in_the_networks_type():
    assert as_images(IMAGES.double()).dtype == torch.float32
    assert as_images(IMAGES, torch.bfloat16).dtype == torch.bfloat16
    assert as_batch((IMAGES.double(), TARGETS)).images.dtype == torch.float32


def test_pictures_as_bytes_are_refused_and_the_remedy_is_named():
    with pytest.raises(ArgumentError, match=r"floating-point and normalised, but got torch.uint8. Divide by 255"):
        as_batch(((255 * IMAGES).byte(), TARGETS))


@pytest.mark.parametrize(
    "batch",
    [None, [], "images", {"image": IMAGES}, np.zeros((1, 3, 4, 4)), ["a.png"]],
    ids=["None", "nothing", "text", "dictionary", "NumPy", "path"],
)
def test_what_has_no_images_is_refused(batch):
    with pytest.raises(ArgumentError, match="Expected a batch to be images or to begin with images"):
        as_images(batch)


def test_double_images_small_targets_and_extras_train_test_and_predict(small, problem, make_trainer):
    images, targets = problem[0].double(), problem[1].to(torch.uint8)
    loader = DataLoader(TensorDataset(images, targets, torch.arange(len(targets))), batch_size=64)
    module = MutualLTModule(**small)
    make_trainer().fit(module, loader, loader)
    make_trainer().test(module, loader, verbose=False)
    alone = torch.cat(make_trainer().predict(module, DataLoader(TensorDataset(images), batch_size=64)))
    assert torch.equal(alone, torch.cat(make_trainer().predict(module, loader)))


@pytest.mark.parametrize("wrong", [3, -1, -100])
def test_a_label_out_of_range_is_named(small, problem, make_trainer, wrong):
    targets = problem[1].clone()
    targets[100] = wrong  # in the second batch
    with pytest.raises(ArgumentError, match=f"`targets` to hold class numbers from 0 to 2, but got {wrong}"):
        make_trainer().fit(MutualLTModule(**small), DataLoader(TensorDataset(problem[0], targets), batch_size=64))


# ------------------------------------------------------------------------------------------------------- companions


def test_two_loaders_make_a_batch_with_its_companion():
    other = (IMAGES + 1, TARGETS.flip(0), "what you like")
    batch = as_batch([(IMAGES.double(), TARGETS.to(torch.uint8)), other])
    assert torch.equal(batch.images, IMAGES)
    assert batch.images.dtype == torch.float32
    assert torch.equal(companion_of(batch, "view").images, IMAGES + 1)
    assert torch.equal(companion_of(batch, "view").targets, TARGETS.flip(0))
    assert batch.draw is None
    assert as_batch(batch, torch.bfloat16).companion.images.dtype == torch.bfloat16


def test_a_batch_without_a_companion_is_refused_where_one_is_needed():
    with pytest.raises(ArgumentError, match=r"companion \('reversed'\).*datamodule=data"):
        companion_of(as_batch((IMAGES, TARGETS)), "reversed")


def test_companions_of_another_number_or_size_are_refused():
    with pytest.raises(ArgumentError, match=r"as many companions of the same size.*same batch size, or drop_last=True"):
        companion_of(as_batch([(IMAGES, TARGETS), (IMAGES[:1], TARGETS[:1])]), "view")


@pytest.mark.parametrize("part", [0, 1])
def test_a_label_out_of_range_is_named_wherever_it_is(small, problem, make_trainer, part):
    wrong = problem[1].clone()
    wrong[3] = 7
    loaders = [DataLoader(TensorDataset(problem[0], problem[1]), batch_size=64) for _ in range(2)]
    loaders[part] = DataLoader(TensorDataset(problem[0], wrong), batch_size=64)
    with pytest.raises(ArgumentError, match="class numbers from 0 to 2, but got 7"):
        make_trainer().fit(MutualLTModule(**small), loaders)
