"""The frame index: the packet of frame i, and the key packet from which decoding must start.

Packets come in decoding order, frames in presentation order. Every frame before a key packet in decoding order is also
presented before it, so their count is the number of the first frame after it; frames between two keys are ordered by
their presentation times (pts). An index therefore holds an identifier per packet (its dts, strictly increasing), the key
packets, and the packets that an edit list discards. MP4 files store all of it; Matroska packets are read once.

`rate_of` derives the frame rate from the times of all frames: headers often state another one.
"""

from __future__ import annotations

import json
import operator
import zipfile
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import log
from ...runs.files import replace_atomically

# Codecs whose packets are one shown frame each. In MPEG-4 part 2 a packet may be two frames or none, in VP8 none.
ONE_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1", "libdav1d", "libaom-av1")
HELD_BACK = 16  # largest reordering of H.264 and HEVC: pictures decoded before one that is shown earlier
PROGRESSIVE = (0, 1)  # FFmpeg's field_order: unknown, progressive. An interlaced packet may be a single field


class Packet(NamedTuple):
    """A packet's times in the stream's time base, whether it is a key, and whether an edit list discards its frame."""

    dts: int | None
    pts: int | None
    key: bool
    discarded: bool


@dataclass(frozen=True)
class FrameIndex:
    """The packets of a video stream. stamps: their `dts`, or `pts` in files without dts. keys: positions of key packets.

    shown_before: number of shown frames among the packets before each key. source: `container`, or `packets` if all were
    read. times: pts of all shown frames in order, up to a constant in the container's index; None where it has none.
    begin: pts of the first frame.
    """

    stamps: list[int]
    stamp_is: str
    keys: list[int]
    shown_before: list[int]
    num_frames: int
    source: str
    times: Sequence[int] | None = None
    begin: int = 0

    @cached_property
    def numbers(self) -> dict[int, int]:
        """The number of the frame of each pts."""
        times = self.times or [0]
        return {time - times[0] + self.begin: frame for frame, time in enumerate(times)}

    def key_for(self, frame: int) -> int:
        """Return the number of the last key with at most `frame` shown frames before it."""
        return max(0, bisect_right(self.shown_before, frame) - 1)

    def position_of(self, stamp: int | None) -> int:
        """Return the position of the packet with this stamp, -1 without one."""
        if stamp is None:
            return -1
        if self.stamp_is == "pts":  # not sorted in decoding order
            return self.stamps.index(stamp) if stamp in self.numbers else -1
        position = bisect_left(self.stamps, stamp)
        return position if position < len(self.stamps) and self.stamps[position] == stamp else -1

    def key_at(self, position: int) -> int | None:
        """Return the key number of the packet at `position`, None if it is not a key."""
        number = bisect_left(self.keys, position)
        return number if number < len(self.keys) and self.keys[number] == position else None

    def seek_time(self, key: int) -> int:
        """Return the time from which a backward seek arrives at this key.

        FFmpeg searches by dts, but takes an earlier key if the found one's pts is after the requested time. So the time
        is that of a packet of the same stretch, HELD_BACK packets after the key.
        """
        position = self.keys[key]
        if self.stamp_is == "pts":
            return self.stamps[position]
        end = self.keys[key + 1] if key + 1 < len(self.keys) else len(self.stamps)
        return self.stamps[min(position + HELD_BACK, end - 1)]

    @cached_property
    def gap(self) -> int | None:
        """The time between frames in the stream's time base, None if it varies or is unknown."""
        gaps = np.diff(np.asarray(self.times or (), dtype=np.int64))
        return int(gaps[0]) if len(gaps) and gaps[0] > 0 and (gaps == gaps[0]).all() else None


ARRAYS = ("stamps", "keys", "shown_before", "times")


def save(index: FrameIndex, path: Path) -> None:
    """Write an index as a small file, atomically. Raises OSError."""
    about = {"stamp_is": index.stamp_is, "num_frames": index.num_frames, "source": index.source, "begin": index.begin}
    arrays: dict[str, Any] = {name: np.diff(np.asarray(getattr(index, name) or [], dtype=np.int64), prepend=0) for name in ARRAYS}
    text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as work, open(work, "wb") as file:
        np.savez_compressed(file, about=text, **arrays)


