"""Files of the kinds that users reported, made with PyAV: `build(name, folder)` -> path. See tests/test_hard_files.py.

`python tests/reported_files.py FOLDER` writes them all. The members of each kind are others (in another container or codec)
than those of ../shared/hard_inputs.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from conftest import numbered_frames
from hard_files import FRAMES, encode
from PIL import Image


def copy_packets(
    source: Path,
    path: Path,
    change: Callable[[Any, int], Any] = lambda packet, number: packet,
    *,
    filters: str = "",
    first: int = 0,
    **movie: str,
) -> Path:
    """Copy the packets from number `first` on; change(packet, number) sets their times or returns None to leave one out.

    filters: a bit stream filter that the packets pass, with its options.
    """
    with av.open(str(source)) as container, av.open(str(path), "w", options=movie) as target:
        stream = target.add_stream_from_template(container.streams.video[0])
        changed = av.bitstream.BitStreamFilterContext(filters, container.streams.video[0], stream) if filters else None
        number = -1
        for packet in container.demux(container.streams.video[0]):
            number += packet.size > 0
            if not packet.size or number < first:
                continue
            for passed in changed.filter(packet) if changed else (packet,):
                if change(passed, number) is not None:
                    passed.stream = stream
                    target.mux(passed)
    return path


def beside(path: Path, name: str) -> Path:
    return path.with_name(f"of_{path.stem}_{path.suffix[1:]}_{name}")


def coded_order(path: Path, codec: str = "libx264") -> Path:
    """Presentation times equal decoding times although there are B-frames, as after a stream copy from AVI."""

    def change(packet: Any, number: int) -> Any:
        packet.pts = packet.dts = round(number / 30 / packet.time_base)
        return packet

    return copy_packets(encode(beside(path, "whole.mp4"), codec, bf="2", **QUIET.get(codec, {})), path, change)


def late_coded_order(path: Path) -> Path:
    """The same, from the second key frame on."""

    def change(packet: Any, number: int) -> Any:
        packet.pts = packet.pts if number < 24 else packet.dts + round(2 / 30 / packet.time_base)
        return packet

    return copy_packets(encode(beside(path, "whole.mp4"), bf="2", g="24", sc_threshold="0"), path, change)


def drifting(path: Path, codec: str = "libx264") -> Path:
    """Presentation times run twice as fast as decoding times."""

    def change(packet: Any, number: int) -> Any:
        packet.pts = 2 * packet.pts + packet.pts % 5
        packet.dts = min(packet.dts, packet.pts)
        return packet

    return copy_packets(encode(beside(path, "whole.mp4"), codec, bf="2", **QUIET.get(codec, {})), path, change)


def shifted(path: Path, codec: str, seconds: Fraction, **movie: str) -> Path:
    """All times are moved."""

    def change(packet: Any, _: int) -> Any:
        packet.pts, packet.dts = (time + round(seconds / packet.time_base) for time in (packet.pts, packet.dts))
        return packet

    container = "mkv" if codec.startswith("libvpx") else "mp4"
    return copy_packets(encode(beside(path, f"whole.{container}"), codec, g="20", **QUIET.get(codec, {})), path, change, **movie)


def without_its_key(path: Path, codec: str = "libx264", between: str = "") -> Path:
    """A copy that begins between two key frames, through another container."""
    whole = encode(beside(path, "whole.mp4"), codec, g="20", bf="2", **QUIET.get(codec, {}))
    return copy_packets(
        copy_packets(whole, beside(path, f"part.{between}"), first=7) if between else whole, path, first=0 if between else 7
    )


def with_sound(path: Path, codec: str) -> Path:
    """Picture and sound in turn."""
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream(codec, rate=30), container.add_stream("aac", rate=44100)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for number, array in enumerate(numbered_frames(FRAMES)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            for start in range(number * 1470, (number + 1) * 1470, 490):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 490), dtype=np.float32), format="fltp", layout="mono")
                sound.sample_rate, sound.pts = 44100, start
                container.mux(audio.encode(sound))
        container.mux(video.encode())
        container.mux(audio.encode())
    return path


def palette(path: Path) -> Path:
    """Pictures of numbers into a palette that the file stores once."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "pal8"
        colours = np.random.default_rng(0).integers(0, 255, (256, 4), dtype=np.uint8)
        colours[:, 0] = 255
        for number in range(20):
            numbers = np.full((48, 64), number * 7, dtype=np.uint8)
            numbers[:, number:] += 3
            container.mux(stream.encode(av.VideoFrame.from_ndarray((numbers, colours), format="pal8")))
        container.mux(stream.encode())
    return path


