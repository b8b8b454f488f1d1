"""Read the orientation from an MP4 header without a decoder (ISO/IEC 14496-12: mvhd 8.2.2, tkhd 8.3.2).

Decoding a frame gives its rotation but costs as much as reading half a clip from a small video. Nearly all files are
upright, which the header shows.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
# Offset of the matrix from a header box's type, by the box's version.
MATRIX_AT = {b"mvhd": {0: 40, 1: 52}, b"tkhd": {0: 44, 1: 56}}
LARGEST_HEADER = 16 << 20  # bytes; hours of video have smaller headers


def is_upright(path: str) -> bool:
    """Return whether the header excludes rotation, mirroring and translation; False if it cannot be parsed."""
    with open(path, "rb") as file:
        header = _read_movie_header(file)
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


def _read_movie_header(file: BinaryIO) -> bytes:
    """Return the content of the first moov box, at most LARGEST_HEADER bytes; empty if there is none."""
    end = os.fstat(file.fileno()).st_size
    position = 0
    while position + 8 <= end:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        if size == 1:  # the size follows, as 64 bits
            wide = file.read(8)
            size = struct.unpack(">Q", wide)[0] if len(wide) == 8 else 0
        elif size == 0:  # to the end of the file
            size = end - position
        if kind == b"moov":
            return file.read(min(size, LARGEST_HEADER))
        if size < 8:
            break
        position += size
    return b""
