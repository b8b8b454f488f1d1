"""`status.json`: the state of a run, or how it ended, for batch scripts and people.

    {"status": "preempted", "exit_code": 75, "step": 1200, "total_steps": 90000, "start_step": 800, "restarts": 3,
     "reason": "SIGUSR2: saved at step 1200", "host": "node17", "pid": 4711, "job": "815", "started": ..., "time": ...}

status       exit_code
running      null   and if no such process lives: it was killed; start the same command again
completed    0
preempted    75     asked to stop, and saved: start the same command again
failed       70     options, data or the training itself: the same would happen again
failed       1      anything else, e.g. a dead machine: may be started again while `step` gets ahead of `start_step`

Rank 0 writes it atomically. A start that is refused before it has a run folder writes nothing.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import distributed
from ..errors import EXIT_UNEXPECTED, exit_code, log
from .files import write_atomically

STATUS_FILE = "status.json"
SECONDS = 5.0  # between two updates while the run is going


def now() -> str:
    """Return the time as ISO 8601 with the zone, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of `status.json` in `folder`; empty if there is none or it is damaged."""
    try:
        content: dict[str, Any] = json.loads((folder / STATUS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return content


def owner() -> dict[str, Any]:
    """Return the host, pid and batch job of this process."""
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job}


class Status:
    """Maintains `status.json` from `begin` on; leaving the context manager writes how the run ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = {}
        self._written = 0.0

    def begin(self, step: int | None = None, total_steps: int | None = None) -> None:
        """Write `running`. The folder must exist. Called first when the folder is known, again when the step is."""
        if not self.record:
            before = read_status(self.folder)
            restarts = before["restarts"] + 1 if "restarts" in before else 0
            self.record = {"restarts": restarts, **owner(), "started": now()}
        self.record |= {"step": step, "start_step": step, "total_steps": total_steps}
        self._write("running", None, "")

    def at(self, step: int) -> bool:
        """Note that `step` steps are done; write it every few seconds. Return whether it was written."""
        self.record["step"] = step
        due = time.monotonic() - self._written > SECONDS
        if due:
            self._write("running", None, "")
        return due

    def __enter__(self) -> Status:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.record:
            return
        code = 0 if error is None else exit_code(error)
        state = {0: "completed", 75: "preempted"}.get(code, "failed")
        name = f"{type(error).__name__}: " if code == EXIT_UNEXPECTED else ""
        self._write(state, code, f"{name}{error}" if error is not None else "")

    def failed(self, reason: str) -> None:
        """Write that the run failed without an exception."""
        self._write("failed", EXIT_UNEXPECTED, reason)

    def _write(self, state: str, code: int | None, reason: str) -> None:
        if distributed.rank() != 0:
            return
        self._written = time.monotonic()
        content = {"status": state, "exit_code": code, "reason": reason, **self.record, "time": now()}
        try:
            write_atomically(self.folder / STATUS_FILE, json.dumps(content, indent=2) + "\n")
        except OSError as error:  # a full disk must not end a run that could go on
            log.warning(f"{self.folder / STATUS_FILE} cannot be written: {error.strerror}")
