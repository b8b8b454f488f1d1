"""Streams whose packets are not one frame of a forward decode each, and other kinds found by remuxing: see test_hard_files.

`ODD` names them by kind, as `reported_files.REPORTED` does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
from hard_files import av1, encode, ordinary_priority, x264
from reported_files import QUIET, beside, copy_packets

from sce_video.data.readers.headers import h264

TICKS = 3000  # per second
Part = tuple[bytes, int, bool]  # a packet: content, time in ticks, whether it is a key


@ordinary_priority()
def mux(path: Path, codec: str, packets: list[Part], extradata: bytes | None = None) -> Path:
    """Write packets as they are: FFmpeg's muxers would join what is split."""
    with av.open(str(path), "w", options={"fflags": "-autobsf"}) as target:
        stream = target.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt, stream.time_base = 48, 64, "yuv420p", Fraction(1, TICKS)
        if extradata:
            stream.codec_context.extradata = extradata
        for content, time, key in packets:
            packet = av.Packet(content)
            packet.pts = packet.dts = time
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, TICKS), key, stream
            target.mux(packet)
    return path


def parts_of(path: Path) -> tuple[list[Part], bytes | None]:
    """Return the packets of a file, and the extradata."""
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.size]
        parts = [(bytes(packet), round(packet.pts * packet.time_base * TICKS), packet.is_keyframe) for packet in packets]
        return parts, stream.codec_context.extradata


def hidden_keys(path: Path, which: Callable[[int], bool]) -> Path:
    """VP9: some key frames are hidden, and a packet of one byte shows each of them."""
    packets, keys = list[Part](), 0
    for content, time, _ in parts_of(encode(beside(path, "whole.webm"), "libvpx-vp9", g="24", **QUIET["libvpx-vp9"]))[0]:
        key = not content[0] & 4
        if key and which(keys):
            packets += [(bytes([content[0] & ~2]) + content[1:], time, True), (b"\x88", time + 30, False)]
        else:
            packets.append((content, time + 30, key))
        keys += key
    return mux(path, "libvpx-vp9", packets)


