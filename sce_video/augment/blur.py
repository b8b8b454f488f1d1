"""Gaussian blur of clips by two one-dimensional passes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NEGLIGIBLE = 5.5  # taps further out than this many sigma weigh under 3e-7 together: they are not computed


def gaussian_kernel(sigma: float, kernel_size: int) -> Tensor:
    """Return the normalised taps of a Gaussian of `sigma` pixels, float64 [kernel_size], kernel_size odd."""
    position = torch.arange(kernel_size, dtype=torch.float64) - (kernel_size - 1) / 2
    taps = torch.exp(-0.5 * (position / sigma) ** 2)
    return taps / taps.sum()


def gaussian_blur(clips: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur float clips [B, C, T, H, W] with one sigma (pixels, > 0) per clip [B]; borders are reflected.

    kernel_size (odd) bounds the taps per direction. Fewer are computed where the others weigh nothing, so the cost
    follows sigma. The frame's sides must exceed kernel_size // 2.
    """
    if kernel_size % 2 == 0 or kernel_size // 2 >= min(clips.shape[-2:]):
        raise ValueError(
            f"blur kernel_size {kernel_size} must be odd and under twice the frame's sides {tuple(clips.shape[-2:])}"
        )
    return torch.stack([_blur(clip, s, kernel_size) for clip, s in zip(clips, sigma.tolist(), strict=True)])


def _blur(clip: Tensor, sigma: float, kernel_size: int) -> Tensor:
    radius = min(kernel_size // 2, max(1, math.ceil(NEGLIGIBLE * sigma)))
    taps = gaussian_kernel(sigma, 2 * radius + 1).to(clip.device, clip.dtype)
    frames = clip.reshape(-1, 1, *clip.shape[-2:])  # [C * T, 1, H, W]
    frames = F.conv2d(F.pad(frames, (radius, radius, 0, 0), mode="reflect"), taps.view(1, 1, 1, -1))
    frames = F.conv2d(F.pad(frames, (0, 0, radius, radius), mode="reflect"), taps.view(1, 1, -1, 1))
    return frames.reshape(clip.shape)
