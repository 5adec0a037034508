"""`python -m mllt.predict`."""

from __future__ import annotations

import csv
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import mllt.predict
from mllt import DigitsLT, load_checkpoint


@pytest.fixture
def pictures(tmp_path):
    """Twelve digits as PNG files in two folders, a truncated PNG, a text that calls itself a JPEG, and a note."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    source = DigitsLT().splits.test
    for number in range(12):
        image = source.load(np.array([number]))[0].permute(1, 2, 0).numpy()
        Image.fromarray(image).save((folder / "deeper" if number % 2 else folder) / f"{number:02d}.png")
    whole = (folder / "00.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not a picture")
    (folder / "notes.txt").write_text("nor is this")
    return folder


def checkpoint(trained):
    return f"checkpoint={trained / 'checkpoints' / 'last.ckpt'}"


def read_rows(path):
    with path.open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


@pytest.fixture
def predicted(mllt_command, trained, pictures, tmp_path):
    done = mllt_command("predict", checkpoint(trained), f"input={pictures}", f"output={tmp_path / 'out.csv'}", "top_k=3")
    return done, read_rows(tmp_path / "out.csv")


def test_two_broken_files_become_rows_with_their_error_and_the_rest_is_predicted(predicted, pictures):
    done, rows = predicted
    assert done.status == 1
    assert "2 of 14 pictures could not be read" in done.err
    assert len(rows) == 14
    broken = {path for path, row in rows.items() if row["error"]}
    assert broken == {str(pictures / "cut.png"), str(pictures / "text.jpg")}
    for path in broken:
        assert path in rows[path]["error"]
        assert rows[path]["class_1"] == rows[path]["probability_1"] == ""
    assert "1 other file" in done.out or ".txt" in done.out, "what was passed over is said"


def test_classes_and_probabilities_are_those_of_the_model(predicted, trained, pictures):
    _, rows = predicted
    module = load_checkpoint(trained / "checkpoints" / "last.ckpt")
    batch = next(iter(DigitsLT(eval_batch_size=12).test_dataloader()))
    with torch.inference_mode():
        expected = module.compensated(module(batch.images).mean(0)).softmax(-1)
    for number in range(12):
        row = rows[str((pictures / "deeper" if number % 2 else pictures) / f"{number:02d}.png")]
        best = expected[number].argsort(descending=True)[:3]
        assert [row[f"class_{k}"] for k in (1, 2, 3)] == [str(int(c)) for c in best]
        found = [float(row[f"probability_{k}"]) for k in (1, 2, 3)]
        assert found == pytest.approx(expected[number][best].tolist(), abs=1e-5)


def test_all_readable_pictures_give_status_zero(mllt_command, trained, pictures, tmp_path):
    (pictures / "cut.png").unlink()
    (pictures / "text.jpg").unlink()
    done = mllt_command("predict", checkpoint(trained), f"input={pictures}", f"output={tmp_path / 'out.csv'}")
    assert done.status == 0, done.err
    assert len(read_rows(tmp_path / "out.csv")) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "out.csv", "pictures"], "no temporary file stays"


def test_one_picture_is_an_input_too_and_the_prior_matters(mllt_command, trained, pictures, tmp_path):
    probabilities = {}
    for prior in ("uniform", "train"):
        arguments = (f"input={pictures / '00.png'}", f"output={tmp_path / prior}.csv", f"test_prior={prior}", "top_k=10")
        assert mllt_command("predict", checkpoint(trained), *arguments).status == 0
        (row,) = read_rows(tmp_path / f"{prior}.csv").values()
        probabilities[prior] = {row[f"class_{k}"]: float(row[f"probability_{k}"]) for k in range(1, 11)}
        assert sum(probabilities[prior].values()) == pytest.approx(1, abs=1e-4)
    counts = DigitsLT(val_fraction=0.2).class_counts.double()
    for label in range(1, 10):  # Bayes: what differs is the ratio of the priors
        ratio = probabilities["train"][str(label)] / probabilities["train"]["0"]
        other = probabilities["uniform"][str(label)] / probabilities["uniform"]["0"]
        assert ratio / other == pytest.approx(float(counts[label] / counts[0]), rel=1e-3)


def test_the_checkpoint_alone_is_enough(mllt_command, trained, pictures, tmp_path):
    (tmp_path / "moved").mkdir()
    copy = shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "moved" / "weights.ckpt")
    done = mllt_command("predict", f"checkpoint={copy}", f"input={pictures / '00.png'}", f"output={tmp_path / 'out.csv'}")
    assert done.status == 0, done.err


def test_an_output_that_exists_is_written_over_only_when_asked(mllt_command, trained, pictures, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("precious")
    arguments = ("predict", checkpoint(trained), f"input={pictures / '00.png'}", f"output={output}")
    done = mllt_command(*arguments)
    assert done.status == 2
    assert "overwrite=true" in done.err
    assert output.read_text() == "precious"
    assert mllt_command(*arguments, "overwrite=true").status == 0
    assert len(read_rows(output)) == 1


def test_what_was_there_stays_when_predicting_is_interrupted(mllt_command, trained, pictures, tmp_path, monkeypatch):
    output = tmp_path / "results" / "out.csv"
    output.parent.mkdir()
    output.write_text("what was there")
    predict, batches = mllt.predict.top_classes, []

    def interrupted(*arguments):
        batches.append(arguments)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return predict(*arguments)

    monkeypatch.setattr(mllt.predict, "top_classes", interrupted)
    arguments = (checkpoint(trained), f"input={pictures}", f"output={output}", "overwrite=true", "batch_size=5")
    assert mllt_command("predict", *arguments).status == 130
    assert output.read_text() == "what was there"
    assert list(output.parent.iterdir()) == [output]


def test_a_path_that_is_no_unicode_is_written_as_it_is(mllt_command, trained, pictures, tmp_path):
    odd = os.fsencode(pictures) + b"/\xff.png"
    os.rename(pictures / "00.png", odd)
    assert mllt_command("predict", checkpoint(trained), f"input={pictures}", f"output={tmp_path / 'out.csv'}").status == 1
    assert b"\n" + odd + b"," in (tmp_path / "out.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["input=/nowhere"], "there is nothing at /nowhere"),
        (["input=.", "accelerator=tpu"], "`accelerator` to be one of auto, cuda, mps, cpu"),
        (["input=."], "there are none"),
        (["input=.", "top_k=0"], "`top_k`"),
        (["input=.", "batch_size=0"], "`batch_size`"),
    ],
)
def test_mistakes_are_one_line(mllt_command, trained, arguments, said):
    done = mllt_command("predict", checkpoint(trained), *arguments)
    assert done.status == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_temperature_makes_probabilities_less_certain_and_changes_no_class(mllt_command, trained, pictures, tmp_path):
    rows = []
    for number, more in enumerate([[], ["temperature=3"]]):
        output = tmp_path / f"{number}.csv"
        mllt_command("predict", checkpoint(trained), f"input={pictures / '00.png'}", f"output={output}", *more)
        rows += read_rows(output).values()
    assert [rows[0][f"class_{k}"] for k in range(1, 6)] == [rows[1][f"class_{k}"] for k in range(1, 6)]
    assert float(rows[1]["probability_1"]) < float(rows[0]["probability_1"])
