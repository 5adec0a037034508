"""One of two processes: `python loader_worker.py RANK FOLDER`.

Leaves which images its loaders gave, by how they were made, in FOLDER/seen-RANK.pt.
"""

import os
import sys
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist

from mllt.data import DigitsLT
from mllt.errors import ArgumentError


class Recorder(L.LightningModule):
    """Notes which images it is handed."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = {"train": [], "test": []}

    def training_step(self, batch, batch_index):
        self.seen["train"].append(batch.indices.tolist())
        return self.layer(batch.images.mean().view(1)).sum()

    def test_step(self, batch, batch_index):
        self.seen["test"].append(batch.indices.tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loaders(batch_size=16):
    data = DigitsLT(batch_size=batch_size)
    data.setup()
    return {"train": data.train_dataloader(), "test": data.test_dataloader()}


def given(by_split):
    return {split: [batch.indices.tolist() for batch in loader] for split, loader in by_split.items()}


def with_trainer(folder, by_split):
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    recorder = Recorder()
    trainer.fit(recorder, train_dataloaders=by_split["train"])
    trainer.test(recorder, dataloaders=by_split["test"], verbose=False)
    return recorder.seen


def refusal():
    try:
        len(list(loaders(batch_size=15)["train"]))
    except ArgumentError as error:
        return str(error)
    return ""


def main(rank, folder):
    torch.set_num_threads(1)
    before, handed = loaders(), loaders()
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    seen = {"made before the processes met": given(before), "made after": given(loaders()), "refused": refusal()}
    # Lightning is told by these that the processes run already
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    seen["handed to a trainer"] = with_trainer(folder, handed)
    torch.save(seen, folder / f"seen-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