def slow_then_fast(path: Path, codec: str, **options: str) -> Path:
    """20 frames a second apart, then 50 at 60 per second: `SLOW_THEN_FAST`."""
    return encode(path, codec, pts=[round(90000 * time) for time in SLOW_THEN_FAST], **options)


def doubled_rate(path: Path, codec: str, rate: int) -> Path:
    """Each frame of AVI takes two ticks: the header's rate is twice the real one."""
    whole = encode(beside(path, "whole.avi"), codec)

    def change(packet: Any, number: int) -> Any:
        packet.pts = packet.dts = 2 * number
        packet.time_base = Fraction(1, 2 * rate)
        return packet

    with av.open(str(whole)) as container, av.open(str(path), "w") as target:
        template = container.streams.video[0]
        stream = target.add_stream(codec, rate=2 * rate)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number, packet in enumerate(packet for packet in container.demux(template) if packet.size):
            change(packet, number).stream = stream
            target.mux(packet)
    return path


def wild_time(path: Path, codec: str = "libx264") -> Path:
    """The last frame comes a day after the others."""
    return encode(path, codec, frames=numbered_frames(11), pts=[3000 * i for i in range(10)] + [86400 * 90000])


def oriented(path: Path, a: int, b: int, c: int, d: int, codec: str = "libx264") -> Path:
    """The track's display matrix."""
    encode(path, codec, **QUIET.get(codec, {}))
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    content[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def covered(path: Path, cover_codec: str, codec: str | None) -> Path:
    """A cover: an attached picture before the video, or before sound alone (codec None)."""
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream(cover_codec, rate=1)
        cover.height, cover.width, cover.pix_fmt = 40, 40, "yuvj420p" if cover_codec == "mjpeg" else "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        main = container.add_stream(codec, rate=30) if codec else container.add_stream("aac", rate=44100)
        picture = av.VideoFrame.from_ndarray(numbered_frames(1, 40, 40)[0], format="rgb24")
        if codec:
            main.height, main.width, main.pix_fmt, main.options = 48, 64, "yuv420p", QUIET.get(codec, {})
        container.mux(cover.encode(picture.reformat(format=cover.pix_fmt)))
        container.mux(cover.encode())
        for array in numbered_frames(FRAMES if codec else 0):
            container.mux(main.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        if not codec:
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), dtype=np.float32), format="fltp", layout="mono")
            sound.sample_rate = 44100
            container.mux(main.encode(sound))
        container.mux(main.encode())
    content = path.read_bytes()
    movie, title = content.index(b"moov") - 4, content.rindex(b"udta") - 4  # at the end of the file: no offset changes
    size = struct.unpack(">I", content[title : title + 4])[0]
    path.write_bytes(content[: movie + 8] + content[title : title + size] + content[movie + 8 : title] + content[title + size :])
    return path


def attached(path: Path) -> Path:
    """A cover as an attachment, which FFmpeg shows as a stream of video."""
    picture = io.BytesIO()
    Image.fromarray(numbered_frames(1, 40, 40)[0]).save(picture, "PNG")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.add_attachment("cover.png", "image/png", picture.getvalue())
        for array in numbered_frames(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return path


def second_by_default(path: Path) -> Path:
    """Two videos; the second has the default flag."""
    with av.open(str(path), "w") as container:
        streams = []
        for height, width in ((96, 128), (48, 64)):
            stream = container.add_stream("libx264", rate=30)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.disposition = av.stream.Disposition.default if height == 48 else av.stream.Disposition.original
            streams.append((stream, numbered_frames(FRAMES, height, width)))
        for number in range(FRAMES):
            for stream, frames in streams:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frames[number], format="rgb24")))
        for stream, _ in streams:
            container.mux(stream.encode())
    return path


def cropped(path: Path, codec: str, filters: str) -> Path:
    """A cropping window that begins right of the left border."""
    frames = numbered_frames(30, 64, 96)
    return copy_packets(encode(beside(path, "whole.mp4"), codec, frames=frames, **QUIET.get(codec, {})), path, filters=filters)


def renamed(path: Path, old: bytes, new: bytes, **options: Any) -> Path:
    """The codec's name in the container is another one."""
    content = encode(path, **options).read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


