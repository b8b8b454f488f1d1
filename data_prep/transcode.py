"""One video in training form: small, quick to read, showing the same at the same times; checked against its source.

H.264 in MP4 with the index first, short side as asked and never enlarged, even sides, square pixels, rotation applied,
8 bit 4:2:0, no sound. A key frame every 32 frames at most, up to 7 B-frames in a row of which no other frame depends, no
deblocking filter: a reader skips most frames between two wanted ones. Every frame keeps its place and its time, counted
from the first one. The same source gives the same bytes (x264: one thread, no macroblock tree, 3 % larger for it).

What is written is decoded again before it gets its name: as many frames, each at its time, pictures that resemble the
source's at a size of 16 x 16. A source that is damaged or breaks off is not shrunk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from endings import printable
from examine import missing_bytes
from journal import Row
from numpy.typing import NDArray
from probe import opened, rotation_of
from workers import Alive

from sce_video.data.media import DecodeError

GOP = 32
B_FRAMES = 7
PRESET = "faster"
THUMBNAIL = 16  # pixels, both sides
EVERY = 8  # frames from one compared picture to the next
MAX_DIFFERENCE = 6.0  # of 255, mean over pixels and pictures; real files: 0.05 to 3.3, a wrong colour matrix: 8 to 9
MATRICES = {1: "bt709", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020"}  # H.273's numbers
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Form(NamedTuple):
    """What videos are made into. short_side: pixels; crf: x264's constant quality, larger is smaller and worse."""

    short_side: int = 256
    crf: int = 23


class Timing(NamedTuple):
    """How a source's frames follow each other: evenly at `rate` or not; expected: frames that its header promises."""

    even: bool
    expected: int
    rate: Fraction


class Shown(NamedTuple):
    """What of a video is compared: times in seconds from the first frame, and pictures [n, 16, 16, 3] of every 8th."""

    times: list[float]
    pictures: list[NDArray[np.uint8]]
    rate: Fraction


