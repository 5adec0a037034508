"""The processes of a run on several devices: how they are started, how they watch over each other, and how they end.

A process that trains waits in every step for all the others, so one that died would leave them waiting for ever. Where mllt
starts the processes, the first one of each machine watches the others, they watch it, and what one of them has to say is told
once. Where torchrun or Slurm starts them, those do the watching.

Each run starts its own processes: those of a sweep's job end with it, and need not know of the sweep. Light to import.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

#: The time that names the folder of a run; processes that are started by a launcher share it.
STAMP = "MLLT_RUN_STAMP"
#: Exit status of a process that ended because it lost the others.
LOST = 69
#: Exit statuses of those that were asked to stop (SIGINT, SIGTERM): no failures; the first one may have a checkpoint to write.
ASKED = (130, 143)
#: Seconds that processes are given to end by themselves: after a failure, when the run is done, and when asked to stop.
AFTER_FAILURE, WHEN_DONE, WHEN_ASKED = 5.0, 60.0, 600.0

_ENVIRONMENT = ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")


class ProcessLostError(Exception):
    """Another process of the run failed, or cannot be reached any more.

    Args:
        message: what is known of it.
        status: for this process to exit with.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message, status)
        self.message, self.status = message, status

    def __str__(self) -> str:
        return self.message


# ------------------------------------------------------------------------------------------- what others have started


def launched_by() -> str | None:
    """Who started this process as one of several: "torchrun", "srun", or None: nobody, or mllt itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    several = os.environ.get("SLURM_NTASKS", "1") not in ("", "1") and "SLURM_PROCID" in os.environ
    return "srun" if several and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive") else None


def launched_processes() -> int:
    """How many processes the launcher has started, over all machines; 1 where there is none."""
    names = {"torchrun": "WORLD_SIZE", "srun": "SLURM_NTASKS", None: ""}
    return int(os.environ.get(names[launched_by()], "1"))


def is_first() -> bool:
    """Whether this is the first process of its run, before there is a trainer to ask: the one that prints and writes."""
    names = ("RANK",) if launched_by() == "torchrun" else ("SLURM_PROCID",) if launched_by() else ("NODE_RANK", "LOCAL_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


def run_stamp() -> str:
    """A name for the folder of a run that begins now, the same in all processes that a launcher has started.

    A time, to the millisecond: jobs that are started together must not share it. Processes of torchrun agree on it through
    torchrun's own store; those of Slurm take the numbers of their job and step.
    """
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]
    by = launched_by()
    if by == "torchrun" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed import TCPStore

        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        return store.compare_set(STAMP, "", now).decode()  # whoever comes first
    if by == "torchrun":
        return f"torchrun-{os.environ['TORCHELASTIC_RUN_ID']}"
    if by == "srun":
        return f"slurm-{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_STEP_ID', '0')}"
    return now


# ------------------------------------------------------------------------------------------------- what we start ourselves


class Processes:
    """The other processes of a run on this machine, of which this one is the first.

    Args:
        body: what each of them does: a function that can be pickled.
        args: its arguments.
        tell: from an error to exit status and text, for what went wrong in them.
    """

    def __init__(
        self, body: Callable[..., Any], args: tuple[Any, ...], tell: Callable[[BaseException], tuple[int, str]]
    ) -> None:
        self._body, self._args, self._tell = body, args, tell
        self._others: list[Any] = []
        self._channels: list[Connection] = []
        self._reports: dict[int, tuple[str, str]] = {}
        self._ended_by_us: set[int] = set()  # local ranks
        self._before: dict[str, str | None] = {}
        self._closing = threading.Event()

    def start(self, count: int) -> None:
        """Start the others, so that there are `count` processes on this machine; does nothing when they are there already."""
        if self._others or "LOCAL_RANK" in os.environ:
            return
        self._before = {name: os.environ.get(name) for name in _ENVIRONMENT}
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
        os.environ.setdefault("NODE_RANK", "0")
        context = multiprocessing.get_context("spawn")
        for rank in range(1, count):
            os.environ["LOCAL_RANK"] = str(rank)  # inherited
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_follow, args=(sender, self._body, self._args, self._tell))
            process.start()
            sender.close()
            self._others.append(process)
            self._channels.append(receiver)
        os.environ["LOCAL_RANK"] = "0"
        threading.Thread(target=self._watch, name="watch over processes", daemon=True).start()

    def close(self, patience: float) -> None:
        """Wait for the others to end, end those that do not, and leave this process as it was before it started them."""
        self._closing.set()
        deadline = time.monotonic() + patience
        for process in self._others:
            process.join(max(deadline - time.monotonic(), 0))
        self._end()
        if self._before:
            _leave_process_group()
            for name, value in self._before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def failures(self) -> dict[int, int]:
        """Exit statuses of those that failed, by local rank; negative for a signal's number."""
        codes = {rank: process.exitcode for rank, process in enumerate(self._others, start=1)}
        return {rank: code for rank, code in codes.items() if code}

    def culprits(self) -> dict[int, int]:
        """Of `failures`, those that did not fail because others had, nor were asked to end."""
        failures = {rank: code for rank, code in self.failures().items() if rank not in self._ended_by_us}
        return {rank: code for rank, code in failures.items() if code != LOST and code not in ASKED}

    def report(self, but: str = "") -> str:
        """What went wrong in those that failed by themselves, leaving out what is summed up as `but`."""
        self._read()
        told = []
        for rank, code in self.culprits().items():
            summary, text = self._reports.get(rank, ("", ""))
            if summary != but or not summary:
                told.append(
                    f"Process {rank + 1} of {len(self._others) + 1} {_how_ended(code)}" + (f"\n{text}" if text else ".")
                )
        return "\n".join(told)

    def status(self) -> int:
        """The exit status after a failure of the others: that of the first culprit (128 + n for signal n), else 1."""
        failed = list(self.culprits().values())
        return 1 if not failed else failed[0] if failed[0] > 0 else 128 - failed[0]

    def _read(self) -> None:
        for rank, channel in enumerate(self._channels, start=1):
            with contextlib.suppress(EOFError, OSError):
                if channel.poll():
                    self._reports[rank] = channel.recv()

    def _watch(self) -> None:
        """End this process too when another one failed, unless it comes to an end by itself."""
        deadline = math.inf
        while not self._closing.wait(0.5):
            failed = self.failures()
            if failed:
                patience = WHEN_ASKED if all(code in ASKED for code in failed.values()) else AFTER_FAILURE
                deadline = min(deadline, time.monotonic() + patience)
            if time.monotonic() > deadline:
                self._end()
                _say(self.report() or "Another process of the run has ended.")
                os._exit(self.status())

    def _end(self) -> None:
        # A process that waits for others in a collective hears no other signal
        self._read()
        for rank, process in enumerate(self._others, start=1):
            if process.is_alive():
                self._ended_by_us.add(rank)
                process.kill()
                process.join()


