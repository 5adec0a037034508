"""What one GPU makes of it: CIFAR100-LT whole, and ResNet-50 with three experts at 224 pixels.

    python -m benchmarks.gpu                      all parts, on the first GPU
    python -m benchmarks.gpu --only cifar --epochs 20
    python -m benchmarks.gpu --device cpu --only steps --small     whether the program itself works

Every part is beside the plain way of `benchmarks.baseline` on the same device, in turns. MLLT_DATA tells the folder of
CIFAR-100; without it, noise of the same shape is trained on, and accuracies mean nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import simplejpeg
import torch
from benchmarks.__main__ import machine
from benchmarks.baseline import (
    PlainCifarExperts,
    PlainResNetExperts,
    endless,
    plain_loader,
    plain_sgd,
    plain_step,
    plain_test,
)
from benchmarks.cifar import cifar100_lt, pixels_and_labels
from benchmarks.jpeg import save_photographs
from benchmarks.measure import Row, compare, tells_seconds
from benchmarks.table import show
from benchmarks.training import BATCH, EXPERTS, RECIPE, library_steps, now, quiet_trainer
from torch import Tensor
from torchvision.io import decode_jpeg

from mllt import MutualLTModule
from mllt.callbacks.speed import compile_network
from mllt.networks import build_network, count_macs
from mllt.optim import parameter_groups, sgd

PARTS = ("steps", "cifar", "resnet50", "jpeg")
#: Dense bf16 products per second that the makers tell, by a part of the device's name.
BF16_PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
#: Ways of the library to train: precision, compile.
WAYS: dict[str, dict[str, Any]] = {
    "float32 (TF32)": {"precision": "32-true", "compile": False},
    "bf16": {"precision": "bf16-mixed", "compile": False},
    "bf16, compiled": {"precision": "bf16-mixed", "compile": "default"},
    "bf16, compiled, CUDA graphs": {"precision": "bf16-mixed", "compile": "reduce-overhead"},
}


def device_peak(device: str) -> float | None:
    """bf16 operations per second of the device, where its name is known."""
    name = torch.cuda.get_device_name(0) if device == "cuda" else ""
    return next((peak for part, peak in BF16_PEAK.items() if part in name), None)


def plain_cifar_steps(device: str, steps: int, workers: int = 8) -> Callable[[], float]:
    """Seconds per step of the plain way, with its data."""
    data = cifar100_lt(batch_size=BATCH)
    model = PlainCifarExperts(EXPERTS).to(device)
    optimizer = plain_sgd(model)
    batches = endless(plain_loader(*pixels_and_labels(data.splits.train), BATCH, workers))

    def run() -> float:
        began = now()
        for _ in range(steps):
            images, target = next(batches)
            plain_step(model, optimizer, images.to(device), target.to(device))
        return (now() - began) / steps

    return run


def rows_of_steps(device: str, *, small: bool) -> Iterator[Row]:
    """A CIFAR step with its data, in each way."""
    steps, rounds = (2, 1) if small else (80, 5)
    accelerator = "gpu" if device == "cuda" else "cpu"
    plain = plain_cifar_steps(device, steps, 0 if small else 8)
    for name, way in WAYS.items():
        if small and way["compile"]:
            continue
        ours = library_steps(steps, skip=2, accelerator=accelerator, deterministic=False, **way)
        what = f"CIFAR100-LT step with data, 3 experts, batch 128: {name}"
        yield compare(what, plain, ours, clock=tells_seconds, rounds=rounds, target=6.0)


def rows_of_cifar(device: str, epochs: int, *, small: bool) -> Iterator[Row]:
    """Whole runs by Table A1's recipe, exact and fast, each with the test at its end; accuracies in the notes."""
    tried = 1 if small else max(1, epochs // 20)
    plain_seconds = plain_epoch(device, tried, small=small) * epochs
    names = ["float32 (TF32)"] if small else ["float32 (TF32)", "bf16, compiled, CUDA graphs"]
    for name in names:
        seconds, table = library_run(device, epochs, WAYS[name], small=small)
        told = ", ".join(f"{kind} {table['ensemble'][kind]['all']:.2f}" for kind in ("raw", "compensated"))
        yield Row(
            what=f"CIFAR100-LT, {epochs} epochs and the test, whole run: {name}",
            unit="s",
            baseline=plain_seconds,
            ours=seconds,
            ratio=plain_seconds / seconds,
            target=6.0,
            note=f"ensemble over all classes, %: {told}; baseline from {tried} of its epochs; asked for: under 120 s with 200",
        )


def plain_epoch(device: str, epochs: int, *, small: bool) -> float:
    """Seconds per epoch of the plain way, with its share of the one test that 200 epochs end with."""
    data = cifar100_lt(batch_size=BATCH)
    model = PlainCifarExperts(EXPERTS).to(device)
    optimizer = plain_sgd(model)
    loader = plain_loader(*pixels_and_labels(data.splits.train), BATCH, 0 if small else 8)
    pixels, labels = pixels_and_labels(data.splits.test)
    if small:
        pixels, labels = pixels[:256], labels[:256]
    tests = plain_loader(pixels, labels, BATCH, 0 if small else 8, train=False)
    began = now()
    for _ in range(epochs):
        for index, (images, target) in enumerate(loader):
            plain_step(model, optimizer, images.to(device), target.to(device))
            if small and index:
                break
    trained = now()
    plain_test(model, tests, data.class_counts.tolist(), device)
    return (trained - began) / epochs + (now() - trained) / 200


def library_run(device: str, epochs: int, way: dict[str, Any], *, small: bool) -> tuple[float, dict[str, Any]]:
    """Seconds of a whole run by the library, compilation and test included, and its table."""
    torch.manual_seed(0)
    data = cifar100_lt(batch_size=BATCH)
    module = MutualLTModule(
        class_counts=data.class_counts,
        class_names=data.class_names,
        milestones=(160, 180) if epochs == 200 else (0.8, 0.9),
        **RECIPE,
    )
    limits: dict[str, Any] = {"limit_train_batches": 2, "limit_test_batches": 2} if small else {}
    with tempfile.TemporaryDirectory() as folder:
        accelerator = "gpu" if device == "cuda" else "cpu"
        trainer = quiet_trainer(folder, accelerator=accelerator, max_epochs=epochs, deterministic=False, **way, **limits)
        began = now()
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
        seconds = now() - began
    return seconds, module.test_results or {}


def rows_of_resnet50(device: str, *, small: bool) -> Iterator[Row]:
    """Images per second of ResNet-50 with three experts, on images that lie on the device."""
    size, batch, classes = (64, 2, 10) if small else (224, 128, 1000)
    draw = torch.Generator(device=device).manual_seed(0)
    images = torch.randn(batch, 3, size, size, device=device, generator=draw)
    target = torch.randint(0, classes, (batch,), device=device, generator=draw)
    plain = PlainResNetExperts(EXPERTS, classes).to(device)
    optimizer = plain_sgd(plain)
    macs = count_macs(build_network("resnet50", classes, EXPERTS), size)
    peak = device_peak(device)
    for name, way in WAYS.items():
        if small and way["compile"]:
            continue
        ours = resnet50_step(images, target, classes, way)
        yield compare(
            f"ResNet-50, 3 experts, {size} pixels, batch {batch}, per image: {name}",
            lambda: plain_step(plain, optimizer, images, target),
            ours,
            rounds=1 if small else 5,
            repeats=1 if small else 10,
            warm_up=1 if small else 3,
            per=batch,
            target=2.0,
            floor=None if peak is None else 3 * 2 * macs * batch / peak,
            floor_is="arithmetic at the maker's peak of dense bf16 products",
        )


def resnet50_step(images: Tensor, target: Tensor, classes: int, way: dict[str, Any]) -> Callable[[], object]:
    """A step of the library's network, loss and optimizer."""
    module = MutualLTModule(class_counts=[100] * classes, network="resnet50", num_experts=EXPERTS)
    module = module.to(images.device)
    if way["compile"]:
        compile_network(module.network, way["compile"])
    optimizer = sgd(parameter_groups(module, 5e-4), 0.1, 0.9, nesterov=False)
    kind, half = images.device.type, way["precision"].startswith("bf16")
    batch = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            loss = torch.stack(list(module.objective(module(batch), target).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def rows_of_decoding(device: str, *, small: bool) -> Iterator[Row]:
    """Decoding a batch of JPEG pictures on the device, beside one core of the processor: whether it would win."""
    count = 4 if small else 128
    with tempfile.TemporaryDirectory() as folder:
        source = save_photographs(Path(folder), 500, 375, count)
        encoded = [source.open(row).read() for row in range(count)]
    tensors = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in encoded]
    yield compare(
        "decoding JPEG of 500x375 on the device, per image; baseline: simplejpeg on one core",
        lambda: [simplejpeg.decode_jpeg(one) for one in encoded],
        lambda: decode_jpeg(tensors, device=device),
        rounds=1 if small else 5,
        unit="us",
        per=count,
        note="a GPU has 16 cores or more beside it: ratios below that are no gain, and the device has other work",
    )


def rows(device: str, only: tuple[str, ...], epochs: int, *, small: bool) -> Iterator[Row]:
    """The parts that were asked for."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    if "steps" in only:
        yield from rows_of_steps(device, small=small)
    if "resnet50" in only:
        yield from rows_of_resnet50(device, small=small)
    if "jpeg" in only:
        yield from rows_of_decoding(device, small=small)
    if "cifar" in only:
        yield from rows_of_cifar(device, epochs, small=small)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--small", action="store_true", help="a few steps, to see whether the program works")
    parser.add_argument("--json", type=Path, default=Path("runs/bench-gpu.json"))
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --small tries the program itself")
    taken = show(rows(arguments.device, tuple(arguments.only), arguments.epochs, small=arguments.small))
    about = {**machine(), "gpu": torch.cuda.get_device_name(0) if arguments.device == "cuda" else None}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({**about, "rows": [row.as_dict() for row in taken]}, indent=2) + "\n")
    print(f"Written to {arguments.json}")


if __name__ == "__main__":
    main()
