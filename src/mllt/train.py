"""`python -m mllt.train`: train a method, test it, print its table, and leave everything in one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mllt.cli import run

if TYPE_CHECKING:
    import lightning as L
    from omegaconf import DictConfig

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
    from pathlib import Path

    import lightning as L
    import torch
    from hydra.core.hydra_config import HydraConfig

    from mllt.build import absolute_paths, build_data, build_loggers, build_module, build_trainer, check_start, plain, remarks
    from mllt.callbacks import finish_loggers
    from mllt.errors import check_integer
    from mllt.results import RunFolder, say

    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir).resolve())
    check_start(config, folder)
    absolute_paths(config.data)
    if config.threads is not None:
        torch.set_num_threads(check_integer("threads", config.threads, 1))
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(plain(config.data), batch_size=config.batch_size, seed=config.seed)
    data.prepare_data()
    module = build_module(config, data)
    loggers = build_loggers(config, folder)
    try:
        trainer = build_trainer(config, folder, data, loggers)
        if trainer.is_global_zero:
            folder.write_config(config)
            rule = config.evaluation
            say(
                data.summary(rule.many_above, rule.few_below, inclusive=rule.shot_edges_inclusive),
                *(f"Note: {remark}" for remark in remarks(config)),
            )
        validated = fit_and_test(trainer, module, data, folder, config.resume)
    finally:
        finish_loggers(loggers)
    results = collect(config, trainer, module)
    if trainer.is_global_zero:
        report(results, folder)
    return float(results["test"]["ensemble"]["compensated"]["all"] if validated is None else validated)


def fit_and_test(
    trainer: L.Trainer, module: LongTailedModule, data: LongTailedDataModule, folder: RunFolder, resume: str | None
) -> Any:
    """Train, and test the weights of the last epoch.

    Returns:
        The ensemble's compensated accuracy on validation, in percent; None without a validation split.

    Raises:
        KeyboardInterrupt: the user stopped it; says how to go on.
        DataError: the test cannot read its images; says that the training is saved.
    """
    from mllt.errors import DataError

    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        validated = trainer.callback_metrics.get("val/compensated/all")
        trainer.test(module, datamodule=data, verbose=False)
        return validated
    except SystemExit:  # what Lightning makes of Control-C
        if not trainer.interrupted:
            raise
        how = f" Go on with resume={folder.last} output_dir={folder.root}" if folder.last.exists() else ""
        raise KeyboardInterrupt(f" in epoch {trainer.current_epoch + 1}.{how}") from None
    except DataError as error:
        if not trainer.testing:
            raise
        raise DataError(
            f"{error} The training is done and saved; mend the test images, then type: python -m mllt.evaluate "
            f"checkpoint={folder.last}"
        ) from error


def collect(config: DictConfig, trainer: L.Trainer, module: LongTailedModule) -> dict[str, Any]:
    """What `results.json` holds."""
    from mllt.callbacks import RunProgress
    from mllt.longtail import shot_groups
    from mllt.networks import count_parameters
    from mllt.results import device_name, git_commit, versions

    hp = module.hparams
    groups = shot_groups(module.class_counts.cpu(), hp["many_above"], hp["few_below"], inclusive=hp["shot_edges_inclusive"])
    progress = trainer.progress_bar_callback
    timed = isinstance(progress, RunProgress)
    return {
        "experiment": config.name,
        "method": module.method,
        "network": hp["network"],
        "num_experts": module.num_experts,
        "parameters": count_parameters(module.network),
        "seed": config.seed,
        "epochs": trainer.current_epoch,
        "global_batch_size": config.batch_size,
        "class_counts": module.class_counts.tolist(),
        "class_names": module.class_names,
        "shot_groups": {name: int(mask.sum()) for name, mask in groups.items()},
        "test_prior": hp["test_prior"],
        "ensemble_of": hp["ensemble"],
        "reported": module.reported,
        "test": module.test_results,
        "train_seconds": progress.train_seconds if timed else None,  # type: ignore[union-attr]
        "images_per_second": progress.images_per_second if timed else None,  # type: ignore[union-attr]
        "device": device_name(module.device, trainer.world_size),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def report(results: dict[str, Any], folder: RunFolder) -> None:
    """Write `results.json`, print the table and where everything lies."""
    from mllt.results import caption, plural, say, table, write_json

    write_json(folder.results, results)
    title = f"{results['experiment']}: {results['method']}, seed {results['seed']}, {plural(results['epochs'], 'epoch')}"
    seconds = (
        f" in {results['train_seconds']:.0f} s ({results['images_per_second']:,.0f} images/s)"
        if results["train_seconds"]
        else ""
    )
    say(
        table(results["test"], title),
        caption(results["shot_groups"]),
        f"Trained{seconds}. Everything lies in {folder.shown}:",
        f"  {folder.relative(folder.last)} (weights), {folder.relative(folder.metrics)} (curves), "
        f"{folder.relative(folder.results)}, {folder.relative(folder.config)}",
    )


if __name__ == "__main__":
    main()