def preceded(path: Path, head: bytes) -> Path:
    """Bytes before the container's own first ones."""
    encode(path, "mpeg2video" if path.suffix == ".ts" else "libx264", movie=FRAGMENTED if path.suffix != ".ts" else {})
    path.write_bytes(head + path.read_bytes())
    return path


def with_parity(path: Path, codec: str) -> Path:
    """Transport packets of 204 bytes: 16 of error correction after each."""
    content = encode(path, codec).read_bytes()
    path.write_bytes(b"".join(content[at : at + 188] + bytes(16) for at in range(0, len(content), 188)))
    return path


def box(kind: bytes, size: int) -> bytes:
    return struct.pack(">I4s", size, kind) + bytes(size - 8)


SLOW_THEN_FAST = [*range(20), *(20 + number / 60 for number in range(50))]
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
QUIET = {"libx265": {"x265-params": "keyint=24:bframes=3:log-level=none"}, "libvpx-vp9": {"deadline": "realtime"}}
WRAP = Fraction(2**33, 90000) - 1
ID3 = b"ID3\x04\0\0\0\0\x02\x10" + bytes(2 * 128 + 16)
REPORTED: dict[str, dict[str, Callable[[Path], Path]]] = {
    "coded order": {
        "coded.mov": coded_order,
        "coded.mkv": coded_order,
        "coded_hevc.mp4": lambda path: coded_order(path, "libx265"),
        "coded_hevc.mkv": lambda path: coded_order(path, "libx265"),
        "coded_late.mp4": late_coded_order,
        "drifting.mov": drifting,
        "drifting_hevc.mp4": lambda path: drifting(path, "libx265"),
    },
    "start": {
        "wrap_mpeg2.ts": lambda path: shifted(path, "mpeg2video", WRAP),
        "wrap.m2ts": lambda path: shifted(path, "libx264", WRAP, mpegts_m2ts_mode="1"),
        "wrap.mpg": lambda path: shifted(path, "mpeg2video", WRAP),
        "negative.webm": lambda path: shifted(path, "libvpx-vp9", Fraction(-1), avoid_negative_ts="disabled"),
        "negative_hevc.mkv": lambda path: shifted(path, "libx265", Fraction(-1), avoid_negative_ts="disabled"),
        "negative_mpeg4.mkv": lambda path: shifted(path, "mpeg4", Fraction(-1), avoid_negative_ts="disabled"),
        "h264_sound.flv": lambda path: with_sound(path, "libx264"),
        "mpeg4_sound.avi": lambda path: with_sound(path, "mpeg4"),
        "vp9.avi": lambda path: encode(path, "libvpx-vp9", g="20", **QUIET["libvpx-vp9"]),
        "no_key.mov": without_its_key,
        "no_key_hevc.mkv": lambda path: without_its_key(path, "libx265"),
        "no_key_ts.mkv": lambda path: without_its_key(path, "libx264", "ts"),
        "palette.mov": palette,
        "palette.avi": palette,
    },
    "rate": {
        "slow_then_fast.webm": lambda path: slow_then_fast(path, "libvpx-vp9", **QUIET["libvpx-vp9"]),
        "slow_then_fast.wmv": lambda path: slow_then_fast(path, "wmv2"),
        "slow_then_fast.ts": lambda path: slow_then_fast(path, "libx264", bf="2"),
        "slow_then_fast.mov": lambda path: slow_then_fast(path, "libx264", bf="2"),
        "slow_then_fast_hevc.mp4": lambda path: slow_then_fast(path, "libx265", **QUIET["libx265"]),
        "doubled_mpeg4.avi": lambda path: doubled_rate(path, "mpeg4", 25),
        "doubled_msmpeg4.avi": lambda path: doubled_rate(path, "msmpeg4v2", 30),
        "wild.mkv": wild_time,
        "wild.webm": lambda path: wild_time(path, "libvpx-vp9"),
    },
    "orientation": {
        **{
            f"matrix_{a}{b}{c}{d}.mov": lambda path, m=(a, b, c, d): oriented(path, *m)  # type: ignore[misc]
            for a, b, c, d in ((-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0), (0, 1, -1, 0))
        },
        "turned_hevc.mp4": lambda path: oriented(path, 0, -1, 1, 0, "libx265"),
        "degenerate_zero.mp4": lambda path: oriented(path, 0, 0, 0, 0),
        "degenerate_line.mov": lambda path: oriented(path, -1, -1, -1, -1),
    },
    "streams": {
        "cover_png.mp4": lambda path: covered(path, "png", "libx264"),
        "cover_hevc.mov": lambda path: covered(path, "mjpeg", "libx265"),
        "cover.mkv": attached,
        "second_by_default.mkv": second_by_default,
        "two_videos.ts": second_by_default,
    },
    "cropping": {
        "cropped.mkv": lambda path: cropped(path, "libx264", "h264_metadata=crop_left=10:crop_top=6"),
        "cropped_hevc.mp4": lambda path: cropped(path, "libx265", "hevc_metadata=crop_left=6:crop_bottom=4"),
        "cropped_hevc.mkv": lambda path: cropped(path, "libx265", "hevc_metadata=crop_left=6"),
    },
    "first bytes": {
        "uuid.mp4": lambda path: preceded(path, box(b"uuid", 40)),
        "udta.mov": lambda path: preceded(path, box(b"udta", 24)),
        "meta.mp4": lambda path: preceded(path, box(b"meta", 24)),
        "parity_mpeg2.ts": lambda path: with_parity(path, "mpeg2video"),
        "parity_mpeg4.ts": lambda path: with_parity(path, "mpeg4"),
        "unaligned.ts": lambda path: preceded(path, b"\x11\x22" * 50),
        "title.ts": lambda path: preceded(path, ID3),
    },
    "odd sides": {
        "odd.webm": lambda path: encode(path, "libvpx-vp9", frames=odd_frames(47, 65), **QUIET["libvpx-vp9"]),
        "odd_width.mkv": lambda path: encode(path, "libvpx-vp9", frames=odd_frames(48, 65), **QUIET["libvpx-vp9"]),
        "odd_height.avi": lambda path: encode(path, "mpeg4", frames=odd_frames(47, 64)),
    },
}
# Files to refuse, and a part of the reason.
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no_decoder.mp4": (lambda path: renamed(path, b"avc1", b"zzzz"), "no decoder for its video's codec"),
    "no_decoder.mkv": (lambda path: renamed(path, b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/AVC"), "no decoder for its video's codec"),
    "encrypted.mov": (lambda path: renamed(path, b"avc1", b"encv"), "its video is encrypted"),
    "encrypted_fragments.mp4": (lambda path: renamed(path, b"avc1", b"encv", movie=FRAGMENTED), "its video is encrypted"),
    "cover_sound.mov": (lambda path: covered(path, "mjpeg", None), "no video stream in it"),
    "cover_png_sound.mp4": (lambda path: covered(path, "png", None), "no video stream in it"),
    "stream.mxf": (lambda path: encode(path, "mpeg2video"), "an MXF file; not a container that this reads"),
    "pictures.gif": (lambda path: encode(path, "gif", pix_fmt="rgb8"), "a GIF picture; not a container that this reads"),
    "raw.h264": (lambda path: encode(path), "a raw stream"),
    "raw.hevc": (lambda path: encode(path, "libx265", **QUIET["libx265"]), "a raw stream"),
    "vp9.ivf": (lambda path: encode(path, "libvpx-vp9", **QUIET["libvpx-vp9"]), "an IVF file"),
}


def odd_frames(height: int, width: int) -> np.ndarray:
    """Numbered frames whose neighbouring pixels differ in colour."""
    noise = np.random.default_rng(1).integers(0, 60, (height, width, 3))
    return (noise[None] + numbered_frames(30, 64, 80)[:, :height, :width]).clip(0, 255).astype(np.uint8)


def build(name: str, folder: Path) -> Path:
    """Make the file of this name."""
    kinds = [{name: builder for name, (builder, _) in REFUSED.items()}, *REPORTED.values()]
    return next(builders[name] for builders in kinds if name in builders)(folder / name)


def main() -> None:
    """Write all files to a folder, one folder per kind, for `tools/benchmark.py kinds`."""
    refused = {name: builder for name, (builder, _) in REFUSED.items()}
    plain = {
        "h264.mp4": encode,
        "h264.mkv": encode,
        "vp9.webm": lambda path: encode(path, "libvpx-vp9", **QUIET["libvpx-vp9"]),
        "mpeg4.avi": lambda path: encode(path, "mpeg4"),
    }
    for kind, builders in {"plain": plain, **REPORTED, "to be refused": refused}.items():
        folder = Path(sys.argv[1], kind)
        folder.mkdir(parents=True)
        for name in builders:
            builders[name](folder / name)


if __name__ == "__main__":
    main()
