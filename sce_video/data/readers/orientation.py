"""The orientation of a video: the quarter turns and mirrors that its display matrix describes.

FFmpeg attaches the matrix (a b u; c d v; x y w) to decoded frames, whether it comes from the container or from an H.264
message. It moves the pixel at column p and row q to column a p + c q + x and row b p + d q + y.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np


class Orientation(NamedTuple):
    """Whether to exchange rows and columns, and then to mirror left to right and top to bottom."""

    transpose: bool = False
    flip_columns: bool = False
    flip_rows: bool = False

    def apply(self, image: Any) -> Any:
        """Return a view of an image [height, width, ...] with this orientation."""
        image = np.swapaxes(image, 0, 1) if self.transpose else image
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


UPRIGHT = Orientation()


def from_matrix(matrix: bytes) -> Orientation:
    """Return the orientation of FFmpeg's display matrix (9 native 32-bit integers), the nearest one for other angles.

    A degenerate matrix, which would make the picture a line or a point, turns nothing.
    """
    if len(matrix) != 36:
        return UPRIGHT
    a, b, _, c, d, _, _, _, _ = struct.unpack("=9i", matrix)
    if a * d == b * c:
        return UPRIGHT
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def of_frame(frame: Any) -> Orientation:
    """Return the orientation of a decoded PyAV frame."""
    from av.sidedata.sidedata import Type

    found = frame.side_data.get(Type.DISPLAYMATRIX)
    return UPRIGHT if found is None else from_matrix(bytes(found))
