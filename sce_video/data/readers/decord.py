"""A `FrameReader` on decord, with one thread: the loader runs one process per core.

decord is exact only on plain H.264 MP4 files (`PyAVReader.plain_mp4`). On others it returns wrong frames without an
error, or never returns (edit lists, packed B-frames, MPEG-TS, open GOPs).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from ...errors import InputError
from .media import DecodeError, reason_of
from .reader import FrameReader


class DecordReader(FrameReader):
    """Reads a file with decord, see the module."""

    decoder = "decord"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            import decord
        except ImportError as error:
            raise InputError("decord is not installed: use decoder=pyav, or decoder=auto") from error
        # DECORDError is a plain Exception; UnicodeError is raised for file names that are not UTF-8.
        self._errors: tuple[type[Exception], ...] = (RuntimeError, decord.DECORDError, UnicodeError)
        try:
            self._reader = decord.VideoReader(path, num_threads=1)
            self.num_frames = len(self._reader)
            if not self.num_frames:
                raise DecodeError(f"{path}: no frame in it")
            self.fps = Fraction(self._reader.get_avg_fps()).limit_denominator(1001)
            self.height, self.width = self._reader[0].shape[:2]
        except self._errors as error:
            raise DecodeError(f"{path}: decord: {reason_of(error)}") from error

    def _images(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        try:
            images = self._reader.get_batch(indices).asnumpy()
        except self._errors as error:
            raise DecodeError(f"{self.path}: decord: {reason_of(error)}") from error
        yield from zip(indices, images, strict=True)

    def close(self) -> None:
        self._reader = None
