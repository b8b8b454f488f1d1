"""The entries of published lists: read text lines with their numbers, check paths, remove repeated rows.

Lists are untrusted text: a path outside the folder of the videos is refused, whether the file exists or not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sce_video.data.segments import Segment
from sce_video.errors import InputError

SPACE = " \t\r\n"
LONGEST_LINE = 20_000  # characters; a path has at most 4,096 bytes


class Entry(NamedTuple):
    """A row of a list: path relative to the folder of the videos, class or None, `file:line` for messages, and segment."""

    name: str
    label: str | None
    where: str
    segment: Segment = Segment()


def lines_of(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield (`file:line`, text) of each line that is not blank.

    Accepts every kind of line end, a byte order mark, and bytes that are not UTF-8. Raises InputError if the file cannot be
    read or is not plain text (NUL bytes, as in UTF-16).
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                if len(line) > LONGEST_LINE:
                    raise InputError(f"{where}: a line of {len(line):,} characters: this is no list of videos")
                if "\0" in line:
                    raise InputError(f"{where}: NUL bytes: not a list in plain text; save it as UTF-8")
                if line.strip(SPACE):
                    yield where, line.strip(SPACE)
    except OSError as error:
        raise InputError(f"cannot read the list {str(path)!r}: {os.strerror(error.errno or 0)}") from error


def inside(name: str, root: str | Path, where: str) -> str:
    """Return `name` as a normalised path relative to `root`; an absolute path must lie below `root`.

    Raises InputError, with `where`, for URLs, decoder protocols, and paths outside `root`.
    """
    if not name or "\0" in name or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", name):
        raise InputError(f"{where}: {name!r} is not a file path; write ./ before a file's name")
    base = os.path.abspath(root)
    relative = os.path.relpath(os.path.normpath(os.path.join(base, name)), base)
    if relative == ".." or relative.startswith("../"):
        raise InputError(f"{where}: {name!r} leads out of {base!r}: give as --videos a folder that holds every video")
    return relative


def unique(entries: Iterable[Entry]) -> tuple[list[Entry], str | None]:
    """Return the entries without repeated names and segments, and a sentence about the repeated rows or None.

    Raises InputError if two rows give one video different classes.
    """
    kept: dict[tuple[str, Segment], Entry] = {}
    repeated = []
    for entry in entries:
        first = kept.setdefault((entry.name, entry.segment), entry)
        if first is entry:
            continue
        if first.label != entry.label:
            raise InputError(
                f"{entry.where}: {entry.name!r} has class {entry.label!r} here and {first.label!r} at {first.where}; "
                "a video has one class: remove one of the rows"
            )
        repeated.append(f"{entry.where} repeats {first.where}")
    note = f"{len(repeated)} rows are written twice and were taken once, e.g. {repeated[0]}" if repeated else None
    return list(kept.values()), note


def refuse_shared(train: Iterable[Entry], test: Iterable[Entry]) -> None:
    """Raise InputError if a video is in both lists."""
    places = {entry.name: entry.where for entry in train}
    for entry in test:
        if entry.name in places:
            raise InputError(
                f"{entry.where}: {entry.name!r} is in the train list too ({places[entry.name]}): "
                "a result on it would mean nothing; take the lists from the data set's own page"
            )
