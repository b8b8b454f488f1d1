"""What an H.264 packet tells without being decoded: do others need it, can decoding begin at it, is it to be turned.

Packets as MP4 and Matroska hold them: NAL units, each behind its length (ISO/IEC 14496-15). Bit fields by ITU-T H.264:
nal_unit (7.3.1), SEI payloads (7.3.2.3, D.1.8).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SLICES = range(1, 6)  # nal_unit_type of coded slices; 5 is an instantaneous decoder refresh (IDR)
IDR = 5
SEI = 6
RECOVERY_POINT, DISPLAY_ORIENTATION = 6, 47  # SEI payload types


class Packet(NamedTuple):
    """What is known of a packet.

    reference: other pictures may be predicted from it. entry: from here on every later picture decodes exactly.
    oriented: it says that pictures are to be turned or mirrored when shown.
    """

    reference: bool
    entry: bool
    oriented: bool


def length_size(extradata: bytes | None) -> int | None:
    """Return how many bytes hold the length of a NAL unit, from a stream's avcC record; None where there is none."""
    if not extradata or len(extradata) < 7 or extradata[0] != 1:
        return None
    return (extradata[4] & 3) + 1


def inspect(packet: bytes | memoryview, size_bytes: int) -> Packet:
    """Look at the NAL headers of a packet. What cannot be understood counts as needed, and as no entry."""
    reference, slices, entry, oriented = False, 0, False, False
    for unit in _units(packet, size_bytes):
        kind = unit[0] & 31
        if kind in SLICES:
            slices += 1
            reference = reference or bool(unit[0] & 0b0110_0000)
            entry = entry or kind == IDR
        elif kind == SEI:
            for payload, content in _messages(unit):
                entry = entry or (payload == RECOVERY_POINT and _is_exact(content))
                oriented = oriented or payload == DISPLAY_ORIENTATION
    return Packet(reference or not slices, entry, oriented)


def is_reference(packet: bytes | memoryview, size_bytes: int) -> bool:
    """Whether `inspect` says `reference`; for every packet of a file, so without the rest."""
    view, position, slices = memoryview(packet), 0, False
    end = len(view) - size_bytes
    while position < end:
        start = position + size_bytes
        header = view[start]
        if 1 <= header & 31 <= IDR:
            if header & 0b0110_0000:
                return True
            slices = True
        length = int.from_bytes(view[position:start], "big")
        if not length:
            break
        position = start + length
    return not slices


def _units(packet: bytes | memoryview, size_bytes: int) -> Iterator[memoryview]:
    view, position = memoryview(packet), 0
    while position + size_bytes < len(view):
        start = position + size_bytes
        position = start + int.from_bytes(view[position:start], "big")
        if position == start:  # an empty unit is no H.264: stop instead of reading on at a wrong place
            return
        yield view[start:position]


def _messages(unit: memoryview) -> Iterator[tuple[int, bytes]]:
    """Yield (payload type, payload) of a SEI unit."""
    data = bytes(unit[1:]).replace(b"\0\0\3", b"\0\0")  # without the emulation prevention bytes
    position = 0
    while position + 2 < len(data):
        fields = []
        for _ in ("type", "size"):
            value = 0
            while position < len(data) - 1 and data[position] == 0xFF:
                value += 0xFF
                position += 1
            fields.append(value + data[position])
            position += 1
            if position >= len(data):
                return
        kind, size = fields
        yield kind, data[position : position + size]
        position += size


def _is_exact(recovery_point: bytes) -> bool:
    """Whether recovery_frame_cnt is 0 (coded as one bit, 1) and exact_match_flag 1."""
    return bool(recovery_point) and recovery_point[0] & 0b1100_0000 == 0b1100_0000
