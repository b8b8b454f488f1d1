"""How a long run may end before its time: a full or read-only disk and Ctrl-C, told in one line, with what to do next."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sce_video.errors import InputError

AGAIN = "and run the same command again: what is done is kept"
ADVICE = {
    errno.ENOSPC: f"free some space {AGAIN}",
    errno.EDQUOT: f"free some space {AGAIN}",
    errno.EFBIG: f"raise the limit on the size of files (ulimit -f) {AGAIN}",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
}


@contextmanager
def told() -> Iterator[None]:
    """Turn what the disk refuses into InputError, and Ctrl-C into a line and exit code 130."""
    try:
        yield
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        name = printable(os.fsdecode(error.filename)) + ": " if error.filename else ""
        raise InputError(f"{name}{os.strerror(error.errno)}: {ADVICE[error.errno]}") from error
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def printable(text: str) -> str:
    """Return `text` on one line, with what no terminal or page should get as \\x escapes."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as Python keeps it in file names
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
