"""`Teacher` and `read_teacher`: what is taken for a teacher, how it answers, and that it never changes."""

import math

import pytest
import torch

from mllt import (
    ACEModule,
    BalancedSoftmaxModule,
    BBNModule,
    CrossEntropyModule,
    CRTModule,
    DIVEModule,
    LWSModule,
    MutualLTModule,
    RIDEModule,
    SSDModule,
    TauNormModule,
)
from mllt.errors import ArgumentError, CheckpointError
from mllt.methods.teacher import Teacher, read_teacher

COUNTS = [120, 24, 6]


@pytest.fixture
def save(small, problem, loader, make_trainer, tmp_path):
    """From a class, and a stage to save it in, to the module and its checkpoint."""

    def make(cls, stage=None, seed=0, **settings):
        torch.manual_seed(seed)
        module = cls(**{**small, **settings})
        if stage is not None:
            module.begin(stage)
        trainer = make_trainer(limit_train_batches=1)
        trainer.fit(module, [loader, loader] if cls is BBNModule else loader)  # BBN wants an image beside each
        path = tmp_path / f"{cls.__name__}{seed}.ckpt"
        trainer.save_checkpoint(path)
        return module.eval(), path

    return make


@pytest.mark.parametrize(
    ("cls", "settings", "fits_train"),
    [
        (CrossEntropyModule, {}, True),
        (MutualLTModule, {"num_experts": 3}, True),
        (BalancedSoftmaxModule, {}, False),
        (RIDEModule, {"num_experts": 2}, False),
    ],
)
def test_it_answers_with_the_mean_of_its_experts_brought_to_a_uniform_prior(save, problem, cls, settings, fits_train):
    module, path = save(cls, **settings)
    _, teacher = read_teacher(path, torch.tensor(COUNTS))
    with torch.no_grad():
        experts = module.network(problem[0][:8]).double().tolist()
    found = teacher(problem[0][:8]).double().softmax(-1)
    for image in range(8):
        logits = [sum(expert[image][c] for expert in experts) / len(experts) for c in range(3)]
        powers = [math.exp(z) / (n if fits_train else 1) for z, n in zip(logits, COUNTS, strict=True)]
        assert found[image].tolist() == pytest.approx([power / sum(powers) for power in powers], rel=1e-4)


def test_it_is_made_again_from_its_description_without_the_file(save, problem):
    _, path = save(MutualLTModule, num_experts=2, head="cosine", scale=10.0)
    description, teacher = read_teacher(path, torch.tensor(COUNTS))
    path.unlink()
    kept, again = read_teacher(description, torch.tensor(COUNTS))
    assert kept == description
    again.load_state_dict(teacher.state_dict())
    assert torch.equal(again(problem[0]), teacher(problem[0]))


def test_its_description_tells_one_set_of_weights_from_another(save):
    marks = [read_teacher(save(CrossEntropyModule, seed=seed)[1], torch.tensor(COUNTS))[0]["weights"] for seed in (0, 1)]
    again, _ = read_teacher(save(CrossEntropyModule, seed=0)[1], torch.tensor(COUNTS))
    assert marks[0] == again["weights"] != marks[1]


