"""What H.264 tells without being decoded. Of a stream: the size of its pictures. Of a packet: do others need it, can
decoding begin at it, is it to be turned.

Streams as MP4 and Matroska hold them: an avcC record, and NAL units, each behind its length (ISO/IEC 14496-15). Bit fields
by ITU-T H.264: nal_unit (7.3.1), sequence parameter set (7.3.2.1.1, E.1.1), SEI payloads (7.3.2.3, D.1.8).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

SLICES = range(1, 6)  # nal_unit_type of coded slices; 5 is an instantaneous decoder refresh (IDR)
IDR = 5
SEI, SEQUENCE_PARAMETERS = 6, 7
WITH_CHROMA_FORMAT = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # values of profile_idc
SQUARE, OWN_ASPECT_RATIO = 1, 255  # values of aspect_ratio_idc: 1:1, and two 16-bit numbers follow; 0 is not told
RECOVERY_POINT, DISPLAY_ORIENTATION = 6, 47  # SEI payload types


class Packet(NamedTuple):
    """What is known of a packet.

    reference: other pictures may be predicted from it. entry: from here on every later picture decodes exactly.
    oriented: it says that pictures are to be turned or mirrored when shown. parameters: it brings the stream's parameters
    along, which may be others than those of its header.
    """

    reference: bool
    entry: bool
    oriented: bool
    parameters: bool


def length_size(extradata: bytes | None) -> int | None:
    """Return how many bytes hold the length of a NAL unit, from a stream's avcC record; None where there is none."""
    if not extradata or len(extradata) < 7 or extradata[0] != 1:
        return None
    return (extradata[4] & 3) + 1


class Picture(NamedTuple):
    """The pictures of a stream. square: no other shape of their pixels is told."""

    height: int
    width: int
    square: bool


def plain_picture(extradata: bytes | None) -> Picture | None:
    """Return what a stream's avcC record tells of its pictures, if they are of the kind that nearly all are.

    That is: one sequence parameter set, progressive frames of 8 bits and 4:2:0, no scaling lists, and it is told how many
    pictures are held back. None for others, and for what cannot be understood.
    """
    if length_size(extradata) is None or extradata is None or extradata[5] & 31 != 1 or len(extradata) < 12:
        return None
    length = int.from_bytes(extradata[6:8], "big")
    try:
        return _plain_picture(_Bits(_without_emulation(extradata[9 : 8 + length])))
    except IndexError:  # it ends too early
        return None


def _plain_picture(bits: _Bits) -> Picture | None:
    profile, _, _ = bits.take(8), bits.take(16), bits.golomb()
    if profile in WITH_CHROMA_FORMAT:
        chroma_format, luma_depth, chroma_depth = bits.golomb(), bits.golomb(), bits.golomb()
        lossless, scaling_lists = bits.take(1), bits.take(1)
        if (chroma_format, luma_depth, chroma_depth, lossless, scaling_lists) != (1, 0, 0, 0, 0):
            return None
    bits.golomb()  # log2_max_frame_num
    order_type = bits.golomb()
    if order_type == 1:
        return None
    if order_type == 0:
        bits.golomb()
    bits.golomb()  # max_num_ref_frames
    bits.take(1)
    width, height = 16 * (bits.golomb() + 1), 16 * (bits.golomb() + 1)
    progressive = bits.take(1)
    bits.take(1)
    left, right, top, bottom = [bits.golomb() for _ in range(4)] if bits.take(1) else [0, 0, 0, 0]
    if not (progressive and bits.take(1)):
        return None
    aspect = bits.take(8) if bits.take(1) else SQUARE
    if aspect == OWN_ASPECT_RATIO:
        bits.take(32)
    if not _tells_reordering(bits):
        return None
    # What is cut off is told in chroma samples.
    return Picture(height - 2 * (top + bottom), width - 2 * (left + right), aspect <= SQUARE)


def _tells_reordering(bits: _Bits) -> bool:
    """Whether the VUI parameters, from overscan on, have bitstream_restriction_flag set; no too if they describe a rate
    control.
    """
    if bits.take(1):  # overscan
        bits.take(1)
    if bits.take(1):  # video signal
        bits.take(4)
        if bits.take(1):  # colours
            bits.take(24)
    if bits.take(1):  # place of chroma samples
        bits.golomb()
        bits.golomb()
    if bits.take(1):  # timing
        bits.take(65)
    rate_control = bits.take(2)
    return not rate_control and bool(bits.take(2) & 1)


class _Bits:
    """Reads bits from the front; IndexError behind the end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Return the next bits as an unsigned number: u(n) of the standard."""
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """Return the next number in exponential Golomb code: ue(v) of the standard (9.1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def inspect(packet: bytes | memoryview, size_bytes: int) -> Packet:
    """Look at the NAL headers of a packet. What cannot be understood counts as needed, and as no entry."""
    reference, slices, entry, oriented, parameters = False, 0, False, False, False
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
        elif kind == SEQUENCE_PARAMETERS:
            parameters = True
    return Packet(reference or not slices, entry, oriented, parameters)


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


def is_of_old_x264(first_packet: bytes | memoryview) -> bool:
    """Whether a stream must be decoded from its start, because its first packet tells that x264 before build 34 wrote it.

    FFmpeg decodes what those wrote by the build number, which no other packet has (and 4:4:4 by builds before 151).
    """
    build = re.search(rb"x264 - core (\d+)", bytes(first_packet))
    return build is not None and int(build[1]) <= 33


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
    data = _without_emulation(unit[1:])
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


def _without_emulation(unit: bytes | memoryview) -> bytes:
    """Leave out the bytes that keep a start code from appearing inside a unit (emulation_prevention_three_byte, 7.4.1)."""
    return bytes(unit).replace(b"\0\0\3", b"\0\0")


def _is_exact(recovery_point: bytes) -> bool:
    """Whether recovery_frame_cnt is 0 (coded as one bit, 1) and exact_match_flag 1."""
    return bool(recovery_point) and recovery_point[0] & 0b1100_0000 == 0b1100_0000
