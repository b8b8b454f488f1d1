"""Probe a video file in some milliseconds: count the packets, decode one frame.

`sce_video.data.readers.media.check_media` runs before the decoder, so that playlists and other files that name files never
reach it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

import av

from sce_video.data.decode import reading
from sce_video.data.health import stamp
from sce_video.data.readers.frame_folder import FrameFolder
from sce_video.data.readers.frame_index import rate_of
from sce_video.data.readers.headers import mp4
from sce_video.data.readers.media import (
    LIMITS,
    DecodeError,
    Limits,
    check_media,
    choose_video,
    demux,
    is_frames,
    open_container,
    reason_of,
)
from sce_video.data.readers.orientation import of_frame


class Probe(NamedTuple):
    """Properties from the container and the first frame; None where they are not known.

    width, height: pixels of a frame with the rotation applied, as `open_video` returns it.
    rotation: degrees counter-clockwise to rotate stored frames by: 0, 90, 180 or 270.
    pixel_aspect: width of a pixel over its height as stored, before the rotation; 1 for square ones.
    frames: number of frames to show, without those that an edit list hides.
    frames_promised: number in the header, hidden ones included. frames_hidden: number that an edit list hides.
    seconds: of the video stream, else of the file.
    key_frame_interval: largest number of frames from one key frame to the next.
    """

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    pixel_aspect: Fraction
    frames_per_second: Fraction | None
    frames: int
    frames_promised: int | None
    frames_hidden: int
    seconds: float | None
    key_frame_interval: int
    has_audio: bool
    bytes: int


@contextmanager
def opened(path: str, *, limits: Limits = LIMITS) -> Iterator[tuple[Any, Any]]:
    """Check and open a file; yield PyAV's container and the video stream to read, which decodes in one thread.

    Raises DecodeError if the file is not a video container, has no video stream, has frames above the limits, or if PyAV
    cannot read it, in the body of the `with` statement too.
    """
    check_media(path)
    try:
        with open_container(os.path.realpath(path), limits) as container:
            if "mp4" in container.format.name and mp4.ENCRYPTED.search(mp4.read_header(path)):
                raise DecodeError(f"{path}: its video is encrypted")
            stream = choose_video(path, container)
            stream.thread_type = "NONE"
            limits.check_size(path, stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.options = {"max_pixels": str(limits.frame_pixels)}  # a stream may grow on the way
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(f"{path}: {reason_of(error)}") from error


def probe(path: str) -> Probe:
    """Return the properties of a video file or of a video as pictures.

    Raises DecodeError with path and reason if it is not a video or its first frame cannot be decoded.
    """
    with reading(path):
        if is_frames(path):
            return _probe_pictures(path)
        with opened(path) as (container, stream):
            return _probe(path, container, stream)


def _probe_pictures(path: str) -> Probe:
    found = stamp(path)
    with FrameFolder(path) as video:
        return Probe(
            container="pictures",
            codec="mjpeg",
            pixel_format="rgb24",
            width=video.width,
            height=video.height,
            rotation=0,
            pixel_aspect=Fraction(1),
            frames_per_second=video.fps,
            frames=video.num_frames,
            frames_promised=video.num_frames,
            frames_hidden=0,
            seconds=float(video.seconds),
            key_frame_interval=1,
            has_audio=False,
            bytes=found.bytes if found else 0,
        )


def _probe(path: str, container: Any, stream: Any) -> Probe:
    first, shown, hidden, interval, since_key, times = None, 0, 0, 0, 0, list[int | None]()
    for packet in demux(container, stream):
        if first is None:
            first = next(iter(packet.decode()), None)
        if packet.size:
            since_key = 1 if packet.is_keyframe else since_key + 1
            interval = max(interval, since_key)
            hidden += packet.is_discard
            shown += not packet.is_discard
            times += [] if packet.is_discard else [time_in(container, packet)]
    if first is None:
        raise DecodeError(f"{path}: no frame in it")
    turned = rotation_of(first)
    width, height = (first.height, first.width) if turned in (90, 270) else (first.width, first.height)
    rate = measured_rate(stream, times)
    return Probe(
        container=container.format.name,
        codec=stream.codec_context.name,
        pixel_format=first.format.name,
        width=width,
        height=height,
        rotation=turned,
        pixel_aspect=Fraction(stream.sample_aspect_ratio or 1),
        frames_per_second=Fraction(rate) if rate else None,
        frames=shown,
        frames_promised=stream.frames or None,
        frames_hidden=hidden,
        seconds=seconds_of(container, stream),
        key_frame_interval=interval,
        has_audio=bool(container.streams.audio),
        bytes=os.path.getsize(path),
    )


def time_in(container: Any, packet: Any) -> int | None:
    """Return the time of a packet's frame in the stream's time base. AVI stores an order and no times: FFmpeg guesses pts."""
    found: int | None = packet.dts if container.format.name == "avi" else packet.pts
    return found


def measured_rate(stream: Any, times: list[int | None]) -> Fraction | None:
    """Return frames per second by the times of all frames (any order), by the header where one is unknown."""
    known = [time for time in times if time is not None]
    complete = len(known) == len(set(known)) == len(times)
    return rate_of(sorted(known) if complete else None, stream.time_base, stream.average_rate or stream.guessed_rate)[0]


def rotation_of(frame: Any) -> int:
    """Return degrees counter-clockwise to rotate a decoded frame by, after mirroring where it is mirrored: 0, 90, 180, 270."""
    turned = of_frame(frame)
    if turned.transpose:
        return 270 if turned.flip_columns else 90
    return 180 if turned.flip_rows else 0


def seconds_of(container: Any, stream: Any) -> float | None:
    """Return the duration of the video stream, else of the file, in seconds; None if neither is known."""
    if stream.duration is not None and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration is not None else None


def missing_bytes(path: str) -> int:
    """Return the number of bytes that a Matroska file lacks; 0 for other files and for segments of unknown size.

    The header of Matroska holds no number of frames, so that a truncated file decodes without an error.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"\x1aE\xdf\xa3":
            return 0
        file.seek(_ebml_size(file) or 0, os.SEEK_CUR)
        if file.read(4) != b"\x18S\x80g":
            return 0
        size = _ebml_size(file)
        return 0 if size is None else max(file.tell() + size - os.path.getsize(path), 0)


def _ebml_size(file: Any) -> int | None:
    """Read a size: the number of leading zero bits is its length in bytes minus one; all ones mean unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + file.read(extra), "big")
    return None if value == (1 << 7 * (extra + 1)) - 1 else value
