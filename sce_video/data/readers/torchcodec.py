"""torchcodec (an optional extra) behind the readers' contract, in its exact mode, on one thread.

It needs FFmpeg's shared libraries on the machine. It opens whatever it is given, playlists and addresses too, and takes no
limits, so that `open_video` lets it see only files that PyAV has opened behind its whitelists.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from ...errors import InputError
from .exactness import TORCHCODEC_IS_EXACT_ON, warn_inexact
from .media import DecodeError
from .reader import FrameReader, first_line


class TorchcodecReader(FrameReader):
    """One file. path: absolute; container: what `media.check_media` says it is; stream: number of the video stream, and
    fps, its rate: as PyAV has them (the rate that torchcodec gives for files at a variable one is another).

    Raises DecodeError when torchcodec cannot read the file, InputError where torchcodec itself cannot be used.
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
                f"libraries (apt install ffmpeg); or use decoder=auto ({first_line(error)})"
            ) from error
        if container not in TORCHCODEC_IS_EXACT_ON:
            warn_inexact("torchcodec", path)
        # What it raises: RuntimeError from its native code, ValueError for streams and indices that are not there,
        # UnicodeError for names that are no UTF-8.
        self._errors: tuple[type[Exception], ...] = (RuntimeError, ValueError, IndexError, UnicodeError)
        try:
            self._reader: Any = VideoDecoder(
                path, stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
            )
            self.num_frames = len(self._reader)
            if not self.num_frames:
                raise DecodeError(f"{path}: no frame in it")
            # The first frame is decoded first: it may hold what later key frames need (4:4:4 files of old x264 versions
            # decode to noise without, clips_odd/cockatoo.mp4).
            self.height, self.width = self._reader[0].shape[:2]
        except self._errors as error:
            raise _named(path, error) from error

    def _images(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        try:
            images = self._reader.get_frames_at(indices).data.numpy()
        except self._errors as error:
            raise _named(self.path, error) from error
        yield from zip(indices, images, strict=True)

    def close(self) -> None:
        self._reader = None


def _named(path: str, error: Exception) -> DecodeError:
    return error if isinstance(error, DecodeError) else DecodeError(f"{path}: torchcodec: {first_line(error)}")