def units_of(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (type, whole unit, its content) of the OBUs of an AV1 packet."""
    position = 0
    while position < len(content):
        start, size, shift = position, 0, 0
        position += 1 + (content[position] >> 2 & 1)
        while True:
            size |= (content[position] & 127) << shift
            position, shift = position + 1, shift + 7
            if not content[position - 1] & 128:
                break
        yield content[start] >> 3 & 15, content[start : position + size], content[position : position + size]
        position += size


def hidden_av1(path: Path) -> Path:
    """AV1: every hidden frame is a packet."""
    packets: list[Part] = []
    source, extradata = parts_of(av1(beside(path, "whole.mkv")))
    for content, time, key in source:
        pieces = [b""]
        for kind, unit, _ in units_of(content):
            pieces[-1] += unit
            if kind in (3, 6):
                pieces.append(b"")
        pieces = [piece for piece in pieces if piece]
        for number, piece in enumerate(pieces):
            packets.append((piece, time + 60 - 12 * (len(pieces) - 1 - number), key and number == 0))
    return mux(path, "libsvtav1", packets, extradata)


def joined_hevc(path: Path, change: Callable[[bytearray, int, bool], None], *, open_gop: bool = True) -> Path:
    """HEVC whose packets are changed: change(content, number, whether the next one is a key)."""
    parameters = f"keyint=12:min-keyint=12:open-gop={int(open_gop)}:bframes=4:scenecut=0:log-level=none"
    whole = encode(beside(path, "whole.mp4"), "libx265", **{"x265-params": parameters})
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(source.streams.video[0]) if packet.size]
        for number, packet in enumerate(packets):
            content = bytearray(bytes(packet))
            change(content, number, number + 1 < len(packets) and packets[number + 1].is_keyframe)
            changed = av.Packet(bytes(content))
            for name in ("pts", "dts", "duration", "time_base", "is_keyframe"):
                setattr(changed, name, getattr(packet, name))
            changed.stream = stream
            target.mux(changed)
    return path


def headers_of(content: bytearray) -> Iterator[int]:
    """Yield where the NAL units of an HEVC packet begin."""
    position = 0
    while position + 4 < len(content):
        yield position + 4
        position += 4 + int.from_bytes(content[position : position + 4], "big")


def broken_link(content: bytearray, number: int, _: bool) -> None:
    """CRA pictures but the first become BLA pictures: leading pictures after them are dropped."""
    for start in headers_of(content):
        if content[start] >> 1 & 63 == 21 and number:
            content[start] = content[start] & 0x81 | 16 << 1


def end_of_sequence(content: bytearray, _: int, before_key: bool) -> None:
    if before_key:
        content += b"\0\0\0\x02\x48\x01"


def no_output_of_prior_pictures(content: bytearray, number: int, _: bool) -> None:
    for start in headers_of(content):
        if content[start] >> 1 & 63 in (19, 20) and number:
            content[start + 2] |= 0x40


def without_restriction(path: Path, parameters: str) -> Path:
    """H.264 that does not say how many frames a decoder must hold back: FFmpeg begins with none and drops what comes late."""
    x264(path, parameters)
    with av.open(str(path)) as source:
        extradata = source.streams.video[0].codec_context.extradata
    assert extradata is not None
    unit = extradata[8 : 8 + int.from_bytes(extradata[6:8], "big")]
    content = h264._remove_emulation(unit[1:])
    assert content[0] in h264.WITH_CHROMA_FORMAT
    bits = h264._Bits(content)
    bits.take(24)
    for kind in "gggg11gggg1gg111":  # to the flag of the VUI: golombs and bits (7.3.2.1.1), progressive and not cropped
        bits.take(1) if kind == "1" else bits.golomb()
    text = f"{int.from_bytes(content, 'big'):0{8 * len(content)}b}"[: 8 * len(content) - bits._left] + "01"
    text += "0" * (-len(text) % 8)
    short = unit[:1] + int(text, 2).to_bytes(len(text) // 8, "big")
    path.write_bytes(path.read_bytes().replace(unit, short.ljust(len(unit), b"\0")))
    with av.open(str(path)) as source:
        parsed = h264.parse_parameters(source.streams.video[0].codec_context.extradata)
    assert parsed is not None
    assert parsed.picture is None
    return path


def cut_at(path: Path, codec: str, first: int) -> Path:
    """A stream that begins at or after the key frame of an open group of pictures."""
    parameters = "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0:b-adapt=0"
    name = {"libx264": "x264-params", "libx265": "x265-params"}[codec]
    quiet = ":log-level=none" if codec == "libx265" else ""
    return copy_packets(encode(beside(path, "whole.mp4"), codec, **{name: parameters + quiet}), path, first=first)


def edited(path: Path, start: int, units: int | None = None, codec: str = "libx264") -> Path:
    """The edit list begins `start` ticks later, between key frames, and shows `units` ticks."""
    encode(path, codec, g="24", bf="2", **QUIET.get(codec, {}))
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 12
    duration, time, rate = struct.unpack_from(">Iii", content, at)
    struct.pack_into(">Iii", content, at, duration if units is None else units, time + start, rate)
    path.write_bytes(content)
    return path


def lossy(path: Path, codec: str = "libx264", **options: str) -> Path:
    """Every ninth packet but the keys is lost."""
    options = QUIET.get(codec, {}) if codec != "libx264" else {"g": "20", "bf": "2", **options}
    whole = encode(beside(path, "whole.webm" if codec.startswith("libvpx") else "whole.mp4"), codec, **options)
    return copy_packets(whole, path, lambda packet, number: None if number % 9 == 5 and not packet.is_keyframe else packet)


def first_only(number: int) -> bool:
    return number == 0


def second_only(number: int) -> bool:
    return number == 1


ADAPTIVE, DEEP = "bframes=5:keyint=70:b-adapt=2", "bframes=8:b-pyramid=normal:b-adapt=0:keyint=40:ref=4"
ODD: dict[str, dict[str, Callable[[Path], Path]]] = {
    "hidden frames in packets of their own": {
        "hidden_keys.webm": lambda path: hidden_keys(path, lambda _: True),
        "hidden_second_key.webm": lambda path: hidden_keys(path, second_only),
        "hidden_second_key.mkv": lambda path: hidden_keys(path, second_only),
        "hidden_second_key.mp4": lambda path: hidden_keys(path, second_only),
        "hidden_first_key.mp4": lambda path: hidden_keys(path, first_only),
        "hidden_av1.mkv": hidden_av1,
        "hidden_av1.mp4": hidden_av1,
    },
    "joined streams": {
        "broken_link.mp4": lambda path: joined_hevc(path, broken_link),
        "broken_link.mkv": lambda path: joined_hevc(path, broken_link),
        "end_of_sequence.mov": lambda path: joined_hevc(path, end_of_sequence),
        "end_of_sequence.mkv": lambda path: joined_hevc(path, end_of_sequence),
        "no_prior_pictures.mp4": lambda path: joined_hevc(path, no_output_of_prior_pictures, open_gop=False),
        "no_prior_pictures.mkv": lambda path: joined_hevc(path, no_output_of_prior_pictures, open_gop=False),
    },
    "order of output unknown": {
        "no_restriction.mkv": lambda path: without_restriction(path, ADAPTIVE),
        "no_restriction.mp4": lambda path: without_restriction(path, ADAPTIVE),
        "no_restriction_deep.mov": lambda path: without_restriction(path, DEEP),
        "no_restriction_deep.flv": lambda path: without_restriction(path, DEEP),
    },
    "begin in an open group": {
        "open_start.mp4": lambda path: cut_at(path, "libx264", 12),
        "open_start_hevc.mkv": lambda path: cut_at(path, "libx265", 12),
        "open_middle_hevc.mov": lambda path: cut_at(path, "libx265", 17),
        "open_middle.flv": lambda path: cut_at(path, "libx264", 15),
    },
    "edit lists": {
        "edit_in_a_group.mp4": lambda path: edited(path, 9000),
        "edit_to_a_moment.mov": lambda path: edited(path, 9000, 500),
        "edit_before_0.mov": lambda path: edited(path, -1024),
        "edit_in_a_group_hevc.mp4": lambda path: edited(path, 9000, codec="libx265"),
        "edit_in_a_group_mpeg4.mov": lambda path: edited(path, 9000, codec="mpeg4"),
    },
    "lost packets": {
        "lost.mp4": lossy,
        "lost.mkv": lossy,
        "lost.ts": lossy,
        "lost_vp9.webm": lambda path: lossy(path, "libvpx-vp9"),
    },
}
