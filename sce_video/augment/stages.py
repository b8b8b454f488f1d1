"""The passes over memory into which the compiled pipeline is put together: each is one pure function of tensors.

A clip needs few passes: two of resampling, one of colours before the contrast (whose frame means must be known first), the
means, one of everything after it, two of blur. What differs from clip to clip (order, factors, which operations at all) is
data, not code: brightness and saturation are both a blend `c f + y w`, with y the luma and w = 0 or 1 - f, and f = 1 is
exactly nothing. So `torch.compile` builds each pass once, whatever is drawn. The readable definitions are in `color.py`,
`blur.py` and `geometry.py`; the tests hold the two together.

Shapes: N clips of T frames of height h and width w, S x S pixels once resampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .color import luma

COLORS = 15  # what `colors` is told per clip, see `slots.py`


def columns(clips: Tensor, left: Tensor, right: Tensor, weight: Tensor, out: Tensor) -> None:
    """Resample uint8 frames [T, h, w, 3] along their width only, into `out` float32 [T, h, 3, S], 0..255.

    left, right: int64 [S], the two columns between which each output column lies; weight: float32 [S], of the right one.
    """
    lines = clips.transpose(2, 3)
    first, second = lines[..., left].float(), lines[..., right].float()
    out.copy_(first + (second - first) * weight)


def rows(lines: Tensor, above: Tensor, below: Tensor, weight: Tensor, out: Tensor) -> None:
    """Resample what `columns` wrote along the height and divide by 255, into `out` float32 [1, 3, T, S, S], 0..1."""
    planes = lines.permute(2, 0, 1, 3)
    first, second = planes[:, :, above], planes[:, :, below]
    out.copy_(((first + (second - first) * weight[:, None]) / 255)[None])


def packed(
    pixels: Tensor, start: Tensor, shapes: Tensor, corners: tuple[Tensor, ...], weights: tuple[Tensor, ...], out: Tensor
) -> None:
    """Resample N clips of different sizes out of one buffer in one pass, into `out` float32 [N, 3, T, S, S], 0..1.

    pixels: uint8 [sum of sizes]; start: int64 [N], where each clip begins; shapes: int64 [N, 2], its h and w.
    corners: above, below, left, right, int64 [N, S]; weights: of below and right, float32 [N, S].
    """
    above, below = (index[:, None, None, :, None] for index in corners[:2])
    left, right = (index[:, None, None, None, :] for index in corners[2:])
    down, across = weights[0][:, None, None, :, None], weights[1][:, None, None, None, :]
    height, width = (shapes[:, axis].view(-1, 1, 1, 1, 1) for axis in (0, 1))
    time = torch.arange(out.shape[2], device=pixels.device).view(1, 1, -1, 1, 1)
    channel = torch.arange(3, device=pixels.device).view(1, 3, 1, 1, 1)
    begin = start.view(-1, 1, 1, 1, 1) + channel

    def line(row: Tensor) -> Tensor:
        at = begin + (time * height + row) * width * 3
        first, second = pixels[at + 3 * left].float(), pixels[at + 3 * right].float()
        return first + (second - first) * across

    first, second = line(above), line(below)
    out.copy_((first + (second - first) * down) / 255)


def frame_means(clips: Tensor, out: Tensor) -> None:
    """Write the mean luma of every frame of [N, 3, T, S, S] to `out` [N, T, 1, 1]."""
    out.copy_(luma(*clips.unbind(1)).mean(dim=(-2, -1), keepdim=True))


def colors(clips: Tensor, means: Tensor, told: Tensor, hue: bool, *out: Tensor) -> None:
    """Write to `out`, one tensor per channel: contrast, two blends, hue, two blends, grey, solarised, normalised.

    told: [N, COLORS, T], how much of each, the same for all frames: that it has a value for each makes all of Inductor's
    loops alike, so that they become one, without buffers between them. means: [N, T, 1, 1], of the frames, for the contrast.
    hue: whether it is turned at all; without, it costs nothing.
    """
    (factor, mean_weight, *blends, gray, threshold, scale, shift) = told[..., None, None].unbind(1)
    base = means * mean_weight
    rgb = tuple(_clamp(channel * factor + base) for channel in clips.unbind(1))
    rgb = _blend(_blend(rgb, *blends[0:2]), *blends[2:4])
    if hue:
        rgb = _turn(rgb, blends[4])
        rgb = _blend(_blend(rgb, *blends[5:7]), *blends[7:9])
    grey, kept = luma(*rgb) * gray, 1 - gray
    # Channels are written apart: as one tensor Inductor would compute every channel's colours three times over.
    for channel, plane in zip(rgb, out, strict=True):
        one = channel * kept + grey
        plane.copy_(torch.where(one >= threshold, 1 - one, one) * scale + shift)


def blur_rows(tall: Tensor, taps: Tensor, out: Tensor) -> None:
    """Blur [N, 3, T, S + K - 1, S], borders included, along the height, into `out` [N, 3, T, S, S]. taps: [N, K, S], each for
    every line alike, see `colors`.
    """
    out.copy_(_weigh(taps, [tall[..., tap : tap + out.shape[-2], :] for tap in range(taps.shape[1])]))


def blur_columns(wide: Tensor, taps: Tensor, finish: Tensor, out: Tensor) -> None:
    """Blur [N, 3, T, S, S + K - 1], borders included, along the width, into `out`, solarised and normalised.

    finish: [N, 3, S], threshold, scale and shift, for every line alike, as the taps.
    """
    threshold, scale, shift = _per_line(finish)
    blurred = _weigh(taps, [wide[..., tap : tap + out.shape[-1]] for tap in range(taps.shape[1])])
    out.copy_(torch.where(blurred >= threshold, 1 - blurred, blurred) * scale + shift)


def _weigh(taps: Tensor, shifted: list[Tensor]) -> Tensor:
    weights = _per_line(taps)
    total = weights[0] * shifted[0]
    for weight, values in zip(weights[1:], shifted[1:], strict=True):
        total = total + weight * values
    return total


def _per_line(values: Tensor) -> tuple[Tensor, ...]:
    """[N, K, S] -> K times [N, 1, 1, S, 1]."""
    return values[:, :, None, None, :, None].unbind(1)


def _clamp(value: Tensor) -> Tensor:
    """Clamp to 0..1. The same as `value.clamp(0, 1)` for finite values up to 2; Inductor's also passes on NaN, at a price."""
    positive = torch.relu(value)
    return positive - torch.relu(positive - 1)


