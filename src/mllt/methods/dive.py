"""DiVE: a student learns from a teacher whose predictions are flattened until they are examples of the rare classes, too.

He et al., "Distilling Virtual Examples for Long-tailed Recognition", ICCV 2021. Stages:

- "teacher" (unless a teacher's checkpoint is given): balanced softmax, the same network and recipe as the student's.
- "student": a new network, with logits s, the teacher's being t and q ~ softmax(t / tau)^p:

      L = (1 - w) balanced softmax(s, y) + w tau^2 KL(q || softmax(s / tau))

Its raw logits s are the prediction. The teacher's predictions q, summed over the training set, are the virtual examples that
each class gets. The authors raise tau until their number is about the same for all classes, or a little larger in the tail; a
power p of 1/2 flattens them as twice the temperature would. So tau is chosen by that histogram, which `details` tells for this
and for other temperatures: where a teacher is flatter than the authors', their tau = 3 with p = 1/2 is too much.

Public are the settings for CIFAR-100-LT with imbalance factor 100; those for the large sets are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllt.checkpoint import KEY
from mllt.data.sources import Batch, PairedBatch
from mllt.errors import check_number
from mllt.longtail import shot_groups
from mllt.losses import balanced_softmax_loss, virtual_example_loss, virtual_examples
from mllt.methods.base import LongTailedModule
from mllt.methods.stages import Stage
from mllt.methods.teacher import Teacher, read_teacher

#: effective temperatures tau / p that the histogram is told for, besides the one in use
TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


class DIVEModule(LongTailedModule):
    """A balanced-softmax teacher, then a student that learns from labels and virtual examples.

    Args:
        temperature: tau > 0.
        power: p > 0 of the teacher's probabilities; 1: none.
        distillation_weight: w in 0 .. 1.
        teacher: a checkpoint to take as teacher (or its description, as a checkpoint of ours holds it); None: one is trained
            first.
        common: see `LongTailedModule`.

    Raises:
        ArgumentError: a value is out of range, or the teacher does not fit.
        CheckpointError: the teacher's checkpoint is missing, damaged or not ours.

    >>> [stage.name for stage in DIVEModule(class_counts=[30, 10, 2], network="resnet20").stages()]
    ['teacher', 'student']
    """

    method = "dive"
    fitted_prior = "uniform"
    reconstructed = (
        "DiVE's temperature, power and weight are public for CIFAR-100-LT with imbalance factor 100 only; for other data they "
        "are the same here, to be tuned by the histogram of virtual examples.",
        "DiVE's learning rate and schedule for ImageNet-LT and iNaturalist 2018 are not public; here the experiment's are.",
    )

    def __init__(
        self,
        *,
        temperature: float = 3.0,
        power: float = 0.5,
        distillation_weight: float = 0.5,
        teacher: str | Path | dict[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        description, self.teacher = read_teacher(teacher, self.class_counts)
        self.remember(
            temperature=check_number("temperature", temperature, above=0),
            power=check_number("power", power, above=0),
            distillation_weight=check_number("distillation_weight", distillation_weight, 0, 1),
            teacher=description,
        )
        # A plain tensor: buffers are overwritten by those of the first device in every step, and averaged with the weights
        self._counted = torch.zeros(len(self._temperatures()), self.num_classes)  # in this epoch, on this device
        self._virtual_examples: Tensor | None = None  # (temperatures, C) of the last whole epoch, on all devices

    # ---------------------------------------------------------------------------------------------------- stages

    def stages(self) -> list[Stage]:
        teacher = [Stage("teacher")] if self.hparams["teacher"] is None else []
        return [*teacher, Stage("student")]

    def on_stage(self) -> None:
        if self.stage == "student" and self.teacher is None:
            self.teacher = Teacher(self.network)
            self.use_network(self.make_network())

    # ------------------------------------------------------------------------------------------------------ losses

    def losses(self, batch: Batch | PairedBatch) -> dict[str, Tensor]:
        logits = self(batch.images)
        terms = self.objective(logits, batch.targets)
        if self.teacher is None:
            return terms
        taught = self.teacher(batch.images)
        self._count(taught, batch.weight)
        hp = self.hparams
        weight, learned = hp["distillation_weight"], virtual_example_loss(logits, taught, hp["temperature"], hp["power"])
        return {"balanced_softmax": (1 - weight) * terms["balanced_softmax"], "distillation": weight * learned}

    def objective(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"balanced_softmax": balanced_softmax_loss(logits, targets, self.class_counts)}

    # ---------------------------------------------------------------------------------------------- virtual examples

    def details(self) -> dict[str, Any]:
        """The virtual examples of the last epoch's images: what to choose the temperature by.

        "virtual_examples": how many each class got, C numbers, at "effective_temperature", tau / p. "virtual_examples_at": by
        effective temperature, the one in use and others, their mean over the many-, medium- and few-shot classes (None for a
        group without classes). A good one makes these three about equal.
        """
        if self._virtual_examples is None:
            return {}
        names = [f"{temperature:g}" for temperature in self._temperatures()]
        at = dict(zip(names, self._virtual_examples, strict=True))
        hp = self.hparams
        rule = (hp["many_above"], hp["few_below"])
        groups = shot_groups(self.class_counts.cpu(), *rule, inclusive=hp["shot_edges_inclusive"])
        used = hp["temperature"] / hp["power"]
        return {
            "virtual_examples": at[f"{used:g}"].tolist(),
            "effective_temperature": used,
            "virtual_examples_at": {
                name: {group: float(counts[mask].mean()) if mask.any() else None for group, mask in groups.items()}
                for name, counts in at.items()
            },
        }

    def _temperatures(self) -> list[float]:
        """The effective temperatures of the histograms, each once."""
        return sorted({*TEMPERATURES, self.hparams["temperature"] / self.hparams["power"]})

    def _count(self, taught: Tensor, weight: Tensor) -> None:
        """Add a batch's virtual examples; a batch of weight 0 only fills up an empty share."""
        found = torch.stack([virtual_examples(taught, temperature, power=1.0) for temperature in self._temperatures()])
        self._counted = self._counted.to(found.device) + found * (weight > 0)

    def epoch_sums(self) -> dict[str, Tensor]:
        return {**super().epoch_sums(), "virtual_examples": self._counted}

    def load_epoch_sums(self, sums: dict[str, Tensor]) -> None:
        super().load_epoch_sums(sums)
        self._counted = sums.get("virtual_examples", self._counted)

    def on_train_epoch_start(self) -> None:
        self._counted = torch.zeros_like(self._counted)

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        if self.teacher is not None:
            total = self.trainer.strategy.reduce(self._counted.to(self.device), reduce_op="sum")
            self._virtual_examples = torch.as_tensor(total).cpu()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._virtual_examples is not None:
            checkpoint[KEY]["virtual_examples"] = self._virtual_examples.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        counted = checkpoint[KEY].get("virtual_examples")
        self._virtual_examples = None if counted is None else torch.tensor(counted)
