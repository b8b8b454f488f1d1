"""Exact and fast random access with PyAV (FFmpeg).

A read seeks to the key packet at or before the first wanted frame, skips packets that no wanted frame depends on (H.264
non-reference pictures) and stretches without a wanted frame, converts wanted frames only, and stops after the last one.
The index of frames to packets is the container's own (MP4) or comes from reading all packets once (Matroska, unreliable
MP4). Elsewhere frames are counted in a forward decode (AVI, transport streams, interlaced or old codecs).

Frames are matched by their presentation times. If a decoded frame contradicts the index, the reader falls back one step:
container index, packets, forward decode. The forward decode is correct by definition.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

from ..crops import Box
from . import frame_index, h264, indexed_decode, mp4, planes
from .frame_index import FrameIndex
from .media import LIMITS, DecodeError, Limits, open_container
from .reader import FrameReader, check_frames, first_line, group_by_frame

HELD_BYTES = 64 << 20  # counting keeps this many bytes of decoded frames, so that short files are decoded once
LOOP_FILTERS = {"exact": "default", "reference": "noref", "off": "all"}  # -> FFmpeg's skip_loop_filter


class PyAVReader(FrameReader):
    """The default reader, see the module.

    loop_filter: "exact"; "reference" skips H.264's deblocking filter in non-reference pictures, "off" in all pictures:
    faster and inexact (PSNR in docs/decoding.md). is_mp4: whether to try the header only, without probing the streams.
    """

    decoder = "pyav"

    def __init__(self, path: str, *, is_mp4: bool = False, loop_filter: str = "exact", limits: Limits = LIMITS) -> None:
        super().__init__(path)
        self._limits = limits
        self._loop_filter = loop_filter
        self._index: FrameIndex | None = None
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
            raise DecodeError(f"{path}: {first_line(error)}") from error

    def _look(self, is_mp4: bool) -> None:
        """Open the file and read its size, number of frames, index, rotation and frame rate."""
        self._open(header_only=is_mp4)
        if is_mp4 and not self._header_tells():
            self._container.close()
            self._open(header_only=False)
        self.stream_index = self._stream.index
        self._rotation = 0 if self.header_only or self._is_upright() else self._first_rotation()
        self._index = self._index or self._packet_index()
        size = (self._codec.height, self._codec.width)
        self.height, self.width = size[:: -1 if self._rotation % 2 else 1]
        aspect = Fraction(self._stream.sample_aspect_ratio or 1)
        self.pixel_aspect = 1 / aspect if self._rotation % 2 else aspect
        self.num_frames = self._index.num_frames if self._index else self._count()
        self._limits.check_count(self.path, self.num_frames)
        self.fps = self._rate()

    def _open(self, *, header_only: bool) -> None:
        import av

        self._container = open_container(self.path, self._limits, header_only=header_only)
        self.header_only = header_only
        if not self._container.streams.video:
            raise DecodeError(f"{self.path}: no video stream in it")
        self._stream = self._container.streams.video[0]
        self._codec = self._stream.codec_context
        self._codec.thread_type = "NONE"
        self._limits.check_size(self.path, self._codec.width, self._codec.height)
        self._codec.options = {
            "max_pixels": str(self._limits.frame_pixels),  # a stream may change its size later
            "skip_loop_filter": LOOP_FILTERS[self._loop_filter],
        }
        self._size_bytes = h264.length_size(self._codec.extradata) if self._codec.name == "h264" else None
        self._index = self._container_index()
        for stream in self._container.streams if header_only else ():
            if stream is not self._stream:
                stream.discard = av.stream.Discard.all

    def _header_tells(self) -> bool:
        """Return whether the header suffices, without probing by FFmpeg: plain H.264, as in nearly all files."""
        picture = h264.plain_picture(self._codec.extradata)
        return (
            self._index is not None
            and self._index.gap is not None
            and not self._index.discards
            and picture is not None
            and (picture.height, picture.width) == (self._codec.height, self._codec.width)
            # The container's takes precedence; if it has none, PyAV 19 returns 0/1, older versions None.
            and (picture.square or bool(self._stream.sample_aspect_ratio))
            and self._is_upright()
        )

    def close(self) -> None:
        self._held = []
        if self._container is not None:
            self._container.close()

    def read_planes(self, clips: Sequence[Tensor], boxes: Sequence[Box]) -> list[planes.PlanarClip] | None:
        if self._rotation or not self._is_planar:
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
        if self._index is None:
            return "counting"
        return "packets" if self._index.times is not None else "container"

    @property
    def plain_mp4(self) -> bool:
        """Whether decord is exact: one 8-bit H.264 stream in MP4 that starts at 0, every frame shown, constant rate."""
        return (
            self._index is not None
            and "mp4" in self._container.format.name
            and len(self._container.streams.video) == 1
            and self._codec.name == "h264"
            and self._is_planar
            and self._stream.start_time == 0
            and not self._index.discards
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
            yield index, np.rot90(image, k=self._rotation) if self._rotation else image

    def _frames(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        """Yield (index, decoded frame) for sorted indices, without the frames that the file lacks."""
        left = set(indices)
        while self._index is not None and left:
            try:
                for index, frame in self._indexed(sorted(left), self._codec.decode):
                    left.discard(index)
                    yield index, frame
            except self._surprises:
                self._step_down()
        try:
            yield from self._counted(left)
        except self._errors as error:
            raise DecodeError(f"{self.path}: {first_line(error)}") from error

    def _indexed(self, indices: list[int], send: Callable[[Any], Any]) -> Iterator[tuple[int, Any]]:
        assert self._index is not None
        return indexed_decode.decode(self._container, self._stream, self._index, indices, send=send, size_bytes=self._size_bytes)

    def _step_down(self) -> None:
        """Replace the container's index by one read from all packets, and that one by counting."""
        assert self._index is not None
        read = self._index.times is None
        if self.header_only:
            self._container.close()
            self._open(header_only=False)
        self._index = self._packet_index() if read else None
        if self._index is not None and self._index.num_frames != self.num_frames:
            self._index = None

    def _counted(self, wanted: set[int]) -> Iterator[tuple[int, Any]]:
        """Yield (number in a forward decode, frame) for the wanted numbers."""
        for number, frame in enumerate(self._held or self._forward()) if wanted else ():
            if number in wanted:
                wanted.discard(number)
                yield number, frame
            if not wanted:
                return

    def _forward(self) -> Iterator[Any]:
        """Decode from the start: this order defines the frame numbers."""
        self._container.seek(0)
        kinds, start = self._container.format.name.split(","), self._stream.start_time
        if start and ("mp4" in kinds or "matroska" in kinds):
            self._container.seek(start, stream=self._stream, backward=True)
        yield from self._container.decode(self._stream)

    def _count(self) -> int:
        """Return the number of frames in a forward decode; keep all frames if they fit into HELD_BYTES."""
        held, size, number = [], 0, 0
        for frame in self._forward():
            number += 1
            self._limits.check_count(self.path, number)
            size += sum(plane.buffer_size for plane in frame.planes)
            if size <= HELD_BYTES:
                held.append(frame)
        self._held = held if len(held) == number else []
        return number

    def _is_upright(self) -> bool:
        """Return whether the header and first packet show that no frame is rotated and decoding may start at any key."""
        if self.found_by != "container" or not self._size_bytes or not mp4.is_upright(self.path):
            return False
        first = next(self._container.demux(self._stream))
        properties = h264.inspect(first, self._size_bytes)
        if properties.oriented or properties.parameters:
            return False
        return self._is_planar and not h264.is_old_x264(first)

    def _first_rotation(self) -> int:
        """Decode the first frame and return its rotation in quarter turns."""
        first = next(self._forward(), None)
        if first is None:
            raise DecodeError(f"{self.path}: no frame in it")
        return round(getattr(first, "rotation", 0) / 90) % 4

    def _rate(self) -> Fraction:
        index, base = self._index, self._stream.time_base
        rate = self._stream.average_rate or self._stream.guessed_rate
        if index is not None and index.gap is not None:
            rate = 1 / (index.gap * base)
        elif index is not None and index.discards:  # FFmpeg's average and the container's times count discarded frames
            times = index.times or getattr(self._packet_index(), "times", None) or []
            if len(times) > 1:
                rate = (len(times) - 1) / ((times[-1] - times[0]) * base)
        if not rate:
            raise DecodeError(f"{self.path}: its frame rate is unknown")
        return Fraction(rate).limit_denominator(1001)

    def _indexable(self, container: str) -> bool:
        return (
            container in self._container.format.name.split(",")
            and self._codec.name in frame_index.ONE_FRAME_A_PACKET
            and getattr(self._codec, "field_order", 0) in frame_index.PROGRESSIVE  # PyAV 17 lacks it
        )

    def _container_index(self) -> FrameIndex | None:
        # A fragmented MP4 (a recorded stream) has no table of all frames: FFmpeg knows only the first fragments so far.
        if not self._indexable("mp4") or not self._stream.frames:
            return None
        return frame_index.from_container(self._stream.index_entries, os.path.getsize(self.path))

    def _packet_index(self) -> FrameIndex | None:
        # Other containers have no index for seeking (MPEG program and transport streams) or no times (AVI).
        if not (self._indexable("mp4") or self._indexable("matroska")):
            return None
        self._container.seek(0)
        packets = []
        for packet in self._container.demux(self._stream):
            if packet.is_corrupt:
                return None
            if packet.size:
                known = frame_index.Packet(packet.dts, packet.pts, packet.is_keyframe, packet.is_discard)
                packets.append(known)
                self._limits.check_count(self.path, len(packets))
        return frame_index.from_packets(packets)
