"""Long videos: a row for every so many seconds. Durations are read once, in processes that may hang or crash, and kept.

The cache folder's `durations/<digest of the rows>.json` holds a `Length` by row and by size and time of its file.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import multiprocessing.pool
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import distributed
from ..errors import log
from ..runs.files import write_atomically
from . import health
from .decode import DecodeError, open_row
from .loader import OPEN_SECONDS, hung, openers, own_cores
from .manifest import Video
from .synthetic import cache_folder

BYTES_PER_SECOND = 20_000_000  # allowed for a file beside OPEN_SECONDS: some containers are read as a whole once


class Length(NamedTuple):
    """Duration in seconds, and the part of the file in the row's own unit: [start, end) in seconds, or in frames."""

    seconds: float
    start: float
    end: float


def divide(videos: Sequence[Video], seconds_per_row: float, *, decoder: str) -> list[Video]:
    """Return the rows of each video or segment: equal parts of at least `seconds_per_row` seconds, one row if it is shorter.

    A file that cannot be read keeps its row, which training meets as unreadable. All ranks take what rank 0 reads.
    """
    lengths, *_ = distributed.gather_objects(read_lengths(videos, decoder) if distributed.rank() == 0 else [])
    rows = []
    for video, length in zip(videos, lengths, strict=True):
        count = int(length.seconds / seconds_per_row) if length else 0
        if length is None or count < 2:
            rows.append(video)
            continue
        cuts = [length.start + (length.end - length.start) * part / count for part in range(count + 1)]
        cuts = [float(int(cut)) if video.in_frames else round(cut, 6) for cut in cuts]
        rows += [video._replace(start=cuts[part], end=cuts[part + 1]) for part in range(count)]
    return rows


def read_lengths(videos: Sequence[Video], decoder: str) -> list[Length | None]:
    """Return the length of each row, None where its file cannot be read, hangs or crashes the decoder; those are named."""
    with multiprocessing.pool.ThreadPool(health.STAT_THREADS) as pool:  # slow on network disks
        stamps = pool.map(health.stamp, [video.path for video in videos])
    keys = [f"{video.name}\0{stamp}" for video, stamp in zip(videos, stamps, strict=True)]
    digest = hashlib.sha256("\0".join(video.name for video in videos).encode("utf-8", "surrogateescape")).hexdigest()[:20]
    path = cache_folder() / "durations" / f"{digest}.json"
    try:
        known = {key: Length(*map(float, value)) for key, value in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged
        known = {}
    missing = {key: video for key, video in zip(keys, videos, strict=True) if key not in known}
    if missing:
        log.info(f"reading the durations of {len(missing)} videos (once)")
        found, failed = _look_up(missing, decoder)
        known |= found
        for reason in failed[:5]:
            log.warning(f"no duration, so one row: {reason}")
        if len(failed) > 5:
            log.warning(f"no duration, so one row each: {len(failed) - 5} more")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(known))
        except OSError as error:
            log.warning(f"{path} cannot be written: {error.strerror}; durations are read again next time")
    return [known.get(key) for key in keys]


def _look_up(missing: dict[str, Video], decoder: str) -> tuple[dict[str, Length], list[str]]:
    """Return the lengths of the rows that can be read, and the reasons of the others."""
    found: dict[str, Length] = {}
    failed: list[str] = []
    left = list(missing.items())
    while left:
        # A new pool after each file that hangs: it would keep its process. Leaving the block ends them all.
        with openers(min(own_cores(), len(left))) as pool:
            answers: list[Any] = [pool.apply_async(_length, (video, decoder)) for _, video in left]
            for number, ((key, video), answer) in enumerate(zip(left, answers, strict=True)):
                limit = OPEN_SECONDS + _bytes(video.path) / BYTES_PER_SECOND
                try:
                    found[key] = answer.get(limit)
                except DecodeError as error:
                    failed.append(str(error))
                except multiprocessing.TimeoutError:
                    failed.append(hung(video, limit))
                    left = left[number + 1 :]
                    break
            else:
                left = []
    return found, failed


def _length(video: Video, decoder: str) -> Length:
    with open_row(video, decoder) as reader:
        seconds = float(reader.seconds)
        if video.in_frames:
            return Length(seconds, *map(float, reader.window(0, reader.seconds)))
        return Length(seconds, float(reader.begin), float(reader.begin + reader.seconds))


def _bytes(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0
