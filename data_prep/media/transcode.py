"""Write a small copy of a video that training reads fast, with the same frames and times, and check it.

The copy is H.264 in MP4 with the index first, the short side as given and never enlarged, even sides, square pixels,
rotation applied, 8 bit 4:2:0, no sound. It has a key frame every 32 frames at most, 7 B-frames in a row on which no other
frame depends, and no deblocking filter, so that a reader skips most frames between two wanted ones. Every frame keeps its
index and its time since the first frame. The same source gives the same bytes (x264: one thread, no macroblock tree, which
makes files 3 % larger). jpeg_copies.py writes pictures instead of H.264, ffmpeg_copies.py calls the ffmpeg program.

The copy is decoded before it is renamed: it must have the same number of frames at the same times, and pictures of 16 x 16
close to those of the source. A damaged or truncated source is not copied.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from jobs.journal import Row
from jobs.workers import Alive

from media import ffmpeg_copies, jpeg_copies
from media.copy_form import MATRICES, Form, Shown, Timing, compared, frames_of, scaling_for, shown, timing_of
from media.ffmpeg_copies import B_FRAMES, GOP, PRESET, X264
from media.probe import opened
from sce_video.data.decode import DecodeError, reading
from sce_video.errors import printable

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def shrink(source: str, target: Path, working: Path, form: Form, alive: Alive) -> Row:
    """Write the copy of `source` to `target`; return a row with `status` ok or failed, `reason`, and the figures.

    working: path to write to before the check, on the same file system; it is removed at the end.
    Raises OSError if the disk is full or cannot be written to.
    """
    try:
        with reading(source):
            timing = timing_of(source)
            with opened(source) as (container, stream):
                before = _written(container, stream, working, form, timing, alive)
            about, after = _read_again(working, form, timing, alive)
        row = {**about, **compared(before, after), "bytes_before": os.path.getsize(source)}
        row["bytes_after"] = sum(path.stat().st_size for path in _files(working))
        if row["reason"]:
            return {"status": "failed", **row}
        _keep(working, target)
        return {"status": "ok", **row}
    except (DecodeError, OSError) as error:
        cause = error.__cause__ if isinstance(error, DecodeError) else error
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            raise OSError(cause.errno, os.strerror(cause.errno), str(target)) from error
        return {"status": "failed", "reason": printable(str(error).removeprefix(f"{source}: "))[:300]}
    finally:
        discard(working)


def discard(path: Path) -> None:
    """Remove a copy, file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _written(container: Any, stream: Any, working: Path, form: Form, timing: Timing, alive: Alive) -> Shown:
    """Write the copy; return the compared parts of the source."""
    discard(working)  # of a run that was killed
    if form.kind != "video":
        return jpeg_copies.write(container, stream, working, form, timing, alive)
    if form.engine == "ffmpeg":
        return ffmpeg_copies.write(container, stream, working, form, timing, alive)
    return _encode(container, stream, working, form, timing, alive)


def _read_again(working: Path, form: Form, timing: Timing, alive: Alive) -> tuple[Row, Shown]:
    """Decode the copy; return its size and its compared parts."""
    if form.kind != "video":
        return jpeg_copies.read_again(working, alive)
    with opened(str(working)) as (container, stream):
        about = {"width": stream.codec_context.width, "height": stream.codec_context.height}
        return about, shown(frames_of(container, stream, None), timing.rate, alive)


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def _keep(working: Path, target: Path) -> None:
    """Flush the copy to the disk, then rename it to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in _files(working):
        handle = os.open(path, os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    if working.is_dir():
        discard(target)  # of a run that was killed before its journal entry: rename does not replace a folder
    os.replace(working, target)


def _encode(container: Any, stream: Any, working: Path, form: Form, timing: Timing, alive: Alive) -> Shown:
    """Encode all frames with PyAV; return the compared parts of the source."""
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(working), "w", format="mp4", options=options) as output:
        made: list[Any] = []  # the filters and the stream, once the first frame is known

        def written() -> Iterator[tuple[Any, float]]:
            for frame, seconds in frames_of(container, stream, timing):
                if not made:
                    made.append(scaling_for(frame, stream, form))
                made[0].vpush(frame)
                scaled = made[0].vpull()
                if len(made) == 1:
                    made.append(_stream_like(output, scaled, frame, timing.rate, form))
                scaled.pict_type = 0  # the encoder decides
                output.mux(made[1].encode(scaled))
                yield frame, seconds

        found = shown(written(), timing.rate, alive)
        if not found.times:
            raise DecodeError("no frame in it")
        output.mux(made[1].encode())
    return found


def _stream_like(output: Any, frame: Any, source: Any, rate: Fraction, form: Form) -> Any:
    """Add the H.264 stream for frames like `frame`, with the colour properties of the source frame."""
    stream = output.add_stream("libx264", rate=rate)
    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
    stream.time_base = stream.codec_context.time_base = frame.time_base
    stream.codec_context.color_range = frame.color_range
    if source.colorspace in MATRICES:
        for name in ("colorspace", "color_primaries", "color_trc"):
            setattr(stream.codec_context, name, getattr(source, name))
    stream.codec_context.thread_count = 1
    stream.options = {
        "preset": PRESET,
        "tune": "fastdecode",
        "crf": str(form.crf),
        "g": str(GOP),
        "bf": str(B_FRAMES),
        "x264-params": X264,
    }
    return stream
