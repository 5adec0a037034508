"""Every method by one command, and all of them by one sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.commands.conftest import SMALL, read_json

from mllt import load_checkpoint

METHODS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "conf" / "method").glob("*.yaml"))


@pytest.mark.slow  # each by itself: test_every_method.py
def test_one_sweep_trains_every_method_and_none_is_left_out(mllt_command, tmp_path):
    done = mllt_command("train", "-m", "method=glob(*)", *SMALL[1:], f"output_dir={tmp_path / 'sweep'}")
    assert done.status == 0, done.err
    runs = {read_json(path)["method"]: path.parent for path in (tmp_path / "sweep").glob("*/results.json")}
    assert sorted(runs) == METHODS
    for method, run in runs.items():
        results = read_json(run / "results.json")
        assert results["reported"] == ("raw" if method == "cross_entropy" else "compensated")
        assert (results["num_experts"] > 1) == (method in ("ace", "mutual", "ride"))
        rows = results["test"]["ensemble"]
        fits_uniform = load_checkpoint(run / "checkpoints" / "last.ckpt").fitted_prior == "uniform"
        assert (rows["raw"] == rows["compensated"]) == fits_uniform, method
