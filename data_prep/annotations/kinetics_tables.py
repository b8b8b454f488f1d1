"""Read the published tables of Kinetics: one row per clip with YouTube id, first and last second, class and split.

label,youtube_id,time_start,time_end,split,is_cc
"air drumming",_axE99QAhe8,26,36,train,0

Kinetics-600 and -700 have no `is_cc`; test lists may have no `label`; an id may begin with - or _. Columns are found by
name.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sce_video.errors import InputError

COLUMNS = ("youtube_id", "time_start", "time_end", "split")
YOUTUBE_ID = r"[A-Za-z0-9_-]{11}"
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


class Clip(NamedTuple):
    """One row: seconds [start, end) of a video; `where` is `file:line`."""

    youtube_id: str
    start: int
    end: int
    split: str
    label: str | None
    where: str


def read_list(path: str | Path) -> list[Clip]:
    """Read one published table.

    Raises InputError with file:line for a missing column, a row of another length, an invalid id (spreadsheets change ids
    that begin with -), invalid seconds, or an unknown split.
    """
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{str(path)!r} is empty")
    where, header = first[0], [name.strip() for name in first[1]]
    lacking = [name for name in COLUMNS if name not in header]
    if lacking:
        raise InputError(f"{where}: the header is {header}, it must name {', '.join(lacking)} (and label, but for tests)")
    clips = []
    for where, row in rows:
        if len(row) != len(header):
            raise InputError(f"{where}: {len(row)} columns where the header has {len(header)}; quote values with commas")
        clips.append(_clip(dict(zip(header, row, strict=True)), where))
    if not clips:
        raise InputError(f"{str(path)!r} holds no row below its header")
    return clips


def _rows(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield `file:line`, where the row begins, and the values of the row."""
    start = 1
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if row:
                    yield f"{path}:{start}", row
                start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{start}: {error}; the row that begins here is no CSV") from error
    except OSError as error:
        raise InputError(f"cannot read the list {str(path)!r}: {os.strerror(error.errno or 0)}") from error


def _clip(row: dict[str, str], where: str) -> Clip:
    name = row["youtube_id"]
    if not re.fullmatch(YOUTUBE_ID, name):
        raise InputError(f"{where}: youtube_id {name!r} is not 11 letters, digits, - or _ (did a spreadsheet change it?)")
    seconds = []
    for column in ("time_start", "time_end"):
        if not re.fullmatch(r"\d{1,6}(\.0+)?", row[column].strip()):
            raise InputError(f"{where}: {column} {row[column]!r} is not a whole number of seconds from 0 to 999999")
        seconds.append(int(float(row[column])))
    if seconds[0] >= seconds[1]:
        raise InputError(f"{where}: the clip ends at {seconds[1]} s, which is not after its start at {seconds[0]} s")
    split = SPLITS.get(row["split"].strip().lower())
    if split is None:
        raise InputError(f"{where}: split {row['split']!r} is not one of {', '.join(SPLITS)}")
    if "\0" in row.get("label", ""):
        raise InputError(f"{where}: NUL bytes in the label: save the list as UTF-8")
    return Clip(name, seconds[0], seconds[1], split, row.get("label", "").strip() or None, where)


def take_once(clips: Iterable[Clip]) -> tuple[list[Clip], list[str]]:
    """Return the clips without repeated rows, and a sentence about the repeated rows if there are any.

    Raises InputError if two rows of one split give one clip different classes.
    """
    kept: dict[tuple[str, int, int, str], Clip] = {}
    repeated = []
    for clip in clips:
        first = kept.setdefault(clip[:4], clip)
        if first is clip:
            continue
        if first.label != clip.label:
            raise InputError(
                f"{clip.where}: {clip.youtube_id} is {clip.label!r} here and {first.label!r} at {first.where}; "
                "a clip has one class: remove one of the rows"
            )
        repeated.append(f"{clip.where} repeats {first.where}")
    note = [f"{len(repeated)} rows are written twice and were taken once, e.g. {repeated[0]}"] if repeated else []
    return list(kept.values()), note


def refuse_shared(clips: Iterable[Clip]) -> None:
    """Raise InputError if the same seconds of a video are in two splits."""
    first: dict[tuple[str, int, int], Clip] = {}
    for clip in clips:
        other = first.setdefault(clip[:3], clip)
        if other.split != clip.split:
            raise InputError(
                f"{clip.where}: {clip.youtube_id} is {clip.split} here and {other.split} at {other.where}; "
                "a clip belongs to one split: remove one of the rows"
            )
