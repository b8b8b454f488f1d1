"""Find the video files below a folder without opening them, and match them with the entries of a list.

A million files take seconds, since only folders are read. `sce_video.data.manifest.find_files` is the search.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from annotations.entries import Entry
from sce_video.data import manifest
from sce_video.data.manifest import Video
from sce_video.data.readers.media import FRAMES_ZIP
from sce_video.errors import InputError


class Found(NamedTuple):
    """Video files below `root` (absolute): their sorted paths relative to it, and the other files, counted by ending."""

    root: str
    names: list[str]
    passed: Counter[str]

    def notes(self) -> list[str]:
        """Return sentences about the search for the user."""
        kinds = ", ".join(f"{count} {ending}" for ending, count in self.passed.most_common(8))
        return [f"passed over {sum(self.passed.values())} other files ({kinds})"] if self.passed else []


def find_videos(folder: str | Path) -> Found:
    """Find the files with a video suffix below `folder`; raise InputError if it is not a folder or cannot be read."""
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        raise InputError(f"--videos {str(folder)!r} is not a folder: give the one that holds the videos")
    names, passed = manifest.find_files(root, existing=True)
    return Found(root, sorted(names), passed)


class Matched(NamedTuple):
    """Videos whose file exists, entries whose file does not, and the names of the files used."""

    present: list[Video]
    missing: list[Entry]
    used: set[str]


class Matcher:
    """Find the file of an entry by its path, else by its name in any folder and with any video suffix.

    For data sets with unique file names. The search finds flat folders, other class folders and transcoded copies, and
    ignores case (`v_HandStandPushups_g01_c01`).
    """

    def __init__(self, found: Found) -> None:
        self._root = found.root
        self._names = set(found.names)
        self._stems: dict[str, list[str]] = defaultdict(list)
        for name in found.names:
            self._stems[_stem(name)].append(name)

    def match(self, entries: Sequence[Entry]) -> Matched:
        """Split entries into present and missing.

        Raises InputError if only the name matches and several files have it.
        """
        present, missing, used = [], [], set()
        for entry in entries:
            name = self._find(entry)
            if name is None:
                missing.append(entry)
                continue
            present.append(Video(os.path.join(self._root, name), entry.label))
            used.add(name)
        return Matched(present, missing, used)

    def _find(self, entry: Entry) -> str | None:
        if entry.name in self._names:
            return entry.name
        same = self._stems.get(_stem(entry.name), [])
        if len(same) > 1:
            raise InputError(
                f"{entry.where}: {entry.name!r} could be {same[0]!r} or {same[1]!r} of {self._root!r}: "
                "give as --videos a folder with one of them"
            )
        return same[0] if same else None


def _stem(name: str) -> str:
    base = os.path.basename(name).lower()
    return base.removesuffix(FRAMES_ZIP) if base.endswith(FRAMES_ZIP) else os.path.splitext(base)[0]


def refuse_missing(listed: int, missing: Iterable[Entry], root: str, *, allowed: bool, found: Found | None = None) -> None:
    """Raise InputError if no listed video is below `root`, or if some are missing and `allowed` is false."""
    absent = list(missing)
    if not absent or (allowed and len(absent) < listed):
        return
    seen = ""
    if found is not None:
        seen = f"it holds {len(found.names)} videos, e.g. {found.names[0]!r}; " if found.names else "it holds no video; "
    advice = "finish the download, or add --allow-missing" if len(absent) < listed else "is --videos the right folder?"
    raise InputError(
        f"{len(absent)} of {listed} listed videos are not in {root!r}, e.g. {absent[0].name!r} "
        f"({absent[0].where}); {seen}{advice}"
    )
