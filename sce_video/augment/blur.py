"""Gaussian blur of clips: two one-dimensional passes whose number of taps depends on sigma."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_kernel(sigma: float, kernel_size: int) -> Tensor:
    """Return the normalised taps of a Gaussian of `sigma` pixels, float64 [kernel_size], kernel_size odd."""
    position = torch.arange(kernel_size, dtype=torch.float64) - (kernel_size - 1) / 2
    taps = torch.exp(-0.5 * (position / sigma) ** 2)
    return taps / taps.sum()


def reach(sigma: float, kernel_size: int) -> int:
    """Return the radius of the taps to compute, in pixels: those further out weigh under 1e-6 together."""
    # Taps of radius r cover the Gaussian up to r + 1/2; 1e-6 of its mass lies beyond 4.9 sigma.
    return min(kernel_size // 2, max(1, math.ceil(4.9 * sigma - 0.5)))


def check_kernel(kernel_size: int, height: int, width: int) -> None:
    """Raise ValueError if kernel_size is even or too large to reflect frames of height x width at their borders."""
    if kernel_size % 2 == 0 or kernel_size // 2 >= min(height, width):
        raise ValueError(f"blur kernel_size {kernel_size} must be odd and under twice the frame's sides {(height, width)}")


def gaussian_blur(clips: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur float clips [B, C, T, H, W] with one sigma (pixels, > 0) per clip [B]; borders are reflected.

    kernel_size (odd) is the maximum number of taps per direction; negligible taps are skipped, so the cost grows with
    sigma. The frame's sides must exceed kernel_size // 2.
    """
    check_kernel(kernel_size, *clips.shape[-2:])
    return torch.stack([_blur(clip, s, kernel_size) for clip, s in zip(clips, sigma.tolist(), strict=True)])


def _blur(clip: Tensor, sigma: float, kernel_size: int) -> Tensor:
    radius = reach(sigma, kernel_size)
    taps = gaussian_kernel(sigma, 2 * radius + 1).tolist()
    padded = F.pad(clip, (radius, radius, radius, radius, 0, 0), mode="reflect")
    for axis in (-2, -1):
        # Sums of shifted clips: on a CPU torch's single-channel convolution takes ten times as long.
        length = padded.shape[axis] - 2 * radius
        total = padded.narrow(axis, 0, length) * taps[0]
        for tap in range(1, 2 * radius + 1):
            total.add_(padded.narrow(axis, tap, length), alpha=taps[tap])
        padded = total
    return padded
