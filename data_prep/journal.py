"""Files that survive kill -9 and a full disk: written whole under another name, or line by line with checksums."""

from __future__ import annotations

import csv
import io
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sce_video.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: nothing then keeps two runs of one shard apart
    fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]  # what a program finds out about one item: plain JSON values and the item's `id`


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there: under another name, flushed to the disk, renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def line_of(value: object) -> bytes:
    """Return a value as one line of JSON in ASCII, the same bytes for the same value; any file name survives it."""
    return json.dumps(value, sort_keys=True).encode() + b"\n"


def csv_bytes(columns: Iterable[str], rows: Sequence[Row]) -> bytes:
    """Return a table as a CSV file: a value that a row lacks is left empty, names keep the bytes that are no text."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = list(columns)
    writer.writerow(names)
    writer.writerows([["" if row.get(name) is None else row[name] for name in names] for row in rows])
    return text.getvalue().encode("utf-8", "surrogateescape")


class Journal:
    """Rows of a shard at work, for one process at a time.

    A line is `crc32 json`; what follows the last whole line is cut off on opening.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self.rows: list[Row] = []

    def __enter__(self) -> Journal:
        try:
            if fcntl is not None:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            raise InputError(f"{self.path}: another process is at this shard: let it finish or stop it") from error
        except OSError:
            pass  # a file system without locks
        end = 0
        with open(self.path, "rb") as file:
            for line in file:
                checksum, _, text = line.partition(b" ")
                if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
                    break
                self.rows.append(json.loads(text))
                end += len(line)
        os.ftruncate(self._handle, end)
        return self

    def append(self, row: Row) -> None:
        """Keep a row; it is in the operating system's hands when this returns, so kill -9 does not lose it."""
        text = line_of(row)
        line = b"%08x " % zlib.crc32(text) + text
        while line:  # a full disk takes a part of it first and fails then
            line = line[os.write(self._handle, line) :]

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
