"""Exact and fast random access with PyAV (FFmpeg).

A read seeks to the key packet at or before the first wanted frame, skips packets that no wanted frame depends on (H.264
non-reference pictures) and stretches without a wanted frame, converts wanted frames only, and stops after the last one.
The index of frames to packets is the container's own (MP4) or comes from reading all packets once (Matroska, unreliable
MP4). Elsewhere frames are counted in a forward decode (AVI, transport streams, interlaced or old codecs).

A decode of a freshly opened file defines the frames and their order; seeking to 0 is not the same (streams that begin
before 0, palettes sent once). If packets or frames contradict the index, the reader falls back one step: container index,
packets, forward decode.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from ..crops import Box
from . import frame_index, indexed_decode, orientation, planes
from .frame_index import FrameIndex
from .headers import h264, mp4, one_frame
from .media import LIMITS, DecodeError, Limits, choose_video, demux, open_container, reason_of
from .reader import FrameReader, check_frames, group_by_frame

HELD_BYTES = 64 << 20  # counting keeps this many bytes of decoded frames, so that short files are decoded once
LOOP_FILTERS = {"exact": "default", "reference": "noref", "off": "all"}  # -> FFmpeg's skip_loop_filter


class PyAVReader(FrameReader):
    """The default reader, see the module.

    loop_filter: "exact"; "reference" skips H.264's deblocking filter in non-reference pictures, "off" in all pictures:
    faster and inexact (PSNR in docs/decoding.md). is_mp4: whether to try the header only, without probing the streams.
    known: the index that an earlier reader of the file has found (`index`).
    """

    decoder = "pyav"

    def __init__(
        self,
        path: str,
        *,
        is_mp4: bool = False,
        loop_filter: str = "exact",
        limits: Limits = LIMITS,
        known: FrameIndex | None = None,
    ) -> None:
        super().__init__(path)
        self._limits = limits
        self._known = known
        self._loop_filter = loop_filter
        self._index: FrameIndex | None = None
        self._orientation = orientation.UPRIGHT
        self._header = b""  # of an MP4 file
        self._fresh = False  # whether nothing has been read from the open container
        self._held: list[Any] = []
        import av

        self._errors: tuple[type[Exception], ...] = (av.FFmpegError, OSError)
        self._surprises = (indexed_decode.Mismatch, *self._errors)
        # One converter per reader, with one thread: PyAV's shared one hangs forked workers (PyAV 19) once the parent
        # has converted a frame, and starts a thread per core in every worker.
        self._convert = av.video.reformatter.VideoReformatter()
        self._container: Any = None
        try:
            self._look(is_mp4)
        except (DecodeError, *self._errors) as error:
            self.close()  # the error's traceback keeps this frame, and so the file, until the next garbage collection
            if isinstance(error, DecodeError):
                raise
            raise DecodeError(f"{path}: {reason_of(error)}") from error

    def _look(self, is_mp4: bool) -> None:
        """Open the file and read its size, number of frames, index, orientation and frame rate."""
        self._open(header_only=is_mp4)
        self._index = self._known or self._container_index()
        if is_mp4 and not self._header_tells():
            self._open(header_only=False)
            self._index = self._known or self._container_index()
        self.stream_index = self._stream.index
        if self.header_only and self._index is not None and self._index.gap is not None:
            self.height, self.width, self.num_frames = self._codec.height, self._codec.width, self._index.num_frames
            self.fps = frame_index.simplify_rate(1 / (self._index.gap * Fraction(self._stream.time_base)))
        else:
            first, times = self._survey()
            self._orientation = orientation.of_frame(first)
            # The frame's size: for some cropping windows the header's differs.
            self.height, self.width = (first.height, first.width)[:: -1 if self._orientation.transpose else 1]
            stated = self._stream.average_rate or self._stream.guessed_rate
            rate, self.times = frame_index.rate_of(times, self._stream.time_base, stated)
            if not rate:
                raise DecodeError(f"{self.path}: its frame rate is unknown")
            self.fps = rate
        aspect = Fraction(self._stream.sample_aspect_ratio or 1)
        self.pixel_aspect = 1 / aspect if self._orientation.transpose else aspect
        self._limits.check_count(self.path, self.num_frames)

    def _open(self, *, header_only: bool) -> None:
        """Open the file, in place of the container that may be open: then nothing of it has been read."""
        import av

        if self._container is not None:
            self._container.close()
        self._container = open_container(self.path, self._limits, header_only=header_only)
        self.header_only, self._fresh = header_only, True
        if self._is_in("mp4") and not self._header:
            self._header = mp4.read_header(self.path)
            if mp4.ENCRYPTED.search(self._header):
                raise DecodeError(f"{self.path}: its video is encrypted")
        self._stream = choose_video(self.path, self._container)
        self._codec = self._stream.codec_context
        self._codec.thread_type = "NONE"
        self._limits.check_size(self.path, self._codec.width, self._codec.height)
        self._codec.options = {
            "max_pixels": str(self._limits.frame_pixels),  # a stream may change its size later
            "skip_loop_filter": LOOP_FILTERS[self._loop_filter],
        }
        for stream in self._container.streams if header_only else ():
            if stream is not self._stream:
                stream.discard = av.stream.Discard.all
        self._slices = h264.parse_parameters(self._codec.extradata) if self._codec.name == "h264" else None

    def _header_tells(self) -> bool:
        """Return whether the header suffices, without probing by FFmpeg: plain H.264, as in nearly all files."""
        picture = self._slices and self._slices.picture
        return (
            self._index is not None
            and self._index.gap is not None
            and picture is not None
            and (picture.height, picture.width) == (self._codec.height, self._codec.width)
            # The container's takes precedence; if it has none, PyAV 19 returns 0/1, older versions None.
            and (picture.square or bool(self._stream.sample_aspect_ratio))
            and mp4.is_upright(self._header)
            and self._first_packet_tells()
        )

    def _first_packet_tells(self) -> bool:
        """Return whether the first packet shows that no frame is turned and that decoding may start at any key."""
        assert self._slices is not None
        assert self._index is not None
        self._fresh = False
        first = next(self._container.demux(self._stream))
        if first.pts is None or first.dts != self._index.stamps[0]:
            return False
        self._index = replace(self._index, begin=first.pts)
        about = h264.inspect(first, self._slices.size_bytes)
        return self._is_refresh(first) and not about.oriented and not about.parameters and not h264.is_old_x264(first)

    def _survey(self) -> tuple[Any, Sequence[int] | None]:
        """Settle index and number of frames; return the first frame and the times of all (None: unknown) in `time_base`."""
        index = self._index
        if index is not None or self._indexable("mp4", "matroska"):
            first, packets = self._read_packets(complete=index is None or index.times is None)
            if index is None or index.times is None:
                found = frame_index.from_packets(packets, self._reordered)
                same = found is not None and index is not None and found.num_frames == index.num_frames
                index = replace(index, times=found.times) if same else found  # type: ignore[type-var,union-attr]
            earliest = min((p.pts for p in packets if p.pts is not None and not p.discarded), default=None)
            begins = index is not None and bool(packets) and index.stamps[0] in (packets[0].dts, packets[0].pts)
            if index is not None and first is not None and earliest is not None and first.pts == earliest and begins:
                self._index, self.num_frames = replace(index, begin=earliest), index.num_frames
                return first, index.times
        self._index = None
        return self._count()

    def _read_packets(self, *, complete: bool) -> tuple[Any, list[frame_index.Packet]]:
        """Return the first frame of a decode from the start, and the packets up to it or all.

        Return (None, []) where decoders drop frames: if a packet is damaged or gives not one, or if H.264 does not begin with
        a refresh.
        """
        first, packets = None, list[frame_index.Packet]()
        for packet in self._from_start():
            if packet.is_corrupt or (not packets and self._slices and not self._is_refresh(packet)):
                return None, []
            if packet.size:
                if complete and not one_frame.gives_one(self._codec.name, bytes(packet), self._codec.extradata):
                    return None, []
                packets.append(frame_index.Packet(packet.dts, packet.pts, packet.is_keyframe, packet.is_discard))
                self._limits.check_count(self.path, len(packets))
            if first is None:
                first = next(iter(packet.decode()), None)
            if first is not None and not complete:
                break
        return first, packets

    def _is_refresh(self, packet: Any) -> bool:
        """Return whether an H.264 packet is a picture from which decoding may start without any frame before it."""
        assert self._slices is not None
        begin = h264.first_slice(packet, self._slices)
        return begin is not None and begin[1]

    def _from_start(self) -> Iterator[Any]:
        """Yield the packets of the freshly opened file."""
        if self.header_only or not self._fresh:
            self._open(header_only=False)
        self._fresh = False
        yield from demux(self._container, self._stream)

    def close(self) -> None:
        self._held = []
        if self._container is not None:
            self._container.close()

    def read_planes(self, clips: Sequence[Tensor], boxes: Sequence[Box]) -> list[planes.PlanarClip] | None:
        # FFmpeg's scaler interpolates the chroma of odd sizes, which `planes` does not.
        if self._orientation != orientation.UPRIGHT or not self._is_planar or self.height % 2 or self.width % 2:
            return None
        targets = group_by_frame([clip.tolist() for clip in clips])
        coding, cuts = None, []
        for index, frame in check_frames(self, sorted(targets), self._frames):
            found = planes.get_coding(frame)
            if found is None or coding not in (None, found):
                return None
            if coding is None:
                coding = found
                cuts = [planes.empty_clip(len(clip), box, found) for clip, box in zip(clips, boxes, strict=True)]
            for clip, position in targets[index]:
                planes.copy_frame(frame, boxes[clip], cuts[clip], position)
        return cuts

    @property
    def found_by(self) -> str:
        """The source of the index: `container` (its own), `packets` (all read once), `counting` (a forward decode)."""
        return "counting" if self._index is None else self._index.source

    @property
    def index(self) -> FrameIndex | None:
        """The index in use, None where frames are counted."""
        return self._index

    @property
    def plain_mp4(self) -> bool:
        """Whether decord is exact: one 8-bit H.264 stream in MP4 that starts at 0, every frame shown, constant rate."""
        return (
            self._index is not None
            and self._is_in("mp4")
            and len(self._container.streams.video) == 1
            and self._codec.name == "h264"
            and self._is_planar
            and self._stream.start_time == 0
            and len(self._index.stamps) == self.num_frames
            and (self._index.gap is not None or self.num_frames == 1)
        )

    @property
    def _is_planar(self) -> bool:
        """Whether the video is 8-bit 4:2:0."""
        return self.header_only or self._codec.pix_fmt in planes.FORMATS

    def needed_packets(self, indices: list[int]) -> list[list[Any]]:
        """Return the packets that a read of these sorted frames decodes, by stretch, for tests and benchmarks."""
        stretches: list[list[Any]] = [[]]

        def send(packet: Any) -> Any:
            if packet is None:
                stretches.append([])
            else:
                stretches[-1].append(packet)
            return self._codec.decode(packet)

        assert [number for number, _ in self._indexed(indices, send)] == indices
        return stretches[:-1]

    def _images(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        for index, frame in self._frames(indices):
            plane = self._convert.reformat(frame, format="rgb24", threads=1).planes[0]
            rows = np.frombuffer(plane, dtype=np.uint8).reshape(frame.height, plane.line_size)
            image = rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)
            yield index, image if self._orientation == orientation.UPRIGHT else self._orientation.apply(image)

    def _frames(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        """Yield (index, decoded frame) for sorted indices, without the frames that the file lacks."""
        left = set(indices)
        try:
            while self._index is not None and left:
                try:
                    for index, frame in self._indexed(sorted(left), self._codec.decode):
                        left.discard(index)
                        yield index, frame
                except self._surprises:
                    self._step_down()
            yield from self._counted(left)
        except self._errors as error:
            raise DecodeError(f"{self.path}: {reason_of(error)}") from error

    def _indexed(self, indices: list[int], send: Callable[[Any], Any]) -> Iterator[tuple[int, Any]]:
        assert self._index is not None
        self._fresh = False
        return indexed_decode.decode(self._container, self._stream, self._index, indices, send=send, slices=self._slices)

    def _step_down(self) -> None:
        """Replace the container's index by one read from all packets, and that one by counting.

        Raises DecodeError where frames are lost: numbers would depend on the frames that are asked for together.
        """
        found = None
        if self.found_by == "container" or self._known is not None:
            self._known = None
            with suppress(*self._errors):
                found = frame_index.from_packets(self._read_packets(complete=True)[1], self._reordered)
        self._index = found if found is not None and found.num_frames == self.num_frames else None
        if self._index is None:
            expected, _ = self.num_frames, self._count()
            if self.num_frames != expected:
                raise DecodeError(f"{self.path}: damaged: a decode of its {expected} frames gives {self.num_frames}")

    def _counted(self, wanted: set[int]) -> Iterator[tuple[int, Any]]:
        """Yield (number in a forward decode, frame) for the wanted numbers."""
        decoded = (frame for packet in self._from_start() for frame in packet.decode())  # this order defines the numbers
        for number, frame in enumerate(self._held or decoded) if wanted else ():
            if number in wanted:
                wanted.discard(number)
                yield number, frame
            if not wanted:
                return

    def _count(self) -> tuple[Any, Sequence[int] | None]:
        """Count the frames of a forward decode and keep them if they fit into HELD_BYTES; return as `_survey` does."""
        held, size, times, stamps = list[Any](), 0, list[Any](), list[Any]()
        first = None
        for packet in self._from_start():
            if packet.size:
                stamps.append(packet.dts)
            for frame in packet.decode():
                first = first or frame
                times.append(frame.pts)
                self._limits.check_count(self.path, len(times))
                size += sum(plane.buffer_size for plane in frame.planes)
                if size <= HELD_BYTES:
                    frame.make_writable()  # a copy where the decoder may still conceal errors in it
                    held.append(frame)
        if first is None:
            raise DecodeError(f"{self.path}: no frame in it")
        self.num_frames = len(times)
        self._held = held if len(held) == len(times) else []
        # AVI stores an order and no times: FFmpeg derives pts from dts, with gaps. What was copied from one may give the frames
        # each other's times: in order they are those at which frames are shown.
        stored = [stamps] if len(stamps) == len(times) else []
        others = [times, *stored, [] if None in times else sorted(times)]
        for known in (stored or [times]) if self._is_in("avi") else others:
            if known and None not in known and all(map(operator.lt, known, islice(known, 1, None))):
                return first, known
        return first, None

    def _is_in(self, container: str) -> bool:
        return container in self._container.format.name.split(",")

    def _indexable(self, *containers: str) -> bool:
        """Return whether the file is in one of these containers, with one frame a packet whose order can be checked."""
        return (
            any(map(self._is_in, containers))
            and self._codec.name in frame_index.ONE_FRAME_A_PACKET
            and getattr(self._codec, "field_order", 0) in frame_index.PROGRESSIVE  # PyAV 17 lacks it
            and (self._codec.name != "h264" or self._slices is not None)
        )

    def _container_index(self) -> FrameIndex | None:
        # A fragmented MP4 (a recorded stream) has no table of all frames: FFmpeg knows only the first fragments so far.
        if not self._indexable("mp4") or not self._stream.frames:
            return None
        entries = list(self._stream.index_entries)  # PyAV creates an object at each access
        offsets = mp4.composition_offsets(self._header, self._stream.id, len(entries))
        found = frame_index.from_container(entries, os.path.getsize(self.path), offsets, self._reordered)
        about = self._codec.name, self._codec.extradata
        return found if found is None or one_frame.file_gives_one(self.path, entries, *about) else None

    @property
    def _reordered(self) -> int:
        """How many frames decoders hold back from the beginning, as H.264 or an MP4 file's table says."""
        if self._slices is None or (
            self._slices.reordered == frame_index.HELD_BACK and self._is_in("mp4") and self._stream.frames
        ):
            return frame_index.HELD_BACK
        return self._slices.reordered % frame_index.HELD_BACK  # 0 if unknown: they begin with none
