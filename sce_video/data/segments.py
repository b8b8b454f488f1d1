"""Segments of videos in lists: the columns `start,end`, and what is wrong with them.

| columns                 | unit                                                      |
|-------------------------|-----------------------------------------------------------|
| `start,end`             | seconds since the first frame                             |
| `time_start,time_end`   | the same, as in the tables of Kinetics                    |
| `start_frame,end_frame` | frames, the first is 0                                    |

A segment is [start, end): the frames whose time t has start <= t < end. An empty start is the video's beginning, an empty end
its end. `FrameReader.cut` says which segments a file can give.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from ..errors import InputError

SECONDS, KINETICS, FRAMES = ("start", "end"), ("time_start", "time_end"), ("start_frame", "end_frame")
COLUMNS = [name for pair in (SECONDS, KINETICS, FRAMES) for name in pair]
LIKE = {"start", "starts", "begin", "begins", "onset", "from", "end", "ends", "stop", "stops", "finish", "to"}
ADVICE = "the columns of segments are start,end or time_start,time_end in seconds, or start_frame,end_frame"


class Segment(NamedTuple):
    """[start, end) of a video, None: from its beginning, to its end; in seconds, or in frames from 0."""

    start: float | None = None
    end: float | None = None
    in_frames: bool = False

    def __bool__(self) -> bool:
        return self.start is not None or self.end is not None

    def __str__(self) -> str:
        low, high = (f"{value:.12g}" for value in (self.start or 0, math.inf if self.end is None else self.end))
        return f"[{'frames ' * self.in_frames}{low}, {high.replace('inf', 'end')})"


def check_columns(columns: Sequence[str], where: str) -> str:
    """Return a warning about columns that look like those of segments and are not read, "" without one.

    Raises InputError with `where` for a misspelt column, and for one that looks like the other half of a pair.
    """
    doubtful = []
    half = any((pair[0] in columns) != (pair[1] in columns) for pair in (SECONDS, KINETICS, FRAMES))
    for name in columns:
        if name in COLUMNS or name in ("path", "label"):
            continue
        letters = re.sub(r"[^a-z]", "", name.lower())
        meant = [known for known in COLUMNS if sorted(letters) == sorted(known.replace("_", ""))]
        like = LIKE & set(re.split(r"[^a-z]+", name.lower())) or get_close_matches(name.lower(), COLUMNS, 1, 0.84)
        if meant or (half and like):
            raise InputError(f"{where}: column {name!r} is not read: rename it to {' or '.join(meant) or 'what it is'}; {ADVICE}")
        doubtful += [name] if like else []
    return f"{where}: not read: {', '.join(doubtful)}; whole videos are taken: {ADVICE}" if doubtful else ""


def parse(row: Mapping[Any, Any], where: str) -> Segment:
    """Return the segment of a row by its columns; InputError with `where` for one that cannot be."""
    given = [pair for pair in (SECONDS, KINETICS, FRAMES) if any((row.get(name) or "").strip() for name in pair)]
    if not given:
        return Segment()
    if len(given) > 1:
        raise InputError(f"{where}: a segment in {','.join(given[0])} and in {','.join(given[1])}: leave one of them empty")
    (pair,) = given
    start, end = (_number(row.get(name) or "", name, pair is FRAMES, where) for name in pair)
    found = Segment(start, end, pair is FRAMES)
    if found.end is not None and (found.start or 0) >= found.end:
        raise InputError(f"{where}: the segment {found} ends before it starts: give [start, end) with start below end")
    return found


def _number(text: str, column: str, whole: bool, where: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value < 1e9) or (whole and not value.is_integer()):
        raise InputError(
            f"{where}: {column} {text!r} is not a {'whole number of frames' if whole else 'number of seconds'} from 0"
        )
    return value


def as_columns(segments: Iterable[Segment]) -> dict[str, list[str]]:
    """Return the columns of a list with these segments as text, "" where a row has none; {} if no row has one."""
    rows = list(segments)
    found = {}
    for (first, last), in_frames in ((SECONDS, False), (FRAMES, True)):
        own = [segment if segment and segment.in_frames == in_frames else Segment() for segment in rows]
        if any(own):
            found[first] = ["" if one.start is None else f"{one.start:.12g}" for one in own]
            found[last] = ["" if one.end is None else f"{one.end:.12g}" for one in own]
    return found
