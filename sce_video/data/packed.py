"""Clips of different sizes in one buffer: one shared-memory handle and one copy to the device per view of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..augment.batched import Source
from .readers.planes import Coding, PlanarClip, factors

Clip = Tensor | PlanarClip  # RGB uint8 [T, h, w, 3], or its YUV planes


class Planes(NamedTuple):
    """Crop offsets and colour coding of a planar clip in the buffer: see `planes.PlanarClip`."""

    top: int
    left: int
    coding: Coding


@dataclass
class Packed:
    """B clips: `pixels` uint8 [sum of bytes], `shapes` int64 [B, 4] of [T, h, w, 3] as RGB, `planes` None for RGB clips."""

    pixels: Tensor
    shapes: Tensor
    planes: list[Planes | None]

    @staticmethod
    def pack(clips: Sequence[Clip]) -> Packed:
        """Copy the clips into one buffer; a single RGB clip is not copied."""
        flat: list[Tensor] = []
        shapes: list[tuple[int, ...]] = []
        planes: list[Planes | None] = []
        for clip in clips:
            if isinstance(clip, PlanarClip):
                flat += [clip.luma.reshape(-1), clip.chroma.reshape(-1)]
                shapes.append((len(clip.luma), clip.height, clip.width, 3))
                planes.append(Planes(clip.top, clip.left, clip.coding))
            else:
                flat.append(clip.reshape(-1))
                shapes.append(tuple(clip.shape))
                planes.append(None)
        pixels = torch.cat(flat) if len(flat) > 1 else flat[0]
        return Packed(pixels, torch.tensor(shapes).reshape(-1, 4), planes)

    def unpack(self) -> list[Tensor]:
        """Return the clips as RGB uint8 [T, h, w, 3], views of the buffer where it holds RGB."""
        clips, start = [], 0
        for (t, height, width, channels), planes in zip(self.shapes.tolist(), self.planes, strict=True):
            if planes is None:
                end = start + t * height * width * channels
                clips.append(self.pixels[start:end].view(t, height, width, channels))
            else:
                rows, columns = (planes.top + height + 1) // 2, (planes.left + width + 1) // 2
                middle, end = start + 4 * t * rows * columns, start + 6 * t * rows * columns
                luma = self.pixels[start:middle].view(t, 2 * rows, 2 * columns)
                chroma = self.pixels[middle:end].view(t, 2, rows, columns)
                clips.append(PlanarClip(luma, chroma, planes.top, planes.left, height, width, planes.coding).rgb())
            start = end
        return clips

    def sources(self) -> list[Source]:
        """Return the places of the clips in `pixels`, for `augment.batched`."""
        sources, start = [], 0
        for (t, height, width, channels), planes in zip(self.shapes.tolist(), self.planes, strict=True):
            if planes is None:
                sources.append(Source(start, t, height, width))
                start += t * height * width * channels
            else:
                low, scale, rest = factors(planes.coding)
                sources.append(Source(start, t, height, width, planes.top, planes.left, (low, scale, *rest)))
                start += 6 * t * ((planes.top + height + 1) // 2) * ((planes.left + width + 1) // 2)
        return sources

    def to(self, device: torch.device) -> Packed:
        """Copy the pixels to the device, asynchronously from pinned memory."""
        return Packed(self.pixels.to(device, non_blocking=True), self.shapes, self.planes)

    def pin_memory(self) -> Packed:
        """Pin the pixels. The DataLoader calls a batch's method of this name."""
        return Packed(self.pixels.pin_memory(), self.shapes, self.planes)
