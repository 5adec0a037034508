"""A real run, killed at random moments, ends as one that nobody disturbed: the smaller edition of `benchmarks.crash`."""

from __future__ import annotations

import random

import pytest
import torch
from benchmarks.crash import RUNS, crash, differences


def few_kills(method, folder):
    """Whether the run that was killed is the same as the other; and what they were drawn by."""
    seed = random.SystemRandom().randrange(2**31)
    return crash(method, folder / method, kills=2, epochs=6, rng=random.Random(seed)), f"moments by random.Random({seed})"


def test_a_run_that_is_killed_at_random_moments_ends_bit_for_bit_the_same(tmp_path, capsys):
    same, moments = few_kills("mutual", tmp_path)
    assert same, (capsys.readouterr().out, moments)
    runs = tmp_path / "mutual"
    # the comparison sees one last bit
    last = runs / "parts" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    momentum = checkpoint["optimizer_states"][0]["state"][0]["momentum_buffer"]
    momentum.view(torch.int32).flatten()[0] ^= 1
    torch.save(checkpoint, last)
    assert differences(runs / "whole", runs / "parts") == [
        "checkpoints/last.ckpt: /optimizer_states/0/state/0/momentum_buffer",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in RUNS if name != "mutual"])
def test_so_does_a_run_of_every_kind(method, tmp_path, capsys):
    same, moments = few_kills(method, tmp_path)
    assert same, (capsys.readouterr().out, moments)
