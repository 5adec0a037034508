"""What benchmarks compare computes the same, and what they write can be read again."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.baseline import PlainCifarExperts, PlainResNetExperts, plain_sgd, plain_step, plain_table
from benchmarks.measure import Row, compare, tells_seconds
from benchmarks.regression import changes

from mllt import MutualLTModule
from mllt.methods.evaluation import Evaluation
from mllt.networks import build_network
from mllt.optim import parameter_groups, sgd

ROOT = Path(__file__).parent.parent
ROW = Row("a step", "ms", baseline=20.0, ours=10.0, ratio=2.0, low=1.9, high=2.1)


@pytest.mark.parametrize(
    ("dtype", "size", "lr", "tolerance"), [(torch.float64, 12, 0.02, 1e-9), (torch.float32, 32, 0.002, 2e-4)]
)
def test_the_library_and_the_plain_way_have_the_same_loss_curve(dtype, size, lr, tolerance):
    torch.manual_seed(0)
    module = MutualLTModule(class_counts=[50] * 10, network="resnet20", num_experts=3).to(dtype)
    plain = PlainCifarExperts(3, num_classes=10, blocks=3).to(dtype)
    plain.load_state_dict(module.network.state_dict())
    theirs = plain_sgd(plain, lr)
    ours = sgd(parameter_groups(module, 5e-4), lr, 0.9, nesterov=False)
    curves = []
    for step in range(5):
        draw = torch.Generator().manual_seed(step)
        images, targets = torch.randn(16, 3, size, size, generator=draw), torch.randint(0, 10, (16,), generator=draw)
        images = images.to(dtype)
        loss = torch.stack(list(module.objective(module(images), targets).values())).sum()
        ours.zero_grad()
        loss.backward()
        ours.step()
        curves.append((plain_step(plain, theirs, images, targets)["loss"], float(loss.detach())))
    expected, got = torch.tensor(curves, dtype=torch.float64).T
    assert torch.allclose(got, expected, rtol=tolerance, atol=0)
    assert expected[-1] != expected[0]


def test_the_plain_resnet50_is_ours():
    torch.manual_seed(0)
    ours, plain = build_network("resnet50", 7, 2).eval(), PlainResNetExperts(2, 7).eval()
    plain.load_state_dict(dict(zip(plain.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(torch.stack(plain(images)), ours(images), rtol=1e-4, atol=1e-4)


def test_the_plain_table_is_ours():
    counts = np.array([200, 150, 60, 40, 10, 3])
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 300, 6, generator=draw)
    targets = torch.randint(0, 6, (300,), generator=draw)
    evaluation = Evaluation(torch.from_numpy(counts), 2)
    evaluation.update(logits, targets, -torch.tensor(counts / counts.sum()).log().float())
    ours = evaluation.compute()
    plain = plain_table([*logits.numpy(), logits.mean(0).numpy()], targets.numpy(), counts)
    for number, row in enumerate([*ours["experts"], ours["ensemble"]]):
        for kind in ("raw", "compensated"):
            for group in ("many", "medium", "few"):
                assert row[kind][group] == pytest.approx(100 * plain[f"{number}/{kind}/{group}"])
            assert row[kind]["micro"] == pytest.approx(100 * plain[f"{number}/{kind}/all"])


def test_ratios_are_of_neighbours():
    theirs, ours = iter([9.0, 1.0, 2.0, 30.0]), iter([9.0, 1.0, 1.0, 10.0])  # the first of each warms up
    row = compare("x", lambda: next(theirs), lambda: next(ours), clock=tells_seconds, rounds=3, unit="s", per=2, floor=0.5)
    assert (row.ratio, row.baseline, row.ours, row.floor) == (2.0, 1.0, 0.5, 0.25)
    assert 1.0 <= row.low <= 2.0 <= row.high <= 3.0


@pytest.mark.parametrize(
    ("after", "worse"),
    [
        (ROW, False),
        (replace(ROW, baseline=40.0, ours=20.0), False),  # another machine
        (replace(ROW, ratio=1.85), False),  # within the tolerance
        (replace(ROW, ratio=1.7), True),
        (replace(ROW, ratio=3.0), False),
        (replace(ROW, ratio=None, ours=11.0), False),
        (replace(ROW, ratio=None, ours=13.0), True),
    ],
)
def test_a_row_that_became_slower_is_told(after, worse):
    told, alone = changes([ROW.as_dict()], [after.as_dict()], 0.1)
    assert bool(told) is worse
    assert not alone


def test_the_regression_check_ends_with_status_1_and_tells_rows_that_have_gone(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    gone = replace(ROW, what="gone")
    old.write_text(json.dumps({"threads": 1, "rows": [ROW.as_dict(), gone.as_dict()]}))
    new.write_text(json.dumps({"threads": 2, "rows": [replace(ROW, ratio=1.0).as_dict()]}))
    command = [sys.executable, "-m", "benchmarks.regression", old, new]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for words in ("Note: threads was 1, and is 2.", "only in the old table: gone", "slower: a step: ratio 2.00 -> 1.00"):
        assert words in done.stdout


@pytest.mark.slow
def test_the_programs_for_a_gpu_run(tmp_path):
    told = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device=cpu", "--small", "--epochs=1", f"--json={told}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(told.read_text())["rows"]
    assert {row["what"].split(",")[0] for row in rows} == {
        "CIFAR100-LT step with data",
        "ResNet-50",
        "CIFAR100-LT",
        "decoding JPEG of 500x375 on the device",
    }
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in rows)
