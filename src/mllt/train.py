"""`python -m mllt.train`: train a method, test it, print its table, and leave everything in one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mllt.cli import run

if TYPE_CHECKING:
    from pathlib import Path

    import lightning as L
    from omegaconf import DictConfig

    from mllt.callbacks import Provenance
    from mllt.data import LongTailedDataModule
    from mllt.methods import LongTailedModule
    from mllt.results import RunFolder


def main() -> None:
    """The command."""
    run(train, "train")


def train(config: DictConfig) -> float:
    """One run: train, test the weights of the last epoch, write and print the results.

    Returns:
        The ensemble's compensated accuracy over all classes, in percent, for a sweeper to maximise: on validation where
        there is a validation split, else on test (as the literature's protocols without validation do).
    """
    from contextlib import nullcontext
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig

    from mllt.build import check_start
    from mllt.files import FolderLock
    from mllt.launch import is_first
    from mllt.results import RunFolder
    from mllt.resume import prepare_folder

    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir).resolve())
    check_start(config)
    with FolderLock(folder.root) if is_first() else nullcontext():
        if is_first():
            prepare_folder(config, folder)
        return train_in(config, folder)


def train_in(config: DictConfig, folder: RunFolder) -> float:
    """`train` in a folder that is this run's alone."""
    import lightning as L
    import torch

    from mllt.build import absolute_paths, build_data, build_module, plain
    from mllt.callbacks import Provenance
    from mllt.checkpoint import export_model
    from mllt.recipes import settle_recipe
    from mllt.results import git_commit
    from mllt.resume import earlier_checkpoints, where_to_start

    settle_recipe(config)
    absolute_paths(config.data)
    absolute_paths(config.method)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(plain(config.data), batch_size=config.batch_size, seed=config.seed)
    data.prepare_data()
    module = build_module(config, data, earlier_checkpoints(config, folder))
    settings = {"seed": config.seed, "batch_size": config.batch_size}
    if hasattr(data, "pipeline"):
        settings["data.pipeline"] = data.pipeline
    made_by = Provenance(git_commit(), settings)
    first, resume = where_to_start(config, folder, module, made_by)
    opening = opening_lines(config, data)
    if resume is not None:
        opening.append(f"Going on from {resume}.")
    elif first:
        opening.append(f"Going on with stage {module.stages()[first].name}: what comes before it is done.")
    for number in range(first, len(module.stages())):
        trainer, validated = run_stage(config, folder, module, data, number, resume, opening, made_by)
        resume, opening = None, []
    results = collect(config, trainer, module, folder, data, made_by)
    if trainer.is_global_zero:
        results["model"] = {"file": str(folder.relative(folder.model)), **export_model(folder.last, folder.model)}
        report(results, folder)
    return float(results["test"]["ensemble"]["compensated"]["all"] if validated is None else validated)


def opening_lines(config: DictConfig, data: LongTailedDataModule) -> list[str]:
    """What a run says before it begins: of its data and recipe, and what is to be noted."""
    from hydra.core.hydra_config import HydraConfig

    from mllt.build import remarks
    from mllt.recipes import untuned

    rule = config.evaluation
    tail = data.summary(rule.many_above, rule.few_below, inclusive=rule.shot_edges_inclusive)
    source = f" ({config.recipe_source})" if config.recipe_source else ""
    recipe = [] if config.recipe == "paper" else [f"Recipe: {config.recipe}{source}."]
    choices = HydraConfig.get().runtime.choices
    notes = [*remarks(config), *untuned(choices["experiment"], choices["method"])]
    return [tail, *recipe, *(f"Note: {note}" for note in notes)]


def run_stage(
    config: DictConfig,
    folder: RunFolder,
    module: LongTailedModule,
    data: LongTailedDataModule,
    number: int,
    resume: Path | None,
    opening: list[str],
    made_by: Provenance,
) -> tuple[L.Trainer, Any]:
    """Train one stage, and after the last one test.

    Returns:
        The trainer, and the ensemble's compensated accuracy on validation in percent (None without a validation split).
    """
    import zlib

    import lightning as L

    from mllt.build import build_loggers, build_trainer
    from mllt.callbacks import SeedSteps, finish_loggers
    from mllt.results import say

    stages = module.stages()
    stage, last = stages[number], number + 1 == len(stages)
    place = folder.of_stages([known.name for known in stages])[number]
    # A stage is the same after a break, and where the stages before it were given by path
    seed = (config.seed + zlib.crc32(stage.name.encode())) % 2**32
    L.seed_everything(seed, workers=True, verbose=False)
    module.begin(stage.name)
    loggers = build_loggers(config, place, resume)
    try:
        made_by.commits = []  # of this stage
        trainer = build_trainer(config, place, data, loggers, [made_by, SeedSteps(seed)], stage.epochs)
        if trainer.is_global_zero:
            folder.write_config(config)
            say(*opening, *([f"Stage {number + 1} of {len(stages)}: {stage.name}"] if len(stages) > 1 else []))
        return trainer, fit_and_test(trainer, module, data, place, resume, test=last)
    finally:
        finish_loggers(loggers)


def fit_and_test(
    trainer: L.Trainer,
    module: LongTailedModule,
    data: LongTailedDataModule,
    folder: RunFolder,
    resume: Path | None,
    *,
    test: bool,
) -> Any:
    """Train, and test the weights of the last epoch.

    Returns:
        The ensemble's compensated accuracy on validation, in percent; None without a validation split.

    Raises:
        Stopped: it was asked to end; says how to go on.
        DataError: the test cannot read its images; says that the training is saved.
    """
    import signal

    from mllt.callbacks import Stopped
    from mllt.errors import DataError

    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        validated = trainer.callback_metrics.get("val/compensated/all")
        if test:
            if module.val_results is None and data.splits.val is not None:  # not of the last epoch, or it went on from there
                trainer.validate(module, datamodule=data, verbose=False)
                validated = trainer.callback_metrics.get("val/compensated/all")
            trainer.test(module, datamodule=data, verbose=False)
        return validated
    except SystemExit as end:
        if not isinstance(end, Stopped) and not trainer.interrupted:
            raise
        # The other kind is what Lightning makes of a KeyboardInterrupt that did not wait for the end of a step
        stop = end if isinstance(end, Stopped) else Stopped(signal.SIGINT, f" in epoch {trainer.current_epoch + 1}")
        if folder.last.exists():
            stop.where += f", saved in {folder.last}. Go on by the same command with output_dir={folder.run}"
        raise stop from None
    except DataError as error:
        if not trainer.testing:
            raise
        raise DataError(
            f"{error} The training is done and saved; mend the test images, then type: python -m mllt.evaluate "
            f"checkpoint={folder.last}"
        ) from error


def collect(
    config: DictConfig,
    trainer: L.Trainer,
    module: LongTailedModule,
    folder: RunFolder,
    data: LongTailedDataModule,
    made_by: Provenance,
) -> dict[str, Any]:
    """What `results.json` holds."""
    from mllt.callbacks import NonFiniteGuard, RunProgress
    from mllt.checkpoint import glance, plain_values
    from mllt.cli import repeating_command
    from mllt.longtail import shot_groups
    from mllt.results import device_name, versions
    from mllt.sharding import count_parameters

    hp = module.hparams
    groups = shot_groups(module.class_counts.cpu(), hp["many_above"], hp["few_below"], inclusive=hp["shot_edges_inclusive"])
    progress = trainer.progress_bar_callback
    earlier = [place.last for place in folder.of_stages([stage.name for stage in module.stages()])[:-1]]
    seconds, processor, images = progress.with_earlier(earlier) if isinstance(progress, RunProgress) else (0, None, 0)
    guard = next(callback for callback in trainer.callbacks if isinstance(callback, NonFiniteGuard))  # type: ignore[attr-defined]
    of_stages = zip(module.stages(), guard.with_earlier(earlier), strict=True)
    left_out = {stage.name: steps for stage, steps in of_stages if steps}
    commits = [str(commit) for commit in made_by.all_commits(earlier) if commit is not None]
    for path in earlier:  # of stages that were trained before this command
        data.load_state_dict((glance(path) or {}).get(type(data).__qualname__, {}))
    broken = data.broken_images()
    return {
        "experiment": config.name,
        "method": module.method,
        "recipe": config.recipe,
        "recipe_source": config.recipe_source,
        "network": hp["network"],
        "num_experts": module.num_experts,
        "parameters": count_parameters(trainer, module.network),
        "seed": config.seed,
        "epochs": trainer.current_epoch,
        "stages": [{"name": stage.name, "epochs": stage.epochs or config.trainer.max_epochs} for stage in module.stages()],
        "global_batch_size": config.batch_size,
        "class_counts": module.class_counts.tolist(),
        "class_names": module.class_names,
        "shot_groups": {name: int(mask.sum()) for name, mask in groups.items()},
        "test_prior": hp["test_prior"],
        "ensemble_of": hp["ensemble"],
        "reported": module.reported,
        "fitted_prior": module.fits,
        "reconstructed": [*module.reconstructed, *(config.reconstructed or [])],
        "details": plain_values(module.details()),
        "test": module.test_results,
        **({"val": module.val_results} if module.val_results else {}),
        "train_seconds": seconds or None,
        "cpu_seconds": processor or None,
        "images_per_second": images / seconds if seconds else None,
        "device": device_name(module.device, trainer.world_size),
        "versions": versions(),
        "data_digest": data.fingerprint,
        **({"steps_left_out": left_out} if left_out else {}),
        **({"broken_images": broken} if broken else {}),
        "git_commit": " + ".join(commits) or None,
        "command": repeating_command("train", config.seed),
    }


def report(results: dict[str, Any], folder: RunFolder) -> None:
    """Write `results.json`, print the table and where everything lies."""
    from mllt.results import caption, plural, say, table, write_json

    write_json(folder.results, results)
    epochs = plural(results["epochs"], "epoch")
    earlier = "".join(f"{stage['epochs']} + " for stage in results["stages"][:-1])
    title = f"{results['experiment']}: {results['method']}, seed {results['seed']}, {earlier}{epochs}"
    seconds = (
        f" in {results['train_seconds']:.0f} s ({results['images_per_second']:,.0f} images/s)"
        if results["train_seconds"]
        else ""
    )
    say(
        table(results["test"], title),
        caption(results["shot_groups"]),
        f"Trained{seconds}. Everything lies in {folder.shown}:",
        f"  {folder.relative(folder.model)} (weights), {folder.relative(folder.metrics)} (curves), "
        f"{folder.relative(folder.results)}, {folder.relative(folder.config)}",
    )


if __name__ == "__main__":
    main()
