"""Reading chosen frames of a video file: `open_video(path)` -> a reader with one contract over decord and PyAV.

Frame i is the i-th frame in presentation order that a plain forward decode shows, with the file's rotation applied.

`auto` takes decord where it is installed and can be trusted: an H.264 MP4 file without edit list, at constant rate
(Kinetics as it is downloaded). Elsewhere decord returns wrong frames without an error or never returns (measured on
files with edit lists, packed B-frames, MPEG-TS), so those files go to PyAV, as does everything where decord has no
wheel. `FrameReader.decoder` tells which one reads a file.

A reader belongs to the process that opened it: open it in the worker, close it there, never keep one across a fork.
Only files that `media.check_media` lets through reach a decoder.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .crops import short_side
from .exactness import warn_inexact
from .media import FORMATS, LIMITS, DecodeError, Limits, check_media, is_frames, open_options

__all__ = ["DECODERS", "FORMATS", "DecodeError", "FrameReader", "Limits", "check_media", "open_video"]

DECODERS = ("auto", "decord", "pyav", "torchcodec")


def open_video(path: str, decoder: str = "auto", *, limits: Limits = LIMITS) -> FrameReader:
    """Open a video for reading frames: a file, or frames as pictures in a folder or a zip (see `frame_folder`).

    decoder: of files, one of DECODERS. limits: the largest video that is opened.

    Raises DecodeError when it is missing, is no video, holds no frame, or is larger than the limits.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}")
    if is_frames(path):
        from .frame_folder import FrameFolder

        return FrameFolder(path, limits=limits)
    container = check_media(path)
    absolute = os.path.realpath(path)
    # Always first: decord and torchcodec know neither whitelists nor limits, and see only what came through these.
    reader = PyAVReader(absolute, limits=limits)
    if decoder == "torchcodec":
        from .torchcodec_reader import TorchcodecReader

        reader.close()
        return TorchcodecReader(absolute, container=container, stream=reader.stream_index, fps=reader.fps)
    if decoder == "decord":
        if not reader.plain_mp4:
            warn_inexact("decord", absolute)
        reader.close()
        return DecordReader(absolute)
    if decoder == "auto" and reader.plain_mp4 and importlib.util.find_spec("decord") is not None:
        try:
            fast = DecordReader(absolute)
        except DecodeError:
            return reader
        reader.close()
        return fast
    return reader


