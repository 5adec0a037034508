"""What a second process brings, where each has a core of its own: the command on one and on two.

python -m benchmarks.devices
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, compare, tells_seconds
from benchmarks.table import show

SHORT = ("trainer.max_epochs=2", "schedule.warmup_epochs=1", "trainer.limit_train_batches=12", "trainer.limit_test_batches=1")


def seconds_per_image(processes: int) -> float:
    """Of a short training with so many processes, each on one thread, as its `results.json` tells."""
    real = (Path(os.environ.get("MLLT_DATA", "data")) / "cifar-100-python").is_dir()
    chosen = ["experiment=cifar100_lt"] if real else ["experiment=digits_lt", "network=resnet32", "batch_size=128"]
    several = ["trainer=ddp", f"trainer.devices={processes}"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        settings = [*several, *chosen, *SHORT, "trainer.accelerator=cpu", "threads=1", f"output_dir={folder}/run"]
        command = [sys.executable, "-m", "mllt.train", *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return 1 / json.loads(Path(folder, "run/results.json").read_text())["images_per_second"]


def rows(rounds: int = 2) -> Iterator[Row]:
    """Two processes beside one."""
    if (os.cpu_count() or 1) < 2:
        return
    yield compare(
        "per image, 2 processes of 1 thread (gloo); baseline: 1 process of 1 thread",
        lambda: seconds_per_image(1),
        lambda: seconds_per_image(2),
        clock=tells_seconds,
        rounds=rounds,
        warm_up=0,
        note="no more than 2 can come of it; batch statistics are of each process's half, so it is not the same training",
    )


if __name__ == "__main__":
    show(rows())
