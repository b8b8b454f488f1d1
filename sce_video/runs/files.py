"""Files that survive kills and full disks: append-only ones, and ones that are replaced atomically."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..errors import log, printable

T = TypeVar("T")

HICCUPS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET)
WAITS_SECONDS = (1.0, 10.0)


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it replaces `path` when the block ends, and is removed after an error."""
    work = path.with_name(f".writing_{os.getpid()}_{path.name}")
    try:
        yield work
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes, *, flush: bool = False) -> None:
    """Write a whole file, text as UTF-8: readers find the old content or the new one. flush: survive a power cut too.

    Raises OSError, e.g. on a full disk.
    """
    with replace_atomically(path) as work, open(work, "wb") as file:
        file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
        if flush:
            file.flush()
            os.fsync(file.fileno())
    if flush:
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically. Control characters become \\x escapes: people print such reports."""
    text = io.StringIO()
    csv.writer(text).writerow(header)
    for row in rows:
        odd = (isinstance(cell, str) and re.search(r"[\x00-\x1f\x7f-\x9f]", cell) for cell in row)
        csv.writer(text).writerow([printable(cell) if is_odd else cell for cell, is_odd in zip(row, odd, strict=True)])
    write_atomically(path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file that `write_rows` wrote; empty without one."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def to_json(value: Any, indent: int | None = 2) -> str:
    """Return JSON text with names as they are; only bytes of file names that are not UTF-8 become escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


class AppendFile:
    """A text file that grows by whole lines; several processes may append to it.

    A full disk does not end the run: lines that cannot be written stay in memory until the next call. Each line is written
    completely or not at all; after a kill or a full disk the file continues on a new line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = b""  # what could not be written yet

    def add(self, line: str) -> None:
        """Append a line after the waiting ones. On failure warn once, and try again with the next line."""
        warned = bool(self._waiting)
        self._waiting += line.encode(errors="surrogateescape") + b"\n"
        try:
            _append(self.path, self._waiting)
            self._waiting = b""
        except OSError as error:
            if not warned:
                log.warning(f"{self.path} cannot be written: {error.strerror}; its lines wait for room")


def _append(path: Path, content: bytes) -> None:
    """Append all of `content` or nothing. Raises OSError."""
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


def retry_io(action: Callable[[], T], what: str, waits: Sequence[float] = WAITS_SECONDS) -> T:
    """Call `action` and return its result; after a transient error of the file system wait and retry, len(waits) times.

    Raises any other OSError, and the last transient one.
    """
    for wait in waits:
        try:
            return action()
        except OSError as error:
            if error.errno not in HICCUPS:
                raise
            log.warning(f"{what}: {error.strerror}; trying again in {wait:g} s")
            time.sleep(wait)
    return action()
