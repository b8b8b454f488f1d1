"""Turn the rows of a manifest into work items, one per file, and name the file to make from each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jobs.journal import Row
from sce_video.data import manifest


def items_of(videos: Sequence[manifest.Video]) -> list[Row]:
    """Return one item per file: `id` (its path), `labels` (without repeats) and `listed` (the number of its rows).

    A file with segments has them in `segments`: (label, start, end, in_frames, `file:line`) of each row, `labels` of the others.
    """
    items: dict[str, Row] = {}
    for video in videos:
        path = os.path.normpath(video.path)
        item = items.setdefault(path, {"id": path, "labels": [], "listed": 0})
        item["listed"] += 1
        if video.segment:
            row = [video.label, video.start, video.end, video.in_frames, video.where]
            known = item.setdefault("segments", [])
            known += [row] if all(row[:4] != one[:4] for one in known) else []
        elif video.label not in item["labels"]:
            item["labels"].append(video.label)
    return list(items.values())


def videos_of(item: Row, path: str) -> list[manifest.Video]:
    """Return the rows of a list for an item, with another path: those of whole videos first."""
    whole = [manifest.Video(path, label) for label in item["labels"]]
    return whole + [
        manifest.Video(path, label, start=start, end=end, in_frames=in_frames, where=where)
        for label, start, end, in_frames, where in item.get("segments", ())
    ]


def targets_of(items: Sequence[Row], base: str | Path, ending: str = ".mp4") -> list[str]:
    """Return a relative path with suffix `ending` for each item; all differ and none contains `..`.

    The paths repeat the folders of the sources below `base`, or below their common folder if some lie outside `base`. Sources
    whose names differ in the suffix only keep it: a.avi.mp4.
    """
    folder = os.path.abspath(base)
    if any(os.path.commonpath([folder, item["id"]]) != folder for item in items):
        folder = os.path.commonpath([os.path.dirname(item["id"]) for item in items])
    names = [os.path.relpath(item["id"], folder) for item in items]
    stems = Counter(os.path.splitext(name)[0] for name in names)
    taken: set[str] = set()
    targets = []
    for name in names:
        stem = os.path.splitext(name)[0]
        target = f"{stem}{ending}" if stems[stem] == 1 else f"{name}{ending}"
        number = 1
        while target in taken:
            number += 1
            target = f"{name}.{number}{ending}"
        taken.add(target)
        targets.append(target)
    return targets
