"""`python -m mllt.evaluate`: test a checkpoint again, under any class prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mllt.cli import run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mllt.data import LongTailedDataModule
    from mllt.results import RunFolder


def main() -> None:
    """The command."""
    run(evaluate, "evaluate")


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Test a checkpoint and print its table.

    Returns:
        What the JSON file holds: the checkpoint, the split, the prior, and the table of `Evaluation.compute`.
    """
    from pathlib import Path

    import lightning as L

    from mllt.build import quiet_lightning
    from mllt.errors import ArgumentError, check_choice
    from mllt.longtail import shot_groups
    from mllt.methods import load_checkpoint
    from mllt.results import RunFolder, caption, say, table, write_json

    check_choice("split", config.split, ("test", "val"))
    module = load_checkpoint(config.checkpoint)
    if config.test_prior is not None:
        module.set_test_prior(config.test_prior, config.test_prior_factor)
    folder = RunFolder.of_checkpoint(config.checkpoint)
    data = stored_data(config, folder)
    if data.num_classes != module.num_classes:
        raise ArgumentError(
            f"Expected data of {module.num_classes} classes, as the checkpoint has, but {data.title} has {data.num_classes}."
        )
    loader = data.test_dataloader if config.split == "test" else data.val_dataloader
    quiet_lightning()
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_test_batches=config.limit_batches,
    )
    data.trainer = trainer
    if config.split == "val" and data.splits.val is None:
        raise ArgumentError(f"{data.title} has no validation split: set split=test.")
    trainer.test(module, dataloaders=loader(), verbose=False)
    hp = module.hparams
    prior = hp["test_prior"] if config.test_prior is None else config.test_prior
    groups = shot_groups(module.class_counts.cpu(), hp["many_above"], hp["few_below"], inclusive=hp["shot_edges_inclusive"])
    results = {
        "checkpoint": str(Path(config.checkpoint).expanduser().resolve()),
        "method": module.method,
        "split": config.split,
        "test_prior": prior,
        "test_prior_factor": config.test_prior_factor if prior in ("forward", "backward") else None,
        "images": len(data.splits.test if config.split == "test" else data.splits.val or ()),
        "shot_groups": {name: int(mask.sum()) for name, mask in groups.items()},
        "test": module.test_results,
    }
    if trainer.is_global_zero:
        named = Path(prior).stem if isinstance(prior, str) else "uniform" if prior is None else "numbers"
        name = f"{config.split}-{named}.json"
        output = Path(config.output).expanduser() if config.output else folder.root / "evaluations" / name
        write_json(output, results)
        say(
            table(module.test_results or {}, f"{config.split}, compensated to {named}"),
            caption(results["shot_groups"]),
            f"Written to {output}",
        )
    return results


def stored_data(config: DictConfig, folder: RunFolder) -> LongTailedDataModule:
    """The data module of a run, from the settings in its folder.

    Raises:
        DataError: there are no settings.
        ArgumentError: they name a class that is not one of ours: a folder from elsewhere must not choose what is run.
    """
    from mllt.build import build_data, plain
    from mllt.errors import ArgumentError

    stored = folder.read_config()
    section = plain(stored.data)
    if not str(section.get("_target_")).startswith("mllt.data."):
        raise ArgumentError(
            f"Expected {folder.config} to name a data module of mllt.data, but it names {section.get('_target_')!r}. Use "
            "Trainer.test with that data module and mllt.load_checkpoint instead."
        )
    changes = {"root": config.data_root, "eval_batch_size": config.eval_batch_size, "num_workers": config.num_workers}
    changes = {name: value for name, value in changes.items() if value is not None}
    return build_data(section, batch_size=stored.batch_size, seed=stored.seed, **changes)


if __name__ == "__main__":
    main()
