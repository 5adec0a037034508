"""A real run, killed at random moments, ends as one that nobody disturbed: the smaller edition of `benchmarks.crash`."""

from __future__ import annotations

import random

import pytest
import torch
from benchmarks.crash import RUNS, crash, differences


def few_kills(method, folder, capsys):
    seed = random.SystemRandom().randrange(2**31)
    same = crash(method, folder / method, kills=2, epochs=6, rng=random.Random(seed))
    assert same, f"{capsys.readouterr().out} (moments by random.Random({seed}))"
    return folder / method


def test_a_run_that_is_killed_at_random_moments_ends_bit_for_bit_the_same(tmp_path, capsys):
    runs = few_kills("mutual", tmp_path, capsys)
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
    few_kills(method, tmp_path, capsys)
