"""Resizing and the temporal difference, the operations before those on colours, and the normalisation after them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .color import grayscale

Channels = float | Sequence[float]  # one value for all channels, or one for each


def resize(frames: Tensor, size: tuple[int, int], *, antialias: bool = False) -> Tensor:
    """Resize float frames [..., H, W] to `size` bilinearly with half-pixel centres; the reference does not antialias."""
    flat = frames.reshape(-1, 1, *frames.shape[-2:])
    flat = F.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=antialias)
    return flat.reshape(*frames.shape[:-2], *size)


def temporal_difference(frames: Tensor, following: Tensor | None = None) -> Tensor:
    """Return the signed grey difference of each frame to the next, `(grey_t - grey_{t+1} + 255) / 2`, in three channels.

    frames: [..., 3, T, H, W] in 0..255, float or uint8.
    following: each frame's successor, same shape; by default the frames shifted by one, with the last difference repeated.

    Static regions become mid-grey. A single frame without `following` gives zeros. For uint8 input the grey values are
    truncated and the result is rounded to uint8, as in the reference; float input is not rounded.
    """
    time = -3
    integer = not frames.is_floating_point()
    gray = grayscale(frames.float() if integer else frames)
    gray = gray.floor() if integer else gray
    if following is None:
        if frames.shape[time] == 1:
            return torch.zeros_like(frames)
        steps = frames.shape[time] - 1
        difference = gray.narrow(time, 0, steps) - gray.narrow(time, 1, steps)
        difference = torch.cat([difference, difference.narrow(time, steps - 1, 1)], dim=time)
    else:
        after = grayscale(following.float() if integer else following)
        difference = gray - (after.floor() if integer else after)
    difference = (difference + 255) / 2
    return difference.round().to(frames.dtype) if integer else difference


def normalize(clips: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Return (clips - mean) / std in the memory of clips [..., 3, T, H, W]; mean and std are both numbers, or both of 3."""
    if isinstance(mean, Sequence) and isinstance(std, Sequence):  # no tensor of them, which would be a copy to wait for
        for plane, low, scale in zip(clips.unbind(dim=-4), mean, std, strict=True):
            plane.sub_(low).div_(scale)
        return clips
    return clips.sub_(mean).div_(std)  # type: ignore[arg-type]


def unnormalize(clips: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Return clips * std + mean, the inverse of `normalize`, in float32."""
    scale, low = (torch.as_tensor(value, dtype=torch.float32, device=clips.device).view(-1, 1, 1, 1) for value in (std, mean))
    return clips.float() * scale + low
