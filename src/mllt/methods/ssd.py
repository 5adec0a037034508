"""SSD: features guided by self-supervision, soft labels from a balanced classifier on them, and a student that learns these.

Li et al., "Self Supervision to Distillation for Long-Tailed Visual Recognition", ICCV 2021. Stages:

- "features": CE(z, y) + the contrast between two views of each image, with a momentum encoder and a queue, in which images of
  the same class are no negatives (`mllt.losses.guided_contrastive_loss`).
- "labels": encoder and classifier frozen, one scale per class on the logits learns from balanced classes, z_c <- s_c z_c.
- "distillation": a new encoder with two linear heads. The hard one minimises CE with the labels, the soft one
  T^2 KL(softmax(t / T) || softmax(z / T)) to the soft labels of the stage before; the soft one predicts.
- "rescaling" (`rescaling_epochs` above 0): the second stage once more, on the new network. The paper's row needs it.

As released, where it differs from the paper or surprises: what is frozen still runs on batch statistics, and lets them drift
(`drifting_statistics`); the queue begins with random keys of class 0. Batch statistics are those of the global batch here, so
that the shuffling of keys between devices falls away; the queue takes batches of any size, and the order of the images is
class-balanced (instead of two per class and batch).

Settings are public for ImageNet-LT with a ResNeXt-50 only.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mllt.data.sources import Batch, PairedBatch
from mllt.errors import ArgumentError, check_bool, check_integer, check_number
from mllt.losses import distillation_loss, expert_cross_entropy, guided_contrastive_loss
from mllt.methods.base import LongTailedModule
from mllt.methods.batches import companion_of
from mllt.methods.stages import Stage
from mllt.methods.teacher import Teacher

#: Entries of the longest queue that is chosen without being asked for.
LONGEST_QUEUE = 131_072
SCALING = ("labels", "rescaling")


class SSDModule(LongTailedModule):
    """SSD; see the stages above. One network with a linear head.

    Args:
        queue_size: K, earlier images that a batch is contrasted with, at least 1; None: as many as there are training images,
            up to 131,072.
        key_momentum: of the encoder of the second views, in 0 .. 1: keys <- m keys + (1 - m) queries after each step.
        contrast_temperature: T > 0 of the contrast.
        contrast_weight: its factor, at least 0.
        projection_dim: numbers that the contrast is made on, at least 1.
        label_epochs: of the stages that learn scales: "labels", at least 1.
        label_lr: their first learning rate, of a cosine schedule; None: that of the run.
        label_batch_size: their global batch size; None: that of the run.
        temperature: T > 0 of the distillation.
        soft_weight: its factor, at least 0.
        rescaling_epochs: of the last stage, at least 0; 0: none.
        drifting_statistics: whether what is frozen runs on batch statistics, as released; else on those it was trained with.
        common: see `LongTailedModule`; `num_experts` is 1 and the head linear.

    Raises:
        ArgumentError: a value is out of range, or values do not fit each other.

    >>> [stage.name for stage in SSDModule(class_counts=[30, 10, 2], network="resnet20").stages()]
    ['features', 'labels', 'distillation']
    """

    method = "ssd"
    fitted_prior = "uniform"
    reconstructed = (
        "Settings on other data than ImageNet-LT with a ResNeXt-50: the released ones are taken, and the length of the queue "
        "follows the number of training images.",
        "The second view of small images: MoCo-v2's without blur.",
    )

    def __init__(
        self,
        *,
        num_experts: int = 1,
        head: str = "linear",
        queue_size: int | None = None,
        key_momentum: float = 0.999,
        contrast_temperature: float = 0.2,
        contrast_weight: float = 1.0,
        projection_dim: int = 128,
        label_epochs: int = 5,
        label_lr: float | None = None,
        label_batch_size: int | None = None,
        temperature: float = 2.0,
        soft_weight: float = 1.0,
        rescaling_epochs: int = 0,
        drifting_statistics: bool = True,
        **common: Any,
    ) -> None:
        if num_experts != 1 or head != "linear":
            raise ArgumentError(
                f"SSD is one network with a linear head, but got num_experts={num_experts!r} and head={head!r}. Set "
                "network.num_experts=1 and network.head=linear."
            )
        super().__init__(num_experts=1, head=head, **common)
        for name, value in (("queue_size", queue_size), ("label_batch_size", label_batch_size)):
            if value is not None:
                check_integer(name, value, 1)
        if label_lr is not None:
            check_number("label_lr", label_lr, above=0)
        self.remember(
            queue_size=queue_size,
            key_momentum=check_number("key_momentum", key_momentum, 0, 1),
            contrast_temperature=check_number("contrast_temperature", contrast_temperature, above=0),
            contrast_weight=check_number("contrast_weight", contrast_weight, 0),
            projection_dim=check_integer("projection_dim", projection_dim, 1),
            label_epochs=check_integer("label_epochs", label_epochs, 1),
            label_lr=label_lr,
            label_batch_size=label_batch_size,
            temperature=check_number("temperature", temperature, above=0),
            soft_weight=check_number("soft_weight", soft_weight, 0),
            rescaling_epochs=check_integer("rescaling_epochs", rescaling_epochs, 0),
            drifting_statistics=check_bool("drifting_statistics", drifting_statistics),
        )
        entries = min(int(self.class_counts.sum()), LONGEST_QUEUE) if queue_size is None else queue_size
        # What only some stages have
        self.contrast: Contrast | None = Contrast(self.network, entries, projection_dim)
        self.scales: nn.Parameter | None = None
        self.teacher: Teacher | None = None
        self.hard_head: nn.Module | None = None

    # ---------------------------------------------------------------------------------------------------- stages

    def stages(self) -> list[Stage]:
        hp = self.hparams
        scaling: dict[str, Any] = {"sampling": "balanced", "batch_size": hp["label_batch_size"]}
        again = [Stage("rescaling", hp["rescaling_epochs"], **scaling)] if hp["rescaling_epochs"] else []
        labels = Stage("labels", hp["label_epochs"], **scaling)
        return [Stage("features", companion="view", fitted_prior="train"), labels, Stage("distillation"), *again]

    def on_stage(self) -> None:
        if self.stage == "features":  # as constructed
            return
        self.contrast = None
        if self.stage == "distillation":
            self._teach()
        if self.stage in SCALING:
            self.teacher = self.hard_head = None
            self.network.requires_grad_(False)
            self.scales = nn.Parameter(torch.ones(self.num_classes))

    def _teach(self) -> None:
        """Make a teacher of the network and its scales, and begin with a new network."""
        head = self.network.heads[0]
        if self.scales is not None:  # s (W x + b) = (s W) x + s b
            with torch.no_grad():
                head.weight *= self.scales[:, None]
                head.bias *= self.scales
        self.teacher = (DriftingTeacher if self.hparams["drifting_statistics"] else Teacher)(self.network)
        self.scales = None
        self.use_network(self.make_network())
        self.hard_head = self.make_network(pretrained=False).heads[0]  # heads are never pretrained

    def recipe(self) -> dict[str, Any]:
        common, lr = super().recipe(), self.hparams["label_lr"]
        if self.stage not in SCALING:
            return common
        return {**common, "lr": common["lr"] if lr is None else lr, "schedule": "cosine", "warmup_epochs": 0}

    def train(self, mode: bool = True) -> SSDModule:
        super().train(mode)
        if self.stage in SCALING and not self.hparams["drifting_statistics"]:
            self.network.eval()
        return self

    # ------------------------------------------------------------------------------------------------------ losses

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if self.scales is None else logits * self.scales

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"cross_entropy": expert_cross_entropy(logits, targets)}

    def losses(self, batch: Batch | PairedBatch) -> dict[str, Tensor]:
        if self.stage in SCALING:
            return super().losses(batch)
        features = self.network.features(batch.images)[0]
        logits = self.network.classify(0, features)
        if self.contrast is not None:
            contrast = self._contrast(self.contrast, features, batch)
            return {**self.objective(logits, batch.targets), "contrast": self.hparams["contrast_weight"] * contrast}
        temperature = self.hparams["temperature"]
        soft = distillation_loss(logits, self.teacher(batch.images), temperature)  # type: ignore[misc]
        hard = self.hard_head(features)  # type: ignore[misc]
        return {**self.objective(hard, batch.targets), "distillation": self.hparams["soft_weight"] * soft}

    def _contrast(self, contrast: Contrast, features: Tensor, batch: Batch | PairedBatch) -> Tensor:
        keys = contrast.keys_of(companion_of(batch, "view").images)
        queries = F.normalize(contrast.projector(features).float(), dim=1)
        contrast.hold(keys, batch.targets, batch.weight)
        temperature = self.hparams["contrast_temperature"]
        return guided_contrastive_loss(queries, keys, batch.targets, contrast.queue, contrast.queue_targets, temperature)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.contrast is not None:
            self.contrast.follow(self.network, self.hparams["key_momentum"])

    def on_step_left_out(self) -> None:
        if self.contrast is not None:
            self.contrast.drop()


class DriftingTeacher(Teacher):
    """A teacher that runs on batch statistics while it teaches, as released."""

    def train(self, mode: bool = True) -> DriftingTeacher:
        """Follow the module that it is in."""
        return nn.Module.train(self, mode)


class Contrast(nn.Module):
    """What the contrast of the first stage needs: a projector, a momentum encoder of keys, and a queue of earlier keys.

    Args:
        network: the encoder of queries, which the one of keys begins as and follows.
        entries: K, of the queue.
        size: D, numbers of a key.
    """

    queue: Tensor
    queue_targets: Tensor
    queue_at: Tensor

    def __init__(self, network: Any, entries: int, size: int) -> None:
        super().__init__()
        width = network.feature_dim
        self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size))
        self.key_network = copy.deepcopy(network).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(entries, size), dim=1))
        self.register_buffer("queue_targets", torch.zeros(entries, dtype=torch.int64))
        self.register_buffer("queue_at", torch.zeros((), dtype=torch.int64))
        self._held: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def keys_of(self, views: Tensor) -> Tensor:
        """Keys `(B, D)` of views `(B, 3, H, W)`: float32, of unit length."""
        return F.normalize(self.key_projector(self.key_network.features(views)[0]).float(), dim=1)

    def hold(self, keys: Tensor, targets: Tensor, weight: Tensor) -> None:
        """Keep keys for the queue until the step is done; those that only fill up an empty share (weight 0) are left out."""
        share = len(keys) * int(weight > 0)
        self._held.append((keys[:share], targets[:share]))

    def drop(self) -> None:
        """Let go of the keys that are kept."""
        self._held = []

    @torch.no_grad()
    def follow(self, network: Any, momentum: float) -> None:
        """After a step: put its keys, of all devices, into the queue, and let the encoder of keys follow that of queries."""
        if not self._held:
            return
        keys, targets = (rows_of_all_devices(torch.cat(parts)) for parts in zip(*self._held, strict=True))
        self._held = []
        keys, targets = keys[-len(self.queue) :], targets[-len(self.queue) :]
        places = (self.queue_at + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places], self.queue_targets[places] = keys.to(self.queue.dtype), targets
        self.queue_at = (self.queue_at + len(keys)) % len(self.queue)
        for behind, ahead in ((self.key_network, network), (self.key_projector, self.projector)):
            for slow, quick in zip(behind.parameters(), ahead.parameters(), strict=True):
                slow.mul_(momentum).add_(quick, alpha=1 - momentum)


def rows_of_all_devices(rows: Tensor) -> Tensor:
    """The rows of every device, in the order of their ranks; devices may have different numbers of them."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    world = dist.get_world_size()
    counts = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    longest = max(int(count) for count in counts)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
