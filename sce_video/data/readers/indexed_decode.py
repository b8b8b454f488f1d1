"""Decode chosen frames with an index, sending the decoder only the packets that they depend on.

From the key packet at or before a wanted frame, packets go to the decoder in order, except unwanted H.264 non-reference
pictures; after the packet of the last wanted frame the decoder is flushed. Frames are matched by their pts.

The index orders frames by pts, a forward decode by the order that the stream itself gives. Files exist in which they
differ (pts equal to dts after a stream copy from AVI), so both are compared before a frame is returned, also with the
packets after it: H.264 slice headers hold the order; for other codecs, of which no packet is skipped, the decoder's output
shows it. `Mismatch` is raised if the file contradicts its index.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, groupby, islice
from typing import Any

from .frame_index import FrameIndex
from .headers import h264


class Mismatch(Exception):
    """The file's packets or frames differ from the index."""


class _NeedsEarlierKey(Exception):
    """The wanted frames need packets before this key."""


# Packets demuxed before they are decoded: alternating for each packet would evict both from the CPU's caches.
BATCH = 64
Send = Callable[[Any], Any]  # a packet, or None at the end of a stretch -> the frames that the decoder returns
Numbered = Iterator[tuple[Any, int | None]]  # a packet and its frame's number, None if the frame is discarded


def decode(
    container: Any, stream: Any, index: FrameIndex, wanted: list[int], *, send: Send, slices: h264.Parameters | None
) -> Iterator[tuple[int, Any]]:
    """Yield (number, frame) for sorted frame numbers. Raises Mismatch; frames yielded before it are correct.

    send: decodes a packet of the stream. slices: how to read H.264 slice headers, None for other codecs.
    """
    for key, group in groupby(wanted, key=index.key_for):
        frames, start = list(group), key
        while True:
            try:
                container.seek(index.seek_time(start), stream=stream, backward=True)
                numbered = _number_packets(container.demux(stream), index, slices, first_wanted=frames[0])
                if slices is None:
                    yield from _decode_all(numbered, frames, send)
                else:
                    yield from _decode_needed(_confirm_order(numbered, slices), frames, send)
                break
            except _NeedsEarlierKey:  # raised before the first frame
                if start == 0:
                    raise Mismatch from None
                start -= 1


def _decode_needed(packets: Iterator[tuple[Any, int | None, bool]], wanted: list[int], send: Send) -> Iterator[tuple[int, Any]]:
    """Decode the wanted frames of a stretch and the reference pictures before the last one."""
    sent: dict[int, int] = {}  # pts -> number of the wanted frames that the decoder has received
    needed = chain(_select_needed(packets, set(wanted), sent), [None])
    last = -1
    while batch := list(islice(needed, BATCH)):
        for packet in batch:
            for frame in send(packet):
                if frame.is_corrupt:
                    raise Mismatch
                if frame.pts in sent:
                    number = sent.pop(frame.pts)
                    if number < last:
                        raise Mismatch
                    last = number
                    yield number, frame
    if sent:
        raise Mismatch


def _select_needed(packets: Iterator[tuple[Any, int | None, bool]], unsent: set[int], sent: dict[int, int]) -> Iterator[Any]:
    """Yield the packets that the wanted frames need, up to the last one, and add the wanted ones to `sent`."""
    for packet, number, reference in packets:
        if number in unsent:
            unsent.discard(number)
            sent[packet.pts] = number
        elif not reference:
            continue
        yield packet
        if not unsent:
            return
    raise Mismatch


def _decode_all(numbered: Numbered, wanted: list[int], send: Send) -> Iterator[tuple[int, Any]]:
    """Decode a stretch until the decoder has returned the wanted frames; it must return them in order and none twice."""
    left, numbers = set(wanted), dict[Any, int]()
    last: int | None = None
    while batch := list(islice(numbered, BATCH)) or [(None, None)]:
        for packet, number in batch:
            if number is not None:
                numbers[packet.pts] = number
            for frame in send(packet):
                shown = numbers.pop(frame.pts, None)
                if shown is None or last not in (None, shown - 1) or frame.is_corrupt:
                    raise Mismatch
                last = shown
                if shown in left:
                    left.discard(shown)
                    yield shown, frame
                if not left:
                    return
        if batch[0][0] is None:
            raise Mismatch


def _confirm_order(numbered: Numbered, slices: h264.Parameters) -> Iterator[tuple[Any, int | None, bool]]:
    """Yield (packet, number, whether it is a reference) once no later packet can be shown before it.

    A frame that is shown before `reordered` frames of those decoded so far comes before all that follow in decoding order.
    """
    numbers: list[int] = []  # of the frames since the last refresh, and the stream's own order of each: both must rise
    orders: list[int] = []
    waiting: deque[tuple[Any, int | None, bool]] = deque()
    for packet, number, reference, refresh, order in _read_orders(numbered, slices):
        if refresh:
            yield from waiting
            waiting.clear()
            if number is not None and numbers and number < numbers[-1]:
                raise Mismatch
            numbers, orders = [], []
        if number is not None:
            at = bisect_left(numbers, number)
            if (at and orders[at - 1] >= order) or (at < len(orders) and orders[at] <= order):
                raise Mismatch
            numbers.insert(at, number)
            orders.insert(at, order)
        waiting.append((packet, number, reference))
        while waiting and len(numbers) - bisect_left(numbers, waiting[0][1] or 0) > slices.reordered:
            yield waiting.popleft()
    yield from waiting


def _read_orders(numbered: Numbered, slices: h264.Parameters) -> Iterator[tuple[Any, int | None, bool, bool, int]]:
    """Yield (packet, number, whether it is a reference, whether it is a refresh, its order in the stream since then)."""
    cycle = 1 << slices.order_bits
    half, previous = cycle // 2, 0
    last, numbers = -1, 1 << slices.number_bits  # frame_num of the last reference
    for packet, number in numbered:
        seen = h264.first_slice(packet, slices)
        if seen is None:
            raise Mismatch
        reference, refresh, frame, order = seen
        if refresh:
            previous = 0
        # After a lost reference (7.4.3) decoders fill in from other pictures, skipped ones too.
        elif last >= 0 and frame not in (last, (last + 1) % numbers):
            raise Mismatch
        last = frame if reference else last
        # The slice holds the order modulo `cycle`: it is the number nearest to that of the last reference (8.2.1.1).
        order = previous + (order - previous + half - 1) % cycle - (half - 1) if half else previous + 1
        if reference or not half:
            previous = order
        yield packet, number, reference, refresh, order


def _number_packets(packets: Iterator[Any], index: FrameIndex, slices: h264.Parameters | None, *, first_wanted: int) -> Numbered:
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
    if position and slices and not h264.inspect(first, slices.size_bytes).entry:
        raise _NeedsEarlierKey
    following = zip(chain([first], packets), chain(islice(index.stamps, position, None), [None]), strict=False)
    numbered = _look_up(following, index)
    packet, number = next(numbered)
    if number is not None and first_wanted < number:
        raise _NeedsEarlierKey
    yield packet, number
    yield from numbered


def _look_up(packets: Numbered, index: FrameIndex) -> Numbered:
    """Number (packet, its stamp in the index) pairs by the index's table of pts."""
    for packet, stamp in packets:
        number = None if packet.is_discard else index.numbers.get(packet.pts)
        if getattr(packet, index.stamp_is) != stamp or (number is None and not packet.is_discard):
            raise Mismatch
        yield packet, number
