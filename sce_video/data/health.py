"""Results of `data_prep/doctor.py`: training and evaluation skip broken videos without opening them.

The doctor's health.csv has one row per file: its status, its size in bytes and its modification time. A row is valid
while size and time are unchanged; other files count as not examined. No file is opened here.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .manifest import Video

TABLE = "health.csv"
UNREADABLE = ("no video stream", "unreadable", "not a video", "hang", "refused")  # no frame can be read
BAD = (*UNREADABLE, "truncated")  # excluded from training; evaluation may use the intact part of a truncated video
STAT_THREADS = 16  # os.stat is slow on network disks


class Stamp(NamedTuple):
    """Size in bytes and modification time in nanoseconds: equal stamps mean an unchanged file."""

    bytes: int
    changed_ns: int


def stamp(path: str) -> Stamp | None:
    """Return the stamp of a file, or of a folder with its pictures (total size, latest time); None if it is missing."""
    try:
        info = os.stat(path)
        if not os.path.isdir(path):
            return Stamp(info.st_size, info.st_mtime_ns)
        with os.scandir(path) as entries:
            files = [entry.stat() for entry in entries]
    except OSError:
        return None
    return Stamp(sum(file.st_size for file in files), max([info.st_mtime_ns, *(file.st_mtime_ns for file in files)]))


def find(source: str, choice: str) -> Path | None:
    """Return the path of the health table of a list of videos, None if there is none.

    choice: `auto` (health.csv beside the list, where the doctor writes clean.csv), `none`, a health.csv or its folder.
    Raises InputError if a table given by path does not exist.
    """
    if choice == "none":
        return None
    if choice == "auto":
        beside = Path(source).parent / TABLE
        return beside if beside.is_file() and not Path(source).is_dir() else None
    path = Path(choice) / TABLE if Path(choice).is_dir() else Path(choice)
    if not path.is_file():
        raise InputError(f"health {choice!r} is no table of data_prep/doctor.py: give its health.csv, its folder, or none")
    return path


def add_health(videos: Sequence[Video], table: Path) -> list[Video]:
    """Return the videos with their health from the table, "" without a valid row; raise InputError for another file."""
    table_rows = _read(table)
    rows = [table_rows.get(os.path.normpath(video.path)) for video in videos]
    paths = [video.path for video, row in zip(videos, rows, strict=True) if row is not None]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        stamps = dict(zip(paths, pool.map(stamp, paths), strict=True))
    return [
        video._replace(health=row[0] if row is not None and row[1] == stamps[video.path] else "")
        for video, row in zip(videos, rows, strict=True)
    ]


def status_of(video: Video) -> str:
    """Return the doctor's status without the reason, "" if there is none."""
    return video.health.partition(":")[0]


def drop_bad(videos: Sequence[Video]) -> list[Video]:
    """Return the videos to train on: all whose status is not in BAD."""
    return [video for video in videos if status_of(video) not in BAD]


def summarize(videos: Sequence[Video], table: Path, *, dropped: bool) -> str:
    """Return a sentence for the log: how many of the videos are skipped, by status, and how many have no status."""
    counts = Counter(map(status_of, videos))
    bad = {name: counts[name] for name in (BAD if dropped else UNREADABLE) if counts[name]}
    by_status = f" ({', '.join(f'{count} {name}' for name, count in bad.items())})" if bad else ""
    verb = "left out" if dropped else "not opened"
    text = f"{table}: {sum(bad.values())} of {len(videos)} videos {verb}{by_status}"
    if counts[""]:
        text += f"; {counts['']} are not in it or have changed since: run data_prep/doctor.py to know about them"
    return text


def _read(table: Path) -> dict[str, tuple[str, Stamp]]:
    """Return (`status` or `status: reason`, stamp) by path."""
    rows = {}
    try:
        with open(table, newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                if not row["bytes"]:  # the doctor found no file
                    continue
                health = f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]
                rows[row["path"]] = health, Stamp(int(row["bytes"]), int(row["changed_ns"]))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{table} is no table of data_prep/doctor.py ({error!r}): run it again, or give none") from error
    return rows
