"""Long work in short slices: commands that go on where they stopped, several at a time, until time is up.

Each command is started as often as it takes, is asked to end (SIGTERM) when the slice ends, and is done when it has left its
last file. Where machines are lent by the minute, a day of training is so many slices.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Seconds that a command may take to save and end after it was asked to; then it is killed, and goes on from an earlier save.
GRACE = 60.0
_LAST_LINES = 15  # of a log, in print


@dataclass(frozen=True)
class Task:
    """A command that goes on where it stopped.

    Args:
        name: in print, and of its log.
        command: what to type.
        done: the file that it leaves last.
    """

    name: str
    command: tuple[str, ...]
    done: Path

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.done.is_file()


@dataclass
class Outcome:
    """What came of a slice, by the names of tasks."""

    finished: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """An exit status: 0 when all is done, 1 when a task failed, 3 when there is more to do."""
        return 1 if self.failed else 3 if self.stopped or self.waiting else 0


def run_slice(
    tasks: Sequence[Task],
    logs: Path,
    seconds: float | None = None,
    jobs: int = 1,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Work on what is not done yet, in order, until all is done or the time is up.

    A task that fails does not hold up the others; it is tried again in the next slice.

    Args:
        tasks: with names that differ.
        logs: a folder; each task's output is put at the end of NAME.log.
        seconds: after which what is running is asked to end, the saving not counted; None: as long as it takes.
        jobs: how many run side by side.
        environment: of the commands; None: this process's.
        say: takes a line for each start and end.

    Raises:
        KeyboardInterrupt, SystemExit: asked to end (SIGINT, SIGTERM); the commands have been, too, and have ended.
    """
    began, outcome = time.monotonic(), Outcome()
    waiting = [task for task in tasks if not task.is_done]
    running: dict[str, tuple[Task, subprocess.Popen[bytes], float]] = {}
    logs.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, _as_exit)
    try:
        while running or waiting:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                say(f"{task.name}: starts")
                running[task.name] = (task, _start(task, logs, environment), time.monotonic())
            time.sleep(0.05)
            for name, (task, process, since) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    _note(task, process.returncode, time.monotonic() - since, logs, outcome, say)
            if seconds is not None and time.monotonic() - began >= seconds:
                break
    finally:
        for name in _end(running):
            outcome.stopped.append(name)
            say(f"{name}: stopped; it goes on in the next slice")
        signal.signal(signal.SIGTERM, before)
    for task, _, _ in running.values():
        if task.is_done:  # in its last moments
            outcome.stopped.remove(task.name)
            outcome.finished.append(task.name)
    outcome.waiting = [task.name for task in waiting]
    return outcome


def _as_exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _start(task: Task, logs: Path, environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    with (logs / f"{task.name.replace('/', '-')}.log").open("ab") as log:
        # Its own session: Control-C at the prompt reaches it through us, once
        return subprocess.Popen(
            task.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )


def _note(task: Task, status: int, seconds: float, logs: Path, outcome: Outcome, say: Callable[[str], None]) -> None:
    """Say how a command ended by itself."""
    if status == 0 and task.is_done:
        outcome.finished.append(task.name)
        say(f"{task.name}: done in {seconds:.0f} s")
        return
    outcome.failed.append(task.name)
    log = logs / f"{task.name.replace('/', '-')}.log"
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    why = f"ended with status {status}" if status else f"ended, but left no {task.done}"
    say("\n  ".join([f"{task.name}: {why}; the end of {log}:", *lines[-_LAST_LINES:]]))


def _end(running: Mapping[str, tuple[Task, subprocess.Popen[bytes], float]]) -> list[str]:
    """Ask commands to end, wait for it, and kill what does not; their names."""
    for _, process, _ in running.values():
        process.terminate()
    limit = time.monotonic() + GRACE
    for _, process, _ in running.values():
        try:
            process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return list(running)
