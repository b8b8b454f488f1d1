"""Which packet shows frame i, and from which packet decoding must begin to get it.

Packets come in decoding order, frames in presentation order. All frames that precede a key packet in decoding order are
also presented before it, so counting them numbers the frames that follow; among themselves these are ordered by their
presentation times (pts). So an index needs the packets' identity (their dts, which grow from packet to packet), which of
them are keys, and which an edit list discards. MP4 files hold all of it; in Matroska files the packets are read once.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, islice
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
    numbers: dict[int, int] = field(default_factory=dict)  # pts -> frame, where times are known

    def key_for(self, frame: int) -> int:
        """Return the number of the last key with at most `frame` shown frames before it."""
        return max(0, bisect_right(self.shown_before, frame) - 1)

    def position_of(self, stamp: int | None) -> int:
        """Return the position of the packet with this stamp, -1 if there is none."""
        if stamp is None:
            return -1
        if self.stamp_is == "pts":  # in the order of decoding they go up and down
            return self.stamps.index(stamp) if stamp in self.numbers else -1
        position = bisect_left(self.stamps, stamp)
        return position if position < len(self.stamps) and self.stamps[position] == stamp else -1

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

    @cached_property
    def gap(self) -> int | None:
        """The time between frames, if it is the same everywhere, in the stream's time base."""
        stamps = self.times or self.stamps
        gaps = set(map(operator.sub, islice(stamps, 1, None), stamps))
        return gaps.pop() if len(gaps) == 1 else None


KEY, DISCARD = 1, 2  # FFmpeg's flags of an entry


def from_container(entries: Sequence[Any], file_bytes: int) -> FrameIndex | None:
    """Return the index that the file holds (PyAV's index_entries of an MP4 video stream), None if it is not to be trusted."""
    entries = list(entries)  # each look at one makes an object anew
    flags = [entry.flags for entry in entries]
    # An upload that broke off has its index, but not all packets.
    if not flags or max(entry.pos + entry.size for entry in entries) > file_bytes:
        return None
    keys = [position for position, flag in enumerate(flags) if flag & KEY]
    discarded = [bool(flag & DISCARD) for flag in flags]
    return _build([entry.timestamp for entry in entries], "dts", keys, discarded, None)


def from_packets(packets: Sequence[Packet]) -> FrameIndex | None:
    """Return the index of all packets, in order of decoding, None if they do not tell."""
    times = sorted(packet.pts for packet in packets if packet.pts is not None and not packet.discarded)
    if not times or len(set(times)) < len(times) or any(packet.pts is None for packet in packets):
        return None
    # Frames that are presented before the first key frame may not be shown at all.
    if packets[0].pts != times[0] and not packets[0].discarded:
        return None
    stamp_is = "pts" if any(packet.dts is None for packet in packets) else "dts"
    keys = [position for position, packet in enumerate(packets) if packet.key]
    discarded = [packet.discarded for packet in packets]
    return _build([getattr(packet, stamp_is) for packet in packets], stamp_is, keys, discarded, times)


def _build(
    stamps: list[int], stamp_is: str, keys: list[int], discarded: list[bool], times: list[int] | None
) -> FrameIndex | None:
    recognisable = stamp_is == "pts" or all(map(operator.lt, stamps, islice(stamps, 1, None)))
    hidden = sum(discarded)
    if not keys or keys[0] != 0 or not recognisable or hidden == len(stamps):
        return None
    before = keys
    if hidden:
        shown = list(accumulate((not hide for hide in discarded), initial=0))
        before = [shown[key] for key in keys]
    numbers = {time: frame for frame, time in enumerate(times or ())}
    return FrameIndex(stamps, stamp_is, keys, before, len(stamps) - hidden, bool(hidden), times, numbers)
