"""Open any video for random access to its frames: `open_video(path)` returns a `readers.reader.FrameReader`.

Decoder `auto` is the fastest exact reader: PyAV with our own seeking. It is more than twice as fast as decord on files as
Kinetics distributes them (docs/decoding.md), and correct where decord returns wrong frames without an error or never
returns (edit lists, packed B-frames, MPEG-TS). The others warn where they are not exact. `FrameReader.decoder` names the
one in use. `media.check_media` checks every file before a decoder opens it.
"""

from __future__ import annotations

import importlib
import mmap
import os
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import InputError, Preempted, Stopped, log
from .manifest import Video
from .readers.decord import DecordReader
from .readers.frame_folder import FrameFolder
from .readers.media import FORMATS, LIMITS, DecodeError, Limits, check_media, is_frames, is_picture, reason_of
from .readers.pyav import LOOP_FILTERS, PyAVReader
from .readers.reader import FrameReader
from .readers.torchcodec import TorchcodecReader, warn_inexact

__all__ = ["DECODERS", "FORMATS", "LOOP_FILTERS", "DecodeError", "FrameReader", "Limits", "check_media", "open_row", "open_video"]
__all__ += ["reading"]

DECODERS = ("auto", "decord", "pyav", "torchcodec")
_logged = mmap.mmap(-1, 1 << 12)  # a byte per kind of exception, shared with forked workers: its stack was logged


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Raise every exception of the block as a DecodeError that names `path`; log the stack of each kind once.

    Libraries raise anything on damaged files, MemoryError too, and no file may end a run. Where memory is short, or where we
    have a bug, all videos become unreadable, and `data.max_bad_fraction` ends the run with the exception's name.
    """
    try:
        yield
    except (DecodeError, InputError, Stopped, Preempted):  # the last three are about the run, not the file
        raise
    except Exception as error:  # broad on purpose, and only here: see above
        frames = traceback.format_tb(error.__traceback__)
        kind = zlib.crc32(f"{type(error)} {frames[-1]}".encode()) % len(_logged)
        reason = f"{type(error).__name__}: {reason_of(error)}"
        if not _logged[kind]:
            _logged[kind] = 1
            for line in (f"{path}: {reason}; later ones are only counted", *"".join(frames).splitlines()):
                log.warning(line)
        # contextlib takes an error caused by StopIteration for that StopIteration.
        raise DecodeError(f"{path}: {reason}") from (None if isinstance(error, StopIteration) else error)


def open_video(path: str, decoder: str = "auto", *, loop_filter: str = "exact", limits: Limits = LIMITS) -> FrameReader:
    """Open a video: a file, a folder or zip of JPEG pictures (`readers.frame_folder`), or one picture (`readers.picture`).

    decoder: one of DECODERS, for files. loop_filter: `exact`, or `reference` and `off` for faster, inexact decoding with
    PyAV, see `PyAVReader`. Raises DecodeError for a missing file, no video, no frame, and beyond the limits.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}")
    if is_frames(path):
        return FrameFolder(path, limits=limits)
    if is_picture(path):
        picture: FrameReader = importlib.import_module(f"{__package__}.readers.picture").Picture(path)
        return picture
    container = check_media(path)
    absolute = os.path.realpath(path)
    # PyAV opens every file first: decord and torchcodec have no whitelists and no limits.
    reader = PyAVReader(absolute, is_mp4=container == "mp4", loop_filter=loop_filter, limits=limits)
    if decoder in ("auto", "pyav"):
        return reader
    with reader:
        if decoder == "decord" and not reader.plain_mp4:
            warn_inexact("decord", absolute)
        named: FrameReader = (
            DecordReader(absolute)
            if decoder == "decord"
            else TorchcodecReader(absolute, container=container, stream=reader.stream_index, fps=reader.fps)
        )
        named.pixel_aspect = reader.pixel_aspect
        if named.num_frames == reader.num_frames:
            named.fps, named.times = reader.fps, reader.times
        return named


@contextmanager
def open_row(video: Video, decoder: str = "auto", **options: Any) -> Iterator[FrameReader]:
    """Open the video of a row and keep to its segment; options as in `open_video`.

    Raises DecodeError, also for whatever the libraries raise (`reading`), and for a segment that the file does not give.
    """
    with reading(video.path), open_video(video.path, decoder, **options) as reader:
        reader.cut(video.segment, video.where)
        yield reader
