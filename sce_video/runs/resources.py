"""Memory and open files of a process and its children, from /proc (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def tree() -> list[int]:
    """Return the ids of this process and all its descendants; only its own without /proc."""
    found = [os.getpid()]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def used() -> dict[str, float]:
    """Return `rss_mb`, resident memory (what processes share counts for each of them), and `open_files`, of the tree."""
    pages = files = 0
    for pid in tree():
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            files += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue  # it has just ended, or there is no /proc
    return {"rss_mb": pages * _PAGE / 1e6, "open_files": float(files)}
