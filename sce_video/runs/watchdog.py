"""End a process whose step hangs: a dead link, a stopped machine, a stuck kernel.

A thread watches the clock, since the main thread may wait in a library forever. Other ranks time out too or lose their
partner; the launcher ends the rest.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

from .. import distributed
from ..errors import EXIT_UNEXPECTED
from .status import Status

GRACE_SECONDS = 20.0  # for saying where it stands: a disk that does not answer may be what the step waits for


class StepWatch:
    """Ends the process when a step takes more than `seconds`; dumps stacks to `debug/stack_rank<r>.txt` in the run folder."""

    def __init__(self, folder: Path, status: Status, seconds: float) -> None:
        self.folder = folder
        self.status = status
        self.seconds = seconds
        self._step = 0
        self._since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="step watch", daemon=True)

    def start(self) -> None:
        """Start the thread; nothing is timed before `at`."""
        self._thread.start()

    def end(self) -> None:
        """End the thread, if it was started."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def at(self, step: int) -> None:
        """Start the time limit of `step`."""
        self._step, self._since = step, time.monotonic()

    def pause(self) -> None:
        """Suspend the time limit, e.g. for an evaluation; the next step ends the pause."""
        self._since = None

    def _look(self) -> None:
        while not self._ended.wait(min(1.0, self.seconds / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self.seconds:
                self._leave()

    def _leave(self) -> None:
        last = threading.Timer(GRACE_SECONDS, os._exit, (EXIT_UNEXPECTED,))
        last.daemon = True
        last.start()
        rank = distributed.rank()
        path = self.folder / "debug" / f"stack_rank{rank}.txt"
        reason = f"step {self._step} has taken more than system.step_timeout ({self.seconds:g} s)"
        # Not the logger: the step that hangs may hold its lock.
        print(f"error: rank {rank}: {reason}; what it is doing is in {path}", file=sys.stderr, flush=True)
        try:
            path.parent.mkdir(exist_ok=True)  # the run folder is there since the run began
            with open(path, "w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            print(f"{path} cannot be written ({error.strerror}):", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(all_threads=True)
        self.status.failed(reason)
        os._exit(EXIT_UNEXPECTED)
