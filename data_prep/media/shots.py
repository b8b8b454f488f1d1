"""Find the cuts of a video while it decodes, by the differences of neighbouring frames.

Frames are compared as thumbnails of 32 x 18 pixels: mean absolute difference of RGB in 0..255. Frame i begins a shot where its
difference from the one before is at least THRESHOLD and RATIO times that of each of the NEAR frames around it: motion is large
for many frames, and a flash twice in a row, a cut once. Shots shorter than NEAR frames and fades are not found.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np

THRESHOLD, RATIO, NEAR = 18.0, 2.0, 3
WIDTH, HEIGHT = 32, 18


class Cuts:
    """The differences of the frames so far; `found` are the numbers of those that begin a shot, without the first frame."""

    def __init__(self) -> None:
        self._differences: list[float] = []
        self._before: Any = None
        self._convert = av.video.reformatter.VideoReformatter()

    def add(self, frame: Any) -> None:
        """Take the next decoded frame."""
        small = self._convert.reformat(frame, WIDTH, HEIGHT, "rgb24", interpolation="AREA", threads=1)
        now = small.to_ndarray().astype(np.int16)
        self._differences.append(0.0 if self._before is None else float(np.abs(now - self._before).mean()))
        self._before = now

    @property
    def found(self) -> list[int]:
        """Numbers of the frames that begin a shot."""
        cuts = []
        for number, difference in enumerate(self._differences):
            around = self._differences[max(number - NEAR, 0) : number] + self._differences[number + 1 : number + 1 + NEAR]
            if difference >= max(THRESHOLD, RATIO * max(around, default=0.0)):
                cuts.append(number)
        return cuts
