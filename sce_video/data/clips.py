"""Where clips start and which frames they take: exact arithmetic in seconds and frame indices.

Times are converted to `Fraction` first (2.56 becomes the float's exact value, a hair above 2.56), so that a clip's
frames never depend on rounding. A window of frames is `[first, last)`.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

Seconds = float | Fraction


def random_clip(video_seconds: Seconds, clip_seconds: Seconds, generator: torch.Generator) -> tuple[Fraction, Fraction]:
    """Return (start, end) of a clip whose start is uniform in [0, max(video_seconds - clip_seconds, 0)].

    The end may lie behind the end of a video that is shorter than the clip; `frame_window` cuts it.
    """
    room = max(Fraction(video_seconds) - Fraction(clip_seconds), Fraction(0))
    start = Fraction(torch.rand((), generator=generator, dtype=torch.float64).item()) * room
    return start, start + Fraction(clip_seconds)


def constant_clips(
    video_seconds: Seconds, clip_seconds: Seconds, clips_per_video: int
) -> list[tuple[Fraction, Fraction]]:
    """Return `clips_per_video` (start, end) evenly spread from the video's start to its end; all at 0 if it is short.

    A single clip starts at 0, as in the reference's protocol.
    """
    room = max(Fraction(video_seconds) - Fraction(clip_seconds), Fraction(0))
    starts = [room * i / max(clips_per_video - 1, 1) for i in range(clips_per_video)]
    return [(start, start + Fraction(clip_seconds)) for start in starts]


def frame_window(fps: Seconds, start: Seconds, end: Seconds, num_frames: int) -> tuple[int, int]:
    """Return the frames shown in [start, end): `ceil(fps * start)` .. `ceil(fps * min(end, duration))`, at least one.

    num_frames is the video's, > 0; its duration is num_frames / fps. Short videos give short windows, never a loop.
    """
    rate = Fraction(fps)
    first = min(math.ceil(rate * Fraction(start)), num_frames - 1)
    last = math.ceil(min(rate * Fraction(end), Fraction(num_frames)))
    return first, max(last, first + 1)


def uniform_subsample(num_frames: int, num_samples: int) -> Tensor:
    """Return `num_samples` indices spread over [0, num_frames - 1], both ends included: int64 [num_samples].

    Index i is floor(i (num_frames - 1) / (num_samples - 1)); indices repeat when there are fewer frames than samples.
    """
    return torch.arange(num_samples) * (num_frames - 1) // max(num_samples - 1, 1)


def jittered_subsample(num_frames: int, num_samples: int, jitter: float, generator: torch.Generator) -> Tensor:
    """Return `uniform_subsample`'s indices, each moved at random: int64 [num_samples], never falling, within the window.

    Sample i lies at `(i + jitter u) d` with d the distance (num_frames - 1) / (num_samples - 1) and u uniform in
    [-1/2, 1/2), rounded down. jitter is in [0, 1].
    """
    shift = torch.rand(num_samples, generator=generator, dtype=torch.float64) - 0.5
    place = (torch.arange(num_samples) + jitter * shift) * ((num_frames - 1) / max(num_samples - 1, 1))
    return place.floor().clamp(0, num_frames - 1).long()


def playback_speed(low: float, high: float, generator: torch.Generator) -> float:
    """Return a factor for a clip's length, log-uniform in [low, high]: as often twice as fast as half as fast."""
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    return math.exp(math.log(low) + (math.log(high) - math.log(low)) * share)


def neighbours(indices: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Return for each index the pair of adjacent frames whose difference stands for it in a temporal difference.

    (i, i + 1), and for the last frame of the window [first, last) the pair before it, as that frame has no successor.
    """
    if last - first < 2:
        raise ValueError(f"a temporal difference needs two frames, the window [{first}, {last}) has {last - first}")
    current = indices.clamp(max=last - 2)
    return current, current + 1
