"""Open any video for random access to its frames: `open_video(path)` returns a `readers.reader.FrameReader`.

Decoder `auto` is the fastest exact reader: PyAV with our own seeking. It is more than twice as fast as decord on files as
Kinetics distributes them (docs/decoding.md), and correct where decord returns wrong frames without an error or never
returns (edit lists, packed B-frames, MPEG-TS). The others warn where they are not exact. `FrameReader.decoder` names the
one in use. `media.check_media` checks every file before a decoder opens it.
"""

from __future__ import annotations

import hashlib
import importlib
import mmap
import os
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import InputError, Preempted, Stopped, log
from . import health
from .manifest import Video
from .readers import frame_index
from .readers.decord import DecordReader
from .readers.frame_folder import FrameFolder
from .readers.media import FORMATS, LIMITS, DecodeError, Limits, check_media, is_frames, is_picture, reason_of
from .readers.pyav import LOOP_FILTERS, PyAVReader
from .readers.reader import FrameReader
from .readers.torchcodec import TorchcodecReader, warn_inexact
from .synthetic import cache_folder

__all__ = ["DECODERS", "FORMATS", "LOOP_FILTERS", "DecodeError", "FrameReader", "Limits", "check_media", "open_row", "open_video"]
__all__ += ["reading"]

DECODERS = ("auto", "decord", "pyav", "torchcodec")
# From here on the index of a file is kept on disk, and the file is open between two rows; its index takes 200 bytes a frame.
LONG_FRAMES = 5_000
OPEN_FRAMES = 2_000_000  # of all files that a process holds open
_open_files: dict[Any, tuple[FrameReader, health.Stamp | None]] = {}  # the least recently used one first
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


def open_video(
    path: str | os.PathLike[str], decoder: str = "auto", *, loop_filter: str = "exact", limits: Limits = LIMITS
) -> FrameReader:
    """Open a video: a file, a folder or zip of JPEG pictures (`readers.frame_folder`), or one picture (`readers.picture`).

    decoder: one of DECODERS, for files. loop_filter: `exact`, or `reference` and `off` for faster, inexact decoding with
    PyAV, see `PyAVReader`. Raises DecodeError for a missing file, no video, no frame, and beyond the limits.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}")
    path = os.fspath(path)
    if is_frames(path):
        return FrameFolder(path, limits=limits)
    if is_picture(path):
        picture: FrameReader = importlib.import_module(f"{__package__}.readers.picture").Picture(path)
        return picture
    container = check_media(path)
    absolute = os.path.realpath(path)
    kept = _index_file(absolute)
    known = frame_index.load(kept)
    # PyAV opens every file first: decord and torchcodec have no whitelists and no limits.
    reader = PyAVReader(absolute, is_mp4=container == "mp4", loop_filter=loop_filter, limits=limits, known=known)
    if known is None and reader.num_frames >= LONG_FRAMES and reader.index is not None:
        with suppress(OSError):  # it is found again next time
            frame_index.save(reader.index, kept)
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
    """Open the video of a row and keep to its segment; options as in `open_video`. Long files stay open for the next row.

    Raises DecodeError, also for whatever the libraries raise (`reading`), and for a segment that the file does not give.
    """
    if video.own:
        with reading(video.path), importlib.import_module(f"{__package__}.sources.own").open_own(video) as own:
            yield own
        return
    key = (os.getpid(), video.path, decoder, *sorted(options.items()))
    with reading(video.path):
        reader, seen = _open_files.pop(key, (None, None))
        if reader is None or seen != health.stamp(video.path):
            reader, seen = open_video(video.path, decoder, **options), None
        try:
            reader.cut(video.segment, video.where)
            yield reader
        except BaseException:
            reader.close()
            raise
        if reader.num_frames < LONG_FRAMES or reader.decoder not in ("pyav", "jpeg"):
            reader.close()
            return
        _open_files[key] = reader, seen or health.stamp(video.path)
        for other in [other for other in _open_files if other[0] != key[0]]:  # of the process that this one was forked from
            del _open_files[other]
        while sum(one.num_frames for one, _ in _open_files.values()) > OPEN_FRAMES:
            _open_files.pop(next(iter(_open_files)))[0].close()


def _index_file(path: str) -> Path:
    """Return the path of the kept index of a file; its name depends on the file's path, size and time."""
    digest = hashlib.sha256(f"{path}\0{health.stamp(path)}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return cache_folder() / "frame_indexes" / f"{digest}.npz"
