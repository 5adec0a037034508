"""What the processes of tests/test_launch.py do. As a program: `toy_processes.py HOW FOLDER`, a first process that hangs."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from mllt import launch
from mllt.errors import ArgumentError


def body(how, folder):
    """Leave a file named by the process, then end in some way."""
    Path(folder, str(os.getpid())).write_text(os.environ["LOCAL_RANK"])
    if how == "fault":
        raise ZeroDivisionError("nobody thought of it")
    if how == "mistake":
        raise ArgumentError("the rate must be above 0")
    if how == "lost":
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "one of two":
        how = "fault" if os.environ["LOCAL_RANK"] == "2" else "lost"
        time.sleep(1.0 if how == "fault" else 0.0)
        body(how, folder)
    if how == "stuck":  # as in a collective that the others never come to
        time.sleep(600)


def tell(error):
    return 3, f"Told: {error}"


def main(how, folder):
    with launch.together(body, (how, folder), tell):
        launch.start_others(3)
        Path(folder, "started").touch()
        time.sleep(600)


if __name__ == "__main__":
    launch.AFTER_FAILURE = 0.5
    main(*sys.argv[1:])
