"""The contract of every reader of frames, whichever library is behind it.

Frame i is the i-th frame in presentation order that a plain forward decode shows: edit lists and discarded frames
respected, the file's rotation applied.

A reader belongs to the process that opened it: open it in the worker, close it there, never keep one across a fork.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..crops import Box, short_side
from .media import DecodeError
from .planes import PlanarClip


class FrameReader:
    """A video opened for reading: `num_frames`, `fps` (Fraction), `height`, `width` (as shown), `seconds`.

    pixel_aspect: width of a shown pixel over its height, 1 for square ones. Frames are returned in pixels as stored, so a
    video of 720 x 576 whose pixel_aspect is 16/11 is meant to be seen 1047 wide; data_prep/shrink.py makes them square.
    """

    decoder: str
    num_frames: int
    fps: Fraction
    height: int
    width: int
    pixel_aspect: Fraction = Fraction(1)

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
        size = _limited(self.height, self.width, max_short_side)
        output = np.empty((len(wanted), *size, 3), dtype=np.uint8)
        places = places_of([wanted])
        for index, image in check_frames(self, sorted(places), self._images):
            frame = _scaled_down(image, size)
            for _, place in places[index]:
                output[place] = frame
        return torch.from_numpy(output)

    def read_clips(self, clips: Sequence[Tensor], boxes: Sequence[Box]) -> list[Tensor]:
        """Return for each clip the frames at its indices, cut to its box: uint8 RGB [T, box.height, box.width, 3].

        clips: int64 [T] each. One forward pass for all of them. Raises as `read` does.
        """
        outputs = [
            np.empty((len(clip), box.height, box.width, 3), dtype=np.uint8)
            for clip, box in zip(clips, boxes, strict=True)
        ]
        places = places_of([clip.tolist() for clip in clips])
        for index, image in check_frames(self, sorted(places), self._images):
            for clip, place in places[index]:
                box = boxes[clip]
                outputs[clip][place] = image[box.top : box.top + box.height, box.left : box.left + box.width]
        return [torch.from_numpy(output) for output in outputs]

    def read_planes(self, clips: Sequence[Tensor], boxes: Sequence[Box]) -> list[PlanarClip] | None:
        """As `read_clips`, but luma and chroma as the file holds them; None where this reader or file has only RGB."""
        return None

    def close(self) -> None:
        """Release the file; the reader is of no use afterwards."""

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _images(self, indices: list[int]) -> Iterator[tuple[int, Any]]:
        """Yield (index, image uint8 [height, width, 3]) for sorted indices; those the file does not hold are left out."""
        raise NotImplementedError


def check_frames(reader: FrameReader, indices: list[int], frames: Any) -> Iterator[tuple[int, Any]]:
    """Yield from frames(indices); IndexError for an index outside the video, DecodeError for a missing or odd-sized frame."""
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


def places_of(clips: Sequence[Sequence[int]]) -> dict[int, list[tuple[int, int]]]:
    """Return for each wanted index the (clip, place in the clip) pairs that it goes to."""
    places: dict[int, list[tuple[int, int]]] = {}
    for clip, indices in enumerate(clips):
        for place, index in enumerate(indices):
            places.setdefault(index, []).append((clip, place))
    return places


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _limited(height: int, width: int, max_short_side: int | None) -> tuple[int, int]:
    if max_short_side is None or min(height, width) <= max_short_side:
        return height, width
    return short_side(height, width, max_short_side)


def _scaled_down(image: Any, size: tuple[int, ...]) -> Any:
    """Scale uint8 [H, W, 3] to `size` if it has another one."""
    if image.shape[:2] == size:
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    scaled = F.interpolate(pixels, size=list(size), mode="bilinear")
    return scaled[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
