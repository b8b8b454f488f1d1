"""Which packet shows frame i, and from which packet decoding must begin to get it.

Packets come in decoding order, frames in presentation order. All frames that precede a key packet in decoding order are
also presented before it, so counting them numbers the frames that follow; among themselves these are ordered by their
presentation times (pts). So an index needs the packets' identity (their dts, which grow from packet to packet), which of
them are keys, and which an edit list discards. MP4 files hold all of it; in Matroska files the packets are read once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

# In these formats a packet is a shown frame. In MPEG-4 part 2 it may be two or none, in VP8 none.
ONE_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1", "libdav1d", "libaom-av1")
HELD_BACK = 16  # most pictures that H.264 and HEVC decode before one that is shown earlier
PROGRESSIVE = (0, 1)  # FFmpeg's field_order: unknown, progressive. A packet of an interlaced video may be one field


class Packet(NamedTuple):
    """A packet without its content: its times in the stream's time base, is it a key, does an edit list discard its frame."""

    dts: int | None
    pts: int | None
    key: bool
    discarded: bool


@dataclass(frozen=True)
class FrameIndex:
    """stamps: of all packets, `dts` or, for files without them, `pts`. keys: positions of the key packets.

    shown_before: number of shown frames among the packets before each key. times: pts of all shown frames in order of
    presentation, where the packets were read; None where the file's own index was taken, which has none.
    """

    stamps: list[int]
    stamp_is: str
    keys: list[int]
    shown_before: list[int]
    num_frames: int
    discards: bool
    times: list[int] | None = None
    numbers: dict[int, int] = field(default_factory=dict)  # pts -> frame
    positions: dict[int, int] = field(default_factory=dict)  # stamp -> position

    def key_for(self, frame: int) -> int:
        """Return the number of the last key with at most `frame` shown frames before it."""
        return max(0, bisect_right(self.shown_before, frame) - 1)

    def key_at(self, position: int) -> int | None:
        """Return the number of the key that is the packet at `position`, if it is one."""
        number = bisect_left(self.keys, position)
        return number if number < len(self.keys) and self.keys[number] == position else None

    def seek_time(self, key: int) -> int:
        """Return the time to seek backward from in order to arrive at this key.

        FFmpeg looks for a packet by dts, but goes on to an earlier key if that one's pts is after the time asked for. So
        a packet of the same stretch is named that comes later than pictures are held back.
        """
        position = self.keys[key]
        if self.stamp_is == "pts":
            return self.stamps[position]
        end = self.keys[key + 1] if key + 1 < len(self.keys) else len(self.stamps)
        return self.stamps[min(position + HELD_BACK, end - 1)]

    @property
    def gap(self) -> int | None:
        """The time between frames, if it is the same everywhere, in the stream's time base."""
        gaps = {later - earlier for earlier, later in pairwise(self.times or self.stamps)}
        return gaps.pop() if len(gaps) == 1 else None


def from_container(entries: Sequence[Any], file_bytes: int) -> FrameIndex | None:
    """Return the index that the file holds (PyAV's index_entries of an MP4 video stream), None if it is not to be trusted."""
    # An upload that broke off has its index, but not all packets.
    if any(entry.pos + entry.size > file_bytes for entry in entries):
        return None
    packets = [Packet(entry.timestamp, None, entry.is_keyframe, entry.is_discard) for entry in entries]
    return _build(packets, "dts", None)


def from_packets(packets: Sequence[Packet]) -> FrameIndex | None:
    """Return the index of all packets, in order of decoding, None if they do not tell."""
    times = sorted(packet.pts for packet in packets if packet.pts is not None and not packet.discarded)
    if not times or len(set(times)) < len(times) or any(packet.pts is None for packet in packets):
        return None
    # Frames that are presented before the first key frame may not be shown at all.
    if packets[0].pts != times[0] and not packets[0].discarded:
        return None
    return _build(packets, "pts" if any(packet.dts is None for packet in packets) else "dts", times)


def _build(packets: Sequence[Packet], stamp_is: str, times: list[int] | None) -> FrameIndex | None:
    stamps: list[int] = [getattr(packet, stamp_is) for packet in packets]
    keys = [position for position, packet in enumerate(packets) if packet.key]
    before = list(accumulate((not packet.discarded for packet in packets), initial=0))
    positions = {stamp: position for position, stamp in enumerate(stamps)}
    increasing = stamp_is == "pts" or all(earlier < later for earlier, later in pairwise(stamps))
    if not keys or keys[0] != 0 or len(positions) < len(stamps) or not increasing or not before[-1]:
        return None
    return FrameIndex(
        stamps=stamps,
        stamp_is=stamp_is,
        keys=keys,
        shown_before=[before[key] for key in keys],
        num_frames=before[-1],
        discards=before[-1] < len(packets),
        times=times,
        numbers={time: frame for frame, time in enumerate(times or ())},
        positions=positions,
    )