def size_in(form: Form, width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Return the (width, height) to scale stored frames to, before they are turned: square pixels, even, not enlarged.

    Pixels that are not square are drawn out along their longer side, so that nothing is lost.
    """
    shown = (width * max(pixel_aspect, Fraction(1)), height / min(pixel_aspect, Fraction(1)))
    scale = min(Fraction(form.short_side) / min(shown), Fraction(1))
    even = [max(round(side * scale / 2) * 2, 2) for side in shown]
    return even[0], even[1]


def shrink(source: str, target: Path, working: Path, form: Form, alive: Alive) -> Row:
    """Write `source` in training form to `target`; return what was done, with `status` ok or failed and `reason`.

    working: the name to write under until it is checked, on the same file system; nothing stays there.
    Raises OSError when the disk is full or cannot be written to.
    """
    try:
        timing = _timing(source)
        with opened(source) as (container, stream):
            before = _encode(container, stream, working, form, timing, alive)
        with opened(str(working)) as (container, stream):
            about = {"width": stream.codec_context.width, "height": stream.codec_context.height}
            after = _shown(_frames(container, stream, Timing(False, 0, timing.rate)), timing.rate, alive)
        row = {**about, **_compared(before, after), "bytes_before": os.path.getsize(source)}
        row["bytes_after"] = os.path.getsize(working)
        if row["reason"]:
            return {"status": "failed", **row}
        _keep(working, target)
        return {"status": "ok", **row}
    except (DecodeError, OSError, MemoryError) as error:
        cause = error.__cause__ if isinstance(error, DecodeError) else error
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            raise OSError(cause.errno, os.strerror(cause.errno), str(target)) from error
        return {"status": "failed", "reason": printable(str(error).removeprefix(f"{source}: "))[:300]}
    finally:
        working.unlink(missing_ok=True)


def _keep(working: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(working, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(working, target)


def _timing(source: str) -> Timing:
    """Pass over the packets to learn whether frames follow each other evenly, and how many there must be."""
    if cut := missing_bytes(source):
        raise DecodeError(f"the file ends {cut} bytes before its container does")
    with opened(source) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise DecodeError("its frame rate is not known")
        is_avi = container.format.name == "avi"
        hidden, times = 0, list[Any]()
        for packet in container.demux(stream):
            hidden += packet.size > 0 and packet.is_discard
            if packet.size and not packet.is_discard:
                times.append(packet.dts if is_avi else packet.pts)
        expected = max((stream.frames or 0) - hidden, 0)
        if None in times or len(times) < 2:
            return Timing(False, expected, Fraction(rate))
        times.sort()
        frame_ticks = 1 / (rate * stream.time_base)
        # AVI stores no times but an order: frames follow each other at its rate, as the readers have it, unless many are
        # left out. Other containers round times to a tick, Matroska's is a millisecond.
        allowed = 3 * frame_ticks if is_avi else max(1, Fraction(3, 2000) / stream.time_base)
        ideal = (times[0] + number * frame_ticks for number in range(len(times)))
        even = all(abs(time - there) <= allowed for time, there in zip(times, ideal, strict=True))
    return Timing(even, expected, Fraction(rate))


def _encode(container: Any, stream: Any, working: Path, form: Form, timing: Timing, alive: Alive) -> Shown:
    """Encode all frames; return what the source shows."""
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(working), "w", format="mp4", options=options) as output:
        made: list[Any] = []  # the filters and the stream, once the first frame is known

        def written() -> Iterator[tuple[Any, float]]:
            for frame, seconds in _frames(container, stream, timing):
                if not made:
                    made.append(_scaling(frame, stream, form))
                made[0].vpush(frame)
                scaled = made[0].vpull()
                if len(made) == 1:
                    made.append(_stream_like(output, scaled, frame, timing.rate, form))
                scaled.pict_type = 0  # the encoder decides
                output.mux(made[1].encode(scaled))
                yield frame, seconds

        shown = _shown(written(), timing.rate, alive)
        if not shown.times:
            raise DecodeError("no frame in it")
        output.mux(made[1].encode())
    return shown


def _frames(container: Any, stream: Any, timing: Timing) -> Iterator[tuple[Any, float]]:
    """Yield the frames of a forward decode and their seconds from the first one; DecodeError at the first fault.

    Frames leave here with times from 0 on that grow: their own, or evenly spaced ones.
    """
    count, first, last, size = 0, 0, -1, (0, 0)
    tick = Fraction(stream.time_base)
    for count, frame in enumerate(container.decode(stream), start=1):
        own = frame.pts if frame.pts is not None else first + last + max(round(1 / (timing.rate * tick)), 1)
        if count == 1:
            first, size = own, (frame.width, frame.height)
        if frame.is_corrupt or (frame.width, frame.height) != size:
            raise DecodeError(f"frame {count - 1} is damaged or of another size than the first")
        last = max(own - first, last + 1)
        seconds = float(last * tick)
        if timing.even:
            frame.pts, frame.time_base = count - 1, 1 / timing.rate
            seconds = float((count - 1) / timing.rate) if container.format.name == "avi" else seconds
        else:
            frame.pts, frame.time_base = last, tick
        yield frame, seconds
    if timing.expected - count > max(3, timing.expected // 50):
        raise DecodeError(f"ends after frame {count} of {timing.expected}")


def _scaling(frame: Any, stream: Any, form: Form) -> Any:
    """Build the filters that make of a stored frame one in training form."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    width, height = size_in(form, frame.width, frame.height, aspect)
    graph = av.filter.Graph()
    graph.threads = 1
    # Without its name for the output the colour matrix becomes the usual one, which costs a rounding.
    matrix = f":out_color_matrix={MATRICES[frame.colorspace]}" if frame.colorspace in MATRICES else ""
    steps = [("scale", f"{width}:{height}:flags=bicubic{matrix}"), ("format", "yuv420p"), ("setsar", "1")]
    # `rotation_of` is counter-clockwise; transpose: 1 is a quarter turn clockwise, 2 counter-clockwise.
    turns = {0: [], 90: [("transpose", "2")], 180: [("hflip", ""), ("vflip", "")], 270: [("transpose", "1")]}
    steps += turns[rotation_of(frame)]
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base, name="in"
    )
    nodes = [source, *(graph.add(name, values) for name, values in steps), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def _stream_like(output: Any, frame: Any, source: Any, rate: Fraction, form: Form) -> Any:
    """Add the H.264 stream for frames like this one, with the colours' meaning as in the source's frame."""
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
        "x264-params": "b-pyramid=none:threads=1:lookahead-threads=1:mbtree=0",
    }
    return stream


def _shown(frames: Iterator[tuple[Any, float]], rate: Fraction, alive: Alive) -> Shown:
    converter = av.video.reformatter.VideoReformatter()  # its own: see PyAVReader
    times, pictures = [], []
    for count, (frame, seconds) in enumerate(frames):
        times.append(seconds)
        if count % EVERY == 0:
            small = converter.reformat(
                frame, width=THUMBNAIL, height=THUMBNAIL, format="rgb24", interpolation="AREA", threads=1
            )
            pictures.append(np.rot90(small.to_ndarray(), k=rotation_of(frame) // 90))
        alive()
    return Shown(times, pictures, rate)


def _compared(before: Shown, after: Shown) -> Row:
    """Return `frames`, `seconds`, `time_error` (seconds, the largest), `difference` (mean, of 255) and `reason`."""
    frame_seconds = float(1 / before.rate)
    row: Row = {"frames": len(after.times), "seconds": round(after.times[-1] + frame_seconds, 6), "reason": ""}
    if len(before.times) != len(after.times):
        return {**row, "reason": f"{len(before.times)} frames became {len(after.times)}"}
    row["time_error"] = round(max(abs(a - b) for a, b in zip(before.times, after.times, strict=True)), 6)
    pairs = zip(before.pictures, after.pictures, strict=True)
    row["difference"] = round(float(np.mean([np.abs(a.astype(float) - b).mean() for a, b in pairs])), 3)
    if row["time_error"] > frame_seconds:
        row["reason"] = f"a frame moved by {row['time_error']} s"
    elif row["difference"] > MAX_DIFFERENCE:
        row["reason"] = f"pictures differ by {row['difference']} of 255 on average"
    return row
