"""Measure the videos of a list (`--probe`): seconds, sizes, resolutions, codecs, frame rates.

A video takes some milliseconds; `--probe N` opens N videos at equal distances in the list. An unreadable file is counted
and reported but is not an error: `doctor.py` finds the reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from media.probe import Probe, probe

from sce_video.data.manifest import Video
from sce_video.data.readers.media import DecodeError

SHOWN_KINDS = 4
SHOWN_UNREADABLE = 20


def evenly(videos: Sequence[Video], number: int) -> list[Video]:
    """Return `number` videos at equal distances in the list, or all if there are fewer; the same at every call."""
    if number >= len(videos):
        return list(videos)
    return [videos[(2 * i + 1) * len(videos) // (2 * number)] for i in range(number)]


def measure(videos: Sequence[Video], number: int) -> dict[str, Any]:
    """Probe `number` of the videos and return their figures as JSON values."""
    chosen = evenly(videos, number)
    probes: list[Probe] = []
    seconds: dict[str, float] = defaultdict(float)
    unreadable = []
    for video in chosen:
        try:
            found = probe(video.path)
        except DecodeError as error:
            unreadable.append(str(error))
            continue
        probes.append(found)
        seconds[video.label or ""] += found.seconds or 0.0
    lengths = [found.seconds for found in probes if found.seconds is not None]
    return {
        "probed": len(chosen),
        "unreadable": len(unreadable),
        "unreadable_first": unreadable[:SHOWN_UNREADABLE],
        "seconds": round(sum(lengths), 3),
        "seconds_of_a_video": spread([round(length, 3) for length in lengths]),
        "seconds_per_class": {name: round(total, 3) for name, total in sorted(seconds.items()) if name},
        "bytes": sum(found.bytes for found in probes),
        "bytes_of_a_video": spread([found.bytes for found in probes]),
        "resolutions": counts([f"{found.width}x{found.height}" for found in probes]),
        "codecs": counts([f"{found.codec} {found.pixel_format}" for found in probes]),
        "frame_rates": counts([_rate(found) for found in probes]),
        "key_frame_interval": spread([found.key_frame_interval for found in probes]),
    }


def _rate(found: Probe) -> str:
    return f"{float(found.frames_per_second):.5g}" if found.frames_per_second else "unknown"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return minimum, median and maximum as `least`, `median`, `most`; an empty dict for no values."""
    return {"least": min(values), "median": median(values), "most": max(values)} if values else {}


def counts(kinds: Sequence[str]) -> dict[str, int]:
    """Return the number of occurrences of each kind, the most frequent first, then by name."""
    return dict(sorted(Counter(kinds).items(), key=lambda item: (-item[1], item[0])))


def table_of(name: str, figures: dict[str, Any], videos_per_class: dict[str, int], shown: int) -> list[str]:
    """Return the printed lines of the figures of `measure` for the list `name`, with at most `shown` classes."""
    total, probed = sum(videos_per_class.values()), figures["probed"]
    lines = [f"{name}: {probed:,} videos opened, {figures['unreadable']} of them unreadable"]
    lines += [f"  unreadable: {reason}" for reason in figures["unreadable_first"][:SHOWN_KINDS]]
    for key, unit, divisor in (("seconds_of_a_video", "s", 1), ("bytes_of_a_video", "MB", 1_000_000)):
        if values := figures[key]:
            numbers = [f"{values[which] / divisor:.2f}" for which in ("least", "median", "most")]
            whole = figures[key.split("_")[0]] / divisor
            lines.append(f"  {numbers[0]} to {numbers[2]} {unit} a video, median {numbers[1]}; {whole:,.1f} {unit} in all")
    for key in ("resolutions", "codecs", "frame_rates"):
        kinds = [f"{kind} ({number})" for kind, number in figures[key].items()]
        more = f" and {len(kinds) - SHOWN_KINDS} more" if len(kinds) > SHOWN_KINDS else ""
        lines.append(f"  {key.replace('_', ' ')}: {', '.join(kinds[:SHOWN_KINDS])}{more}")
    if total == probed and videos_per_class:  # a sample says nothing about a class
        lines.append(f"  {'class':40} {'videos':>7} {'seconds':>10}")
        for label, number in list(videos_per_class.items())[:shown]:
            lines.append(f"  {label[:40]:40} {number:7,} {figures['seconds_per_class'].get(label, 0):10,.1f}")
        if len(videos_per_class) > shown:
            lines.append(f"  ... and {len(videos_per_class) - shown} more in summary.json")
    return lines
