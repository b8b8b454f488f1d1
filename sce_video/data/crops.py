"""Crop boxes, computed from frame sizes only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Box(NamedTuple):
    """A rectangle of pixels: rows [top, top + height), columns [left, left + width)."""

    top: int
    left: int
    height: int
    width: int


def random_resized(
    height: int, width: int, *, area: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Box:
    """Draw the box of a random resized crop (Szegedy et al., 2015, as in torchvision).

    area: range of the box's share of the frame, uniform. ratio: range of width / height, log-uniform. After ten boxes
    that do not fit: the largest centred box whose ratio is the frame's, clamped to the range.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        draw = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        pixels = height * width * (area[0] + (area[1] - area[0]) * draw[0])
        aspect = math.exp(low + (high - low) * draw[1])
        box_width, box_height = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(draw[2] * (height - box_height + 1)), int(draw[3] * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_width, box_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def random_scaled(height: int, width: int, *, size: int, short_sides: tuple[int, int], generator: torch.Generator) -> Box:
    """Draw the box of a random size x size crop taken after scaling the short side to a random integer.

    short_sides: range of that integer, both ends included, at least `size`; (256, 320) for crops of 224 is the protocol
    of linear probes and finetuning (SCE, section 4). The box is in pixels of the unscaled frame, so that scaling and
    cropping are one resampling; its side is rounded to an integer.
    """
    low, high = short_sides
    draw = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    short = low + int(draw[0] * (high - low + 1))
    side = max(1, min(round(min(height, width) * size / short), height, width))
    return Box(int(draw[1] * (height - side + 1)), int(draw[2] * (width - side + 1)), side, side)


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Return (height, width) scaled to a shorter side of `size`; the longer side keeps the ratio and is rounded down."""
    if height <= width:
        return size, width * size // height
    return height * size // width, size


def three_crops(height: int, width: int, size: int) -> list[Box]:
    """Return the size x size boxes at the left, centre and right of a frame (top, centre and bottom if portrait).

    Centre offsets are rounded up: ceil((side - size) / 2), also along the shorter side. Raises ValueError if
    size > min(height, width).
    """
    if size > min(height, width):
        raise ValueError(f"crops of {size} do not fit into {height} x {width}: scale the short side to {size} first")
    top, left = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
    if height > width:
        return [Box(offset, left, size, size) for offset in (0, top, height - size)]
    return [Box(top, offset, size, size) for offset in (0, left, width - size)]


def center_crop(height: int, width: int, size: int) -> Box:
    """Return the middle box of `three_crops`."""
    return three_crops(height, width, size)[1]


@dataclass(frozen=True)
class RandomResized:
    """Draw boxes for pretraining, see `random_resized`."""

    area: tuple[float, float]
    ratio: tuple[float, float]

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box:
        return random_resized(height, width, area=self.area, ratio=self.ratio, generator=generator)


@dataclass(frozen=True)
class RandomScaled:
    """Draw boxes for supervised training, see `random_scaled`."""

    size: int
    short_sides: tuple[int, int]

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box:
        return random_scaled(height, width, size=self.size, short_sides=self.short_sides, generator=generator)