class FrameReader:
    """What both readers offer. `num_frames`, `fps` (Fraction), `height`, `width` (as shown), `seconds`."""

    decoder: str
    num_frames: int
    fps: Fraction
    height: int
    width: int

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def seconds(self) -> Fraction:
        """Duration: num_frames / fps."""
        return self.num_frames / self.fps

    def read(self, indices: Sequence[int] | Tensor, *, max_short_side: int | None = None) -> Tensor:
        """Return the frames at `indices` (any order, repeats allowed): uint8 RGB [N, height, width, 3].

        One forward pass, each frame copied straight to its places. max_short_side: larger frames are scaled down to it
        (bilinear, rounded) one by one, so that memory does not follow the size of the video.

        Raises DecodeError when the file breaks off before one of them, IndexError for an index outside the video.
        """
        wanted = torch.as_tensor(indices, dtype=torch.long).tolist()
        unique = sorted(set(wanted))
        if unique and not 0 <= unique[0] <= unique[-1] < self.num_frames:
            raise IndexError(f"{self.path} has {self.num_frames} frames, asked for {wanted}")
        places: dict[int, list[int]] = {index: [] for index in unique}
        for place, index in enumerate(wanted):
            places[index].append(place)
        output = torch.empty((len(wanted), *_limited(self.height, self.width, max_short_side), 3), dtype=torch.uint8)
        found: set[int] = set()
        for index, image in self._images(unique) if unique else ():
            if image.shape[:2] != (self.height, self.width):
                raise DecodeError(f"{self.path}: frame {index} is of another size than the first")
            frame = _scaled_down(torch.from_numpy(np.ascontiguousarray(image)), output.shape[1:3])
            found.add(index)
            for place in places[index]:
                output[place] = frame
        if len(found) < len(unique):
            missing = next(index for index in unique if index not in found)
            raise DecodeError(f"{self.path}: breaks off before frame {missing} of {self.num_frames}")
        return output

    def _images(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        """Yield (index, image uint8 [height, width, 3]) for sorted indices; those the file does not hold are left out."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the file; the reader is of no use afterwards."""

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class DecordReader(FrameReader):
    """decord, one thread per reader: the loader's workers are the parallelism."""

    decoder = "decord"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            import decord
        except ImportError as error:
            raise ValueError("decord is not installed here: use decoder=pyav, or decoder=auto") from error
        # decord raises RuntimeError or its own DECORDError, a subclass of Exception only, and for names that are no
        # UTF-8 UnicodeError.
        self._errors: tuple[type[Exception], ...] = (RuntimeError, decord.DECORDError, UnicodeError)
        try:
            self._reader = decord.VideoReader(path, num_threads=1)
            self.num_frames = len(self._reader)
            if not self.num_frames:
                raise DecodeError(f"{path}: no frame in it")
            self.fps = Fraction(self._reader.get_avg_fps()).limit_denominator(1001)
            self.height, self.width = self._reader[0].shape[:2]
        except self._errors as error:
            raise DecodeError(f"{path}: decord: {_first_line(error)}") from error

    def _images(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        try:
            images = self._reader.get_batch(indices).asnumpy()
        except self._errors as error:
            raise DecodeError(f"{self.path}: decord: {_first_line(error)}") from error
        yield from zip(indices, images, strict=True)

    def close(self) -> None:
        self._reader = None


class PyAVReader(FrameReader):
    """PyAV: an index from a scan of the packets where they carry timestamps, a counted forward decode otherwise.

    With an index, reading seeks to the key frame at or before the first wanted frame and matches frames by timestamp;
    if a wanted timestamp does not come out, it starts again as a plain forward decode, which is right by definition.
    """

    decoder = "pyav"

    def __init__(self, path: str, *, limits: Limits = LIMITS) -> None:
        super().__init__(path)
        import av

        self._av = av
        self._errors: tuple[type[Exception], ...] = (av.FFmpegError, OSError)
        # Its own converter with one thread: the one PyAV shares per thread hangs forked workers (PyAV 19) once the
        # parent has converted a frame, and starts a thread per core in every worker.
        self._convert = av.video.reformatter.VideoReformatter()
        try:
            # Titles that are not UTF-8 are no reason to refuse a video; PyAV 19 no longer asks.
            lenient: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
            self._container = av.open(path, options=open_options(limits), **lenient)
            if not self._container.streams.video:
                raise DecodeError(f"{path}: no video stream in it")
            self._stream = self._container.streams.video[0]
            self.stream_index = self._stream.index
            self._stream.thread_type = "NONE"
            context = self._stream.codec_context
            limits.check_size(path, context.width, context.height)
            context.options = {"max_pixels": str(limits.frame_pixels)}  # a stream may say otherwise later
            self._times = self._scan(limits)
            rate = self._stream.average_rate or self._stream.guessed_rate
            if not rate:
                raise DecodeError(f"{path}: its frame rate is not known")
            self.fps = Fraction(rate).limit_denominator(1001)
            first = next(self._frames(0), None)
            if first is None:
                raise DecodeError(f"{path}: no frame in it")
            self.height, self.width = self._rgb(first).shape[:2]
            self.num_frames = len(self._times) if self._times else sum(1 for _ in self._frames(0))
            limits.check_count(path, self.num_frames)
        except self._errors as error:
            raise DecodeError(f"{path}: {_first_line(error)}") from error

    @property
    def plain_mp4(self) -> bool:
        """Whether decord can be trusted: one 8-bit H.264 stream in MP4, from 0 on, every frame shown, constant rate."""
        stream = self._stream
        if (
            not self._times
            or "mp4" not in self._container.format.name
            or len(self._container.streams.video) > 1
            or stream.codec_context.name != "h264"
            or stream.codec_context.pix_fmt not in ("yuv420p", "yuvj420p")
        ):
            return False
        gaps = {later - earlier for earlier, later in zip(self._times[:-1], self._times[1:], strict=True)}
        return self._times[0] == 0 and stream.frames == len(self._times) and len(gaps) <= 1

    def _scan(self, limits: Limits) -> list[int]:
        """Return the presentation times of all frames in order, in the stream's time base; empty if not all known."""
        # Other containers have no index to seek by (MPEG program and transport streams) or store decoding order only (AVI).
        if not {"mp4", "matroska"} & set(self._container.format.name.split(",")):
            return []
        times = []
        for packet in self._container.demux(self._stream):
            if packet.size and not packet.is_discard:
                if packet.pts is None or packet.is_corrupt:
                    return []
                times.append(packet.pts)
                limits.check_count(self.path, len(times))
        times.sort()
        return times if len(set(times)) == len(times) else []

    def _frames(self, time: int | None) -> Iterator[Any]:
        """Decode forward from the key frame at or before `time`; 0 or None from the start of the file."""
        if not time:
            self._container.seek(0)
            if self._times:
                self._container.seek(self._times[0], stream=self._stream, backward=True)
        else:
            self._container.seek(time, stream=self._stream, backward=True)
        yield from self._container.decode(self._stream)

    def _rgb(self, frame: Any) -> Any:
        image = self._convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return np.rot90(image, k=round(getattr(frame, "rotation", 0) / 90) % 4)

    def _images(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        left = set(indices)
        try:
            if self._times:
                wanted = {self._times[i]: i for i in indices}
                last = self._times[indices[-1]]
                for frame in self._frames(self._times[indices[0]]):
                    if frame.pts in wanted:
                        left.discard(wanted[frame.pts])
                        yield wanted[frame.pts], self._rgb(frame)
                    if frame.pts is not None and frame.pts >= last:
                        break
            if left:  # not where the index said: what a plain forward decode shows is right
                end = max(indices)
                for position, frame in enumerate(self._frames(0)):
                    if position in indices:
                        yield position, self._rgb(frame)
                    if position == end:
                        break
        except self._errors as error:
            raise DecodeError(f"{self.path}: {_first_line(error)}") from error

    def close(self) -> None:
        self._container.close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _limited(height: int, width: int, max_short_side: int | None) -> tuple[int, int]:
    if max_short_side is None or min(height, width) <= max_short_side:
        return height, width
    return short_side(height, width, max_short_side)


def _scaled_down(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """Scale uint8 [H, W, 3] to `size` if it has another one."""
    if image.shape[:2] == size:
        return image
    scaled = F.interpolate(image.permute(2, 0, 1)[None].float(), size=list(size), mode="bilinear")
    return scaled[0].permute(1, 2, 0).round().to(torch.uint8)