def test_it_stays_as_it_is_within_a_module_that_trains(small, problem):
    student = CrossEntropyModule(**small)
    student.teacher = Teacher(CrossEntropyModule(**small).network)
    before = {name: value.clone() for name, value in student.teacher.state_dict().items()}
    student.train()
    assert not any(part.training for part in student.teacher.modules())
    images = problem[0][:8].requires_grad_()
    assert not student.teacher(images).requires_grad
    assert not any(parameter.requires_grad for parameter in student.teacher.parameters())
    for name, value in student.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_its_logits_are_float32_within_mixed_precision(small, problem):
    teacher = Teacher(CrossEntropyModule(**small).network)
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher(problem[0][:4]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_what_takes_its_prior_out_stays_float32_whatever_type_it_is_brought_to(small, dtype):
    student = CrossEntropyModule(**small)
    offset = torch.tensor([120.0, 24, 6]).log()
    student.teacher = Teacher(CrossEntropyModule(**small).network, offset)
    student.to(dtype)
    assert student.teacher.network.heads[0].weight.dtype == dtype
    assert student.teacher.offset.dtype == torch.float32
    assert torch.equal(student.teacher.offset, offset)
    student.to("meta")
    assert student.teacher.offset.device.type == "meta"


LEARN_FROM_A_TEACHER = [
    (RIDEModule, {"num_experts": 2, "distill": True, "teacher_experts": 3, "routing_epochs": 1}),
    (DIVEModule, {}),
    (SSDModule, {"queue_size": 20, "projection_dim": 8, "rescaling_epochs": 1}),
]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize(("cls", "settings"), LEARN_FROM_A_TEACHER, ids=lambda value: getattr(value, "method", ""))
def test_methods_with_teachers_train_and_are_tested_in_other_precisions(small, loader, make_trainer, cls, settings, precision):
    module = cls(**small, **settings)
    for stage in module.stages():
        module.begin(stage.name)
        trainer = make_trainer(1, precision=precision)
        trainer.fit(module, [loader, loader] if stage.companion else loader)
        assert trainer.callback_metrics["train/loss"].isfinite()
        if module.teacher is not None:
            assert module.teacher.offset.dtype == torch.float32
    trainer.test(module, loader, verbose=False)
    assert 0 <= module.test_results["ensemble"]["raw"]["all"] <= 100


@pytest.mark.parametrize(("cls", "settings"), LEARN_FROM_A_TEACHER, ids=lambda value: getattr(value, "method", ""))
def test_what_learns_from_a_teacher_begins_with_pretrained_weights_as_the_teacher_did(tmp_path, cls, settings):
    timm = pytest.importorskip("timm")
    options = {"channels": (8, 16, 24, 32)}
    source = timm.create_model("resnet18", num_classes=1000, **options).state_dict()
    torch.save(source, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 1000, "custom_load": False}
    settings = {**settings, "network": "timm/resnet18", "pretrained": True}
    module = cls(class_counts=COUNTS, network_options={**options, "pretrained_cfg_overlay": overlay}, **settings)
    begun = {name: value.clone() for name, value in module.network.trunk.state_dict().items()}
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(1.0)  # as if it had been trained
    learned = next(name for name in ("experts", "student", "distillation") if name in [stage.name for stage in module.stages()])
    module.begin(learned)
    assert module.teacher is not None
    for name, value in module.network.trunk.state_dict().items():
        assert torch.equal(value, begun[name]), name


def test_no_teacher_is_none():
    assert read_teacher(None, torch.tensor(COUNTS)) == (None, None)


@pytest.mark.parametrize("cls", [LWSModule, TauNormModule, ACEModule, BBNModule])
def test_methods_that_change_the_logits_of_their_network_are_refused(save, cls):
    _, path = save(cls)
    with pytest.raises(ArgumentError, match=f"is of '{cls.method}', which changes them"):
        read_teacher(path, torch.tensor(COUNTS))


@pytest.mark.parametrize(("stage", "fits_train"), [("features", True), ("head", False)])
def test_the_prior_of_its_stage_is_what_is_taken_out(save, stage, fits_train):
    _, teacher = read_teacher(save(CRTModule, stage)[1], torch.tensor(COUNTS))
    assert (teacher.offset.std() > 0) == fits_train


@pytest.mark.parametrize("counts", [[120, 24], [120, 24, 7]])
def test_other_classes_are_refused(save, counts):
    _, path = save(CrossEntropyModule)
    with pytest.raises(ArgumentError, match=r"`teacher` to be trained on the same images .* 3 classes of 150 images"):
        read_teacher(path, torch.tensor(counts))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere.ckpt", CheckpointError, "there is none at nowhere.ckpt"),
        (3, ArgumentError, "`teacher` to be the path of a checkpoint, but got 3"),
        ({"network": "resnet20"}, ArgumentError, "`teacher` to be the path of a checkpoint, but got {'network'"),
    ],
)
def test_what_is_no_checkpoint_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        read_teacher(source, torch.tensor(COUNTS))
