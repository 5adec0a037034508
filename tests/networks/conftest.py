"""Tests here run many tiny operations: on one thread they are quicker, and do not fight other work for the cores."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def same_random_numbers_every_time():
    torch.manual_seed(0)
