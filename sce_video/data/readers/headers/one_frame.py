"""Whether each packet of an HEVC, VP9 or AV1 stream gives one frame of a forward decode, as an index of packets assumes.

Some do not: hidden VP9 and AV1 frames in packets of their own give none, a packet may show two, and where HEVC streams
were joined (BLA pictures, an end of sequence, no_output_of_prior_pics_flag) decoders drop pictures. Bits follow the
specifications of VP9 (6.2, annex B) and AV1 (5.3.2, 5.9.2) and ITU-T H.265 (7.3.1.2, 7.3.6.1).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

IDR, BLA, END = (19, 20), (16, 17, 18), (36, 37)  # nal_unit_type in HEVC
AV1 = ("av1", "libdav1d", "libaom-av1")  # FFmpeg's decoders
HEADER, FRAME = 3, 6  # obu_type in AV1
MOST_PACKETS = 512  # looked at in an MP4: encoders that hide frames do so in each group of pictures
HEAD_BYTES = 1 << 13  # of a key packet, which hold all before its first slice


def gives_one(codec: str, packet: bytes, extradata: bytes | None) -> bool:
    """Return whether a packet gives one frame and takes none from others; True for codecs not named above."""
    try:
        if codec == "hevc":
            return not _joins(packet, _length_bytes(extradata))
        if codec == "vp9":
            return sum(_vp9_shown(frame) for frame in _vp9_frames(packet)) == 1
        return codec not in AV1 or sum(_av1_shown(packet)) == 1
    except IndexError:  # damaged
        return False


def file_gives_one(path: str, entries: Sequence[Any], codec: str, extradata: bytes | None) -> bool:
    """Return the same for an MP4 file by the packets that matter: HEVC's keys and what is before them, the first of others.

    entries: PyAV's index_entries.
    """
    if codec == "hevc" and not extradata:
        return False
    with open(path, "rb") as file:

        def read(start: int, size: int) -> bytes:
            return os.pread(file.fileno(), size, start)

        if codec == "hevc":
            unit = (2).to_bytes(_length_bytes(extradata), "big")  # the length of an end of sequence, and its two bytes
            for before, entry in zip([None, *entries], entries):  # noqa: B905
                tail = read(before.pos + before.size - len(unit) - 2, len(unit) + 2) if before and entry.flags & 1 else b""
                if entry.flags & 1 and not gives_one(codec, read(entry.pos, min(entry.size, HEAD_BYTES)), extradata):
                    return False
                if tail.startswith(unit) and not gives_one(codec, tail, extradata):
                    return False
        some = entries[:MOST_PACKETS] if codec in ("vp9", *AV1) else []
        return all(gives_one(codec, read(entry.pos, entry.size), extradata) for entry in some)


def _length_bytes(hvcc: bytes | None) -> int:
    """Return the number of bytes of a NAL unit's length, from an hvcC record (ISO/IEC 14496-15, 8.3.3.1)."""
    return ((hvcc or b"")[21] & 3) + 1


def _joins(packet: bytes, length_bytes: int) -> bool:
    position = 0
    while position + length_bytes + 2 <= len(packet):
        start = position + length_bytes
        kind = packet[start] >> 1 & 63
        if kind in BLA or kind in END or (kind in IDR and packet[start + 2] & 0x40):
            return True
        position = start + int.from_bytes(packet[position:start], "big")
    return False


def _vp9_frames(packet: bytes) -> Iterator[bytes]:
    """Yield the frames of a packet, of a superframe each."""
    last = packet[-1]
    bytes_each, count = (last >> 3 & 3) + 1, (last & 7) + 1
    index = len(packet) - 2 - bytes_each * count
    if last >> 5 != 6 or index < 0 or packet[index] != last:
        yield packet
        return
    position = 0
    for at in range(index + 1, len(packet) - 1, bytes_each):
        size = int.from_bytes(packet[at : at + bytes_each], "little")
        yield packet[position : position + size]
        position += size


def _vp9_shown(frame: bytes) -> bool:
    """Return show_existing_frame or show_frame, which follow frame_marker and the profile; profile 3 takes one bit more."""
    bits, profile_3 = int.from_bytes(frame[:2].ljust(2, b"\0"), "big"), frame[0] & 0b0011_0000 == 0b0011_0000
    return bool(bits >> (10 if profile_3 else 11) & 0b1 or bits >> (8 if profile_3 else 9) & 0b1)


def _av1_shown(packet: bytes) -> Iterator[bool]:
    """Yield for each frame header show_existing_frame or show_frame."""
    position = 0
    while position < len(packet):
        header, size, shift = packet[position], 0, 0
        position += 1 + (header >> 2 & 1)
        while header & 2:  # the size, 7 bits a byte, the lowest first
            size |= (packet[position] & 127) << shift
            position, shift = position + 1, shift + 7
            if not packet[position - 1] & 128:
                break
        if header >> 3 & 15 in (HEADER, FRAME):
            yield bool(packet[position] & 0b1001_0000)
        position = position + size if header & 2 else len(packet)
