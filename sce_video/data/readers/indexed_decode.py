"""Decoding chosen frames with the help of an index, and no more packets than they depend on.

From the key packet at or before a wanted frame on, packets go to the decoder in order, without those of H.264 pictures
that nothing refers to and nobody wants; after the packet of the last wanted frame the decoder is flushed. Frames are
recognised by their pts. `Mismatch` says that the file is not what its index promised.
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
    """The packets or frames that come are not those of the index."""


class _Behind(Exception):
    """The wanted frames need packets before this key."""


# Packets found before they are decoded: finding and decoding in turn for each would push each other out of the caches.
BATCH = 64
Send = Callable[[Any], Any]  # a packet, or None at the end of a stretch -> the frames that the decoder lets out


def decode(
    container: Any, stream: Any, index: FrameIndex, wanted: list[int], *, send: Send, size_bytes: int | None
) -> Iterator[tuple[int, Any]]:
    """Yield (number, frame) for sorted frame numbers. Raises Mismatch; what was yielded before is right.

    send: the stream's decoder. size_bytes: see `h264.length_size`; None for another codec.
    """
    for key, group in groupby(wanted, key=index.key_for):
        frames, start = list(group), key
        while True:
            try:
                yield from _from_key(container, stream, index, start, frames, send, size_bytes)
                break
            except _Behind:  # raised before the first frame
                if start == 0:
                    raise Mismatch from None
                start -= 1


def _from_key(
    container: Any, stream: Any, index: FrameIndex, key: int, wanted: list[int], send: Send, size_bytes: int | None
) -> Iterator[tuple[int, Any]]:
    """Decode the wanted frames, starting at the key packet number `key` or an earlier one."""
    container.seek(index.seek_time(key), stream=stream, backward=True)
    sent: dict[int, int] = {}  # pts -> number, of wanted frames that the decoder has
    numbered = _numbered(container.demux(stream), index, size_bytes, first_wanted=wanted[0])
    needed = chain(_needed(numbered, set(wanted), sent, size_bytes), [None])
    while batch := list(islice(needed, BATCH)):
        for packet in batch:
            for frame in send(packet):
                if frame.pts in sent:
                    yield sent.pop(frame.pts), frame
    if sent:
        raise Mismatch


def _needed(
    numbered: Iterator[tuple[Any, int | None]], unsent: set[int], sent: dict[int, int], size_bytes: int | None
) -> Iterator[Any]:
    """Yield the packets that the wanted frames need, up to the last one; puts the wanted ones into `sent`."""
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


def _numbered(
    packets: Iterator[Any], index: FrameIndex, size_bytes: int | None, *, first_wanted: int
) -> Iterator[tuple[Any, int | None]]:
    """Yield (packet, number of the frame that it shows; None: discarded), in order of decoding, from a key packet on."""
    packets = (packet for packet in packets if packet.size)
    first = next(packets, None)
    if first is None:
        raise Mismatch
    position = index.position_of(getattr(first, index.stamp_is))
    key = index.key_at(position)
    if key is None:
        raise Mismatch
    # Not every key packet of H.264 is one to begin at: with intra refresh the picture is whole some frames later.
    if position and size_bytes and not h264.inspect(first, size_bytes).entry:
        raise _Behind
    following = zip(chain([first], packets), chain(islice(index.stamps, position, None), [None]), strict=False)
    numbered = _ranked(following, index.shown_before[key]) if index.times is None else _looked_up(following, index)
    packet, number = next(numbered)
    if number is not None and first_wanted < number:
        raise _Behind
    yield packet, number
    yield from numbered


def _looked_up(packets: Iterator[tuple[Any, int | None]], index: FrameIndex) -> Iterator[tuple[Any, int | None]]:
    """Number packets by their pts; the second of each pair is the stamp that the index has for it."""
    for packet, stamp in packets:
        number = None if packet.is_discard else index.numbers.get(packet.pts)
        if getattr(packet, index.stamp_is) != stamp or (number is None and not packet.is_discard):
            raise Mismatch
        yield packet, number


def _ranked(packets: Iterator[tuple[Any, int | None]], number: int) -> Iterator[tuple[Any, int | None]]:
    """Number the shown packets by their pts, counting from `number`; yields them in the order in which they come.

    A pts has its number once no smaller one can come: pts >= dts and dts grow, so once dts has reached it. The second of
    each pair of packets is the dts that the index has for it.
    """
    waiting: deque[tuple[Any, int | None]] = deque()  # packets and their pts, None: discarded
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
