"""The form of a copy of a video: its size, the frames and times of its source, and the comparison with the source.

Frames come from a forward decode with their times since the first frame; a damaged or truncated source is not copied. A
copy is compared with its source by times and by pictures of 16 x 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from jobs.journal import Row
from jobs.workers import Alive
from numpy.typing import NDArray

from media.probe import measured_rate, missing_bytes, opened, time_in
from sce_video.data.readers.media import FRAMES_FOLDER, FRAMES_ZIP, DecodeError, demux
from sce_video.data.readers.orientation import of_frame

THUMBNAIL = 16  # pixels, both sides
EVERY = 8  # frames from one compared picture to the next
MAX_DIFFERENCE = 6.0  # of 255, mean over pixels and pictures; real files have 0.05 to 3.3, a wrong colour matrix 8 to 9
KINDS = {"video": ".mp4", "jpeg-folder": FRAMES_FOLDER, "jpeg-zip": FRAMES_ZIP}
ENGINES = ("pyav", "ffmpeg")
MATRICES = {1: "bt709", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020"}  # H.273's numbers


class Form(NamedTuple):
    """The options of a copy.

    short_side: pixels. kind: one of KINDS. crf: constant quality of x264, larger is smaller and worse. quality: of JPEG
    pictures, 1 to 100. engine: writer of H.264, one of ENGINES.
    """

    short_side: int = 256
    kind: str = "video"
    crf: int = 21
    quality: int = 90
    engine: str = "pyav"

    @property
    def ending(self) -> str:
        """The suffix of the name of a copy."""
        return KINDS[self.kind]


class Timing(NamedTuple):
    """Whether the frames of a source follow each other evenly at `rate`; expected: number of frames in its header."""

    even: bool
    expected: int
    rate: Fraction


class Shown(NamedTuple):
    """The compared parts of a video: times in seconds since the first frame, and a picture [16, 16, 3] of every 8th frame."""

    times: list[float]
    pictures: list[NDArray[np.uint8]]
    rate: Fraction


def size_in(form: Form, width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Return the (width, height) to scale stored frames to before rotation: square pixels, even sides, not enlarged.

    Pixels that are not square are stretched along their longer side, so that no detail is lost.
    """
    shown = (width * max(pixel_aspect, Fraction(1)), height / min(pixel_aspect, Fraction(1)))
    scale = min(Fraction(form.short_side) / min(shown), Fraction(1))
    even = [max(round(side * scale / 2) * 2, 2) for side in shown]
    return even[0], even[1]


def timing_of(source: str) -> Timing:
    """Read the packets and return whether frames follow each other evenly, and how many there must be."""
    if cut := missing_bytes(source):
        raise DecodeError(f"the file ends {cut} bytes before its container does")
    with opened(source) as (container, stream):
        hidden, times = 0, list[Any]()
        for packet in demux(container, stream):
            hidden += packet.size > 0 and packet.is_discard
            if packet.size and not packet.is_discard:
                times.append(time_in(container, packet))
        rate = measured_rate(stream, times)
        if not rate:
            raise DecodeError("its frame rate is not known")
        expected = max((stream.frames or 0) - hidden, 0)
        if None in times or len(times) < 2:
            return Timing(False, expected, rate)
        times.sort()
        if container.format.name == "avi":  # its header counts empty chunks too, as after a stream copy at twice the rate
            expected -= max(times[-1] - times[0] + 1 - len(times), 0)
        frame_ticks = 1 / (rate * stream.time_base)
        # AVI stores an order but no times: frames follow each other at its rate, as in the readers, unless many are
        # missing. Other containers round times to a tick, Matroska's is a millisecond.
        allowed = 3 * frame_ticks if container.format.name == "avi" else max(1, Fraction(3, 2000) / stream.time_base)
        ideal = (times[0] + number * frame_ticks for number in range(len(times)))
        even = all(abs(time - there) <= allowed for time, there in zip(times, ideal, strict=True))
    return Timing(even, expected, rate)


def frames_of(container: Any, stream: Any, timing: Timing) -> Iterator[tuple[Any, float]]:
    """Yield the frames of a forward decode and their seconds since the first one; raise DecodeError at the first fault.

    The times of the yielded frames begin at 0 and increase: their own, or evenly spaced ones.
    """
    count, first, last, size = 0, 0, -1, (0, 0)
    tick = Fraction(stream.time_base)
    frames = (frame for packet in demux(container, stream) for frame in packet.decode())
    for count, frame in enumerate(frames, start=1):
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


def scaling_for(frame: Any, stream: Any, form: Form) -> Any:
    """Build the filter graph that turns a stored frame into a frame of this form."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    width, height = size_in(form, frame.width, frame.height, aspect)
    graph = av.filter.Graph()
    graph.threads = 1
    turned = of_frame(frame)
    # transpose: 0 is a quarter turn counter-clockwise and a mirror top to bottom, which exchanges rows and columns.
    filters = (("transpose", "0"), ("hflip", ""), ("vflip", ""))
    turns = [named for named, wanted in zip(filters, turned, strict=True) if wanted]
    steps = [("scale", scale_values(frame, width, height)), ("format", "yuv420p"), ("setsar", "1")]
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base, name="in")
    named = [*steps, *turns]
    nodes = [source, *(graph.add(name, values) for name, values in named), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def scale_values(frame: Any, width: int, height: int) -> str:
    """Return the options of FFmpeg's scale filter for a frame like this one."""
    # Without this option the output gets the default colour matrix, which adds a rounding error.
    matrix = f":out_color_matrix={MATRICES[frame.colorspace]}" if frame.colorspace in MATRICES else ""
    return f"{width}:{height}:flags=bicubic{matrix}"


def shown(frames: Iterator[tuple[Any, float]], rate: Fraction, alive: Alive) -> Shown:
    """Consume frames one by one and return their compared parts."""
    converter = av.video.reformatter.VideoReformatter()  # its own: see PyAVReader
    times, pictures = [], []
    for count, (frame, seconds) in enumerate(frames):
        times.append(seconds)
        if count % EVERY == 0:
            small = converter.reformat(frame, width=THUMBNAIL, height=THUMBNAIL, format="rgb24", interpolation="AREA", threads=1)
            pictures.append(of_frame(frame).apply(small.to_ndarray()))
        alive()
    return Shown(times, pictures, rate)


def compared(before: Shown, after: Shown) -> Row:
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
