"""The passes over memory into which the compiled pipeline is put together: each is one pure function of tensors.

A clip needs few passes: two of resampling, one of colours before the contrast (whose frame means must be known first), the
means, one of everything after it, two of blur. What differs from clip to clip (order, factors, which operations at all) is
data, not code: brightness and saturation are both a blend `y + (c - y) f`, with black or the luma, and a factor of 1 is
exactly nothing. So `torch.compile` builds each pass once, whatever is drawn. The readable definitions are in `color.py`,
`blur.py` and `geometry.py`; the tests hold the two together.

Shapes: N clips of T frames of height h and width w, S x S pixels once resampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .color import luma

COLORS = 15  # what `colors` is told per clip, see `slots.py`


def columns(clips: Tensor, left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """Resample uint8 frames [T, h, w, 3] along their width only: float32 [3, T, h, S], 0..255.

    left, right: int64 [S], the two columns between which each output column lies; weight: float32 [S], of the right one.
    """
    planes = clips.permute(3, 0, 1, 2)
    first, second = planes[..., left].float(), planes[..., right].float()
    return first + (second - first) * weight


def rows(planes: Tensor, above: Tensor, below: Tensor, weight: Tensor) -> Tensor:
    """Resample what `columns` returned along the height and divide by 255: float32 [1, 3, T, S, S], 0..1."""
    first, second = planes[:, :, above], planes[:, :, below]
    return ((first + (second - first) * weight[:, None]) / 255)[None]


def packed(
    pixels: Tensor, start: Tensor, shapes: Tensor, corners: tuple[Tensor, ...], weights: tuple[Tensor, ...], frames: int
) -> Tensor:
    """Resample N clips of different sizes out of one buffer in one pass: float32 [N, 3, frames, S, S], 0..1.

    pixels: uint8 [sum of sizes]; start: int64 [N], where each clip begins; shapes: int64 [N, 2], its h and w.
    corners: above, below, left, right, int64 [N, S]; weights: of below and right, float32 [N, S].
    """
    above, below = (index[:, None, None, :, None] for index in corners[:2])
    left, right = (index[:, None, None, None, :] for index in corners[2:])
    down, across = weights[0][:, None, None, :, None], weights[1][:, None, None, None, :]
    height, width = (shapes[:, axis].view(-1, 1, 1, 1, 1) for axis in (0, 1))
    time = torch.arange(frames, device=pixels.device).view(1, 1, -1, 1, 1)
    channel = torch.arange(3, device=pixels.device).view(1, 3, 1, 1, 1)
    begin = start.view(-1, 1, 1, 1, 1) + channel

    def line(row: Tensor) -> Tensor:
        at = begin + (time * height + row) * width * 3
        first, second = pixels[at + 3 * left].float(), pixels[at + 3 * right].float()
        return first + (second - first) * across

    first, second = line(above), line(below)
    return (first + (second - first) * down) / 255


def frame_means(clips: Tensor) -> Tensor:
    """Return the mean luma of every frame of [N, 3, T, S, S]: [N, T, 1, 1]."""
    return luma(*clips.unbind(1)).mean(dim=(-2, -1), keepdim=True)


def colors(clips: Tensor, means: Tensor, told: Tensor, hue: bool, *out: Tensor) -> None:
    """Write to `out`, one tensor per channel: contrast, two blends, hue, two blends, grey, solarised, normalised, each as `told` [N, COLORS] says.

    means: [N, T, 1, 1], of the frames, for the contrast. hue: whether any clip's hue is turned; without, it costs nothing.
    """
    (contrast, *told_blends, gray, threshold, scale, shift) = told.view(-1, COLORS, 1, 1, 1).unbind(1)
    rgb = clips.unbind(1)
    rgb = tuple((means + (channel - means) * contrast).clamp(0, 1) for channel in rgb)
    rgb = _blend(_blend(rgb, *told_blends[0:2]), *told_blends[2:4])
    if hue:
        rgb = _turn(rgb, *told_blends[4:6])
        rgb = _blend(_blend(rgb, *told_blends[6:8]), *told_blends[8:10])
    grey = luma(*rgb)
    # Channels are written apart: as one tensor Inductor would compute every channel's colours three times over.
    for channel, plane in zip(rgb, out, strict=True):
        one = torch.where(gray > 0, grey, channel)
        plane.copy_(torch.where(one >= threshold, 1 - one, one) * scale + shift)


def blur_rows(clips: Tensor, taps: Tensor, reflected: Tensor, out: Tensor) -> None:
    """Write the blur along the height to `out`. taps: [N, K]; reflected: int64 [S + K - 1], the rows with their borders."""
    side = clips.shape[-2]
    total = torch.zeros_like(clips)
    for tap in range(taps.shape[1]):
        total = total + taps[:, tap].view(-1, 1, 1, 1, 1) * clips[..., reflected[tap : tap + side], :]
    out.copy_(total)


def blur_columns(clips: Tensor, taps: Tensor, told: Tensor, out: Tensor) -> None:
    """Write the blur along the width of [N, 3, T, S, S + K - 1], borders included, to `out`; then solarise and normalise.

    told: [N, 3], threshold, scale and shift.
    """
    threshold, scale, shift = told.view(-1, 3, 1, 1, 1, 1).unbind(1)
    total = torch.zeros_like(out, dtype=clips.dtype)
    for tap in range(taps.shape[1]):
        total = total + taps[:, tap].view(-1, 1, 1, 1, 1) * clips[..., tap : tap + out.shape[-1]]
    out.copy_(torch.where(total >= threshold, 1 - total, total) * scale + shift)


def _blend(rgb: tuple[Tensor, ...], factor: Tensor, saturation: Tensor) -> tuple[Tensor, ...]:
    other = luma(*rgb) * saturation  # black for brightness
    return tuple((other + (channel - other) * factor).clamp(0, 1) for channel in rgb)


def _turn(rgb: tuple[Tensor, ...], turned: Tensor, sixths: Tensor) -> tuple[Tensor, ...]:
    """The hue as in `color.adjust_hue`, turned by sixths of the circle where `turned` is 1."""
    red, green, blue = rgb
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    inverse = 1 / torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) * inverse,
        torch.where(value == green, 2 + (blue - red) * inverse, 4 + (red - green) * inverse),
    )
    result = []
    for offset, channel in zip((5, 3, 1), rgb, strict=True):
        k = hue + sixths + offset
        k = k - 6 * torch.floor(k / 6)
        new = (value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)).clamp(0, 1)
        result.append(torch.where(turned > 0, new, channel))
    return tuple(result)
