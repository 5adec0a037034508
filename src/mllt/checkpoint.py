"""Reading checkpoints: a file can run no code, take no more memory than its own size warrants, and errors say what is wrong.

What a file holds is looked at in three steps, each before the next one trusts it: the archive (here), the values in it, and
whether they are the parts of a checkpoint of ours (`checkpoint_parts`).
"""

from __future__ import annotations

import numbers
import pickletools
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllt.checkpoint_parts import KEY, MOST_VALUES, check_parts, check_values, shown
from mllt.errors import ArgumentError, CheckpointError
from mllt.files import sha256_of, written_whole

#: Raised when a checkpoint's content changes meaning.
FORMAT = 1
#: What a checkpoint may name for unpickling: tensors of the ordinary kinds, and containers. Not one of them takes memory beyond
#: the file's, or runs anything of the file's; what else torch admits (empty tensors of any size, codecs, ...) no run writes.
_STORAGES = (
    "Double",
    "Float",
    "Half",
    "BFloat16",
    "Long",
    "Int",
    "Short",
    "Char",
    "Byte",
    "Bool",
    "ComplexFloat",
    "ComplexDouble",
)
_DTYPES = {str(value).replace("torch.", "torch ") for value in vars(torch).values() if isinstance(value, torch.dtype)}
_NAMES = {
    *("collections OrderedDict", "torch Size", "torch device", "__builtin__ set", "builtins set"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"),
    *(f"torch {name}Storage" for name in _STORAGES),
    *_DTYPES,
}


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint written by one of our methods.

    Args:
        path: a `.ckpt` file.
        map_location: as in `torch.load`.

    Returns:
        Lightning's dictionary, with our part under `"mllt"`: {"format", "method", "subclass", "stage",
        "version", "class_names", "preprocessing"}.

    Raises:
        CheckpointError: no such file, a damaged one (with its size, and the likely cause), one that holds more than tensors and
            plain values, or one that is not ours.
    """
    return _read(path, map_location)


def glance(path: Path) -> dict[str, Any] | None:
    """A checkpoint to look a few small things up in: as `read_checkpoint`, but its weights stay where they are, unread, and are
    not looked at; None where there is no file.

    Raises:
        CheckpointError: as `read_checkpoint`, but for damage among the weights.
    """
    return _read(path, mapped=True) if path.is_file() else None


def _read(path: str | Path, map_location: Any = "cpu", *, mapped: bool = False) -> dict[str, Any]:
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"Expected a checkpoint file, but {path} is a folder. Try {path / 'checkpoints' / 'last.ckpt'}.")
    if not path.is_file():
        raise CheckpointError(f"Expected a checkpoint file, but there is none at {path}.{_neighbours(path)}")
    _check_archive(path, whole=not mapped)
    if not mapped:
        _check_digest(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how it was pickled
            content = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    except Exception as error:  # by where the damage lies, torch raises whatever there is
        raise damaged(path, f"its values are damaged ({_first_line(error)})") from error
    try:
        check_values(content, path.stat().st_size)
    except ValueError as error:
        raise damaged(path, str(error)) from error
    _check_ours(path, content)
    check_parts(content, str(path))
    return content


def export_model(checkpoint: str | Path, output: str | Path) -> dict[str, Any]:
    """Write what predicts, without what only training needs, and its SHA-256 beside it: to publish, or to deploy.

    The same model gives the same bytes. The result loads as any checkpoint of ours, and `sha256sum -c OUTPUT.sha256` checks it;
    so does `read_checkpoint`.

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
        torch.save(_afresh(model, {}), file)
    digest = sha256_of(output)
    with written_whole(_digest_of(output)) as file:
        file.write(f"{digest}  {output.name}\n")
    return {"bytes": output.stat().st_size, "sha256": digest}


def _afresh(value: Any, texts: dict[str, str]) -> Any:
    """A value made anew, equal texts being one: pickled, what is equal is then the same bytes, wherever it came from."""
    if isinstance(value, str):
        return texts.setdefault(value, value)
    if isinstance(value, torch.Tensor):
        return value.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(value, Mapping):
        return {_afresh(key, texts): _afresh(item, texts) for key, item in value.items()}
    return type(value)(_afresh(item, texts) for item in value) if isinstance(value, (list, tuple)) else value


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


def damaged(path: Path, cause: str) -> CheckpointError:
    """The error for a file that is no whole checkpoint: with its size, by which to know other copies, and the likely cause."""
    return CheckpointError(
        f"Expected {path} to be a checkpoint, but {cause} ({path.stat().st_size:,} bytes). Use another copy of it."
    )


def _first_line(error: Exception) -> str:
    """What was found, without torch's advice to switch the protection off."""
    line = next(iter(str(error).splitlines()), "").split("Please")[0].split("re-running")[0]
    return f"{type(error).__name__}: {line:.200}".strip(": ")


