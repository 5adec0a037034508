"""RIDE: experts of reduced dimension that are driven apart, and a router that asks as many of them as an image needs.

Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts", ICLR 2021. Stages:

- "teacher" (only with distillation, and without a teacher's checkpoint): a RIDE of 6 experts.
- "experts": each expert minimises LDAM with deferred re-weighting, and a diversity term pushes its predictions away from the
  mean of all (`mllt.losses.ride_loss`). With distillation, all minimise N * (that + T^2 KL(teacher || mean of the experts)).
- "routing": all else frozen, routers learn whether one more expert is worth asking (`mllt.losses.routing_loss`): for each but
  the last expert its feature, brought to unit length and to 16 numbers, together with the top logits of the experts so far.
  An image is then shown to expert after expert until the router says enough, and the logits of those are averaged. On a
  training set that is learned by heart there is nothing to learn for a router (no further expert ever helps), and the first
  expert will answer for all images: `routing_epochs=0` there.

As released, where it differs from the paper: the factor mean(T)^2 on the diversity term; a diversity of 0 switches to LDAM of
the experts' mean; the factor N on the whole loss with distillation, which is on the experts' mean and not on each.
Re-weighting begins after 160 of 200 epochs (80 of 100 on the large sets): a share of the run here. Its weighted mean is over
the batch of the one device; where a batch is cut up for several, over each of its shares here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllt.data.sources import Batch, PairedBatch
from mllt.errors import check_bool, check_integer, check_number
from mllt.losses import distillation_loss, ride_loss, routing_loss
from mllt.methods.base import LongTailedModule
from mllt.methods.stages import Stage
from mllt.methods.teacher import Teacher, read_teacher
from mllt.networks import ExpertNetwork, count_macs

ROUTER_WIDTH = 16


class RIDEModule(LongTailedModule):
    """RIDE with N experts; see the stages above.

    Args:
        num_experts: N.
        head: "cosine", which the margins are made for, or "linear".
        scale: of the cosine head, by which margins are scaled, too.
        diversity: factor of the divergence from the mean; negative drives the experts apart.
        diversity_temperature: T0 > 0 of that divergence.
        reweight_factor: eta in [0, 1), how far its temperature follows class frequency once classes are re-weighted.
        reweight_from: share of the run after which they are, in 0 .. 1; 1: never.
        max_margin: LDAM's, at least 0.
        distill: whether the experts also learn from a teacher.
        teacher: a checkpoint to take as teacher (or its description, as a checkpoint of ours holds it); None: with `distill`,
            a RIDE of `teacher_experts` is trained first.
        teacher_experts: experts of that one, at least 1.
        teacher_warmup_epochs: its epochs of warm-up; None: those of the run.
        distill_temperature: T > 0 of the distillation.
        distill_weight: its factor, at least 0.
        routing_epochs: of the routing stage, at least 0; 0, or a single expert: none, all experts answer for every image.
        routing_lr: its first learning rate, of a cosine schedule; above 0.
        routing_batch_size: its global batch size; None: that of the run.
        routing_weight_decay: its weight decay, at least 0; None: that of the run.
        routing_top_k: how many of the largest logits the router sees, at least 1 (all of C where C is less).
        routing_positive_weight: weight of the images that one more expert helps; above 0.
        common: see `LongTailedModule`.

    Raises:
        ArgumentError: a value is out of range, or values do not fit each other.
        CheckpointError: the teacher's checkpoint is missing, damaged or not ours.

    >>> import torch
    >>> module = RIDEModule(class_counts=[30, 10, 2], network="resnet20")
    >>> module(torch.zeros(4, 3, 32, 32)).shape, [stage.name for stage in module.stages()]
    (torch.Size([3, 4, 3]), ['experts', 'routing'])
    """

    method = "ride"
    fitted_prior = "uniform"

    def __init__(
        self,
        *,
        num_experts: int = 3,
        head: str = "cosine",
        scale: float | None = None,
        diversity: float = -0.45,
        diversity_temperature: float = 1.0,
        reweight_factor: float = 0.05,
        reweight_from: float = 0.8,
        max_margin: float = 0.5,
        distill: bool = False,
        teacher: str | Path | dict[str, Any] | None = None,
        teacher_experts: int = 6,
        teacher_warmup_epochs: int | None = None,
        distill_temperature: float = 1.5,
        distill_weight: float = 1.0,
        routing_epochs: int = 5,
        routing_lr: float = 0.01,
        routing_batch_size: int | None = None,
        routing_weight_decay: float | None = None,
        routing_top_k: int = 30,
        routing_positive_weight: float = 100.0,
        **common: Any,
    ) -> None:
        super().__init__(num_experts=num_experts, head=head, scale=scale, **common)
        description, self.teacher = read_teacher(teacher, self.class_counts)
        if routing_batch_size is not None:
            check_integer("routing_batch_size", routing_batch_size, 1)
        if routing_weight_decay is not None:
            check_number("routing_weight_decay", routing_weight_decay, 0)
        if teacher_warmup_epochs is not None:
            check_integer("teacher_warmup_epochs", teacher_warmup_epochs, 0)
        self.remember(
            diversity=check_number("diversity", diversity),
            diversity_temperature=check_number("diversity_temperature", diversity_temperature, above=0),
            reweight_factor=check_number("reweight_factor", reweight_factor, 0, below=1),
            reweight_from=check_number("reweight_from", reweight_from, 0, 1),
            max_margin=check_number("max_margin", max_margin, 0),
            distill=check_bool("distill", distill) or teacher is not None,
            teacher=description,
            teacher_experts=check_integer("teacher_experts", teacher_experts, 1),
            teacher_warmup_epochs=teacher_warmup_epochs,
            distill_temperature=check_number("distill_temperature", distill_temperature, above=0),
            distill_weight=check_number("distill_weight", distill_weight, 0),
            routing_epochs=check_integer("routing_epochs", routing_epochs, 0),
            routing_lr=check_number("routing_lr", routing_lr, above=0),
            routing_batch_size=routing_batch_size,
            routing_weight_decay=routing_weight_decay,
            routing_top_k=check_integer("routing_top_k", routing_top_k, 1),
            routing_positive_weight=check_number("routing_positive_weight", routing_positive_weight, above=0),
        )
        self.router: Any = None  # a `Router` in the routing stage
        self._asked: Tensor | None = None  # while testing: how many images were shown to 1 .. N experts
        self._image_size = (0, 0)
        self._found: dict[str, Any] = {}
        self._network_will_teach = self.stage == "teacher"
        if self._network_will_teach:
            self.use_network(self.make_network(num_experts=teacher_experts))

    # ---------------------------------------------------------------------------------------------------- stages

    def stages(self) -> list[Stage]:
        hp = self.hparams
        teacher = [Stage("teacher")] if hp["distill"] and hp["teacher"] is None else []
        routed = hp["routing_epochs"] > 0 and hp["num_experts"] > 1
        routing = [Stage("routing", hp["routing_epochs"], "balanced", batch_size=hp["routing_batch_size"])] if routed else []
        return [*teacher, Stage("experts"), *routing]

    def on_stage(self) -> None:
        if self.stage == "teacher":  # as constructed
            return
        if self._network_will_teach:
            self._network_will_teach = False
            self.teacher = Teacher(self.network)
            self.use_network(self.make_network())
        if self.stage == "routing":
            self.teacher = None
            self.network.requires_grad_(False)
            self.router = Router(self.network, self.hparams["routing_top_k"])

    def recipe(self) -> dict[str, Any]:
        hp, common = self.hparams, super().recipe()
        if self.stage == "teacher" and hp["teacher_warmup_epochs"] is not None:
            return {**common, "warmup_epochs": hp["teacher_warmup_epochs"]}
        if self.stage != "routing":
            return common
        decay = common["weight_decay"] if hp["routing_weight_decay"] is None else hp["routing_weight_decay"]
        return {**common, "lr": hp["routing_lr"], "weight_decay": decay, "schedule": "cosine", "warmup_epochs": 0}

    def train(self, mode: bool = True) -> RIDEModule:
        super().train(mode)
        if self.stage == "routing":  # frozen, batch statistics included
            self.network.eval()
        return self

    # ------------------------------------------------------------------------------------------------------ losses

    def losses(self, batch: Batch | PairedBatch) -> dict[str, Tensor]:
        if self.router is not None:
            return {"routing": self._routing_loss(batch)}
        logits = self(batch.images)
        terms = self.objective(logits, batch.targets)
        if self.teacher is None:
            return terms
        hp = self.hparams
        learned = distillation_loss(logits.mean(dim=0), self.teacher(batch.images), hp["distill_temperature"])
        return {
            "ride": self.num_experts * terms["ride"],
            "distillation": self.num_experts * hp["distill_weight"] * learned,
        }

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        hp = self.hparams
        loss = ride_loss(
            logits,
            targets,
            self.class_counts,
            diversity=hp["diversity"],
            diversity_temperature=hp["diversity_temperature"],
            reweight_factor=hp["reweight_factor"],
            reweight=self.progress() >= hp["reweight_from"],
            max_margin=hp["max_margin"],
            scale=getattr(self.network.heads[0], "scale", 1.0),
        )
        return {"ride": loss}

    def _routing_loss(self, batch: Batch | PairedBatch) -> Tensor:
        with torch.no_grad():
            features = self.network.features(batch.images)
            logits = torch.stack([self.network.classify(k, features[k]) for k in range(self.num_experts)])
        means = [logits[: k + 1].mean(dim=0) for k in range(self.num_experts - 1)]
        asks = torch.stack([self.router(k, features[k], mean) for k, mean in enumerate(means)])
        return routing_loss(asks, logits, batch.targets, self.hparams["routing_positive_weight"])

    # --------------------------------------------------------------------------------------------------- inference

    def judge(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.router is None:
            return super().judge(images)
        logits, weights = self._consult(images, every=True)
        if self._asked is not None:
            asked = (weights > 0).sum(dim=0).flatten()
            self._asked += asked.bincount(minlength=self.num_experts + 1)[1:]
            self._image_size = (images.shape[-2], images.shape[-1])
        return logits, weights

    def together(self, images: Tensor) -> Tensor:
        """The ensemble's compensated logits `(B, C)`; with a router, only the experts that it asks for are computed."""
        if self.router is None:
            return super().together(images)
        logits, weights = self._consult(images, every=False)
        return self.combine(logits, weights)

    def _consult(self, images: Tensor, *, every: bool) -> tuple[Tensor, Tensor]:
        """Expert after expert, for the images that still ask.

        Args:
            images: `(B, 3, H, W)`.
            every: whether to let all experts answer for every image, too; the weights are the same.

        Returns:
            Logits `(N, B, C)`, 0 where an expert was not asked (unless `every`), and weights `(N, B, 1)`: 1 over the number of
            experts that an image asked, 0 for the others. Both float32.
        """
        network = self.network
        shared, experts = network.trunk(images), self.num_experts
        # float32 whatever a trainer makes the default type
        logits = torch.zeros(experts, len(images), self.num_classes, dtype=torch.float32, device=images.device)
        weights = torch.zeros(experts, len(images), 1, dtype=torch.float32, device=images.device)
        asking = torch.arange(len(images), device=images.device)
        for k in range(experts):
            if not len(asking) and not every:
                break
            rows = torch.arange(len(images), device=images.device) if every else asking
            features = network.experts[k](shared[rows])
            logits[k, rows] = network.classify(k, features).float()
            weights[k, asking] = 1.0
            if k + 1 < experts:
                seen = features[asking] if every else features
                wanted = self.router(k, seen, logits[: k + 1, asking].mean(dim=0)) > 0
                asking = asking[wanted]
        return logits, weights / weights.sum(dim=0)

    # -------------------------------------------------------------------------------------- what the routing shows

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._asked = torch.zeros(self.num_experts, dtype=torch.int64, device=self.device)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        asked: Tensor = self.all_gather(self._asked)  # type: ignore[arg-type, assignment]
        # Of every device, since one may have had no image
        size: Tensor = self.all_gather(torch.tensor(self._image_size, device=self.device))  # type: ignore[assignment]
        self._asked, self._found = None, {}
        images = asked.view(-1, self.num_experts).sum(dim=0)
        if self.router is not None and images.any():
            self._found = {"images_by_experts": images.tolist(), "image_size": size.view(-1, 2).amax(dim=0).tolist()}

    def details(self) -> dict[str, Any]:
        """Of the last test: images by the number of experts that they asked, its mean, and the computation that it saves.

        "flops_all_experts" and "flops_per_image" are twice the multiply-accumulates of `mllt.networks.count_macs`, routers
        included; "flops_saved" is their difference in percent.
        """
        if not self._found:
            return {}
        images = torch.tensor(self._found["images_by_experts"], dtype=torch.float64)
        shares, numbers = images / images.sum(), torch.arange(1, self.num_experts + 1)
        flops = 2 * torch.tensor([self._macs(k) for k in numbers.tolist()], dtype=torch.float64)
        mean, every = float((shares * flops).sum()), 2 * float(count_macs(self.network, self._found["image_size"]))
        return {
            "mean_experts": float((shares * numbers).sum()),
            "images_by_experts": self._found["images_by_experts"],
            "flops_all_experts": every,
            "flops_per_image": mean,
            "flops_saved": 100 * (1 - mean / every),
        }

    def _macs(self, number: int) -> int:
        """Multiply-accumulates for an image that asks this many experts."""
        network = self.network
        part = ExpertNetwork(network.trunk, network.experts[:number], network.heads[:number])
        decisions = min(number, self.num_experts - 1)
        return count_macs(part, self._found["image_size"]) + decisions * self.router.macs


