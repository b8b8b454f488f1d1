"""Parse H.264 headers without decoding: picture size of a stream; order, reference and random access of a packet.

Input is H.264 as stored in MP4 and Matroska: an avcC record and length-prefixed NAL units (ISO/IEC 14496-15). Bit fields
follow ITU-T H.264: nal_unit (7.3.1), sequence parameter set (7.3.2.1.1, E.1.1), SEI payloads (7.3.2.3, D.1.8).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

IDR = 5  # nal_unit_type of slices of an instantaneous decoder refresh
SEI, SEQUENCE_PARAMETERS = 6, 7
WITH_CHROMA_FORMAT = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # values of profile_idc
MOST_REORDERED = 16  # frames, by the standard
SQUARE, OWN_ASPECT_RATIO = 1, 255  # values of aspect_ratio_idc: 1:1, and two 16-bit numbers follow; 0 is unspecified
RECOVERY_POINT, DISPLAY_ORIENTATION = 6, 47  # SEI payload types


class Packet(NamedTuple):
    """Properties of a packet.

    entry: decoding that starts here is exact for all later pictures. oriented: it holds a display orientation SEI.
    parameters: it holds a sequence parameter set, which may differ from the one in the stream's header.
    """

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


class Parameters(NamedTuple):
    """A sequence parameter set. size_bytes: see `length_size`.

    picture: None unless plain: progressive 8-bit 4:2:0 frames, not cropped at the left, with a bitstream restriction.
    reordered: largest number of frames decoded before one that is shown earlier. skipped_bits, number_bits, order_bits:
    lengths of the slice header's fields before frame_num, of it, and of pic_order_cnt_lsb, 0 where frames are decoded as shown.
    """

    size_bytes: int
    picture: Picture | None
    reordered: int
    skipped_bits: int
    number_bits: int
    order_bits: int
    frames_only: bool


def parse_parameters(extradata: bytes | None) -> Parameters | None:
    """Return the only sequence parameter set of an avcC record, None if it cannot be parsed."""
    size_bytes = length_size(extradata)
    if size_bytes is None or extradata is None or extradata[5] & 31 != 1 or len(extradata) < 12:
        return None
    length = int.from_bytes(extradata[6:8], "big")
    try:
        return _parse_sequence_parameters(_Bits(_remove_emulation(extradata[9 : 8 + length])), size_bytes)
    except IndexError:  # truncated
        return None


def _parse_sequence_parameters(bits: _Bits, size_bytes: int) -> Parameters | None:
    profile, _, _ = bits.take(8), bits.take(16), bits.golomb()
    plain, planes = True, 0
    if profile in WITH_CHROMA_FORMAT:
        chroma_format = bits.golomb()
        planes = bits.take(1) if chroma_format == 3 else 0
        luma_depth, chroma_depth, lossless, scaling_lists = bits.golomb(), bits.golomb(), bits.take(1), bits.take(1)
        if scaling_lists:
            return None
        plain = (chroma_format, luma_depth, chroma_depth, lossless) == (1, 0, 0, 0)
    frame_bits = bits.golomb() + 4  # of frame_num
    order_type = bits.golomb()
    if order_type == 1:
        return None
    order_bits = bits.golomb() + 4 if order_type == 0 else 0
    bits.golomb()  # max_num_ref_frames
    bits.take(1)
    width, height = 16 * (bits.golomb() + 1), 16 * (bits.golomb() + 1)
    progressive = bits.take(1)
    if not progressive:
        bits.take(1)
    bits.take(1)
    left, right, top, bottom = [bits.golomb() for _ in range(4)] if bits.take(1) else [0, 0, 0, 0]
    aspect, reordered = SQUARE, None
    if bits.take(1):
        aspect = bits.take(8) if bits.take(1) else SQUARE
        if aspect == OWN_ASPECT_RATIO:
            bits.take(32)
        reordered = _parse_restriction(bits)
    # The cropping is given in chroma samples. FFmpeg crops less at the left than asked where memory is not aligned.
    picture = Picture(height - 2 * (top + bottom), width - 2 * (left + right), aspect <= SQUARE)
    plain = plain and bool(progressive) and left == 0 and reordered is not None
    most = MOST_REORDERED if reordered is None else reordered
    return Parameters(size_bytes, picture if plain else None, most, 2 * planes, frame_bits, order_bits, bool(progressive))


def _parse_restriction(bits: _Bits) -> int | None:
    """Return max_num_reorder_frames from the VUI parameters, from overscan on; None without it and with HRD parameters."""
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
    if bits.take(2) or not bits.take(2) & 1:
        return None
    bits.take(1)
    for _ in range(4):  # sizes of pictures, macroblocks and vectors
        bits.golomb()
    return min(bits.golomb(), MOST_REORDERED)


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
    """Return a packet's properties from its NAL headers; an unparsable packet has none of them."""
    entry, oriented, parameters = False, False, False
    for unit in _nal_units(packet, size_bytes):
        kind = unit[0] & 31
        if kind == IDR:
            entry = True
        elif kind == SEI:
            for payload, content in _sei_messages(unit):
                entry = entry or (payload == RECOVERY_POINT and _is_exact(content))
                oriented = oriented or payload == DISPLAY_ORIENTATION
        elif kind == SEQUENCE_PARAMETERS:
            parameters = True
    return Packet(entry, oriented, parameters)


def first_slice(packet: bytes | memoryview, parameters: Parameters) -> tuple[bool, bool, int, int] | None:
    """Return (is a reference, is an IDR picture, frame_num, pic_order_cnt_lsb) from a packet's first slice (7.3.3).

    None without a slice, for fields and for impossible headers. Called for every packet, so it is fast.
    """
    view, position, size_bytes = memoryview(packet), 0, parameters.size_bytes
    end = len(view) - size_bytes
    while position < end:
        start = position + size_bytes
        header = view[start]
        kind = header & 31
        if kind in (1, 2, IDR):
            data = bytes(view[start + 1 : start + 17])
            if b"\0\0\3" in data or len(data) < 16:
                data = _remove_emulation(data).ljust(16, b"\0")
            value = int.from_bytes(data, "big")
            # first_mb_in_slice, slice_type, pic_parameter_set_id
            left = 128 - _length_of_golombs(value >> 96, 3) - parameters.skipped_bits - parameters.number_bits
            number = value >> left & (1 << parameters.number_bits) - 1
            if not parameters.frames_only:
                left -= 1
                if value >> left & 1:  # field_pic_flag
                    return None
            if kind == IDR:  # idr_pic_id
                left -= _length_of_golombs(value >> left - 32 & 0xFFFFFFFF, 1)
            order = value >> left - parameters.order_bits & (1 << parameters.order_bits) - 1
            return header & 0b0110_0000 != 0, kind == IDR, number, order
        length = int.from_bytes(view[position:start], "big")
        if not length:
            break
        position = start + length
    return None


@lru_cache(maxsize=1024)
def _length_of_golombs(bits: int, count: int) -> int:
    """Return the length of the first `count` exponential-Golomb numbers of 32 bits, at most 32."""
    left = 32
    for _ in range(count):
        zeros = left - (bits & (1 << left) - 1).bit_length()
        left = max(left - 2 * zeros - 1, 0)
    return 32 - left


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
