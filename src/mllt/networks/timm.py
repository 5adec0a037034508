"""Networks of the timm library, by the name "timm/<model>", cut into a shared trunk and private experts.

timm (Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models) is an extra and is imported
only when such a network is asked for. The families in `FAMILIES` can be cut: their later stages take nothing but what the
stage before gives. Stages are "stem", "stage1", ...; a vision transformer's are "stem" (patches, tokens and positions),
"block1", .... Norms after the last stage, pooling and what timm calls `pre_logits` are always private; timm's classifier
is replaced by the head of this package.

Experts share the first half of the stages: "stage2" of four, "block6" of twelve.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mllt.errors import ArgumentError, name_some
from mllt.networks.architecture import Architecture, Backbone, scale_channels

PREFIX = "timm/"


@dataclass(frozen=True)
class Family:
    """Where a timm class keeps its parts; names of its attributes.

    Every class here computes `forward_features` = stem, stages, `late`, and then `forward_head` with the modules in
    `head`. Whatever is in neither field belongs to the stem.
    """

    title: str
    stages: tuple[str, ...]  # one per stage, or a single one that holds them all
    late: tuple[str, ...]  # called in this order after the last stage
    head: tuple[str, ...]
    stage_word: str = "stage"
    channels_option: str | None = None  # the constructor's name for the channels of each stage, where it has one
    stem_has_own_channels: bool = True  # else the first stage has to keep those of the stem

    def stages_of(self, model: nn.Module) -> list[nn.Module]:
        """The stages after the stem, in order."""
        holders: list[Any] = [getattr(model, name) for name in self.stages]
        return list(holders[0]) if len(holders) == 1 else holders

    def stage_names(self, model: nn.Module) -> list[str]:
        """Their names."""
        return [f"{self.stage_word}{number}" for number, _ in enumerate(self.stages_of(model), start=1)]


FAMILIES = {
    "timm.models.resnet.ResNet": Family(
        "ResNet", ("layer1", "layer2", "layer3", "layer4"), (), ("global_pool", "fc"), channels_option="channels"
    ),
    "timm.models.convnext.ConvNeXt": Family(
        "ConvNeXt", ("stages",), ("norm_pre",), ("head",), channels_option="dims", stem_has_own_channels=False
    ),
    "timm.models.vision_transformer.VisionTransformer": Family(
        "ViT", ("blocks",), ("norm",), ("attn_pool", "fc_norm", "head_drop", "head"), stage_word="block"
    ),
    "timm.models.swin_transformer.SwinTransformer": Family("Swin", ("layers",), ("norm",), ("head",)),
    "timm.models.regnet.RegNet": Family("RegNet", ("s1", "s2", "s3", "s4"), ("final_conv",), ("head",)),
    "timm.models.efficientnet.EfficientNet": Family(
        "EfficientNet", ("blocks",), ("conv_head", "bn2"), ("global_pool", "classifier")
    ),
}


def architecture(name: str, pretrained: bool = False, options: Mapping[str, Any] | None = None) -> Architecture:
    """The timm network of that name ("timm/<model>"), with timm's own initialisation.

    Args:
        name: with the prefix; a tag is allowed, "timm/resnet50.a1_in1k".
        pretrained: load timm's weights, into the trunk and into every expert's private part alike.
        options: passed on to `timm.create_model`, such as `img_size` or `drop_path_rate`. With
            `pretrained_cfg_overlay={"file": "weights.pth"}` the pretrained weights come from that file.

    Raises:
        ArgumentError: timm is not installed, it has no such model, the model is of a family that cannot be cut, or an
            option does not fit.
    """
    model_name, options = name[len(PREFIX) :], dict(options or {})
    _check_name(model_name)
    _check_options(options, pretrained)
    with torch.random.fork_rng(devices=[]):  # only to look at; not on the meta device, which older timm cannot do
        probe = _create(model_name, **options)
    family = FAMILIES.get(_class_name(probe))
    if family is None:
        titles = ", ".join(family.title for family in FAMILIES.values())
        raise ArgumentError(
            f"{name} is a {_class_name(probe)}, which cannot be cut into a trunk and experts. Choose a model of one of "
            f"these families: {titles}."
        )
    names = ("stem", *family.stage_names(probe))
    return Architecture(
        stage_names=names,
        default_shared=names[(len(names) - 1) // 2],
        build=Recipe(model_name, pretrained, options, family, _channels(probe, family)).build,
    )


# ---------------------------------------------------------------------------------------------------------------
# Creating


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ArgumentError(f"Networks named {PREFIX}... need timm: pip install 'mllt[timm]' ({error}).") from error
    return timm


def _check_name(model_name: str) -> None:
    timm = _import_timm()
    if timm.is_model(model_name):
        return
    close = difflib.get_close_matches(model_name.split(".")[0], timm.list_models(), n=3)
    hint = f"Did you mean {' or '.join(repr(PREFIX + other) for other in close)}? " if close else ""
    raise ArgumentError(f"timm has no model {model_name!r}. {hint}All its names: timm.list_models().")


def _check_options(options: dict[str, Any], pretrained: bool) -> None:
    taken = sorted({"model_name", "num_classes", "pretrained"} & options.keys())
    if taken:
        raise ArgumentError(f"`options` may not set {taken}: these are arguments of their own (the name is `name`).")
    if options.get("features_only") or options.get("global_pool") == "":
        raise ArgumentError("`options` may not set features_only or an empty global_pool: a head needs pooled features.")
    weights = (options.get("pretrained_cfg_overlay") or {}).get("file")
    if pretrained and weights and not Path(weights).is_file():  # timm's own error does not say what is missing
        raise ArgumentError(f"There is no file of weights {str(weights)!r} (`file` of the option pretrained_cfg_overlay).")


def _create(model_name: str, **options: Any) -> nn.Module:
    try:
        model: nn.Module = _import_timm().create_model(model_name, num_classes=0, **options)
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ArgumentError(f"timm could not make {model_name} with options {sorted(options)}: {reason}") from error
    return model


def _class_name(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


@dataclass(frozen=True)
class Recipe:
    """How to make one network after the other of a timm model."""

    model_name: str
    pretrained: bool
    options: dict[str, Any]
    family: Family
    channels: tuple[int, ...]  # of the stages at full width, in the sense of `family.channels_option`

    def build(self, shared_stages: int, width: float) -> Backbone:
        """One more network, its stages after the first `shared_stages` at that width."""
        if self.pretrained:
            return _cut(copy.deepcopy(self.loaded), self.family)
        options = {**self.options, **self.narrower(shared_stages, width)}
        return _cut(_create(self.model_name, **options), self.family)

    @cached_property
    def loaded(self) -> nn.Module:
        """The pretrained model."""
        # timm leaves random what a weights file lacks and only logs it: that differs from one loading to the next
        model, again = (_create(self.model_name, pretrained=True, **self.options) for _ in range(2))
        weights = zip(model.named_parameters(), again.parameters(), strict=True)
        random = [name for (name, first), second in weights if not torch.equal(first, second)]
        random = [name for name in random if name.split(".")[0] not in self.family.head]  # options may ask for new pooling
        if random:
            raise ArgumentError(
                f"The pretrained weights lack {len(random)} of the parameters: {name_some(random, 3)}. Check that the file "
                "holds this model's state dict under its own names."
            )
        return model

    def narrower(self, shared_stages: int, width: float) -> dict[str, tuple[int, ...]]:
        """The option that gives private stages `width` times their channels, rounded to the nearest whole number."""
        if width == 1:
            return {}
        family = self.family
        if family.channels_option is None:
            able = ", ".join(other.title for other in FAMILIES.values() if other.channels_option)
            raise ArgumentError(
                f"timm builds the stages of a {family.title} at one width only, but got width={width:g}: leave `width` "
                f"out, or choose one of these families: {able}."
            )
        first = max(shared_stages - 1, 0)  # of the stages to narrow; stage1 is number 0 here
        if shared_stages == 1 and not family.stem_has_own_channels:
            first = 1
        narrow = (scale_channels(channels, width) for channels in self.channels[first:])
        return {family.channels_option: (*self.channels[:first], *narrow)}


def _channels(model: Any, family: Family) -> tuple[int, ...]:
    """What the option of `family.channels_option` is in this model: the stages' output, a ResNet's before expansion."""
    if family.channels_option is None:
        return ()
    outputs = [info["num_chs"] for info in model.feature_info][-len(family.stages_of(model)) :]
    expansions = [module.expansion for module in model.modules() if hasattr(module, "expansion")]
    return tuple(count // (expansions[0] if expansions else 1) for count in outputs)


# ---------------------------------------------------------------------------------------------------------------
# Cutting


def _cut(model: nn.Module, family: Family) -> Backbone:
    stages = dict(zip(family.stage_names(model), family.stages_of(model), strict=True))
    stages = {"stem": Stem(model, family), **stages}
    return Backbone(stages, Pool(model, family), feature_dim=int(model.head_hidden_size))  # type: ignore[arg-type]


class Stem(nn.Module):
    """A timm model without its stages and all after them: images `(B, 3, H, W)` -> what its first stage takes."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        super().__init__()
        self.model = _without(model, {*family.stages, *family.late, *family.head})

    def forward(self, images: Tensor) -> Tensor:
        """The stem's output."""
        return self.model.forward_features(images)  # type: ignore[operator]


class Pool(nn.Module):
    """The end of a timm model, up to its classifier: the last stage's output -> features `(B, D)`."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        super().__init__()
        self.late = family.late
        keep = {*family.late, *family.head}
        self.model = _without(model, {*model._modules, *model._parameters} - keep)

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        for name in self.late:
            x = self.model.get_submodule(name)(x)
        return self.model.forward_head(x, pre_logits=True)  # type: ignore[operator]


def _without(model: nn.Module, names: set[str]) -> nn.Module:
    """A shallow copy of `model`: these parts pass their input through, these parameters are gone, the others are common.

    timm's own `forward_features` and `forward_head` then run what is left, so that no family's forward pass (class
    tokens, position embeddings, kinds of pooling) has to be written again here.
    """
    part = copy.copy(model)
    part._modules = {name: nn.Identity() if name in names else child for name, child in model._modules.items()}
    part._parameters = {name: None if name in names else weight for name, weight in model._parameters.items()}
    return part
