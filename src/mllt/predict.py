"""`python -m mllt.predict`: classes and probabilities of pictures, as a CSV file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from mllt.cli import run

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig
    from torch import Tensor

    from mllt.methods import LongTailedModule


def main() -> None:
    """The command. The exit status is 1 when a picture could not be read."""
    failures = run(predict, "predict")
    sys.exit(1 if failures else 0)


def predict(config: DictConfig) -> int:
    """Predict every picture under `input`, and write one row each.

    Returns:
        How many pictures could not be read.
    """
    from pathlib import Path

    from mllt.build import load_method, pick_device
    from mllt.errors import ArgumentError, check_integer
    from mllt.files import written_whole
    from mllt.results import say

    check_integer("top_k", config.top_k, 1)
    check_integer("batch_size", config.batch_size, 1)
    output = Path(config.output).expanduser()
    if output.is_file() and not config.overwrite:
        raise ArgumentError(f"{output} exists already. Choose another output, or write over it with overwrite=true.")
    if output.is_dir():
        raise ArgumentError(f"Expected `output` to be a file, but {output} is a folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    module = load_method(config).to(pick_device(config.accelerator))
    if module.preprocessing is None:
        raise ArgumentError(
            f"{config.checkpoint} does not say how pictures become inputs. Train it by python -m mllt.train, or give the class "
            "`preprocessing`."
        )
    top_k = min(config.top_k, module.num_classes)
    pictures, passed_over = find_input(Path(config.input).expanduser())
    with written_whole(output, errors="surrogateescape") as file:
        failures = write_rows(file, predict_files(module, pictures, top_k, config.batch_size), top_k)
    say(f"{len(pictures)} pictures, {failures} of them unreadable{passed_over}. Written to {output}")
    if failures:
        print(
            f"Error: {failures} of {len(pictures)} pictures could not be read; column `error` of {output} says why.",
            file=sys.stderr,
        )
    return failures


def find_input(source: Path) -> tuple[list[Path], str]:
    """The pictures that `input` means, and a remark on what was passed over.

    Raises:
        DataError: there is nothing there, or no picture.
    """
    from mllt.data.folder import find_pictures
    from mllt.errors import DataError

    if source.is_file():
        return [source], ""
    if not source.is_dir():
        raise DataError(f"Expected `input` to be a folder of pictures or a picture, but there is nothing at {source}.")
    pictures, ignored = find_pictures(source)
    remark = "; passed over: " + ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items())) if ignored else ""
    if not pictures:
        raise DataError(f"Expected pictures in {source} or below, but there are none{remark}.")
    return pictures, remark


def predict_files(module: LongTailedModule, paths: list[Path], top_k: int, batch_size: int) -> Iterator[list[Any]]:
    """A row for each picture, in order: its path, the top-k classes and probabilities, and its error (or nothing)."""
    import torch

    from mllt.data.images import eval_pipeline, load_rgb
    from mllt.errors import DataError

    prepare = eval_pipeline(module.preprocessing or {})

    def load(path: Path) -> Tensor | DataError:
        try:
            return prepare(load_rgb(path))
        except DataError as error:
            return error

    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        loaded = [load(path) for path in batch]
        images = [image for image in loaded if isinstance(image, torch.Tensor)]
        best = iter(top_classes(module, torch.stack(images), top_k)) if images else iter([])
        for path, image in zip(batch, loaded, strict=True):
            if isinstance(image, torch.Tensor):
                yield [str(path), *next(best), ""]
            else:
                yield [str(path), *[""] * (2 * top_k), str(image)]


def top_classes(module: LongTailedModule, images: Tensor, top_k: int) -> list[list[Any]]:
    """For each image class 1, probability 1, class 2, ..., by falling probability."""
    import torch

    with torch.inference_mode():
        probabilities, classes = module.probabilities(images.to(module.device)).cpu().topk(top_k, dim=-1)
    return [
        [cell for p, c in zip(row_p, row_c, strict=True) for cell in (module.class_names[c], f"{p:.6g}")]
        for row_p, row_c in zip(probabilities.tolist(), classes.tolist(), strict=True)
    ]


def write_rows(file: IO[str], rows: Iterator[list[Any]], top_k: int) -> int:
    """Write the rows as CSV; the number of those with an error."""
    import csv

    header = ["path", *[name for k in range(1, top_k + 1) for name in (f"class_{k}", f"probability_{k}")], "error"]
    failures = 0
    writer = csv.writer(file)
    writer.writerow(header)
    for row in rows:
        failures += bool(row[-1])
        writer.writerow(row)
    return failures


if __name__ == "__main__":
    main()
