"""Reading checkpoints: with `weights_only=True`, so that a file can run no code, and with errors that help."""

from __future__ import annotations

import numbers
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllt.errors import ArgumentError, CheckpointError
from mllt.files import sha256_of, written_whole

#: Where `LongTailedModule` puts what is ours in a Lightning checkpoint.
KEY = "mllt"
#: Raised when a checkpoint's content changes meaning.
FORMAT = 1


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint written by one of our methods.

    Args:
        path: a `.ckpt` file.
        map_location: as in `torch.load`.

    Returns:
        Lightning's dictionary, with our part under `"mllt"`: {"format", "method", "subclass",
        "version", "class_names", "preprocessing"}.

    Raises:
        CheckpointError: no such file, a damaged one, one that holds more than tensors and plain values, or one that is
            not ours.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"Expected a checkpoint file, but {path} is a folder. Try {path / 'checkpoints' / 'last.ckpt'}.")
    if not path.is_file():
        raise CheckpointError(f"Expected a checkpoint file, but there is none at {path}.{_neighbours(path)}")
    _check_digest(path)
    try:
        if zipfile.is_zipfile(path) and (broken := zipfile.ZipFile(path).testzip()) is not None:  # torch does not look
            raise ValueError(f"the checksum of {broken} does not fit")
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"Expected {path} to hold tensors and plain values only, but it is damaged or holds something else, which was "
            f"not loaded{_reason(error)} ({path.stat().st_size:,} bytes). Use another copy of it."
        ) from error
    except Exception as error:  # torch raises EOFError, KeyError, RuntimeError, ... by where the damage lies
        raise CheckpointError(
            f"Expected {path} to be a checkpoint, but reading it failed: {type(error).__name__}: {error} "
            f"({path.stat().st_size:,} bytes; it may be cut off or damaged). Use another copy of it."
        ) from error
    return _check_ours(path, checkpoint)


def export_model(checkpoint: str | Path, output: str | Path) -> dict[str, Any]:
    """Write what predicts, without what only training needs, and its SHA-256 beside it: to publish, or to deploy.

    The result loads as any checkpoint of ours, and `sha256sum -c OUTPUT.sha256` checks it; so does `read_checkpoint`.

    Args:
        checkpoint: a checkpoint of ours.
        output: the file to write, such as `model.ckpt`.

    Returns:
        {"bytes", "sha256"} of it.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or not ours.
        StorageError: the file cannot be written.
    """
    whole, output = read_checkpoint(checkpoint), Path(output)
    kept = ("state_dict", "hyper_parameters", KEY, "epoch", "global_step", "pytorch-lightning_version")
    model = {name: whole[name] for name in kept if name in whole}
    model[KEY] = {name: value for name, value in model[KEY].items() if name != "epoch_sums"}
    with written_whole(output, "wb") as file:
        torch.save(model, file)
    digest = sha256_of(output)
    with written_whole(_digest_of(output)) as file:
        file.write(f"{digest}  {output.name}\n")
    return {"bytes": output.stat().st_size, "sha256": digest}


def _digest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _check_digest(path: Path) -> None:
    """Where a digest lies beside a file, the file must have it."""
    beside = _digest_of(path)
    if beside.is_file():
        wanted = beside.read_text(encoding="utf-8", errors="replace")[:64].lower()
        found = sha256_of(path)
        if found != wanted:
            raise CheckpointError(
                f"Expected {path} to have the SHA-256 that {beside.name} tells, {wanted!r}, but it has {found} "
                f"({path.stat().st_size:,} bytes): it was changed, or damaged on the way. Get it again."
            )


def glance(path: Path) -> dict[str, Any] | None:
    """A checkpoint to look a few small things up in: mapped, not read, and not checked; None where there is no file."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True) if path.is_file() else None


def _reason(error: Exception) -> str:
    """What torch found, without its advice to switch the protection off."""
    found = re.search(r"Unsupported (?:global|class|operand)[^\n]*?: ?(?:GLOBAL )?([\w.]+)", str(error))
    return f": {found.group(1)}" if found else ""


def plain_values(value: Any) -> Any:
    """Numbers and containers of any kind as Python's own, which is all that a checkpoint may hold.

    Raises:
        ArgumentError: a value that is neither, nor text, None, True or False.

    >>> plain_values({"counts": torch.tensor([3, 1]), "mean": (np.float64(0.5),)})
    {'counts': [3, 1], 'mean': [0.5]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return value.tolist()
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain_values(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise ArgumentError(
        "Expected settings to be numbers, text, and lists and dictionaries of them, which is what a checkpoint can hold, but "
        f"got {value!r:.100}."
    )


def _check_ours(path: Path, checkpoint: Any) -> dict[str, Any]:
    ours = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or not isinstance(ours.get("method"), str):
        raise CheckpointError(
            f"Expected {path} to be a checkpoint of one of mllt's methods, but it is not: it says nothing of a method."
        )
    if ours.get("format") != FORMAT:
        raise CheckpointError(
            f"Expected {path} to be of checkpoint format {FORMAT}, but it is of format {ours.get('format')!r}, written by "
            f"mllt {ours.get('version')!r}. Use that version."
        )
    return checkpoint


def _neighbours(path: Path) -> str:
    found = sorted(str(p) for folder in (path.parent, path.parent / "checkpoints") for p in folder.glob("*.ckpt"))
    return f" Near it: {', '.join(found[:5])}." if found else ""
