"""A real run, killed at random moments, ends as one that nobody disturbed: the smaller edition of `benchmarks.crash`."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from benchmarks.crash import RUNS, crash, differences


def few_kills(method, folder):
    """Whether the run that was killed is the same as the other; and what they were drawn by."""
    seed = random.SystemRandom().randrange(2**31)
    return crash(method, folder / method, kills=2, epochs=6, rng=random.Random(seed)), f"moments by random.Random({seed})"


def test_the_comparison_sees_one_last_bit(trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    assert differences(trained, other) == []
    last = other / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    momentum = checkpoint["optimizer_states"][0]["state"][0]["momentum_buffer"]
    momentum.view(torch.int32)[(0,) * momentum.ndim] ^= 1
    torch.save(checkpoint, last)
    assert differences(trained, other) == ["checkpoints/last.ckpt: /optimizer_states/0/state/0/momentum_buffer"]


@pytest.mark.slow  # at chosen moments: test_resume.py and test_every_method.py
@pytest.mark.parametrize("method", RUNS)
def test_a_run_that_is_killed_at_random_moments_ends_bit_for_bit_the_same(method, tmp_path, capsys):
    same, moments = few_kills(method, tmp_path)
    assert same, (capsys.readouterr().out, moments)
