"""One run per folder: a lock that the system releases when its holder dies.

On file systems without `flock` (some network ones) a file that is created exclusively and touched regularly replaces it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InputError, log

LOCK_FILE = ".lock"
PATIENCE_SECONDS = 10.0  # for the end of a run that was just stopped
STALE_SECONDS = 1800.0  # without flock: a lock this old belongs to nobody; longer than any evaluation between two steps
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > STALE_SECONDS


def _remove_old(path: Path) -> None:
    """Remove a lock that was found old. Another start may have found the same and have taken it over since: look again."""
    away = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    os.rename(path, away)  # only one of them gets this file
    if _is_old(away):
        log.warning(f"{path} is older than {STALE_SECONDS:.0f} s and is taken over")
    else:
        with suppress(FileExistsError):
            os.link(away, path)  # not rename: it would replace what a third one has made
    away.unlink()


class RunLock:
    """The lock on a run folder. `take` before the first write, `keep` now and then, `release` at the end."""

    def __init__(self, folder: Path, owner: dict[str, Any]) -> None:
        self.path = folder / LOCK_FILE
        self.owner = owner
        self._handle: int | None = None
        self._exclusive: Path | None = None  # the stand-in

    def take(self, patience: float = PATIENCE_SECONDS) -> None:
        """Take the lock. Raises InputError, naming the owner, if another run still has it after `patience` seconds."""
        deadline = time.monotonic() + patience
        while not self._taken():
            if time.monotonic() > deadline:
                raise InputError(
                    f"another run is going on in {self.path.parent} ({self._described()}): wait for its end, stop it, "
                    "or choose another out="
                )
            time.sleep(0.2)

    def keep(self) -> None:
        """Show that the holder lives, where that is not the system's business."""
        if self._exclusive is not None:
            os.utime(self._exclusive)

    def release(self) -> None:
        """Give the lock back; the file stays, for removing it would race with the next holder."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if self._exclusive is not None:
            self._exclusive.unlink(missing_ok=True)
            self._exclusive = None

    def _taken(self) -> bool:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError as error:
            os.close(handle)
            if error.errno not in _UNSUPPORTED:
                raise
            return self._taken_without_flock()
        os.truncate(handle, 0)
        os.write(handle, json.dumps(self.owner).encode())
        self._handle = handle
        return True

    def _taken_without_flock(self) -> bool:
        path = self.path.with_name(f"{LOCK_FILE}.held")
        with suppress(FileNotFoundError):
            if _is_old(path):
                _remove_old(path)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            json.dump(self.owner, file)
        self._exclusive = path
        return True

    def _described(self) -> str:
        for path in (self.path.with_name(f"{LOCK_FILE}.held"), self.path):
            try:
                return ", ".join(f"{name} {value}" for name, value in json.loads(path.read_text()).items() if value)
            except (OSError, ValueError):
                continue
        return "its owner is not known"
