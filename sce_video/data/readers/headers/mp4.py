"""Read an MP4 header without a decoder (ISO/IEC 14496-12): orientation, encryption and presentation times.

The header shows that a video is upright (mvhd 8.2.2, tkhd 8.3.2), and in which order and at which times its frames are
presented (ctts 8.6.1.3). Learning that from the packets means reading the whole file.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
# Offset of the matrix from a header box's type, by the box's version.
MATRIX_AT = {b"mvhd": {0: 40, 1: 52}, b"tkhd": {0: 44, 1: 56}}
LARGEST_HEADER = 16 << 20  # bytes; hours of video have smaller headers
MOST_BOXES = 10_000  # searched for the header
ENCRYPTED = re.compile(rb"stsd.{12}encv", re.DOTALL)  # in headers of encrypted video: the first sample entry's type


def read_header(path: str) -> bytes:
    """Return the content of the first moov box, at most LARGEST_HEADER bytes; empty if there is none."""
    with open(path, "rb") as file:
        end, position = os.fstat(file.fileno()).st_size, 0
        for _ in range(MOST_BOXES):
            file.seek(position)
            size, kind, wide = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
            header_bytes = 16 if size == 1 else 8
            size = {0: end - position, 1: wide}.get(size, size)  # to the end of the file, or as 64 bits
            if size < header_bytes or position + header_bytes > end:
                break
            if kind == b"moov":
                file.seek(position + header_bytes)
                return file.read(min(size - header_bytes, LARGEST_HEADER))
            position += size
    return b""


def is_upright(header: bytes) -> bool:
    """Return whether the header excludes rotation, mirroring and translation; False if it cannot be parsed."""
    found = False
    for kind, offsets in MATRIX_AT.items():
        position = header.find(kind)
        while position >= 0:
            # These four letters may occur elsewhere too; then the bytes are no identity matrix and the result is False.
            offset = offsets.get(header[position + 4] if position + 4 < len(header) else -1)
            if offset is None or header[position + offset : position + offset + len(IDENTITY)] != IDENTITY:
                return False
            found = True
            position = header.find(kind, position + 4)
    return found


def composition_offsets(header: bytes, track: int, count: int) -> NDArray[np.int64] | None:
    """Return pts - dts of the `count` samples of a track, up to a constant: int64 [count]; None if it cannot be parsed.

    track: its track_ID, which FFmpeg gives as the stream's id.
    """
    for kind, start, end in _boxes(header, 0, len(header)):
        about = _find(header, start, end, b"tkhd") if kind == b"trak" else None
        number_at = (
            0 if about is None else about[0] + (20 if header[about[0] : about[0] + 1] != b"\0" else 12)
        )  # version 1 has 64-bit times
        if about is None or int.from_bytes(header[number_at : number_at + 4], "big") != track:
            continue
        table = _find(header, start, end, b"mdia", b"minf", b"stbl")
        interval = table and _find(header, *table, b"ctts")
        if interval is None:
            return None if table is None else np.zeros(count, dtype=np.int64)
        entries = int.from_bytes(header[interval[0] + 4 : interval[0] + 8], "big")
        if interval[1] - interval[0] < 8 + 8 * entries:
            return None
        pairs = np.frombuffer(header, dtype=">i4", count=2 * entries, offset=interval[0] + 8).reshape(-1, 2)
        runs, offsets = pairs.T.astype(np.int64)
        return np.repeat(offsets, runs) if (runs >= 0).all() and runs.sum() == count else None
    return None


def _find(data: bytes, start: int, end: int, *kinds: bytes) -> tuple[int, int] | None:
    """Return the interval of the content of the first box of these nested kinds."""
    for kind in kinds:
        start, end = next(((first, last) for name, first, last in _boxes(data, start, end) if name == kind), (0, 0))
    return (start, end) if end else None


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of the content of each box in data[start:end]."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > end:  # boxes of tracks are smaller than 4 GiB
            return
        yield kind, start + 8, start + size
        start += size
