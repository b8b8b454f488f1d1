"""Parse H.264 headers without decoding: picture size of a stream; reference, random access and orientation of a packet.

Input is H.264 as stored in MP4 and Matroska: an avcC record and length-prefixed NAL units (ISO/IEC 14496-15). Bit fields
follow ITU-T H.264: nal_unit (7.3.1), sequence parameter set (7.3.2.1.1, E.1.1), SEI payloads (7.3.2.3, D.1.8).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

SLICES = range(1, 6)  # nal_unit_type of coded slices; 5 is an instantaneous decoder refresh (IDR)
IDR = 5
SEI, SEQUENCE_PARAMETERS = 6, 7
WITH_CHROMA_FORMAT = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # values of profile_idc
SQUARE, OWN_ASPECT_RATIO = 1, 255  # values of aspect_ratio_idc: 1:1, and two 16-bit numbers follow; 0 is unspecified
RECOVERY_POINT, DISPLAY_ORIENTATION = 6, 47  # SEI payload types


class Packet(NamedTuple):
    """Properties of a packet.

    reference: other pictures may be predicted from it. entry: decoding that starts here is exact for all later pictures.
    oriented: it holds a display orientation SEI. parameters: it holds a sequence parameter set, which may differ from the
    one in the stream's header.
    """

    reference: bool
    entry: bool
    oriented: bool
    parameters: bool


def length_size(extradata: bytes | None) -> int | None:
    """Return the number of bytes of a NAL unit's length field from the avcC record, None without such a record."""
    if not extradata or len(extradata) < 7 or extradata[0] != 1:
        return None
    return (extradata[4] & 3) + 1


class Picture(NamedTuple):
    """Picture size of a stream. square: pixels are square or their aspect ratio is unspecified."""

    height: int
    width: int
    square: bool


def plain_picture(extradata: bytes | None) -> Picture | None:
    """Return the picture size from the avcC record of a plain stream, None for other or unparsable streams.

    Plain, as nearly all streams are: one sequence parameter set, progressive 8-bit 4:2:0 frames, no scaling lists, and a
    bitstream restriction that gives the number of reordered frames.
    """
    if length_size(extradata) is None or extradata is None or extradata[5] & 31 != 1 or len(extradata) < 12:
        return None
    length = int.from_bytes(extradata[6:8], "big")
    try:
        return _parse_sequence_parameters(_Bits(_remove_emulation(extradata[9 : 8 + length])))
    except IndexError:  # truncated
        return None


def _parse_sequence_parameters(bits: _Bits) -> Picture | None:
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
    if not _has_bitstream_restriction(bits):
        return None
    # The cropping is given in chroma samples.
    return Picture(height - 2 * (top + bottom), width - 2 * (left + right), aspect <= SQUARE)


def _has_bitstream_restriction(bits: _Bits) -> bool:
    """Return whether the VUI parameters, from overscan on, set bitstream_restriction_flag; False with HRD parameters."""
    if bits.take(1):  # overscan
        bits.take(1)
    if bits.take(1):  # video signal
        bits.take(4)
        if bits.take(1):  # colours
            bits.take(24)
    if bits.take(1):  # location of chroma samples
        bits.golomb()
        bits.golomb()
    if bits.take(1):  # timing
        bits.take(65)
    hrd_parameters = bits.take(2)
    return not hrd_parameters and bool(bits.take(2) & 1)


class _Bits:
    """Reads bits in order; raises IndexError past the end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Return the next `count` bits as an unsigned integer: u(n) of the standard."""
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """Return the next exponential-Golomb number: ue(v) of the standard (9.1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def inspect(packet: bytes | memoryview, size_bytes: int) -> Packet:
    """Return a packet's properties from its NAL headers; an unparsable packet is a reference and not an entry."""
    reference, slices, entry, oriented, parameters = False, 0, False, False, False
    for unit in _nal_units(packet, size_bytes):
        kind = unit[0] & 31
        if kind in SLICES:
            slices += 1
            reference = reference or bool(unit[0] & 0b0110_0000)
            entry = entry or kind == IDR
        elif kind == SEI:
            for payload, content in _sei_messages(unit):
                entry = entry or (payload == RECOVERY_POINT and _is_exact(content))
                oriented = oriented or payload == DISPLAY_ORIENTATION
        elif kind == SEQUENCE_PARAMETERS:
            parameters = True
    return Packet(reference or not slices, entry, oriented, parameters)


def is_reference(packet: bytes | memoryview, size_bytes: int) -> bool:
    """Return the `reference` of `inspect`, without its cost: called for every packet of a file."""
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


def is_old_x264(first_packet: bytes | memoryview) -> bool:
    """Return whether x264 before build 34 wrote the stream, which must then be decoded from its start.

    FFmpeg's decoding depends on the build (also for 4:4:4 before build 151), which only the first packet holds.
    """
    build = re.search(rb"x264 - core (\d+)", bytes(first_packet))
    return build is not None and int(build[1]) <= 33


def _nal_units(packet: bytes | memoryview, size_bytes: int) -> Iterator[memoryview]:
    view, position = memoryview(packet), 0
    while position + size_bytes < len(view):
        start = position + size_bytes
        position = start + int.from_bytes(view[position:start], "big")
        if position == start:  # empty units are invalid: the following lengths are unreliable
            return
        yield view[start:position]


def _sei_messages(unit: memoryview) -> Iterator[tuple[int, bytes]]:
    """Yield (payload type, payload) of a SEI unit."""
    data = _remove_emulation(unit[1:])
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


def _remove_emulation(unit: bytes | memoryview) -> bytes:
    """Remove emulation_prevention_three_byte, which keeps start codes out of a unit's content (7.4.1)."""
    return bytes(unit).replace(b"\0\0\3", b"\0\0")


def _is_exact(recovery_point: bytes) -> bool:
    """Return whether recovery_frame_cnt is 0 (coded as one bit, 1) and exact_match_flag is 1."""
    return bool(recovery_point) and recovery_point[0] & 0b1100_0000 == 0b1100_0000
