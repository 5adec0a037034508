"""One process of the distributed test: `python distributed_worker.py RANK WORLD_SIZE FOLDER`.

Sees its share (every WORLD_SIZE-th image) of what lies in FOLDER/data.pt, and leaves its results beside it.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from mllt.metrics import ExpectedCalibrationError, ShotAccuracy


def results(logits, target, class_counts, batch_size):
    """Both metrics, updated batch by batch; an empty share is never updated with at all."""
    metrics = [
        ShotAccuracy(class_counts, num_experts=len(logits)),
        ShotAccuracy(class_counts, num_experts=len(logits), average="micro"),
        ExpectedCalibrationError(num_experts=len(logits)),
    ]
    for start in range(0, len(target), batch_size):
        batch = slice(start, start + batch_size)
        for metric in metrics:
            metric.update(logits[:, batch], target[batch])
    return [metric.compute() for metric in metrics]


def main(rank, world_size, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    logits, target, class_counts = torch.load(folder / "data.pt", weights_only=True)
    uneven = results(logits[:, rank::world_size], target[rank::world_size], class_counts, batch_size=16)
    share = len(target) if rank == 0 else 0
    one_empty = results(logits[:, :share], target[:share], class_counts, batch_size=16)
    torch.save({"uneven": uneven, "one_empty": one_empty}, folder / f"result-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
