"""A `FrameReader` on torchcodec (an optional extra), in its exact mode, on one thread.

torchcodec needs FFmpeg's shared libraries. It opens anything, playlists and addresses too, and has no limits, so
`open_video` passes it only files that PyAV has opened with its whitelists.

A decoder that is not exact on a file warns once per process. Measured against a forward decode (2026-11-24; decord 0.6,
torchcodec 0.17 with FFmpeg 5.1): decord is exact on H.264 in MP4 without edit list at a constant rate, torchcodec in exact
mode on all MP4 and Matroska files. torchcodec returned other frames of AVI files with B-frames and of MPEG program streams,
and no frames of transport streams.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from ...errors import InputError, printable
from .media import DecodeError, reason_of
from .reader import FrameReader

TORCHCODEC_IS_EXACT_ON = ("mp4", "matroska")  # as named by `media.check_media`
_warned: set[tuple[int, str]] = set()  # (process id, decoder)


class Inexact(UserWarning):
    """The chosen decoder may return frames other than those requested."""


def warn_inexact(decoder: str, path: str) -> None:
    """Warn that `decoder` is not exact on `path`, once per process and decoder."""
    if (os.getpid(), decoder) not in _warned:
        _warned.add((os.getpid(), decoder))
        warnings.warn(
            f"{printable(path)}: {decoder} may return other frames of this file than those asked for (and of others like it, "
            f"which are not named); decoder=auto reads every file exactly",
            Inexact,
            stacklevel=3,
        )


class TorchcodecReader(FrameReader):
    """Reads a file (absolute path) with torchcodec. container: from `media.check_media`.

    stream, fps: the video stream's index and frame rate from PyAV (torchcodec's differs for files with a variable rate).
    Raises DecodeError if torchcodec cannot read the file, InputError if torchcodec itself is unusable.
    """

    decoder = "torchcodec"

    def __init__(self, path: str, *, container: str, stream: int, fps: Fraction) -> None:
        super().__init__(path)
        self.fps = fps
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, RuntimeError, OSError) as error:  # the last two: FFmpeg's libraries are missing
            raise InputError(
                "decoder=torchcodec cannot be used here: pip install 'sce_video[torchcodec]', and FFmpeg's shared "
                f"libraries (apt install ffmpeg); or use decoder=auto ({reason_of(error)})"
            ) from error
        if container not in TORCHCODEC_IS_EXACT_ON:
            warn_inexact("torchcodec", path)
        # From native code, for missing streams and indices, and for file names that are not UTF-8.
        self._errors: tuple[type[Exception], ...] = (RuntimeError, ValueError, IndexError, UnicodeError)
        try:
            self._reader: Any = VideoDecoder(
                path, stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
            )
            self.num_frames = len(self._reader)
            if not self.num_frames:
                raise DecodeError(f"{path}: no frame in it")
            # Decode the first frame first: later key frames may need its data (without it, 4:4:4 files of old x264
            # versions decode to noise, clips_odd/cockatoo.mp4).
            self.height, self.width = self._reader[0].shape[:2]
        except self._errors as error:
            raise _decode_error(path, error) from error

    def _images(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        try:
            images = self._reader.get_frames_at(indices).data.numpy()
        except self._errors as error:
            raise _decode_error(self.path, error) from error
        yield from zip(indices, images, strict=True)

    def close(self) -> None:
        self._reader = None


def _decode_error(path: str, error: Exception) -> DecodeError:
    return error if isinstance(error, DecodeError) else DecodeError(f"{path}: torchcodec: {reason_of(error)}")
