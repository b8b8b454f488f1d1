"""The interface of every frame reader.

Frame i is the i-th frame that a forward decode of the freshly opened file returns, which respects edit lists and discarded
frames, with the file's orientation applied. Open and close a reader in the same process: never keep one across a fork.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..clips import Seconds, frame_window, timed_window
from ..crops import Box, short_side
from ..segments import Segment
from .media import DecodeError
from .planes import PlanarClip

ROUNDING = 1e-7  # seconds by which the float time of a frame may differ from the decimal that a list gives


class FrameReader:
    """An open video: `num_frames`, `fps` (Fraction), `height` and `width` (as displayed), `seconds`.

    times: seconds of each frame since the first, float64 [num_frames], if the rate varies; else None.

    pixel_aspect: width of a displayed pixel over its height, 1 for square pixels. Frames keep their stored pixels: a
    720 x 576 video with pixel_aspect 16/11 is displayed 1047 wide. data_prep/shrink.py makes pixels square.
    """

    decoder: str
    num_frames: int
    fps: Fraction
    height: int
    width: int
    pixel_aspect: Fraction = Fraction(1)
    times: NDArray[np.float64] | None = None

    def __init__(self, path: str) -> None:
        self.path = path
        self._cut: tuple[Fraction, Fraction, int, int] | None = None

    @property
    def seconds(self) -> Fraction:
        """Duration in seconds, num_frames / fps; of the segment after `cut`."""
        return self._cut[1] - self._cut[0] if self._cut else self.num_frames / self.fps

    @property
    def begin(self) -> Fraction:
        """Seconds from the first frame of the file to the segment; 0 without one."""
        return self._cut[0] if self._cut else Fraction(0)

    def cut(self, segment: Segment, where: str = "") -> None:
        """Keep to the frames of a segment: `seconds` is its length, and `window` counts from its start. False: the whole.

        Raises DecodeError, with `where`, for a segment of which less than half lies in the file, or without a frame.
        """
        self._cut = None
        if not segment:
            return
        rate, whole = self.fps if segment.in_frames else Fraction(1), self.seconds
        # Seconds are as written: 0.08 is 2/25, where the third frame at 25 per second begins.
        start = Fraction(repr(segment.start or 0.0)) / rate
        end = whole if segment.end is None else Fraction(repr(segment.end)) / rate
        inside = min(end, whole)
        named = f"{self.path}: the segment {segment}{f' ({where})' * bool(where)}"
        if inside - start < (end - start) / 2 or start >= whole:
            raise DecodeError(f"{named} lies outside the file by more than half, which ends at {float(whole):.3f} s")
        first, last = (int(start * rate), math.ceil(inside * rate)) if segment.in_frames else self._frames_from(start, inside)
        if first >= last:
            raise DecodeError(f"{named} has no frame: its video has {float(self.fps):.3f} a second")
        self._cut = start, inside, first, last

    def _frames_from(self, start: Fraction, end: Fraction) -> tuple[int, int]:
        """Return the frames whose time is in [start, end), without one for an empty window."""
        if self.times is None:
            return math.ceil(start * self.fps), math.ceil(end * self.fps)
        first, last = np.searchsorted(self.times, [float(start) - ROUNDING, float(end) - ROUNDING])
        return int(first), int(last)

    def window(self, start: Seconds, end: Seconds) -> tuple[int, int]:
        """Return the frames of [start, end) seconds as [first, last), at least one; see `clips.frame_window`."""
        if self._cut is not None:
            begin, finish, low, high = self._cut
            first, last = self._frames_from(begin + Fraction(start), min(begin + Fraction(end), finish))
            first = min(max(first, low), high - 1)
            return first, max(min(last, high), first + 1)
        if self.times is not None:
            return timed_window(self.times, start, end)
        return frame_window(self.fps, start, end, self.num_frames)

    def seconds_of(self, indices: Tensor) -> list[float]:
        """Return the times of frames in the file, seconds."""
        return [float(self.times[i]) if self.times is not None else float(i / self.fps) for i in indices.tolist()]

    def read(self, indices: Sequence[int] | Tensor, *, max_short_side: int | None = None) -> Tensor:
        """Return the frames at `indices` (any order, repeats allowed): uint8 RGB [N, height, width, 3].

        Decodes in one forward pass. max_short_side: larger frames are scaled down to it (bilinear, rounded) one by one,
        so that memory does not depend on the video's size. Raises DecodeError if the file ends before a frame,
        IndexError for an index outside the video.
        """
        wanted = torch.as_tensor(indices, dtype=torch.long).tolist()
        size = _limit_short_side(self.height, self.width, max_short_side)
        output = np.empty((len(wanted), *size, 3), dtype=np.uint8)
        targets = group_by_frame([wanted])
        for index, image in check_frames(self, sorted(targets), self._images):
            frame = _scale_down(image, size)
            for _, position in targets[index]:
                output[position] = frame
        return torch.from_numpy(output)

    def read_clips(
        self, clips: Sequence[Tensor], boxes: Sequence[Box], *, no_smaller_than: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Return each clip's frames, cropped to its box: uint8 RGB [T, box.height, box.width, 3].

        clips: frame indices, int64 [T] each. Decodes all clips in one forward pass. Raises as `read` does.
        no_smaller_than: sizes in pixels down to which a reader may shrink each clip while decoding; only `Picture` does.
        """
        outputs = [
            np.empty((len(clip), box.height, box.width, 3), dtype=np.uint8) for clip, box in zip(clips, boxes, strict=True)
        ]
        targets = group_by_frame([clip.tolist() for clip in clips])
        for index, image in check_frames(self, sorted(targets), self._images):
            for clip, position in targets[index]:
                box = boxes[clip]
                outputs[clip][position] = image[box.top : box.top + box.height, box.left : box.left + box.width]
        return [torch.from_numpy(output) for output in outputs]

    def read_planes(self, clips: Sequence[Tensor], boxes: Sequence[Box]) -> list[PlanarClip] | None:
        """Return the clips of `read_clips` as the file's luma and chroma; None if this reader or file gives RGB only."""
        return None

    def close(self) -> None:
        """Close the file; the reader cannot be used afterwards."""

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _images(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        """Yield (index, image uint8 [height, width, 3]) for sorted indices, without the frames that the file lacks."""
        raise NotImplementedError


def check_frames(reader: FrameReader, indices: list[int], frames: Any) -> Iterator[tuple[int, Any]]:
    """Yield from frames(indices); raise IndexError outside the video, DecodeError for a missing frame or another size."""
    if indices and not 0 <= indices[0] <= indices[-1] < reader.num_frames:
        raise IndexError(f"{reader.path} has {reader.num_frames} frames, asked for {indices}")
    found: set[int] = set()
    for index, frame in frames(indices) if indices else ():
        size = frame.shape[:2] if hasattr(frame, "shape") else (frame.height, frame.width)
        if size != (reader.height, reader.width):
            raise DecodeError(f"{reader.path}: frame {index} is of another size than the first")
        found.add(index)
        yield index, frame
    if len(found) < len(indices):
        missing = next(index for index in indices if index not in found)
        raise DecodeError(f"{reader.path}: breaks off before frame {missing} of {reader.num_frames}")


def group_by_frame(clips: Sequence[Sequence[int]]) -> dict[int, list[tuple[int, int]]]:
    """Return the (clip, position in the clip) pairs of each frame index."""
    targets: dict[int, list[tuple[int, int]]] = {}
    for clip, indices in enumerate(clips):
        for position, index in enumerate(indices):
            targets.setdefault(index, []).append((clip, position))
    return targets


def _limit_short_side(height: int, width: int, max_short_side: int | None) -> tuple[int, int]:
    if max_short_side is None or min(height, width) <= max_short_side:
        return height, width
    return short_side(height, width, max_short_side)


def _scale_down(image: Any, size: tuple[int, ...]) -> Any:
    """Resize uint8 [H, W, 3] to `size` if its size differs."""
    if image.shape[:2] == size:
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    scaled = F.interpolate(pixels, size=list(size), mode="bilinear")
    return scaled[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