def _blend(rgb: tuple[Tensor, ...], factor: Tensor, luma_weight: Tensor) -> tuple[Tensor, ...]:
    base = luma(*rgb) * luma_weight
    return tuple(_clamp(channel * factor + base) for channel in rgb)


def _turn(rgb: tuple[Tensor, ...], sixths: Tensor) -> tuple[Tensor, ...]:
    """Turn the hue: `color.adjust_hue` with one remainder, by the distance on the circle to where a channel is lowest.

    With the hue h in 0..6 a channel is `max - chroma * clamp(2 - distance, 0, 1)`; red is lowest at 3, green at 5, blue at 1.
    """
    red, green, blue = rgb
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    inverse = 1 / (chroma + 1e-30)  # of a grey pixel: times 0
    hue = torch.where(
        value == red,
        (green - blue) * inverse,
        torch.where(value == green, (blue - red) * inverse + 2, (red - green) * inverse + 4),
    )
    hue = hue + sixths
    hue = hue - 6 * torch.floor(hue * (1 / 6))
    to_green, to_blue = (hue - 5).abs(), (hue - 1).abs()
    lowered = (
        2 - (hue - 3).abs(),
        torch.maximum(2 - to_green, to_green - 4),
        torch.maximum(2 - to_blue, to_blue - 4),
    )
    return tuple(value - chroma * _clamp(low) for low in lowered)
