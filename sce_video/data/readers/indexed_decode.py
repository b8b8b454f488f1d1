"""Decode chosen frames with an index, sending the decoder only the packets that they depend on.

From the key packet at or before a wanted frame, packets go to the decoder in order, except unwanted H.264 non-reference
pictures; after the packet of the last wanted frame the decoder is flushed. Frames are matched by their pts. `Mismatch` is
raised if the file contradicts its index.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, groupby, islice
from typing import Any

from . import h264
from .frame_index import FrameIndex


class Mismatch(Exception):
    """The file's packets or frames differ from the index."""


class _NeedsEarlierKey(Exception):
    """The wanted frames need packets before this key."""


# Packets demuxed before they are decoded: alternating for each packet would evict both from the CPU's caches.
BATCH = 64
Send = Callable[[Any], Any]  # a packet, or None at the end of a stretch -> the frames that the decoder returns


def decode(
    container: Any, stream: Any, index: FrameIndex, wanted: list[int], *, send: Send, size_bytes: int | None
) -> Iterator[tuple[int, Any]]:
    """Yield (number, frame) for sorted frame numbers. Raises Mismatch; frames yielded before it are correct.

    send: decodes a packet of the stream. size_bytes: see `h264.length_size`, None for other codecs.
    """
    for key, group in groupby(wanted, key=index.key_for):
        frames, start = list(group), key
        while True:
            try:
                yield from _decode_from_key(container, stream, index, start, frames, send, size_bytes)
                break
            except _NeedsEarlierKey:  # raised before the first frame
                if start == 0:
                    raise Mismatch from None
                start -= 1


def _decode_from_key(
    container: Any, stream: Any, index: FrameIndex, key: int, wanted: list[int], send: Send, size_bytes: int | None
) -> Iterator[tuple[int, Any]]:
    """Decode the wanted frames, starting at key packet number `key` or an earlier one."""
    container.seek(index.seek_time(key), stream=stream, backward=True)
    sent: dict[int, int] = {}  # pts -> number of the wanted frames that the decoder has received
    numbered = _number_packets(container.demux(stream), index, size_bytes, first_wanted=wanted[0])
    needed = chain(_select_needed(numbered, set(wanted), sent, size_bytes), [None])
    while batch := list(islice(needed, BATCH)):
        for packet in batch:
            for frame in send(packet):
                if frame.pts in sent:
                    yield sent.pop(frame.pts), frame
    if sent:
        raise Mismatch


def _select_needed(
    numbered: Iterator[tuple[Any, int | None]], unsent: set[int], sent: dict[int, int], size_bytes: int | None
) -> Iterator[Any]:
    """Yield the packets that the wanted frames need, up to the last one, and add the wanted ones to `sent`."""
    for packet, number in numbered:
        if number in unsent:
            unsent.discard(number)
            sent[packet.pts] = number
        elif size_bytes and not h264.is_reference(packet, size_bytes):
            continue
        yield packet
        if not unsent:
            return
    raise Mismatch


def _number_packets(
    packets: Iterator[Any], index: FrameIndex, size_bytes: int | None, *, first_wanted: int
) -> Iterator[tuple[Any, int | None]]:
    """Yield (packet, its frame number or None if discarded) in decoding order, starting at a key packet."""
    packets = (packet for packet in packets if packet.size)
    first = next(packets, None)
    if first is None:
        raise Mismatch
    position = index.position_of(getattr(first, index.stamp_is))
    key = index.key_at(position)
    if key is None:
        raise Mismatch
    # Decoding cannot start at every H.264 key packet: with intra refresh the picture is complete some frames later.
    if position and size_bytes and not h264.inspect(first, size_bytes).entry:
        raise _NeedsEarlierKey
    following = zip(chain([first], packets), chain(islice(index.stamps, position, None), [None]), strict=False)
    numbered = _rank(following, index.shown_before[key]) if index.times is None else _look_up(following, index)
    packet, number = next(numbered)
    if number is not None and first_wanted < number:
        raise _NeedsEarlierKey
    yield packet, number
    yield from numbered


def _look_up(packets: Iterator[tuple[Any, int | None]], index: FrameIndex) -> Iterator[tuple[Any, int | None]]:
    """Number (packet, its stamp in the index) pairs by the index's table of pts."""
    for packet, stamp in packets:
        number = None if packet.is_discard else index.numbers.get(packet.pts)
        if getattr(packet, index.stamp_is) != stamp or (number is None and not packet.is_discard):
            raise Mismatch
        yield packet, number


def _rank(packets: Iterator[tuple[Any, int | None]], number: int) -> Iterator[tuple[Any, int | None]]:
    """Number (packet, its dts in the index) pairs in order of pts, counting from `number`; keeps their order.

    The number of a pts is final once dts has reached it: no smaller pts can follow, as pts >= dts and dts increases.
    """
    waiting: deque[tuple[Any, int | None]] = deque()  # (packet, pts), pts None for discarded packets
    times: list[int] = []
    numbers: dict[int | None, int | None] = {None: None}
    for packet, stamp in packets:
        dts, pts = packet.dts, packet.pts
        if dts != stamp or pts is None or pts < dts:
            raise Mismatch
        if packet.is_discard:
            waiting.append((packet, None))
        else:
            waiting.append((packet, pts))
            heapq.heappush(times, pts)
        while times and times[0] <= dts:
            numbers[heapq.heappop(times)] = number
            number += 1
        while waiting and waiting[0][1] in numbers:
            known, time = waiting.popleft()
            yield known, numbers[time]
    for time in sorted(times):
        numbers[time] = number
        number += 1
    for known, time in waiting:
        yield known, numbers[time]
