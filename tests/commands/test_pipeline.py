"""Training by the fast pipeline, and what keeps it apart from the usual one."""

from __future__ import annotations

import pytest
from tests.commands.conftest import read_json
from tests.data.make_images import save_pictures

pytest.importorskip("simplejpeg", reason="needs the extra jpeg")


def test_a_run_goes_on_with_its_own_pipeline_only_and_a_broken_picture_is_told(mllt_command, tmp_path):
    names = ("cat", "dog")
    save_pictures(
        tmp_path / "root", [f"{split}/{name}/{i}.jpg" for split in ("train", "test") for name in names for i in range(4)]
    )
    (tmp_path / "root/train/cat/1.jpg").write_bytes(b"")
    recipe = (
        *("experiment=folder_lt", "method=cross_entropy", f"data.root={tmp_path / 'root'}", f"output_dir={tmp_path / 'run'}"),
        *("data.image_size=16", "data.num_workers=0", "data.on_error=skip", "data.max_broken=0.2", "network=resnet20"),
        *("network.num_experts=1", "batch_size=4", "schedule=constant", "schedule.warmup_epochs=0"),
    )
    first = mllt_command("train", *recipe, "data.pipeline=fast", "trainer.max_epochs=1")
    assert first.status == 0, first.err
    results = read_json(tmp_path / "run/results.json")
    assert results["broken_images"]["files"] == [{"path": "train/cat/1.jpg", "cause": "the file is empty"}]
    assert "simplejpeg" in results["versions"]
    other = mllt_command("train", *recipe, "trainer.max_epochs=2")
    assert other.status == 2
    assert "made with data.pipeline=torchvision, but it was made with data.pipeline=fast. Type these" in other.err
    on = mllt_command("train", *recipe, "data.pipeline=fast", "trainer.max_epochs=2")
    assert on.status == 0, on.err
