"""What a run is made by and with: kept in its checkpoints, so that it is known of every epoch, whenever it was trained."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from mllt.checkpoint import glance
from mllt.data.order import random_bits
from mllt.errors import CheckpointError


class Provenance(Callback):
    """Notes the commits that a stage's epochs were trained by, and the settings that neither method nor optimizer know of.

    Args:
        commit: of the code that runs now; None: not known.
        settings: such as seed and batch size; a stage goes on with the same only.
    """

    def __init__(self, commit: str | None, settings: Mapping[str, Any]) -> None:
        self.commit, self.settings = commit, dict(settings)
        self.commits: list[str | None] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.commit not in self.commits:
            self.commits.append(self.commit)

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints hold."""
        return {"commits": self.commits, "settings": self.settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.commits = list(state_dict["commits"])

    def check(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Raise `CheckpointError` when a checkpoint that is to be gone on from was made with other settings."""
        stored = (checkpoint.get("callbacks") or {}).get(self.state_key, {}).get("settings", {})
        changed = {name: value for name, value in self.settings.items() if stored.get(name, value) != value}
        if changed:
            found = ", ".join(f"{name}={stored[name]}" for name in changed)
            here = ", ".join(f"{name}={value}" for name, value in changed.items())
            raise CheckpointError(
                f"Expected {path} to be made with {here}, but it was made with {found}. Type these to go on from it, or choose "
                "another output_dir for a new run."
            )

    def all_commits(self, earlier: Sequence[Path]) -> list[str | None]:
        """The commits of this stage's epochs and of the stages before, by their checkpoints; each once, in order."""
        found = [commit for path in earlier for commit in self._of(path)]
        return list(dict.fromkeys([*found, *self.commits]))

    def _of(self, path: Path) -> list[str | None]:
        told = glance(path) or {"callbacks": {}}  # none where the stage was given by path
        return list(told["callbacks"].get(self.state_key, {}).get("commits", []))


class SeedSteps(Callback):
    """Seeds the generators anew for every batch and device, so that what draws from them (dropout, ...) is the same after a
    break, wherever that was; what mllt draws itself does not depend on them.

    Args:
        seed: of the stage.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        bits = int(random_bits(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))
        if pl_module.device.type == "cpu":  # `torch.manual_seed` notes who asked, for GPUs that are not there
            torch.default_generator.manual_seed(bits >> 1)
        else:
            torch.manual_seed(bits >> 1)
        np.random.seed(bits >> 32)
        random.seed(bits)
