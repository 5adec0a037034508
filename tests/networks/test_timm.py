"""Networks of timm: cut without changing what they compute, shared, narrowed, started from weights at hand."""

import importlib.util
import sys

import pytest
import torch

from mllt.errors import ArgumentError
from mllt.networks import build_network
from mllt.networks import timm as timm_networks

timm = pytest.importorskip("timm")

# one or two small members of each family: name, options, image size, names of the stages, default of `shared`
FOUR_STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")
MODELS = {
    "resnet18": ({"channels": (8, 16, 24, 32)}, 32, FOUR_STAGES, "stage2"),
    "seresnext26d_32x4d": ({"channels": (32, 32, 32, 32), "layers": (1, 1, 1, 1)}, 32, FOUR_STAGES, "stage2"),
    "convnext_atto": ({"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}, 32, FOUR_STAGES, "stage2"),
    "convnextv2_atto": ({"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}, 32, FOUR_STAGES, "stage2"),
    "vit_tiny_patch16_224": (
        {"img_size": 32, "depth": 4, "embed_dim": 48},
        32,
        ("stem", "block1", "block2", "block3", "block4"),
        "block2",
    ),
    "vit_medium_patch16_gap_240": (
        {"img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 3},
        32,
        ("stem", "block1", "block2", "block3"),
        "block1",
    ),
    "vit_base_patch16_siglip_224": (
        {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3},
        32,
        ("stem", "block1", "block2"),
        "block1",
    ),
    "vit_small_patch14_reg4_dinov2": (
        {"img_size": 28, "depth": 1, "embed_dim": 48, "num_heads": 3},
        28,
        ("stem", "block1"),
        "stem",
    ),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "embed_dim": 12, "depths": (1, 1, 1, 1), "window_size": 4},
        64,
        FOUR_STAGES,
        "stage2",
    ),
    "regnety_002": ({}, 32, FOUR_STAGES, "stage2"),
    "test_efficientnet": ({}, 32, (*FOUR_STAGES, "stage5"), "stage2"),
}
THREE_FAMILIES = ["resnet18", "convnext_atto", "vit_tiny_patch16_224"]


def build(model, *arguments, **more):
    options, size, _, _ = MODELS[model]
    network = build_network(f"timm/{model}", 10, *arguments, **{"options": options, **more})
    return network, torch.randn(2, 3, size, size)


@pytest.mark.parametrize("model", MODELS)
def test_a_cut_model_computes_what_timm_computes(model):
    torch.manual_seed(0)
    network, images = build(model)
    torch.manual_seed(0)
    whole = timm.create_model(model, num_classes=0, **MODELS[model][0]).eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(images), pre_logits=True)
        assert torch.equal(network.eval().features(images)[0], expected)


@pytest.mark.parametrize("model", MODELS)
def test_several_experts_share_the_first_half_and_leave_no_parameter_unused(model):
    network, images = build(model, 2)
    _, _, names, default = MODELS[model]
    count = names.index(default) + 1
    assert network.stage_names == names
    assert [name for name, _ in network.trunk.named_children()] == list(names[:count])
    assert [name for name, _ in network.experts[1].named_children()] == [*names[count:], "pool"]
    logits = network(images)
    assert logits.shape == (2, 2, 10)
    logits.square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    weights = [[p for p in expert.parameters() if p.ndim > 1] for expert in network.experts]
    assert weights[0]
    assert not any(torch.equal(first, second) for first, second in zip(*weights, strict=True))


@pytest.mark.parametrize("model", THREE_FAMILIES)
def test_every_stage_can_be_the_last_shared_one(model):
    names = MODELS[model][2]
    whole = timm.create_model(model, num_classes=0, **MODELS[model][0])
    total = sum(p.numel() for p in whole.parameters())
    for count, shared in enumerate(("none", *names)):
        network, images = build(model, 2, shared=shared)
        assert [name for name, _ in network.trunk.named_children()] == list(names[:count])
        trunk, first, second = (
            {id(p): p.numel() for p in part.parameters()} for part in (network.trunk, network.experts[0], network.experts[1])
        )
        assert not trunk.keys() & first.keys()
        assert not first.keys() & second.keys()
        assert sum(trunk.values()) + sum(first.values()) == total
        network(images)[0].sum().backward()
        others = [*network.experts[1].parameters(), *network.heads[1].parameters()]
        assert all(p.grad is None or p.grad.abs().sum() == 0 for p in others)


def test_experts_do_not_change_what_the_trunk_hands_them():
    for model in MODELS:
        for shared in ("stem", MODELS[model][3], MODELS[model][2][-1]):
            network, images = build(model, shared=shared)
            with torch.no_grad():
                handed = network.eval().trunk(images)
                before = handed.clone()
                network.experts[0](handed)
            assert torch.equal(handed, before)


@pytest.mark.parametrize("model", ["resnet50", "convnext_atto"])
def test_private_stages_can_be_narrower(model):
    with torch.device("meta" if model == "resnet50" else "cpu"):  # older timm cannot make a ConvNeXt on meta
        network = build_network(f"timm/{model}", 10, 2, width=0.75)
    outputs = [
        max(p.shape[0] for name, p in stage.named_parameters() if name.endswith(("conv3.weight", "mlp.fc2.weight")))
        for stage in [*network.trunk[1:], *network.experts[1][:2]]
    ]
    assert outputs == ([256, 512, 768, 1536] if model == "resnet50" else [40, 80, 120, 240])
    assert network.feature_dim == outputs[-1]


@pytest.mark.parametrize("model", ["resnet18", "seresnext26d_32x4d", "convnext_atto"])
@pytest.mark.parametrize("shared", ["none", "stem", "stage1", "stage3"])
def test_narrow_stages_fit_behind_any_shared_stage_and_leave_it_as_it_is(model, shared):
    network, images = build(model, 2, shared=shared, width=0.5)
    full, _ = build(model, 2, shared=shared)
    assert network.feature_dim < full.feature_dim
    assert [p.shape for p in network.trunk.parameters()] == [p.shape for p in full.trunk.parameters()]
    assert network(images).isfinite().all()


def test_timm_networks_have_full_width_by_default():
    assert build("resnet18", 3)[0].feature_dim == 32


@pytest.mark.parametrize("model", THREE_FAMILIES)
def test_pretrained_weights_reach_the_trunk_and_every_expert(model, tmp_path):
    options = MODELS[model][0]
    torch.manual_seed(7)
    source = timm.create_model(model, num_classes=1000, **options).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 1000, "custom_load": False}
    options = {**options, "pretrained_cfg_overlay": overlay}
    network, images = build(model, 3, pretrained=True, options=options)
    with torch.no_grad():
        expected = source.forward_head(source.forward_features(images), pre_logits=True)
        features = network.eval().features(images)
    for k in range(3):
        torch.testing.assert_close(features[k], expected)
    first, second = ([id(p) for p in expert.parameters()] for expert in network.experts[:2])
    assert not set(first) & set(second)
    assert not torch.equal(network.heads[0].weight, network.heads[1].weight)


def test_pretrained_weights_of_another_layout_are_not_taken_for_loaded(tmp_path):
    weights = timm.create_model("resnet18", **MODELS["resnet18"][0]).state_dict()
    torch.save({f"model.{name}": value for name, value in weights.items()}, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    with pytest.raises(ArgumentError, match=r"weights lack \d+ of the parameters: 'conv1.weight'"):
        build("resnet18", pretrained=True, options={**MODELS["resnet18"][0], "pretrained_cfg_overlay": overlay})


def test_options_reach_timm():
    network, _ = build("resnet18", options={"channels": (8, 16, 24, 40), "drop_path_rate": 0.3})
    assert network.feature_dim == 40
    rates = [m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)


@pytest.mark.parametrize("model", THREE_FAMILIES)
def test_export_with_a_dynamic_batch(model):
    network, images = build(model, 2)
    network.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (images,), dynamic_shapes={"images": {0: batch}})
    images = torch.randn(5, *images.shape[1:])
    torch.testing.assert_close(program.module()(images), network(images))


def test_state_dict_round_trip():
    first, images = build("vit_tiny_patch16_224", 2)
    second, _ = build("vit_tiny_patch16_224", 2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(images), second.eval()(images))


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ({"name": "timm/convnext_tinny"}, ["timm has no model 'convnext_tinny'", "'timm/convnext_tiny'"]),
        ({"name": "timm/"}, ["timm has no model ''"]),
        ({"name": "timm/mixer_b16_224"}, ["MlpMixer", "cannot be cut", "ResNet, ConvNeXt, ViT, Swin, RegNet, EfficientNet"]),
        ({"name": "timm/deit_tiny_distilled_patch16_224"}, ["VisionTransformerDistilled", "cannot be cut"]),
        ({"options": {"image_size": 64}}, ["timm could not make resnet18", "image_size"]),
        ({"options": {"num_classes": 5}}, ["`options` may not set ['num_classes']"]),
        ({"options": {"pretrained": True}}, ["`options` may not set ['pretrained']"]),
        ({"options": {"features_only": True}}, ["features_only"]),
        ({"options": {"global_pool": ""}}, ["global_pool"]),
        ({"shared": "layer1"}, ["`shared` to be one of", "stage4"]),
        ({"name": "timm/vit_tiny_patch16_224", "shared": "stage1"}, ["`shared` to be one of", "block12"]),
        ({"name": "timm/vit_tiny_patch16_224", "width": 0.75}, ["a ViT at one width only", "ResNet, ConvNeXt"]),
        ({"width": 0.75, "pretrained": True}, ["Pretrained weights have full width", "leave `width` out"]),
        (
            {"pretrained": True, "options": {"pretrained_cfg_overlay": {"file": "/none.pth"}}},
            ["There is no file of weights '/none.pth'"],
        ),
        ({"name": "timm/resnet18.nothing", "pretrained": True}, ["could not make resnet18.nothing"]),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_in_one_line(arguments, messages):
    with pytest.raises(ArgumentError) as caught:
        build_network(**{"name": "timm/resnet18", "num_classes": 10, "num_experts": 2, **arguments})
    for message in messages:
        assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_timm_its_networks_say_what_to_install_and_the_others_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # what `import timm` meets when it is not installed
    with pytest.raises(ArgumentError, match=r"pip install 'mllt\[timm\]'"):
        build_network("timm/resnet18", 10)
    assert build_network("resnet20", 10).num_experts == 1
    spec = importlib.util.spec_from_file_location("fresh_copy", timm_networks.__file__)
    fresh = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fresh_copy", fresh)
    spec.loader.exec_module(fresh)  # the file itself imports without timm
    assert fresh.PREFIX == "timm/"
