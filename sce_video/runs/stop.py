"""Requests to stop a run: a signal, a file STOP in its folder, or the death of its parent process.

A request sets a flag. At the end of a step the ranks agree on it in a reduction that takes place anyway, save, and exit with
code 75 (see `errors.Preempted`), so that a batch script starts the same command again. Phases with nothing to save, such
as building the networks or the final test, stop at once.

The file STOP works where no signal arrives: below `torchrun`, by hand, over a network file system. The next start removes
it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from .. import distributed
from ..errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOP_FILE = "STOP"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent ends. Linux only; elsewhere it does nothing.

    parent: process id of the parent; if it ended before this call, the process exits at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number))
        if parent is not None and os.getppid() != parent:
            os._exit(1)


class StopRequest:
    """Receives requests to stop while entered; restores the previous signal handlers afterwards.

    folder: the folder that the user named; a file STOP in it is a request.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / STOP_FILE
        self.reason = ""  # empty: go on
        self._at_once = True
        self._forgotten = False
        self._before: dict[signal.Signals, Any] = {}
        self._parent = os.getppid()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers; the file works
            nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # such a run outlives its terminal
            taken = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
            self._before = {number: signal.signal(number, self._on_signal) for number in taken}
        if distributed.launched():  # a run below a shell may outlive it (nohup); below torchrun it would be an orphan
            die_with_parent(signal.SIGTERM)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        again = self.reason == name == "SIGINT" and not distributed.launched()  # torchrun itself repeats a Ctrl-C
        self.reason = self.reason or name
        if self._at_once or again:
            raise Preempted(name)
        if number == signal.SIGINT:  # not print: it may be what was interrupted
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once, back to the last checkpoint\n")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals in the block: they only set the flag that `asked` returns."""
        self._at_once = False
        try:
            yield
        finally:
            self._at_once = True

    def asked(self) -> bool:
        """Return whether this rank was asked to stop; rank 0 looks for the file."""
        if not self.reason and distributed.rank() == 0 and self.file.exists():
            self.reason = f"file {self.file}"
        if not self.reason and distributed.launched() and os.getppid() != self._parent:
            self.reason = "the process that started this one has died"
        return bool(self.reason)

    def forget_file(self) -> None:
        """Remove a STOP file left for an earlier start. Only the first call does: later files are new requests."""
        if not self._forgotten:
            self.file.unlink(missing_ok=True)
        self._forgotten = True

    def preempted(self, step: int) -> Preempted:
        """Return the exception that ends the run after `step` was saved."""
        return Preempted(f"{self.reason or 'another process was asked to stop'}: saved at step {step}")
