"""Network file systems have hiccups: the same call works a second later."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

HICCUPS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET)
WAITS_SECONDS = (1.0, 10.0)


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
