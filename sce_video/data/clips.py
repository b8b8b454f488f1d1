"""Clip starts and frame indices: exact arithmetic in seconds and frames.

Times are converted to `Fraction` first (2.56 becomes the float's exact value, slightly above 2.56), so that a clip's
frames never depend on rounding. A window of frames is `[first, last)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Seconds = float | Fraction


def random_clip(video_seconds: Seconds, clip_seconds: Seconds, generator: torch.Generator) -> tuple[Fraction, Fraction]:
    """Draw (start, end), start uniform in [0, max(video_seconds - clip_seconds, 0)]; end may exceed a short video's."""
    latest = max(Fraction(video_seconds) - Fraction(clip_seconds), Fraction(0))
    start = Fraction(torch.rand((), generator=generator, dtype=torch.float64).item()) * latest
    return start, start + Fraction(clip_seconds)


def neighbouring_clips(
    video_seconds: Seconds, clip_seconds: Sequence[Seconds], *, gap: tuple[float, float], generator: torch.Generator
) -> list[Fraction]:
    """Draw the starts of a video's clips: the first two lie gap[0] to gap[1] seconds apart, others within gap[1] of both.

    The pair is uniform over all that the gap allows and the video holds; in one too short for gap[0] it is as far apart as
    can be.
    """
    side, apart, shift, *others = torch.rand(len(clip_seconds) + 1, generator=generator, dtype=torch.float64).tolist()
    room = [max(float(video_seconds) - float(seconds), 0.0) for seconds in clip_seconds]
    both = min(room[:2])
    low, high = min(gap[0], both), min(gap[1], both)
    # Two starts at distance d leave room for both - d positions: the distribution function is inverted.
    distance = both - math.sqrt((both - low) ** 2 - apart * ((both - low) ** 2 - (both - high) ** 2))
    distance = min(max(distance, low), high)
    first = shift * (both - distance)
    starts = [first, first + distance] if side < 0.5 else [first + distance, first]
    for latest, draw in zip(room[2:], others, strict=True):
        lowest = min(max(first + distance - gap[1], 0.0), latest)
        starts.append(lowest + draw * max(min(first + gap[1], latest) - lowest, 0.0))
    return [Fraction(start) for start in starts[: len(clip_seconds)]]


def constant_clips(video_seconds: Seconds, clip_seconds: Seconds, clips_per_video: int) -> list[tuple[Fraction, Fraction]]:
    """Return `clips_per_video` (start, end) evenly spaced from the video's start to its end; all at 0 if it is short.

    A single clip starts at 0, as in the reference's protocol.
    """
    latest = max(Fraction(video_seconds) - Fraction(clip_seconds), Fraction(0))
    starts = [latest * i / max(clips_per_video - 1, 1) for i in range(clips_per_video)]
    return [(start, start + Fraction(clip_seconds)) for start in starts]


def frame_window(fps: Seconds, start: Seconds, end: Seconds, num_frames: int) -> tuple[int, int]:
    """Return the frames of [start, end): [ceil(fps * start), ceil(fps * min(end, duration))), at least one.

    num_frames: frames of the video, > 0; its duration is num_frames / fps. Short videos give short windows and never loop.
    """
    rate = Fraction(fps)
    first = min(math.ceil(rate * Fraction(start)), num_frames - 1)
    last = math.ceil(min(rate * Fraction(end), Fraction(num_frames)))
    return first, max(last, first + 1)


def timed_window(times: NDArray[np.float64], start: Seconds, end: Seconds) -> tuple[int, int]:
    """Return the frames of [start, end) of a video with a variable rate as [first, last), at least one.

    times: seconds of each frame since the first, increasing. Where no frame begins within the window: the one on display.
    """
    first, last = (int(found) for found in np.searchsorted(times, [float(start), float(end)]))
    return (first, last) if last > first else (max(first - 1, 0), max(first, 1))


def uniform_subsample(num_frames: int, num_samples: int) -> Tensor:
    """Return `num_samples` evenly spaced indices from 0 to num_frames - 1 inclusive: int64 [num_samples].

    Index i is floor(i (num_frames - 1) / (num_samples - 1)); indices repeat if there are fewer frames than samples.
    """
    return torch.arange(num_samples) * (num_frames - 1) // max(num_samples - 1, 1)


def jittered_subsample(num_frames: int, num_samples: int, jitter: float, generator: torch.Generator) -> Tensor:
    """Return randomly shifted indices of `uniform_subsample`: int64 [num_samples], non-decreasing, within the window.

    Index i is floor((i + jitter u) d) with spacing d = (num_frames - 1) / (num_samples - 1) and u uniform in
    [-1/2, 1/2). jitter is in [0, 1].
    """
    shift = torch.rand(num_samples, generator=generator, dtype=torch.float64) - 0.5
    position = (torch.arange(num_samples) + jitter * shift) * ((num_frames - 1) / max(num_samples - 1, 1))
    return position.floor().clamp(0, num_frames - 1).long()


def playback_speed(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a factor for a clip's length, log-uniform in [low, high]: half and double speed are equally likely."""
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    return math.exp(math.log(low) + (math.log(high) - math.log(low)) * share)


def neighbours(indices: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Return the frames (i, i + 1) of each index's temporal difference, within the window [first, last).

    The last frame takes the pair before it. Raises ValueError for a window of one frame.
    """
    if last - first < 2:
        raise ValueError(f"a temporal difference needs two frames, the window [{first}, {last}) has {last - first}")
    current = indices.clamp(max=last - 2)
    return current, current + 1
