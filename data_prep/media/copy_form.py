"""The form of a copy of a video: its size, the frames and times of its source, and the comparison with the source.

Frames come from a forward decode, at the times at which training reads them; a damaged or truncated source is not copied. A
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

from media.examine import Frames
from media.probe import missing_bytes, opened
from sce_video.data.decode import open_video
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
    """The seconds of each frame of a source since the first, None if they follow each other evenly; its rate; its packets."""

    times: list[float] | None
    rate: Fraction
    packets: Frames


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
    """Return the times of the frames as training reads them, and what the packets tell."""
    if cut := missing_bytes(source):
        raise DecodeError(f"the file ends {cut} bytes before its container does")
    with opened(source) as (container, stream):
        packets = Frames(container, stream)
        packets.read(container)
    with open_video(source) as video:
        return Timing(None if video.times is None else video.times.tolist(), video.fps, packets)


def frames_of(container: Any, stream: Any, timing: Timing | None) -> Iterator[tuple[Any, float]]:
    """Yield the frames of a forward decode and their seconds since the first one; raise DecodeError at the first fault.

    timing: of a source; None for a copy, whose frames have their own times. The times of the yielded frames begin at 0 and
    increase.
    """
    count, first, last, size = 0, None, -1, (0, 0)
    tick = Fraction(stream.time_base)
    frames = (frame for packet in demux(container, stream) for frame in packet.decode())
    for count, frame in enumerate(frames, start=1):
        if count == 1:
            first, size = frame.pts, (frame.width, frame.height)
        if frame.is_corrupt or (frame.width, frame.height) != size:
            raise DecodeError(f"frame {count - 1} is damaged or of another size than the first")
        if timing is None:
            seconds = float((frame.pts - first) * tick)
        elif timing.times is None:
            frame.pts, frame.time_base = count - 1, 1 / timing.rate
            seconds = float((count - 1) / timing.rate)
        elif count > len(timing.times):
            raise DecodeError(f"damaged: it holds {len(timing.times)} frames and gives more")
        else:
            last = max(round(timing.times[count - 1] / tick), last + 1)
            frame.pts, frame.time_base = last, tick
            seconds = float(last * tick)
        yield frame, seconds
    if timing is not None and timing.packets.lacks(count, first):
        raise DecodeError(f"ends after frame {count} of {timing.packets.promised(first)}")


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
