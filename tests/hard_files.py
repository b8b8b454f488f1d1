"""Files that readers of frames get wrong, made with PyAV: `build(name, folder)` -> path. See tests/test_exact_frames.py."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from conftest import numbered_frames

FRAMES = 70


@contextmanager
def ordinary_priority() -> Iterator[None]:
    """Take back what SVT-AV1 does where it may (root): the thread that opens it gets real-time priority, for all that follows.

    Processes that inherit it starve the machine.
    """
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@ordinary_priority()
def encode(
    path: Path,
    codec: str = "libx264",
    *,
    frames: np.ndarray | None = None,
    pix_fmt: str = "yuv420p",
    pts: list[int] | None = None,
    prepare: Callable[[Any], None] | None = None,
    movie: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Encode frames (by default 70 numbered ones) at 30 fps; pts: their times in 1/90000 s, for variable rates."""
    frames = numbered_frames(FRAMES) if frames is None else frames
    with av.open(str(path), "w", options=movie or {}) as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.options = options
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 90000)
        if prepare is not None:
            prepare(stream)
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def x264(path: Path, parameters: str, **more: Any) -> Path:
    return encode(path, "libx264", **{"x264-params": parameters}, **more)


def cut_by_stream_copy(path: Path, seconds: float = 0.5) -> Path:
    """The first half second is cut off without decoding: an edit list hides the frames since the key frame."""
    whole = encode(path.with_name("whole_" + path.name), g="250", bf="2")
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                shift = round(seconds / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    return path


def packed_b_frames(path: Path) -> Path:
    """MPEG-4 in AVI as DivX wrote it: a B-frame in the packet of the frame after it, then a packet with nothing."""
    plain = encode(path.with_name("plain_" + path.name), "mpeg4", g="24", bf="1")
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        contents = [bytes(packet) for packet in source.demux(source.streams.video[0]) if packet.size]
        packed = [contents[0][: contents[0].index(b"\0\0\1\xb6")] + b"\0\0\1\xb2DivX503b1393p" + _picture(contents[0])]
        rest = contents[1:]
        while rest:
            is_b = len(rest) > 1 and _picture(rest[1])[4] >> 6 == 2
            packed += [rest[0] + rest[1], b"\0\0\1\xb6\x40\x00\x7f"] if is_b else [rest[0]]
            rest = rest[2:] if is_b else rest[1:]
        for number, content in enumerate(packed):
            packet = av.Packet(content)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 30), stream
            packet.is_keyframe = _picture(content)[4] >> 6 == 0
            target.mux(packet)
    return path


def _picture(content: bytes) -> bytes:
    return content[content.index(b"\0\0\1\xb6") :]


