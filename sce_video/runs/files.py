"""Files that a run adds lines to: its logs, and what it met. A full disk must not end a run that could go on.

What does not fit waits in memory for the next line. Every line is there as a whole or not at all; after a kill, or a
full disk, the file goes on in a line of its own.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

HICCUPS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET)
WAITS_SECONDS = (1.0, 10.0)


class Lines:
    """A text file that grows by whole lines; several processes may add to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = b""  # what could not be written yet

    def add(self, line: str) -> None:
        """Append a line, after those that wait. Where that fails it is told once, and tried again with the next line."""
        told = bool(self._waiting)
        self._waiting += line.encode(errors="surrogateescape") + b"\n"
        try:
            _append(self.path, self._waiting)
            self._waiting = b""
        except OSError as error:
            if not told:
                print(
                    f"warning: {self.path} cannot be written: {error.strerror}; its lines wait for room",
                    file=sys.stderr,
                )


def _append(path: Path, content: bytes) -> None:
    """Append all of `content` or nothing of it. Raises OSError."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            content = b"\n" + content  # a kill has cut off the last line
        try:
            while content:
                content = content[os.write(handle, content) :]
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def retried(action: Callable[[], T], what: str, waits: Sequence[float] = WAITS_SECONDS) -> T:
    """Return what `action` returns; after a hiccup of the file system wait and call it again, len(waits) times at most.

    Any other OSError, and the last hiccup, is raised as it is.
    """
    for wait in waits:
        try:
            return action()
        except OSError as error:
            if error.errno not in HICCUPS:
                raise
            print(f"warning: {what}: {error.strerror}; trying again in {wait:g} s", file=sys.stderr)
            time.sleep(wait)
    return action()
