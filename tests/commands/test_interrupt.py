"""Control-C: a real process, a real signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tests.commands.conftest import SMALL


def test_it_stops_with_status_130_and_says_how_to_go_on(tmp_path):
    run = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mllt.train", *SMALL, "trainer.max_epochs=100000", f"output_dir={run}"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "no checkpoint in two minutes"
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("Interrupted in epoch ")
    assert f"Go on by the same command with resume=auto output_dir={run}" in last