# ---------------------------------------------------------------------------------------------------------------
# The archive


def _check_archive(path: Path, *, whole: bool) -> None:
    """Raise `CheckpointError` unless a file is an archive as torch writes it, undamaged, which names nothing but tensors.

    Args:
        whole: whether to look at every byte, those of the weights, too.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_directory(archive, path)
            (pickled,) = (entry for entry in archive.namelist() if entry.endswith("/data.pkl"))
            broken = archive.testzip() if whole else None
            if broken is not None:
                raise damaged(path, f"it is damaged: {broken} in it is not what was written, as after a bad transfer or disk")
            values = archive.read(pickled)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged directory can make zipfile stumble anywhere
        raise damaged(path, _cause(path, error)) from error
    _check_names(path, values)


#: The mark of a folder in an archive. What an entry with it holds is not read by torch, which gives whatever its memory held.
_A_FOLDER = 0x10


def _check_directory(archive: zipfile.ZipFile, path: Path) -> None:
    """Every entry once, within the file and not compressed: nothing grows when it is read, or is something else to torch."""
    entries = archive.infolist()
    roots = {entry.filename.partition("/")[0] for entry in entries}
    sound = (
        len({entry.filename for entry in entries}) == len(entries)
        and len(roots) == 1
        and not archive.comment
        and all(entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size for entry in entries)
        and not any(entry.external_attr & _A_FOLDER for entry in entries)
        and sum(entry.file_size for entry in entries) <= path.stat().st_size
        and sum(entry.filename.endswith("/data.pkl") for entry in entries) == 1
    )
    if not sound:
        grown = sum(entry.file_size for entry in entries)
        raise damaged(
            path,
            f"its archive of {len(entries):,} parts, {grown:,} bytes when unpacked, is not as torch.save writes it: another "
            "program's, or made to do harm",
        )


def _check_names(path: Path, pickled: bytes) -> None:
    """Raise `CheckpointError` for a pickle that names more than tensors and containers, before anything reads it."""
    count, texts = 0, ["", ""]
    found = ""
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            count += 1
            if opcode.name in ("GLOBAL", "INST") and argument not in _NAMES:
                found = str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                found = ".".join(texts)
            elif opcode.name.startswith("EXT"):
                found = f"extension {argument}"
            elif isinstance(argument, str):
                texts = [texts[-1], argument]
            if found or count > MOST_VALUES:
                break
    except Exception as error:  # whatever bytes may do to it
        raise damaged(path, f"its values are damaged ({_first_line(error)})") from error
    if found:
        raise CheckpointError(
            f"Expected {path} to hold tensors and plain values only, but it is damaged or made to do harm: it holds "
            f"{found[:100]!r}, which was not loaded ({path.stat().st_size:,} bytes). Use another copy of it."
        )
    if count > MOST_VALUES:
        raise damaged(path, f"it holds more than {MOST_VALUES:,} values")


def _cause(path: Path, error: Exception) -> str:
    """Why a file is no archive, as far as its first bytes tell."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty: the disk was full, or writing it was broken off"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS and not the file itself: type git lfs pull where it came from"
    if not any(head):
        return "it begins with zeros: its blocks were never written, as after a crash or on a full disk"
    if head.startswith(b"PK\x03\x04"):
        listing = "the list of its parts, at the end, is missing" if "not a zip" in str(error) else _first_line(error)
        return f"it is cut off or damaged: {listing}"
    if head.startswith(b"\x80"):
        return "it is a bare pickle, as other programs write them, which was not loaded"
    if _is_text(head):
        return f"it is a text, which begins {head.decode('utf-8', 'replace')[:40]!r}: perhaps a web page or a list in its place"
    return "its beginning is damaged, or another program wrote it"


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", "replace")
    return sum(one.isprintable() or one.isspace() for one in text) > 0.95 * len(text) and b"\0" not in head


def _check_ours(path: Path, content: Any) -> None:
    ours = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(ours, dict) or not isinstance(ours.get("method"), str):
        raise CheckpointError(
            f"Expected {path} to be a checkpoint of one of mllt's methods, but it is not: it says nothing of a method."
        )
    if ours.get("format") != FORMAT:
        raise CheckpointError(
            f"Expected {path} to be of checkpoint format {FORMAT}, but it is of format {shown(ours.get('format'))}, written by "
            f"mllt {shown(ours.get('version'))}. Use that version."
        )


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


def _neighbours(path: Path) -> str:
    found = sorted(str(p) for folder in (path.parent, path.parent / "checkpoints") for p in folder.glob("*.ckpt"))
    return f" Near it: {', '.join(found[:5])}." if found else ""
