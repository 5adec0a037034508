"""Long work in short slices: `benchmarks.slices`, with commands that really run, stop, fail and hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from benchmarks import slices
from benchmarks.slices import Task, run_slice

#: Counts to argv[2] in steps of 50 ms, from where argv[1] says, and saves there when it is asked to end.
COUNT = """
import pathlib, signal, sys, time
state, target, done = pathlib.Path(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
count, asked = int(state.read_text()) if state.exists() else 0, []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("ready", count, flush=True)
while count < target and not asked:
    time.sleep(0.05)
    count += 1
state.write_text(str(count))
if count == target:
    done.write_text("done")
sys.exit(143 if asked and count < target else 0)
"""


def task(folder, name, target=1, code=COUNT):
    done = folder / f"{name}.done"
    return Task(name, (sys.executable, "-c", code, str(folder / name), str(target), str(done)), done)


def until_started(path):
    limit = time.monotonic() + 30
    while not (path.exists() and "ready" in path.read_text()):
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_what_is_done_is_left_alone_and_the_rest_is_done_in_order(tmp_path):
    (tmp_path / "b.done").write_text("done long ago")
    told = []
    outcome = run_slice([task(tmp_path, name) for name in "abc"], tmp_path / "logs", say=told.append)
    assert (outcome.finished, outcome.status) == (["a", "c"], 0)
    assert not (tmp_path / "b").exists()
    assert [line.split(":")[0] for line in told] == ["a", "a", "c", "c"]


def test_a_slice_ends_when_its_time_is_up_and_the_next_one_goes_on(tmp_path):
    tasks = [task(tmp_path, "long", 60), task(tmp_path, "later")]
    first = run_slice(tasks, tmp_path / "logs", seconds=1.0)
    reached = int((tmp_path / "long").read_text())
    assert (first.stopped, first.waiting, first.finished, first.status) == (["long"], ["later"], [], 3)
    assert 0 < reached < 60
    second = run_slice(tasks, tmp_path / "logs")
    assert (second.finished, second.status) == (["long", "later"], 0)
    assert f"ready {reached}" in (tmp_path / "logs/long.log").read_text()


def test_jobs_run_side_by_side(tmp_path):
    """Two that each wait for the other's sign of life: one after the other they would never end."""
    code = """
import pathlib, sys, time
own, other = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
own.touch()
while not other.exists():
    time.sleep(0.02)
pathlib.Path(sys.argv[3]).touch()
"""

    def waiting_for(own, other):
        done = tmp_path / f"{own}.done"
        return Task(own, (sys.executable, "-c", code, str(tmp_path / own), str(tmp_path / other), str(done)), done)

    tasks = [waiting_for("x", "y"), waiting_for("y", "x")]
    assert run_slice(tasks[:1], tmp_path / "logs", seconds=1.0).stopped == ["x"]
    (tmp_path / "x").unlink()
    assert run_slice(tasks, tmp_path / "logs", seconds=30.0, jobs=2).status == 0


def test_a_task_that_fails_is_told_with_its_log_and_holds_up_no_other(tmp_path):
    broken = task(tmp_path, "broken", code="print('so far so good'); raise OSError('the disk is full')")
    idle = task(tmp_path, "idle", code="print('nothing to do')")
    told = []
    outcome = run_slice([broken, idle, task(tmp_path, "good")], tmp_path / "logs", say=told.append)
    assert (outcome.failed, outcome.finished, outcome.status) == (["broken", "idle"], ["good"], 1)
    assert any("broken: ended with status 1" in line and "OSError: the disk is full" in line for line in told)
    assert any("idle: ended, but left no" in line for line in told)


def test_a_task_that_does_not_end_when_asked_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "GRACE", 0.5)
    code = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(600)"
    began = time.monotonic()
    outcome = run_slice([task(tmp_path, "deaf", code=code)], tmp_path / "logs", seconds=1.0)
    assert outcome.stopped == ["deaf"]
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_end_it_passes_it_on_and_leaves_nobody_behind(tmp_path, number, status):
    code = f"""
import pathlib, sys
sys.path.insert(0, {os.getcwd()!r})
from benchmarks.slices import Task, run_slice
folder = pathlib.Path({str(tmp_path)!r})
command = ({sys.executable!r}, "-c", {COUNT!r}, str(folder / "long"), "2000", str(folder / "done"))
try:
    run_slice([Task("long", command, folder / "done")], folder / "logs")
except KeyboardInterrupt:
    sys.exit(130)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    until_started(tmp_path / "logs/long.log")
    process.send_signal(number)
    assert process.wait(60) == status
    assert 0 <= int((tmp_path / "long").read_text()) < 2000  # saved before it ended
