"""Data sets of one's own: `data.train=my_file.py:Name`, wherever a list is expected.

`Name()` gives an object with `len(...)`, `paths` (a text per row, for logs), optionally `labels`, and `read(row)`, which returns
all frames, uint8 [N, H, W, 3], and their rate per second. It is made once in every process that reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ...errors import InputError
from ...models.named import load_named
from ..manifest import Video
from ..readers.reader import FrameReader


@lru_cache(maxsize=8)
def _made(source: str) -> Any:
    return load_named(source, "data set")()


def rows(source: str) -> list[Video]:
    """Return the rows of a data set. Raises InputError with a sentence per missing part, and where its first row does not fit."""
    made = _made(source)
    problems = [f"`{name}` is missing" for name in ("__len__", "paths", "read") if not hasattr(made, name)]
    if problems:
        raise InputError(f"{source} is no data set: {', '.join(problems)}; it needs len(), paths and read(row)")
    labels = getattr(made, "labels", None)
    for name, values in (("paths", made.paths), *([("labels", labels)] if labels is not None else [])):
        if len(values) != len(made):
            raise InputError(f"{source}: `{name}` has {len(values)} entries, the data set {len(made)} rows")
    if not len(made):
        raise InputError(f"{source} has no rows")
    OwnReader(made, 0, str(made.paths[0]), source)
    found = [None] * len(made) if labels is None else [None if label is None else str(label) for label in labels]
    return [Video(str(path), label, row, own=source) for row, (path, label) in enumerate(zip(made.paths, found, strict=True))]


def open_own(video: Video) -> FrameReader:
    """Return the reader of a row."""
    return OwnReader(_made(video.own), video.line, video.path, video.own)


class OwnReader(FrameReader):
    """The frames of one row."""

    decoder = "own"

    def __init__(self, made: Any, row: int, path: str, source: str) -> None:
        super().__init__(path)
        given = made.read(row)
        if not (isinstance(given, tuple) and len(given) == 2):
            raise InputError(
                f"{source}: read({row}) gave {type(given).__name__}, not (frames uint8 [N, H, W, 3], rate per second)"
            )
        self.frames, rate = torch.as_tensor(given[0]).numpy(), float(given[1])
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3 or 0 in self.frames.shape:
            shape = list(self.frames.shape)
            raise InputError(f"{source}: read({row}) gave frames {self.frames.dtype} {shape}, not uint8 [N, H, W, 3]")
        if not 0 < rate < 10_000:
            raise InputError(f"{source}: read({row}) gave the rate {rate}, it must be above 0 and below 10000 per second")
        self.num_frames, self.height, self.width = self.frames.shape[:3]
        self.fps = Fraction(rate).limit_denominator(100_000)

    def _images(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        return ((index, self.frames[index]) for index in indices)
