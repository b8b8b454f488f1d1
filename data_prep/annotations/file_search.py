"""Find the video files below a folder without opening them, and match them with the entries of a list.

A million files take seconds, since only folders are read. Symbolic links to folders are not followed, because a link can
lead out of the data set or in a circle; they are counted and reported. Files `._*` of macOS and hidden folders are skipped.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from annotations.entries import Entry
from sce_video.data import manifest
from sce_video.data.manifest import Video
from sce_video.data.readers.media import FRAMES_FOLDER, FRAMES_ZIP
from sce_video.errors import InputError


class Found(NamedTuple):
    """Video files below `root` (absolute): their sorted paths relative to it, and the linked folders that were skipped."""

    root: str
    names: list[str]
    links: list[str]

    def notes(self) -> list[str]:
        """Return sentences about the search for the user."""
        if not self.links:
            return []
        return [f"{len(self.links)} linked folders were not searched, e.g. {self.links[0]!r}: give the linked folder itself"]


def find_videos(folder: str | Path) -> Found:
    """Find the files with a video suffix below `folder`; raise InputError if it is not a folder or cannot be read."""
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        raise InputError(f"--videos {str(folder)!r} is not a folder: give the one that holds the videos")
    names: list[str] = []
    links: list[str] = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(root, below)) as items:
                for item in items:
                    name = os.path.join(below, item.name)
                    if item.name.lower().endswith(FRAMES_FOLDER) and item.is_dir():
                        names.append(name)
                    elif item.is_dir(follow_symlinks=False):
                        if not item.name.startswith(".") and item.name != "__MACOSX":
                            waiting.append(name)
                    elif is_video_name(item.name) and item.is_file():
                        names.append(name)
                    elif item.is_symlink() and item.is_dir():
                        links.append(name)
        except OSError as error:
            raise InputError(f"cannot read {os.path.join(root, below)!r}: {error.strerror}") from error
    return Found(root, sorted(names), sorted(links))


def is_video_name(name: str) -> bool:
    """Return whether a file name has a video suffix and is not a `._` companion file of macOS."""
    return manifest.is_video_name(name) and not name.startswith("._")


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