_current: Processes | None = None


@contextlib.contextmanager
def together(
    body: Callable[..., Any], args: tuple[Any, ...], tell: Callable[[BaseException], tuple[int, str]]
) -> Iterator[None]:
    """A job within which `start_others` can start the other processes of its run; they end with it.

    Args:
        body, args, tell: see `Processes`.

    Raises:
        ProcessLostError: one of them failed.
    """
    global _current
    others = _current = Processes(body, args, tell)
    try:
        yield
    except BaseException as error:
        mine = not lost_others(error)
        others.close(AFTER_FAILURE)
        report = others.report(but=_summary(error))
        if mine:
            _say(report)
            raise
        raise ProcessLostError(report or f"The connection to the other processes was lost: {error}", others.status()) from (
            None if report else error
        )
    else:
        others.close(WHEN_DONE)
        if others.culprits():
            raise ProcessLostError(others.report(), others.status())
    finally:
        _current = None


def start_others(count: int) -> None:
    """Start the other processes of this machine's part of the run, `count` with this one. Outside of a job Lightning does."""
    if _current is not None:
        _current.start(count)


def lost_others(error: BaseException) -> bool:
    """Whether an error only tells that another process of the run could not be reached."""
    by_type = type(error).__name__.startswith("Dist") and type(error).__module__.startswith("torch")
    words = ("gloo", "Connection closed by peer", "NCCL")
    return by_type or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def _follow(
    sender: Connection, body: Callable[..., Any], args: tuple[Any, ...], tell: Callable[[BaseException], tuple[int, str]]
) -> None:
    """What a process that was started by the first one does."""
    threading.Thread(target=_watch_first, name="watch over the first process", daemon=True).start()
    status = 0
    try:
        body(*args)
        _leave_process_group()
    except KeyboardInterrupt:
        status = 130
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        if lost_others(error):
            _first().join(1)  # if it is that one, `_watch_first` says so
            status = LOST
        else:
            status, text = tell(error)
            with contextlib.suppress(OSError):
                sender.send((_summary(error), text[-20_000:]))
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # at once: something may still wait for the others


def _first() -> Any:
    return multiprocessing.parent_process()


def _watch_first() -> None:
    """End this process when the first one has gone."""
    _first().join()
    if os.environ["LOCAL_RANK"] == "1":
        _say("The first process of the run has gone: the others end, too.")
    os._exit(LOST)


def _say(text: str) -> None:
    if text:
        sys.stderr.write(text + "\n")  # in one piece, since others may write, too
        sys.stderr.flush()


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _how_ended(code: int) -> str:
    if code > 0:
        return f"failed (exit status {code})"
    name = signal.Signals(-code).name
    hint = "; the system does so when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _leave_process_group() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
