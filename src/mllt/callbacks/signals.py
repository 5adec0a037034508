"""Signals that ask a run to end: noted when they come, obeyed where the run can be gone on from."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

#: Slurm sends it some time before it ends a job, where asked to (`--signal=USR1@90`).
NOTICE = getattr(signal, "SIGUSR1", None)


class Stopped(SystemExit):
    """A run was asked to end, and has ended where it can be gone on from.

    `code` is the exit status, 128 + the number of the signal as shells tell it: 130 for Control-C, 143 for SIGTERM and for
    Slurm's notice. `where` says how far the run was and how it goes on.
    """

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(128 + int(signal.SIGTERM if number == NOTICE else number))
        self.number, self.where = number, where

    def __str__(self) -> str:
        return f"by {signal.Signals(self.number).name}{self.where}"


class StopSignals:
    """Notes the first SIGINT, SIGTERM or notice of Slurm; a second SIGINT or SIGTERM ends the process at once.

    An exception that Python raises wherever it happens to be may be lost there (in a destructor, say), or leave half a file.
    Signals can be caught in the main thread only; elsewhere this does nothing. Whoever handles Slurm's notice already, such
    as a launcher of sweeps, is left to it.
    """

    def __init__(self) -> None:
        #: the signal that came first; 0: none
        self.asked = 0
        self._before: dict[int, Any] = {}

    def catch(self) -> None:
        """From now on, note signals (again, where somebody else has taken them meanwhile)."""
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if NOTICE is not None and "SLURM_JOB_ID" in os.environ and signal.getsignal(NOTICE) in (signal.SIG_DFL, self._note):
            numbers.append(NOTICE)
        for number in numbers:
            before = signal.signal(number, self._note)
            if before != self._note:
                self._before.setdefault(number, before)

    def restore(self) -> None:
        """Let signals be as they were."""
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        if self.asked and number != NOTICE:
            raise Stopped(number, " before what was begun is saved")
        self.asked = self.asked or number