def turn(path: Path) -> Path:
    """A phone held upright: the track's matrix turns the picture by 90 degrees."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    content[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def two_streams(path: Path) -> Path:
    """Two videos of different sizes in one file, in turn."""
    with av.open(str(path), "w") as container:
        streams = []
        for height, width in ((48, 64), (96, 128)):
            stream = container.add_stream("libx264", rate=30)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append((stream, numbered_frames(FRAMES, height, width)))
        for number in range(FRAMES):
            for stream, frames in streams:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frames[number], format="rgb24")))
        for stream, _ in streams:
            container.mux(stream.encode())
    return path


def long_audio(path: Path) -> Path:
    """Five seconds of sound with two and a third of picture."""
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=30), container.add_stream("aac", rate=44100)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for array in numbered_frames(FRAMES):
            container.mux(video.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(video.encode())
        for start in range(0, 5 * 44100, 1024):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 44100, start
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return path


def truncated(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def av1(path: Path) -> Path:
    return encode(path, "libsvtav1", preset="12", g="20")


def full_range(stream: Any) -> None:
    stream.codec_context.color_range = 2


def pixels_of_16_to_11(stream: Any) -> None:
    stream.codec_context.sample_aspect_ratio = Fraction(16, 11)


def bt709(stream: Any) -> None:
    stream.codec_context.colorspace = 1


IRREGULAR = np.cumsum(np.random.default_rng(0).choice([1500, 3000, 4500, 18000], FRAMES)).tolist()
BUILDERS: dict[str, Callable[[Path], Path]] = {
    "plain.mp4": lambda path: encode(path, g="250"),
    "one_key_a_frame.mp4": lambda path: encode(path, g="1"),
    "open_gop.mp4": lambda path: x264(path, "open-gop=1:keyint=16:min-keyint=4:bframes=3:scenecut=0"),
    "open_gop.mkv": lambda path: x264(path, "open-gop=1:keyint=16:min-keyint=4:bframes=3:scenecut=0"),
    "b_pyramid.mp4": lambda path: x264(path, "bframes=8:b-pyramid=normal:b-adapt=0:keyint=40:ref=4"),
    "b_pyramid_strict.mkv": lambda path: x264(path, "bframes=4:b-pyramid=strict:keyint=24"),
    "no_pyramid.mp4": lambda path: x264(path, "bframes=7:b-pyramid=none:b-adapt=0:keyint=32:min-keyint=32:scenecut=0"),
    "intra_refresh.mp4": lambda path: x264(path, "intra-refresh=1:keyint=20:bframes=0"),
    "slices.mp4": lambda path: x264(path, "slices=4:keyint=20:bframes=2"),
    "interlaced.mp4": lambda path: x264(path, "tff=1:keyint=20"),
    "stream_copy_cut.mp4": cut_by_stream_copy,
    "stream_copy_cut.mov": cut_by_stream_copy,
    "variable_rate.mp4": lambda path: encode(path, pts=IRREGULAR, g="20", bf="3"),
    "variable_rate.mkv": lambda path: encode(path, pts=IRREGULAR, g="20", bf="3"),
    "late_start.mp4": lambda path: encode(path, pts=[90000 + 3000 * i for i in range(FRAMES)], g="20"),
    "fragmented.mp4": lambda path: encode(path, g="15", movie={"movflags": "frag_keyframe+empty_moov"}),
    "fragmented_indexed.mp4": lambda path: encode(path, g="15", movie={"movflags": "dash+global_sidx"}),
    "vp8.webm": lambda path: encode(path, "libvpx", **{"auto-alt-ref": "1", "lag-in-frames": "16", "g": "20"}),
    "vp9.webm": lambda path: encode(path, "libvpx-vp9", **{"auto-alt-ref": "1", "lag-in-frames": "16", "g": "24"}),
    "vp9_odd_size.webm": lambda path: encode(path, "libvpx-vp9", frames=numbered_frames(40, 47, 65), deadline="realtime", g="9"),
    "hevc.mp4": lambda path: encode(path, "libx265", **{"x265-params": "keyint=20:bframes=4:log-level=none"}),
    "hevc_open_gop.mkv": lambda path: encode(path, "libx265", **{"x265-params": "keyint=20:open-gop=1:bframes=4:log-level=none"}),
    "av1.mp4": av1,
    "av1.mkv": av1,
    "mpeg4.mp4": lambda path: encode(path, "mpeg4", g="12", bf="2"),
    "mpeg4.avi": lambda path: encode(path, "mpeg4", g="12", bf="2"),
    "packed_b_frames.avi": packed_b_frames,
    "h264.avi": lambda path: encode(path, g="15", bf="0"),
    "transport.ts": lambda path: encode(path, g="15", bf="2"),
    "mpeg2.mpg": lambda path: encode(path, "mpeg2video", g="12", bf="2"),
    "rotated.mp4": lambda path: turn(encode(path)),
    "odd_size.avi": lambda path: encode(path, "mpeg4", frames=numbered_frames(30, 47, 65)),
    "one_frame.mp4": lambda path: encode(path, frames=numbered_frames(1)),
    "two_frames.mp4": lambda path: encode(path, frames=numbered_frames(2), bf="2"),
    "ten_bit.mp4": lambda path: encode(path, pix_fmt="yuv420p10le", g="20"),
    "full_chroma.mp4": lambda path: encode(path, pix_fmt="yuv444p", g="20"),
    "full_range.mp4": lambda path: encode(path, pix_fmt="yuvj420p", g="20", prepare=full_range),
    "bt709.mp4": lambda path: encode(path, g="20", prepare=bt709),
    "two_streams.mp4": two_streams,
    "long_audio.mp4": long_audio,
    "broken_off.mkv": lambda path: truncated(encode(path, g="12"), 0.6),
    "broken_off.ts": lambda path: truncated(encode(path, g="12"), 0.6),
    "broken_off.avi": lambda path: truncated(encode(path, "mpeg4", g="12"), 0.6),
    "broken_off_faststart.mp4": lambda path: truncated(encode(path, g="12", movie={"movflags": "faststart"}), 0.6),
}


def build(name: str, folder: Path) -> Path:
    """Make the file of this name."""
    return BUILDERS[name](folder / name)
