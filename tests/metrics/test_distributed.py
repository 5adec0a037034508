"""Two real processes over gloo must tell exactly what one process tells."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import mllt
from mllt.metrics import ExpectedCalibrationError, ShotAccuracy

WORKER = Path(__file__).with_name("distributed_worker.py")
WORLD_SIZE = 2
SAMPLES = 101  # 51 and 50


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The data, and what each process computed."""
    folder = tmp_path_factory.mktemp("distributed")
    generator = torch.Generator().manual_seed(0)
    data = (
        torch.randn(3, SAMPLES, 5, generator=generator),
        torch.randint(5, (SAMPLES,), generator=generator),
        torch.tensor([500, 200, 50, 10, 5]),
    )
    torch.save(data, folder / "data.pt")
    source = str(Path(mllt.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(WORLD_SIZE), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * WORLD_SIZE, "\n".join(outputs)
    return data, [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("share", ["uneven", "one_empty"])
def test_two_processes_equal_one_to_the_last_digit(runs, share):
    (logits, target, class_counts), by_rank = runs
    metrics = [
        ShotAccuracy(class_counts, num_experts=3),
        ShotAccuracy(class_counts, num_experts=3, average="micro"),
        ExpectedCalibrationError(num_experts=3),
    ]
    for metric in metrics:
        metric.update(logits, target)
    expected = [metric.compute() for metric in metrics]
    for result in by_rank:
        assert_close(result[share], expected, rtol=0, atol=0, equal_nan=True)
