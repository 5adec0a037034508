"""A trained network that another one learns from: of a stage before, or of a checkpoint of any method."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mllt.errors import ArgumentError
from mllt.longtail import compensation_offset
from mllt.methods.base import LongTailedModule, load_checkpoint
from mllt.metrics import ensemble_logits
from mllt.networks import ExpertNetwork, build_network

_SETTINGS = ("network", "num_experts", "shared", "width", "head", "scale", "network_options")


class Teacher(nn.Module):
    """A frozen network: images `(B, 3, H, W)` -> logits `(B, C)` that fit a uniform prior, the mean of its experts.

    It stays in eval mode, batch statistics included, and gives no gradients.

    Args:
        network: what has been trained.
        offset: `(C,)`, added to its logits: what takes their class prior out; None: nothing.
    """

    offset: Tensor

    def __init__(self, network: Any, offset: Tensor | None = None) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        zero = torch.zeros(network.num_classes, dtype=torch.float32)
        self.register_buffer("offset", zero if offset is None else offset.float())
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay as it is."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Teacher:
        """Whatever type the module is brought to, the offset stays float32."""
        exact = self.offset
        super()._apply(fn, recurse)
        self.offset = exact.to(self.offset.device)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, C)`, float32 whatever the type of the images."""
        return ensemble_logits(self.network(images).float(), offset=self.offset)


def read_teacher(
    source: str | Path | Mapping[str, Any] | None, class_counts: Tensor
) -> tuple[dict[str, Any] | None, Teacher | None]:
    """The teacher that a method was given, and its description, with which it can be made again without its checkpoint.

    Args:
        source: a checkpoint of a method whose logits are those of its network; or a description (what a method remembers:
            the teacher's weights are then about to be loaded); None: none was given.
        class_counts: `(C,)`, of the one that learns.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or not ours.
        ArgumentError: it is of other classes, or its method changes the logits of its network.
    """
    if source is None:
        return None, None
    if isinstance(source, Mapping):
        return dict(source), Teacher(_rebuilt(source, len(class_counts)))
    module = load_trained("teacher", source, class_counts)
    description = {**origin(module), **{name: module.hparams[name] for name in _SETTINGS}, "num_experts": module.num_experts}
    _check_teacher(module, source, description)
    fitted = module.class_counts if module.fits == "train" else torch.ones_like(module.class_counts)
    return description, Teacher(module.network, compensation_offset(fitted))


def load_trained(argument: str, source: Any, class_counts: Tensor) -> LongTailedModule:
    """The module of another run's checkpoint, trained on the same images per class.

    Args:
        argument: which argument named it; for the error.
        source: the checkpoint's path.
        class_counts: `(C,)`, of the method that takes it.

    Raises:
        CheckpointError: it is missing, damaged or not ours.
        ArgumentError: it is no path, or of other classes.
    """
    if not isinstance(source, (str, Path)):
        raise ArgumentError(f"Expected `{argument}` to be the path of a checkpoint, but got {source!r:.100}.")
    module = load_checkpoint(source)
    theirs, ours = module.class_counts.cpu(), class_counts.cpu()
    if not torch.equal(theirs, ours):
        raise ArgumentError(
            f"Expected `{argument}` to be trained on the same images per class, but {source} was trained on "
            f"{_counted(theirs)}, and here there are {_counted(ours)}. Give one that was trained on this data."
        )
    return module


def origin(module: LongTailedModule) -> dict[str, Any]:
    """What to remember of a checkpoint that was taken: method and stage, and a mark that tells its weights from others."""
    digest = hashlib.sha256()
    for name, value in module.network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {"method": module.method, "stage": module.stage, "weights": digest.hexdigest()[:16]}


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """The shape of every weight and statistic, by name: whether the weights of one network fit another."""
    return {name: value.shape for name, value in network.state_dict().items()}


def _counted(counts: Tensor) -> str:
    return f"{len(counts):,} classes of {int(counts.sum()):,} images, {int(counts.min()):,} to {int(counts.max()):,} each"


def _rebuilt(description: Mapping[str, Any], num_classes: int) -> ExpertNetwork:
    missing = [name for name in _SETTINGS if name not in description]
    if missing:
        raise ArgumentError(f"Expected `teacher` to be the path of a checkpoint, but got {dict(description)!r:.100}.")
    settings = {name: description[name] for name in _SETTINGS}
    name, options = settings.pop("network"), settings.pop("network_options")
    return build_network(name, num_classes, **settings, options=options)


def _check_teacher(module: LongTailedModule, source: str | Path, description: Mapping[str, Any]) -> None:
    plain = type(module.network) is ExpertNetwork and type(module).forward is LongTailedModule.forward
    if not plain or shapes(module.network) != shapes(_rebuilt(description, module.num_classes)):
        raise ArgumentError(
            f"Expected a teacher whose logits are those of its network, but {source} is of {module.method!r}, which changes "
            "them. Take a checkpoint of another method."
        )
