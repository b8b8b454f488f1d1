"""Clips as YUV planes: luma at full size, chroma at half size (4:2:0, 8 bits). Half the bytes of RGB.

The device converts them to RGB with the file's matrix and range. The arithmetic is that of FFmpeg's scaler at equal size
on x86, so that the result equals `FrameReader.read_clips`: chroma repeated, 16-bit products, truncated. Ten-bit video and
other chroma samplings travel as RGB: the scaler interpolates their chroma differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..crops import Box

FORMATS = ("yuv420p", "yuvj420p")  # FFmpeg's pixel formats; the second is full range
FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG
# (weight of red, weight of blue) in luma, by matrix_coefficients of ITU-T H.273; files without one are read as BT.601.
WEIGHTS = {
    1: (0.2126, 0.0722),  # BT.709
    2: (0.299, 0.114),  # unspecified
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.601, 625 lines
    6: (0.299, 0.114),  # BT.601, 525 lines
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
}


class Coding(NamedTuple):
    """Colour coding: matrix_coefficients of H.273, and whether luma is full range, 0..255, or 16..235."""

    matrix: int
    full_range: bool


@dataclass
class PlanarClip:
    """T frames of 4:2:0 video, cropped to the smallest even region around a box.

    luma: uint8 [T, 2 * a, 2 * b]. chroma: uint8 [T, 2, a, b], Cb and Cr. The box is
    luma[:, top : top + height, left : left + width]; top and left are 0 or 1.
    """

    luma: Tensor
    chroma: Tensor
    top: int
    left: int
    height: int
    width: int
    coding: Coding

    def rgb(self) -> Tensor:
        """Return the box as uint8 RGB [T, height, width, 3] on the samples' device."""
        rows, columns = slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        low, luma, (red_cr, green_cb, green_cr, blue_cb) = factors(self.coding)
        chroma = (self.chroma.int() - 128) << 3
        blue, red = chroma[:, 0], chroma[:, 1]
        parts = [(red * red_cr) >> 16, ((blue * green_cb) >> 16) + ((red * green_cr) >> 16), (blue * blue_cb) >> 16]
        full = torch.stack(parts, dim=-1).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        level = (((self.luma[:, rows, columns].int() - low) << 3) * luma) >> 16
        return (level[..., None] + full[:, rows, columns]).clamp_(0, 255).to(torch.uint8)


def factors(coding: Coding) -> tuple[int, int, tuple[int, int, int, int]]:
    """Return black level, luma factor and factors (Cr to red, Cb to green, Cr to green, Cb to blue), in 1 / 2**13."""
    red, blue = WEIGHTS[coding.matrix]
    green = 1 - red - blue
    low, luma, chroma = (0, 1.0, 1.0) if coding.full_range else (16, 255 / 219, 255 / 224)
    from_red, from_blue = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    factors = (from_red, -from_blue * blue / green, -from_red * red / green, from_blue)
    red_cr, green_cb, green_cr, blue_cb = (round(factor * 2**13) for factor in factors)
    return low, round(luma * 2**13), (red_cr, green_cb, green_cr, blue_cb)


def get_coding(frame: Any) -> Coding | None:
    """Return the coding of a PyAV frame; None for RGB transport: other formats, interlaced (chroma lines per field)."""
    matrix, name = int(frame.colorspace), frame.format.name
    if name not in FORMATS or matrix not in WEIGHTS or frame.interlaced_frame:
        return None
    return Coding(matrix, name == "yuvj420p" or int(frame.color_range) == FULL_RANGE)


def empty_clip(num_frames: int, box: Box, coding: Coding) -> PlanarClip:
    """Return an all-zero clip for a box."""
    top, left = box.top % 2, box.left % 2
    rows, columns = (top + box.height + 1) // 2, (left + box.width + 1) // 2
    luma = np.zeros((num_frames, 2 * rows, 2 * columns), dtype=np.uint8)
    chroma = np.zeros((num_frames, 2, rows, columns), dtype=np.uint8)
    return PlanarClip(torch.from_numpy(luma), torch.from_numpy(chroma), top, left, box.height, box.width, coding)


def copy_frame(frame: Any, box: Box, clip: PlanarClip, position: int) -> None:
    """Copy the box's region of a PyAV frame to frame `position` of the clip."""
    rows, columns = clip.chroma.shape[2:]
    top, left = box.top // 2, box.left // 2
    luma, *chroma = [np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]
    # Frames of odd size lack the last luma row or column of the even region.
    height, width = min(2 * rows, frame.height - 2 * top), min(2 * columns, frame.width - 2 * left)
    clip.luma[position].numpy()[:height, :width] = luma[2 * top : 2 * top + height, 2 * left : 2 * left + width]
    for copy, plane in zip(clip.chroma[position].numpy(), chroma, strict=True):
        copy[:] = plane[top : top + rows, left : left + columns]