class Router(nn.Module):
    """For each expert but the last: is one more worth asking?

    Args:
        network: of N experts, at least 2.
        top_k: how many of the largest logits it sees.
    """

    def __init__(self, network: ExpertNetwork, top_k: int) -> None:
        super().__init__()
        self.top_k = min(top_k, network.num_classes)
        self.reduce = nn.ModuleList(nn.Linear(network.feature_dim, ROUTER_WIDTH) for _ in range(network.num_experts - 1))
        self.decide = nn.Linear(ROUTER_WIDTH + self.top_k, 1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one decision."""
        return self.reduce[0].weight.numel() + self.decide.weight.numel()  # type: ignore[operator]

    def forward(self, expert: int, features: Tensor, logits: Tensor) -> Tensor:
        """How strongly one more is asked for, a logit `(B,)`; computed in float32 under autocast.

        Args:
            expert: the last one that answered, 0 .. N-2.
            features: its features, `(B, D)`.
            logits: the mean of the logits so far, `(B, C)`.
        """
        exact = self.decide.weight.dtype
        with torch.autocast(features.device.type, enabled=False):  # float32, as heads are
            hidden = F.relu(self.reduce[expert](F.normalize(features.to(exact), dim=1)))
            top = logits.to(exact).topk(self.top_k, dim=1).values
            return self.decide(torch.cat([hidden, top], dim=1)).squeeze(1)
