"""Write the results of a list program: the lists, summary.json, and a printed table with counts per list and class.

Videos are opened only with --probe (see `video_statistics.py`), so that listing takes seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from output_files import csv_text, write_all

from annotations.video_statistics import measure, table_of
from sce_video.data.manifest import Video, compare
from sce_video.errors import printable
from sce_video.runs.files import to_json

SHOWN_CLASSES = 20


class Report:
    """Collect the lists of one run in the order of `add`, and write everything at the end."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.notes: list[str] = []
        self._lists: dict[str, list[Video]] = {}
        self._listed: dict[str, int] = {}

    def add(self, name: str, videos: Sequence[Video], listed: int | None = None) -> None:
        """Add a list: the videos that exist, and how many the source lists (default: the same number)."""
        self._lists[name] = list(videos)
        self._listed[name] = len(videos) if listed is None else listed

    def compare(self, train: str, test: str) -> None:
        """Add notes about the two lists that put results on them in doubt."""
        if self._lists[train] and self._lists[test]:
            doubts = compare(self._lists[train], self._lists[test])
            self.notes += [f"{train}, {test}: {doubt}" for doubt in doubts]

    def write(self, out: str | Path, *, probe: int = 0, extra: dict[str, str] | None = None) -> None:
        """Write `<name>.csv` for each non-empty list, the texts of `extra` and summary.json; print the table."""
        files = {f"{name}.csv": csv_text(videos, out) for name, videos in self._lists.items() if videos}
        summary: dict[str, Any] = {"program": self.program, "lists": {}, "notes": self.notes}
        for name, videos in self._lists.items():
            classes = Counter(video.label for video in videos if video.label is not None)
            summary["lists"][name] = {
                "listed": self._listed[name],
                "present": len(videos),
                "missing": self._listed[name] - len(videos),
                "videos_per_class": dict(sorted(classes.items())),
            }
            if self._listed[name] and not videos:
                self.notes.append(f"no video of {name} is here: {name}.csv is not written")
            if probe and videos:
                summary["lists"][name]["probe"] = measure(videos, probe)
        files.update(extra or {})
        files["summary.json"] = to_json(summary, indent=1) + "\n"
        new = write_all(files, out)
        print("\n".join(printable(line) for line in lines_of_summary(summary)))
        same = f", {len(files) - len(new)} were there already and equal" if len(new) < len(files) else ""
        print(f"{len(new)} files written to {out}{same}: {' '.join(files)}")


def lines_of_summary(summary: dict[str, Any]) -> list[str]:
    """Return the printed lines of a summary: one row per list, the figures of --probe, and the notes."""
    lines = [f"{'list':12} {'listed':>8} {'present':>8} {'missing':>8} {'classes':>8}  videos per class"]
    for name, part in summary["lists"].items():
        counts = part["videos_per_class"]
        spread = f"{min(counts.values())} to {max(counts.values())}" if counts else "no labels"
        numbers = f"{part['listed']:8,} {part['present']:8,} {part['missing']:8,} {len(counts):8,}"
        lines.append(f"{name:12} {numbers}  {spread}")
    for name, part in summary["lists"].items():
        if "probe" in part:
            lines += ["", *table_of(name, part["probe"], part["videos_per_class"], SHOWN_CLASSES)]
    return [*lines, *(f"note: {note}" for note in summary["notes"])]
