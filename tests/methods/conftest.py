"""A small problem, a small network, and a Trainer that leaves nothing behind."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

HERE = Path(__file__).parent
COUNTS = [120, 24, 6]  # one many-, one medium-, one few-shot class


def pytest_collection_modifyitems(items):
    """Lightning's advice (more workers, a validation loader, ...) is not for loaders as small as these."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::Warning:lightning"))


@pytest.fixture(autouse=True)
def one_thread_and_the_same_random_numbers_every_time():
    """Many tiny operations are quicker on one thread, and do not fight other work for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small():
    """Arguments of a network that is quick on a CPU."""
    return {"class_counts": COUNTS, "network": "resnet20", "shared": "none", "width": 0.25, "warmup_epochs": 0}


@pytest.fixture
def problem():
    """`(images, targets)`: 150 pictures of noise on one of three colours, as long-tailed as `small` says."""
    targets = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(targets), generator=generator)
    colours = torch.nn.functional.one_hot(targets, 3).float()[:, :, None, None]
    return (colours + 0.5 * torch.randn(len(targets), 3, 8, 8, generator=generator))[order], targets[order]


@pytest.fixture
def loader(problem):
    """Anyone's loader of `(images, targets)`; the last batch is smaller."""
    return DataLoader(TensorDataset(*problem), batch_size=64)


@pytest.fixture
def make_trainer(tmp_path):
    def make(max_epochs=1, **settings):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        return L.Trainer(**{"max_epochs": max_epochs, "accelerator": "cpu", "default_root_dir": tmp_path, **quiet, **settings})

    return make
