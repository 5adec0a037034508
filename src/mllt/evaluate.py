"""`python -m mllt.evaluate`: test a checkpoint again, under any class prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mllt.cli import run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mllt.data import LongTailedDataModule
    from mllt.methods import LongTailedModule
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

    from mllt.build import load_method, make_trainer, stored_data
    from mllt.callbacks import Speed
    from mllt.errors import ArgumentError, check_choice
    from mllt.results import RunFolder, caption, say, table, write_json

    check_choice("split", config.split, ("test", "val"))
    if config.output and Path(config.output).expanduser().is_dir():
        raise ArgumentError(f"Expected `output` to be a file, but {config.output} is a folder.")
    module = load_method(config)
    folder = RunFolder.of_checkpoint(config.checkpoint)
    data = stored_data(config, folder)
    check_fits(module, data, config.split)
    further = further_priors(config, module)
    module.evaluate_also_under(further, module.hparams["test_prior_factor"])
    trainer = make_trainer(
        "`accelerator`, `devices` and `limit_batches`",
        accelerator=config.accelerator,
        devices=config.devices,
        logger=False,
        callbacks=[Speed(tf32=stored_tf32(folder))],
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_test_batches=config.limit_batches,
    )
    data.trainer = trainer
    trainer.test(module, dataloaders=getattr(data, f"{config.split}_dataloader")(), verbose=False)
    results = collect(config, module, data)
    if trainer.is_global_zero:
        asked = config.test_prior if isinstance(config.test_prior, str) else results["test_prior"]
        name = prior_name(asked, results["test_prior_factor"])
        output = Path(config.output).expanduser() if config.output else folder.root / f"evaluations/{config.split}-{name}.json"
        write_json(output, results)
        title = f"{config.split}, compensated to {name}"
        others = [table(only(results["test"], kind), f"{config.split}, compensated to {kind}") for kind in further]
        say(table(results["test"], title), *others, caption(results["shot_groups"]), f"Written to {output}")
    return results


def further_priors(config: DictConfig, module: LongTailedModule) -> dict[str, Any]:
    """The priors of `also` by the names of their rows."""
    from omegaconf import OmegaConf

    from mllt.errors import ArgumentError, name_some

    also: Any = [] if config.also is None else OmegaConf.to_container(config.also)
    if not all(isinstance(prior, str) for prior in also):
        raise ArgumentError(f"Expected `also` to be a list of test priors, such as [uniform,backward], but got {also}.")
    factor = module.hparams["test_prior_factor"]
    names = [prior_name(prior, factor if prior in ("forward", "backward") else None) for prior in also]
    if len(set(names)) < len(names):
        raise ArgumentError(f"Expected the test priors in `also` to have names that differ, but got {name_some(names)}.")
    return dict(zip(names, also, strict=True))


def only(test: dict[str, Any], kind: str) -> dict[str, Any]:
    """The table of `Evaluation.compute` with one kind of compensated rows in the place of the first."""
    experts = [{"raw": row["raw"], "compensated": row[kind]} for row in test["experts"]]
    return {"experts": experts, "ensemble": {"raw": test["ensemble"]["raw"], "compensated": test["ensemble"][kind]}}


def check_fits(module: LongTailedModule, data: LongTailedDataModule, split: str) -> None:
    """Raise `ArgumentError` when the data is of other classes, or has no such split."""
    from mllt.errors import ArgumentError

    if data.num_classes != module.num_classes:
        raise ArgumentError(
            f"Expected data of {module.num_classes} classes, as the checkpoint has, but {data.title} has {data.num_classes}."
        )
    if split == "val" and data.splits.val is None:
        raise ArgumentError(f"{data.title} has no validation split: set split=test.")


def collect(config: DictConfig, module: LongTailedModule, data: LongTailedDataModule) -> dict[str, Any]:
    """What the JSON file holds."""
    from pathlib import Path

    from mllt.longtail import shot_groups

    hp = module.hparams
    groups = shot_groups(module.class_counts.cpu(), hp["many_above"], hp["few_below"], inclusive=hp["shot_edges_inclusive"])
    return {
        "checkpoint": str(Path(config.checkpoint).expanduser().resolve()),
        "method": module.method,
        "split": config.split,
        "test_prior": hp["test_prior"],
        "test_prior_factor": hp["test_prior_factor"] if hp["test_prior"] in ("forward", "backward") else None,
        "ensemble_of": hp["ensemble"],
        "images": len(getattr(data.splits, config.split)),
        "shot_groups": {name: int(mask.sum()) for name, mask in groups.items()},
        "test": module.test_results,
    }


def prior_name(prior: Any, factor: float | None) -> str:
    """A test prior in a file's name: "uniform", "backward-50", a file's own, or digits that tell lists of numbers apart.

    >>> prior_name("backward", 50.0), prior_name([0.5, 0.5], None)
    ('backward-50', 'numbers-01a59a9c')
    """
    import hashlib
    from pathlib import Path

    if prior is None:
        return "uniform"
    if isinstance(prior, str):
        return Path(prior).stem + (f"-{factor:g}" if factor is not None else "")
    return "numbers-" + hashlib.sha256(repr(prior).encode()).hexdigest()[:8]


def stored_tf32(folder: RunFolder) -> bool:
    """Whether the run computed float32 products of fewer bits, so that its test is repeated as it was."""
    from omegaconf import OmegaConf

    value = OmegaConf.select(folder.read_config(), "trainer.tf32")
    return value if isinstance(value, bool) else True


if __name__ == "__main__":
    main()
