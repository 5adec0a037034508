"""`Speed`: what makes a run faster, and its results no other than by rounding."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from mllt.errors import ArgumentError, check_bool

#: Of `torch.compile`; "reduce-overhead" replays the kernels of a step as one CUDA graph.
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

# Of glibc's <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


class Speed(Callback):
    """Compiles the network, where asked to, and sets what PyTorch keeps for the whole process.

    Args:
        compile: whether the network is compiled, or a mode of `MODES`. Images per batch take two values at most in training,
            and each is compiled for itself. Its rounding is another.
        tf32: on GPUs, float32 convolutions and matrix products with factors of 10 bits after the point (TF32), in place of 23.

    Raises:
        ArgumentError: another mode, or no compiler.
    """

    def __init__(self, compile: bool | str = False, tf32: bool = True) -> None:
        if not isinstance(compile, bool) and compile not in MODES:
            raise ArgumentError(f"Expected `trainer.compile` to be true, false or one of {list(MODES)}, but got {compile!r}.")
        self.mode = "default" if compile is True else compile or None
        self.tf32 = check_bool("trainer.tf32", tf32)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        keep_freed_memory()
        device = trainer.strategy.root_device.type
        torch.backends.cudnn.allow_tf32 = self.tf32
        # Some processors would use it, too
        torch.set_float32_matmul_precision("high" if self.tf32 and device == "cuda" else "highest")
        # Deterministic mode would write NaN over every new tensor, to show those that are read before they are written
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if stage == "fit" and device == "cpu" and trainer.precision == "bf16-mixed" and not multiplies_bfloat16():
            rank_zero_warn(
                "trainer.precision=bf16-mixed: this processor has no instructions for bfloat16, and may take many times as "
                "long as with 32-true."
            )
        if self.mode is not None and stage == "fit":
            check_compiler(device)
            check_graphs(device, self.mode, trainer.accumulate_grad_batches)
            compile_network(pl_module.network, self.mode)

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        if self.mode is not None:  # what the step before has left in a CUDA graph's memory is no longer needed
            torch.compiler.cudagraph_mark_step_begin()

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start


def compile_network(network: Any, mode: str) -> None:
    """Compile a network in place, which keeps the names of its parameters; it happens when it is first called.

    Its parts, too, for methods that call these by themselves.
    """
    for part in (network, network.trunk, *network.experts):
        part.compile(mode=mode, dynamic=False)


def check_compiler(device: str) -> None:
    """Raise `ArgumentError` where `torch.compile` has nothing to compile with."""
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise ArgumentError("Expected triton for trainer.compile on a GPU: pip install triton, or set trainer.compile=false.")
    if device == "cuda" and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise ArgumentError(
            "Expected a C compiler for trainer.compile on a GPU, which triton starts, but there is neither gcc nor clang. "
            "Install one, or set trainer.compile=false."
        )
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
    if device == "cpu" and not any(shutil.which(compiler) for compiler in compilers):
        raise ArgumentError(
            f"Expected a C++ compiler for trainer.compile on the processor, but there is no {' or '.join(compilers)}. Install "
            "one, or set trainer.compile=false."
        )


def check_graphs(device: str, mode: str, accumulated: int) -> None:
    """Raise `ArgumentError` for CUDA graphs with accumulated steps: a graph's gradients do not outlive its next replay."""
    if device == "cuda" and mode in ("reduce-overhead", "max-autotune") and accumulated > 1:
        raise ArgumentError(
            f"Expected trainer.accumulate_grad_batches=1 with trainer.compile={mode}, whose CUDA graphs write each gradient "
            f"over the one before, but got {accumulated}. Set trainer.compile=true, or max-autotune-no-cudagraphs."
        )


def multiplies_bfloat16(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Whether the processor multiplies bfloat16 by itself, as far as Linux tells; True where nothing does."""
    path = Path(cpuinfo)
    return not path.exists() or bool({"avx512_bf16", "amx_bf16", "bf16"} & set(path.read_text().split()))


def keep_freed_memory() -> None:
    """Let the C library (glibc) keep large blocks that are freed, for the next step, which asks for the same again.

    Else it gives them back, and the system clears every page of them anew. Elsewhere, nothing happens.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        if not libc.mallopt(_MMAP_THRESHOLD, 1 << 30):  # before glibc 2.35, 32 MiB are the most
            libc.mallopt(_MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