def load(path: Path) -> FrameIndex | None:
    """Return an index that `save` wrote, None if there is none, or if it is damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            about = json.loads(found["about"].tobytes())
            arrays = {name: np.cumsum(found[name]).tolist() for name in ARRAYS}
        index = FrameIndex(**{**arrays, "times": arrays["times"] or None}, **about)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log.info(f"{path} is damaged ({error}): the index is found again")
        return None
    return index


KEY, DISCARD = 1, 2  # FFmpeg's flags of an index entry


def from_container(
    entries: Sequence[Any], file_bytes: int, offsets: NDArray[np.int64] | None, reordered: int
) -> FrameIndex | None:
    """Return the index stored in a file, None if it is unreliable.

    entries: PyAV's index_entries of an MP4 video stream. offsets: see `mp4.composition_offsets`. reordered: frames that a
    decoder holds back; it drops frames that come later.
    """
    flags = [entry.flags for entry in entries]
    # A truncated file may have its index but not all packets.
    if not flags or max(entry.pos + entry.size for entry in entries) > file_bytes:
        return None
    keys = [position for position, flag in enumerate(flags) if flag & KEY]
    discarded = [bool(flag & DISCARD) for flag in flags]
    stamps = [entry.timestamp for entry in entries]
    times: list[int] | None = None
    if offsets is not None and len(offsets) == len(stamps) and not any(discarded):
        shown = (np.asarray(stamps, dtype=np.int64) + offsets).tolist()
        times = sorted(shown)
        # Decoders drop frames that are presented before the first key frame.
        if shown[0] != times[0] or len(set(times)) < len(times) or _most_reordered(shown) > reordered:
            return None
    return _build(stamps, "dts", keys, discarded, times, "container")


def from_packets(packets: Sequence[Packet], reordered: int) -> FrameIndex | None:
    """Return the index of all packets in decoding order, None if their times do not determine it; see `from_container`."""
    shown = [packet.pts for packet in packets if packet.pts is not None]
    times = sorted(packet.pts for packet in packets if packet.pts is not None and not packet.discarded)
    if not times or len(set(times)) < len(times) or len(shown) < len(packets) or _most_reordered(shown) > reordered:
        return None
    # Decoders may drop frames that are presented before the first key frame.
    if packets[0].pts != times[0] and not packets[0].discarded:
        return None
    stamp_is = "pts" if any(packet.dts is None for packet in packets) else "dts"
    keys = [position for position, packet in enumerate(packets) if packet.key]
    discarded = [packet.discarded for packet in packets]
    return _build([getattr(packet, stamp_is) for packet in packets], stamp_is, keys, discarded, times, "packets")


def _most_reordered(shown: list[int]) -> int:
    """Return the most frames, up to HELD_BACK + 1, that are decoded before one and shown after it. shown: in decoding order."""
    times = np.asarray(shown, dtype=np.int64)
    later = np.zeros(len(times), dtype=np.int64)
    for distance in range(1, min(HELD_BACK + 2, len(times))):
        later[distance:] += times[:-distance] > times[distance:]
    return int(later.max(initial=0))


def _build(
    stamps: list[int], stamp_is: str, keys: list[int], discarded: list[bool], times: list[int] | None, source: str
) -> FrameIndex | None:
    recognisable = stamp_is == "pts" or all(map(operator.lt, stamps, islice(stamps, 1, None)))
    hidden = sum(discarded)
    if not keys or keys[0] != 0 or not recognisable or hidden == len(stamps):
        return None
    before = keys
    if hidden:
        shown = list(accumulate((not hide for hide in discarded), initial=0))
        before = [shown[key] for key in keys]
    return FrameIndex(stamps, stamp_is, keys, before, len(stamps) - hidden, source, times, times[0] if times else 0)


def rate_of(times: Sequence[int] | None, base: Any, stated: Any) -> tuple[Fraction | None, NDArray[np.float64] | None]:
    """Return (frames per second, seconds of each frame since the first if the rate varies else None).

    times: of all frames in presentation order, in `base` seconds, None if they are unknown. stated: the header's rate or
    None, kept where it agrees with the first and last time to a tick at each, or a millisecond (the tick of other
    containers). Both are PyAV's rational numbers, which are no Fractions from version 19 on.
    """
    base, stated = Fraction(base), Fraction(stated) if stated else None
    span = 0 if times is None or len(times) < 2 else times[-1] - times[0]
    if times is None or span <= 0:
        return (simplify_rate(stated) if stated else None), None
    intervals = len(times) - 1
    own = intervals / (span * base)
    common = (stated, Fraction(round(own)), Fraction(round(own * 1001 / 1000) * 1000, 1001))
    agreeing = (rate for rate in common if rate and abs(intervals / rate - span * base) <= max(2 * base, Fraction(1, 500)))
    rate = simplify_rate(next(agreeing, own))
    seconds = (np.asarray(times, dtype=np.float64) - times[0]) * float(base)
    even = np.arange(len(times)) / float(rate)
    # Half an interval apart, a window of even frames still has the right length to one frame.
    return rate, None if np.abs(seconds - even).max() <= 0.5 / float(rate) else seconds


def simplify_rate(rate: Fraction) -> Fraction:
    """Return a fraction with small numbers near the rate; slow rates never become 0."""
    return rate.limit_denominator(1001) if rate >= 1 else 1 / (1 / rate).limit_denominator(1001)
