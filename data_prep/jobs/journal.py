"""The journal of a shard: rows appended line by line with checksums, so that kill -9 and a full disk lose none."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from sce_video.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: two runs of one shard at a time are not detected there
    fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]  # the results for one item: plain JSON values and the `id` of the item


def line_of(value: object) -> bytes:
    """Return a value as one line of ASCII JSON: the same bytes for the same value, and lossless for every file name."""
    return json.dumps(value, sort_keys=True).encode() + b"\n"


class Journal:
    """The finished rows of an unfinished shard, locked for one process.

    A line is `crc32 json`. Opening the journal truncates it after the last line with a valid checksum.
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
            pass  # this file system has no locks
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
        """Append a row. It has reached the operating system when this returns, so kill -9 does not lose it."""
        text = line_of(row)
        line = b"%08x " % zlib.crc32(text) + text
        while line:  # a nearly full disk writes a part first, and raises at the next call
            line = line[os.write(self._handle, line) :]

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
