"""Schedules: pure functions of the step or of `where` = step / total_steps in [0, 1], without state to save."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, base: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate for optimiser step `step` (from 0).

    `base * (t + 1) / W` for t < W, then `base / 2 * (1 + cos(pi (t - W) / (T - W)))`: step 0 has a rate above 0, steps
    W - 1 and W have the base rate, and from step T on the rate is 0.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if step >= total_steps:
        return 0.0
    return base / 2 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def cosine(where: float, start: float, end: float) -> float:
    """Return the value at `where` on half a cosine wave from `start` (0) to `end` (1); constant outside [0, 1]."""
    return start + (end - start) * (1 - math.cos(math.pi * min(max(where, 0.0), 1.0))) / 2


def linear(where: float, start: float, end: float) -> float:
    """Return the value at `where` on the line from `start` (0) to `end` (1); constant outside [0, 1]."""
    return start + (end - start) * min(max(where, 0.0), 1.0)
