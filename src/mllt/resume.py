"""Where a run begins or goes on: the newest checkpoint that can be read, and whether it fits the run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mllt.callbacks import Provenance
from mllt.checkpoint import KEY, glance, read_checkpoint
from mllt.errors import ArgumentError, CheckpointError, check_choice
from mllt.files import remove_partial
from mllt.launch import is_first
from mllt.methods import LongTailedModule
from mllt.results import RunFolder

AUTO = "auto"


def prepare_folder(config: DictConfig, folder: RunFolder) -> None:
    """Make the folder ready for the run, which has it to itself.

    Raises:
        ArgumentError: it holds a run that may be neither gone on from nor written over.
    """
    begun = any(path for pattern in ("results.json", "checkpoints/*.ckpt") for path in folder.root.rglob(pattern))
    if begun and config.resume is None and not config.overwrite:
        raise ArgumentError(
            f"{folder.root} holds a run already. Choose another output_dir, go on from it with resume=auto, or write "
            "over it with overwrite=true."
        )
    if starts_over(config):
        for name in ("checkpoints", "stages", "nonfinite", "probes"):
            shutil.rmtree(folder.root / name, ignore_errors=True)
        for path in (folder.results, folder.metrics):
            path.unlink(missing_ok=True)
    for place in (folder.root, *folder.root.glob("stages/*")):
        remove_partial(place)
        remove_partial(place / "checkpoints")


def starts_over(config: DictConfig) -> bool:
    """Whether what is in the folder is to be written over."""
    return bool(config.overwrite) and config.resume in (None, AUTO)


def earlier_checkpoints(config: DictConfig, folder: RunFolder) -> list[Path]:
    """Checkpoints of the run that is to go on, of whichever stage; none where nothing is."""
    if config.resume != AUTO:
        return [] if config.resume is None else [Path(str(config.resume)).expanduser()]
    return [] if config.overwrite else sorted(folder.root.rglob("checkpoints/*.ckpt"))


def where_to_start(
    config: DictConfig, folder: RunFolder, module: LongTailedModule, made_by: Provenance
) -> tuple[int, Path | None]:
    """The stage to begin with, and the checkpoint to go on from in it; the module holds the weights of the stage before.

    Raises:
        ArgumentError: the checkpoint leaves nothing to train, or a stage before it had another number of epochs.
        CheckpointError: there is none, or it is damaged, or of another method, network, recipe, seed or batch size.
    """
    stages = module.stages()
    names = [stage.name for stage in stages]
    places = folder.of_stages(names)
    found = newest_good(places) if config.resume == AUTO and not config.overwrite else _given(config)
    if found is None:
        return 0, None
    path, checkpoint = found
    try:
        module.check_checkpoint(checkpoint, training=True)
        made_by.check(checkpoint, path)
    except CheckpointError as error:
        advice = f" ({folder.root} holds a run already: to remove it and begin again, type overwrite=true.)"
        raise CheckpointError(f"{error}{advice if config.resume == AUTO else ''}") from error
    number = names.index(check_choice(f"the stage of {path}", checkpoint[KEY].get("stage", names[0]), names))
    wanted = [stage.epochs or config.trainer.max_epochs for stage in stages]
    for name, place, there in zip(names[:number], places, wanted, strict=False):
        _check_earlier_stage(folder, name, place, there)
    done, epochs = epochs_done(checkpoint, path), wanted[number]
    if done >= epochs and number + 1 < len(stages):
        module.restore(stages[number].name, checkpoint["state_dict"])
        return number + 1, None
    at_home = path.resolve().is_relative_to(folder.root)  # there, a run that was stopped before its test is still to test
    if done > epochs or (done == epochs and not at_home):
        raise ArgumentError(
            f"{path} has had {done} epochs, and trainer.max_epochs={epochs}: nothing is left to train. Raise "
            "trainer.max_epochs, or test it by python -m mllt.evaluate."
        )
    return number, path


def newest_good(places: Sequence[RunFolder]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read, of the latest of the stages' folders; None where there is none.

    Those that are damaged are told on standard error.

    Raises:
        CheckpointError: there are some, but none can be read.
    """
    damaged: list[str] = []
    for place in reversed(places):
        good = list(_readable(place, damaged))
        if good:
            newest = max(good, key=lambda found: int(found[1]["global_step"]))
            if damaged and is_first():
                print(f"Warning: passed over {' '.join(damaged)} Going on from {newest[0]}.", file=sys.stderr)
            return newest
    if damaged:
        raise CheckpointError(
            f"Expected a checkpoint to go on from, but none can be read. {' '.join(damaged)} Put a copy of one there, or "
            "begin again with overwrite=true."
        )
    return None


def _readable(place: RunFolder, damaged: list[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The last checkpoint, if it can be read, else the others that can; what is wrong with those that cannot is added."""
    for path in (place.last, place.previous, place.best):
        if path.exists():
            try:
                yield path, read_checkpoint(path)
            except CheckpointError as error:
                damaged.append(str(error))
            else:
                if path == place.last:
                    return


def _given(config: DictConfig) -> tuple[Path, dict[str, Any]] | None:
    if config.resume in (None, AUTO):
        return None
    path = Path(str(config.resume)).expanduser()
    return path, read_checkpoint(path)


def epochs_done(checkpoint: dict[str, Any], path: Path) -> int:
    """How many whole epochs a checkpoint has had.

    Raises:
        CheckpointError: it holds weights only, or its counts contradict each other.
    """
    try:
        counts = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        done, finished = int(counts["processed"]), int(counts["completed"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"Expected a checkpoint to go on from, but the `loops` of {path} do not tell how far its training was; it may hold "
            f"a model only. Choose the {RunFolder.of_checkpoint(path).last.name} of a run."
        ) from error
    epoch = int(checkpoint["epoch"])
    if finished != epoch or done - epoch not in (0, 1):  # at its end an epoch is trained, but not finished
        raise CheckpointError(
            f"Expected the counts in {path} to agree, but its `epoch` is {epoch}, and by its `loops` {done} epochs are trained "
            f"and {finished} finished: it is damaged, or no run wrote it. Use another copy of it, or begin a new run."
        )
    return done


def _check_earlier_stage(folder: RunFolder, name: str, place: RunFolder, epochs: int) -> None:
    earlier = glance(place.last)
    had = epochs if earlier is None else epochs_done(earlier, place.last)  # none where the stage was given by path
    if had != epochs:
        raise ArgumentError(
            f"Expected stage {name!r} in {folder.root} to have had {epochs} epochs, but it had {had}. Type the "
            "settings that it was trained with, or choose another output_dir for a new run."
        )
