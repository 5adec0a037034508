"""Settings for speed: what they may change, and what is said when they cannot be had."""

import csv
import warnings

import pytest
import torch

from mllt.callbacks import Speed
from mllt.callbacks.speed import check_compiler, check_graphs, compile_network, multiplies_bfloat16
from mllt.errors import ArgumentError
from mllt.networks import build_network

SHORT = ("network.num_experts=2", "trainer.max_epochs=2", "trainer.limit_train_batches=3", "schedule.warmup_epochs=1")


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


def test_networks_compute_in_channels_last():
    network = build_network("resnet20", 10, 2)
    features = network.trunk(torch.zeros(2, 3, 32, 32))
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert not features.is_contiguous()


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_mixed_precision_trains_to_about_the_same_loss(mllt_command, tmp_path, precision):
    for name, more in (("exact", ()), ("mixed", (f"trainer.precision={precision}",))):
        done = mllt_command("train", *SHORT, *more, f"output_dir={tmp_path / name}")
        assert done.status == 0, done.err
    assert losses(tmp_path / "mixed") == pytest.approx(losses(tmp_path / "exact"), rel=0.05)
    assert losses(tmp_path / "mixed") != losses(tmp_path / "exact")


@pytest.mark.slow
def test_a_compiled_network_has_the_loss_curve_of_the_plain_one_and_its_checkpoints(mllt_command, tmp_path):
    for name, more in (("plain", ()), ("compiled", ("trainer.compile=true",))):
        done = mllt_command("train", *SHORT, *more, "optimizer.lr=0.002", f"output_dir={tmp_path / name}")
        assert done.status == 0, done.err
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)
    plain, compiled = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("plain", "compiled")
    )
    assert plain.keys() == compiled.keys()
    assert mllt_command("evaluate", f"checkpoint={tmp_path / 'compiled' / 'checkpoints/last.ckpt'}").status == 0


def test_a_processor_without_bfloat16_is_told_of(mllt_command, tmp_path, monkeypatch):
    for name, has in (("old", False), ("new", True)):
        monkeypatch.setattr("mllt.callbacks.speed.multiplies_bfloat16", lambda has=has: has)
        run = ("trainer.precision=bf16-mixed", f"output_dir={tmp_path / name}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert mllt_command("train", *SHORT, *run).status == 0
        assert any("no instructions for bfloat16" in str(warning.message) for warning in caught) != has


@pytest.mark.parametrize(("flags", "has"), [("fpu avx512f", False), ("fpu avx512_bf16 x", True), ("Features: bf16", True)])
def test_what_a_processor_can_is_read_from_what_the_system_tells(tmp_path, flags, has):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert multiplies_bfloat16(tmp_path / "cpuinfo") == has
    assert multiplies_bfloat16(tmp_path / "none")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_in_every_precision(mllt_command, tmp_path, precision):
    clipped = ("trainer.gradient_clip_val=0.001", f"trainer.precision={precision}", f"output_dir={tmp_path / 'run'}")
    done = mllt_command("train", *SHORT, *clipped)
    assert done.status == 0, done.err
    assert losses(tmp_path / "run")


def test_cuda_graphs_are_refused_with_accumulated_steps():
    check_graphs("cuda", "default", 2)
    check_graphs("cuda", "reduce-overhead", 1)
    check_graphs("cpu", "reduce-overhead", 2)
    with pytest.raises(ArgumentError, match=r"accumulate_grad_batches=1 .* got 2\. Set trainer\.compile=true"):
        check_graphs("cuda", "reduce-overhead", 2)


def test_an_evaluation_computes_with_the_bits_of_the_run(mllt_command, tmp_path, monkeypatch):
    told = []
    assert mllt_command("train", *SHORT, "trainer.tf32=false", f"output_dir={tmp_path / 'run'}").status == 0
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", True)
    monkeypatch.setattr(Speed, "setup", lambda self, *_, **__: told.append(self.tf32))
    assert mllt_command("evaluate", f"checkpoint={tmp_path / 'run' / 'checkpoints/last.ckpt'}").status == 0
    assert set(told) == {False}


def test_products_on_the_processor_keep_all_their_bits(mllt_command, tmp_path):
    assert mllt_command("train", *SHORT, f"output_dir={tmp_path / 'run'}").status == 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_compiling_keeps_the_names_of_parameters():
    network = build_network("resnet20", 10, 2)
    names = list(network.state_dict())
    compile_network(network, "default")
    assert list(network.state_dict()) == names


def test_without_a_compiler_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ArgumentError, match=r"no no-such-compiler\. Install one, or set trainer.compile=false"):
        check_compiler("cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"pip install triton, or set trainer\.compile=false"):
        check_compiler("cuda")


@pytest.mark.parametrize(("setting", "value"), [("compile", "fast"), ("compile", 2), ("compile", 1), ("tf32", "yes")])
def test_other_settings_are_refused(setting, value):
    with pytest.raises(ArgumentError, match=f"Expected `trainer.{setting}` to be true"):
        Speed(**{setting: value})


def test_deterministic_mode_does_not_write_to_memory_that_is_about_to_be_written(mllt_command, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    assert mllt_command("train", *SHORT, "trainer.deterministic=true", f"output_dir={tmp_path / 'run'}").status == 0
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("mode", ["true", "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_modes_of_the_compiler_are_settings(mode, monkeypatch, mllt_command, tmp_path):
    compiled = []
    monkeypatch.setattr("mllt.callbacks.speed.compile_network", lambda network, mode: compiled.append(mode))
    assert mllt_command("train", *SHORT, f"trainer.compile={mode}", f"output_dir={tmp_path / 'run'}").status == 0
    assert compiled == ["default" if mode == "true" else mode]
