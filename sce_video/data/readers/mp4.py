"""What the header of an MP4 file says about orientation, without a decoder (ISO/IEC 14496-12: mvhd 8.2.2, tkhd 8.3.2).

A frame's rotation is known for sure once one is decoded. That costs as much as reading half a clip's frames from a small
video; nearly all files are upright, and these can be told by looking.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
# From the type of a header box to its matrix, by the box's version.
MATRIX_AT = {b"mvhd": {0: 40, 1: 52}, b"tkhd": {0: 44, 1: 56}}
LARGEST_HEADER = 16 << 20  # bytes; the headers of hours of video are smaller


def is_upright(path: str) -> bool:
    """Whether the header says that nothing is turned, mirrored or moved; False also where it cannot be understood."""
    with open(path, "rb") as file:
        header = _movie_header(file)
    found = False
    for kind, offsets in MATRIX_AT.items():
        position = header.find(kind)
        while position >= 0:
            # These four letters may stand elsewhere too; then the matrix is not one, and the answer no.
            offset = offsets.get(header[position + 4] if position + 4 < len(header) else -1)
            if offset is None or header[position + offset : position + offset + len(IDENTITY)] != IDENTITY:
                return False
            found = True
            position = header.find(kind, position + 4)
    return found


def _movie_header(file: BinaryIO) -> bytes:
    """Return the content of the first moov box, empty if there is none."""
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
