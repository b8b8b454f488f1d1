"""Colour operations on float clips [B, 3, T, H, W] with values in 0..1, one factor per clip: [B].

Each equals torchvision's functional operation on every frame (to 1e-5, hue to 1e-4) and returns values in 0..1.
"""

from __future__ import annotations

import torch
from torch import Tensor

GRAY = (0.2989, 0.587, 0.114)  # luma weights of the reference and of torchvision


def _per_clip(factor: Tensor, clips: Tensor) -> Tensor:
    return factor.to(clips.device, clips.dtype).view(-1, 1, 1, 1, 1)


def luma(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    """Return the grey value of the three channels."""
    return GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue


def grayscale(clips: Tensor) -> Tensor:
    """Return the grey value 0.2989 R + 0.587 G + 0.114 B in all three channels: any float [..., 3, T, H, W]."""
    return luma(*clips.unbind(dim=-4)).unsqueeze(-4).expand_as(clips)


def adjust_brightness(clips: Tensor, factor: Tensor) -> Tensor:
    """Multiply by the factor (>= 0; 1 leaves the clip unchanged)."""
    return (clips * _per_clip(factor, clips)).clamp(0, 1)


def adjust_contrast(clips: Tensor, factor: Tensor) -> Tensor:
    """Blend each frame with its mean grey value: factor 0 gives uniform grey frames, 1 the unchanged clip."""
    factor = _per_clip(factor, clips)
    mean = luma(*clips.unbind(dim=-4)).mean(dim=(-2, -1), keepdim=True).unsqueeze(-4)  # [B, 1, T, 1, 1]
    return torch.lerp(mean, clips, factor).clamp(0, 1)


def adjust_saturation(clips: Tensor, factor: Tensor) -> Tensor:
    """Blend with the clip's grey version: factor 0 gives grey, 1 the unchanged clip."""
    return torch.lerp(luma(*clips.unbind(dim=-4)).unsqueeze(-4), clips, _per_clip(factor, clips)).clamp(0, 1)


def adjust_hue(clips: Tensor, factor: Tensor) -> Tensor:
    """Shift the HSV hue by `factor` of a full circle, in [-0.5, 0.5]; value and saturation are kept.

    With chroma c = max - min and shifted hue h in sixths of the circle, channel n (5, 3, 1 for red, green, blue) is
    `max - c * clamp(min(k, 4 - k), 0, 1)` with `k = (n + h) mod 6`.
    """
    red, green, blue = clips.unbind(dim=1)
    value, low = clips.amax(dim=1), clips.amin(dim=1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(
        value == red, (green - blue) / safe, torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    hue = hue + 6 * factor.to(clips.device, clips.dtype).view(-1, 1, 1, 1)
    channels = []
    for n in (5, 3, 1):
        k = (n + hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1).clamp(0, 1)


def solarize(clips: Tensor, threshold: float) -> Tensor:
    """Invert the values at or above the threshold: v -> 1 - v."""
    return torch.where(clips >= threshold, 1 - clips, clips)
