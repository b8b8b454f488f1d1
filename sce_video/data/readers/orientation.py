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


def of_frame(frame: Any) -> Orientation:
    """Return the orientation of a decoded PyAV frame, the nearest one; a degenerate matrix turns nothing."""
    from av.sidedata.sidedata import Type

    found = frame.side_data.get(Type.DISPLAYMATRIX)
    a, b, _, c, d = struct.unpack_from("=5i", bytes(found)) if found is not None else (1, 0, 0, 0, 1)
    if a * d == b * c:
        return UPRIGHT
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
