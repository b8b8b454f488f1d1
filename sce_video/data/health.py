"""What `data_prep/doctor.py` found, for training and evaluation: what is broken is known before anything is opened.

The doctor's health.csv has a row per file with its status, and with its bytes and time of change, by which a row is known
to hold still. A file that changed since, or that the doctor has not seen, counts as not looked at. Nothing is opened here.
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
UNREADABLE = ("no video stream", "unreadable", "not a video", "hang", "refused")  # nothing can be read of it
BAD = (*UNREADABLE, "truncated")  # not trained on; what is sound of a truncated one may be evaluated
LOOKS_AT_ONCE = (
    16  # files whose size and time are asked for at the same time: on network disks the answer takes a while
)


class Stamp(NamedTuple):
    """What tells that a video is still the same: its bytes and its time of change, in nanoseconds."""

    bytes: int
    changed_ns: int


def stamp(path: str) -> Stamp | None:
    """Return the stamp of a file, or of all files in a folder of pictures (and of the folder); None if nothing is there."""
    try:
        about = os.stat(path)
        if not os.path.isdir(path):
            return Stamp(about.st_size, about.st_mtime_ns)
        with os.scandir(path) as entries:
            each = [entry.stat() for entry in entries]
    except OSError:
        return None
    return Stamp(sum(one.st_size for one in each), max([about.st_mtime_ns, *(one.st_mtime_ns for one in each)]))


def find(source: str, choice: str) -> Path | None:
    """Return the table to read for a list of videos, None for none.

    choice: `auto` (health.csv beside the list, as the doctor's clean.csv has it), `none`, a health.csv or its folder.
    Raises InputError if a table was asked for by name and is not there.
    """
    if choice == "none":
        return None
    if choice == "auto":
        beside = Path(source).parent / TABLE
        return beside if beside.is_file() and not Path(source).is_dir() else None
    path = Path(choice) / TABLE if Path(choice).is_dir() else Path(choice)
    if not path.is_file():
        raise InputError(
            f"health {choice!r} is no table of data_prep/doctor.py: give its health.csv, its folder, or none"
        )
    return path


def marked(videos: Sequence[Video], table: Path) -> list[Video]:
    """Return the videos with their `health` from the table, "" where it has no row or the file has changed since.

    Raises InputError for a file that is no such table.
    """
    rows = _read(table)
    known = [rows.get(os.path.normpath(video.path)) for video in videos]
    wanted = [video.path for video, row in zip(videos, known, strict=True) if row is not None]
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        stamps = dict(zip(wanted, pool.map(stamp, wanted), strict=True))
    return [
        video._replace(health=row[0] if row is not None and row[1] == stamps[video.path] else "")
        for video, row in zip(videos, known, strict=True)
    ]


def status_of(video: Video) -> str:
    """Return the doctor's status, without the reason; "" if there is none."""
    return video.health.partition(":")[0]


def sound(videos: Sequence[Video]) -> list[Video]:
    """Return the videos that may be trained on: all but those that the doctor found broken."""
    return [video for video in videos if status_of(video) not in BAD]


def sentence(videos: Sequence[Video], table: Path, *, dropped: bool) -> str:
    """Return what the table says about these videos, for the log."""
    counts = Counter(map(status_of, videos))
    bad = {name: counts[name] for name in (BAD if dropped else UNREADABLE) if counts[name]}
    told = f" ({', '.join(f'{count} {name}' for name, count in bad.items())})" if bad else ""
    verb = "left out" if dropped else "not opened"
    text = f"{table}: {sum(bad.values())} of {len(videos)} videos {verb}{told}"
    if counts[""]:
        text += f"; {counts['']} are not in it or have changed since: run data_prep/doctor.py to know about them"
    return text


def _read(table: Path) -> dict[str, tuple[str, Stamp]]:
    """Return (`status` or `status: reason`, stamp) by path."""
    rows = {}
    try:
        with open(table, newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                if not row["bytes"]:  # the doctor found nothing there
                    continue
                health = f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]
                rows[row["path"]] = health, Stamp(int(row["bytes"]), int(row["changed_ns"]))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"{table} is no table of data_prep/doctor.py ({error!r}): run it again, or give none"
        ) from error
    return rows
