"""Find the file of a Kinetics clip by its name, in any folder.

`ID_000027_000037.mp4` (id, first and last second) is preferred to `ID.mp4`, and among copies a file in a folder with the
name of the clip's split. Class folders are optional; a file in the folder of another class is reported.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from annotations.file_search import find_videos
from annotations.kinetics_tables import SPLITS, YOUTUBE_ID, Clip
from sce_video.errors import InputError


class ClipFile(NamedTuple):
    """A file with the name of a clip: its path, its folders from the given one down, and the seconds in its name or None."""

    path: str
    folders: tuple[str, ...]
    seconds: tuple[int, int] | None


class ClipFiles:
    """The files below some folders by YouTube id; `notes` reports on the search."""

    def __init__(self, folders: Sequence[str], *, untrimmed: bool = False) -> None:
        self._untrimmed = untrimmed  # whether `ID.mp4` is the whole video, of which several clips may be taken
        self._roots = list(dict.fromkeys(os.path.abspath(folder) for folder in folders))
        self._files: dict[str, list[ClipFile]] = defaultdict(list)
        self._others: list[str] = []
        self._notes: list[str] = []
        self._taken: dict[str, Clip] = {}
        self._chosen: list[tuple[Clip, ClipFile]] = []
        self._classes: set[str] = set()
        self._copies: list[str] = []
        self._other_seconds: list[str] = []
        for root in self._roots:
            found = find_videos(root)
            self._notes += found.notes()
            for name in found.names:
                self._remember(root, name)

    def _remember(self, root: str, name: str) -> None:
        path = os.path.join(root, name)
        stem = os.path.splitext(os.path.basename(name))[0]
        form = re.fullmatch(rf"({YOUTUBE_ID})(?:_(\d+)_(\d+))?", stem)
        if form is None:
            self._others.append(path)
            return
        folders = (os.path.basename(root), *name.split(os.sep)[:-1])
        seconds = (int(form[2]), int(form[3])) if form[2] else None
        files = self._files[form[1]]
        if all(file.path != path for file in files):  # one folder given may lie in another
            files.append(ClipFile(path, folders, seconds))

    def find(self, clip: Clip) -> str | None:
        """Return the path of the clip's file, or None if it does not exist.

        Raises InputError if the file already belongs to another clip (two rows take parts of one `ID.mp4`).
        """
        if clip.label is not None:
            self._classes.add(_plain(clip.label))
        fitting = [file for file in self._files.get(clip.youtube_id, []) if file.seconds in (None, (clip.start, clip.end))]
        if not fitting:
            self._other_seconds += [file.path for file in self._files.get(clip.youtube_id, [])]
            return None
        ranked = sorted(fitting, key=lambda file: (file.seconds is None, clip.split not in _splits(file), file.path))
        chosen = ranked[0]
        self._copies += [file.path for file in ranked[1:]]
        other = self._taken.setdefault(chosen.path, clip)
        if other is not clip and not (self._untrimmed and chosen.seconds is None):
            raise InputError(
                f"{clip.where}: {chosen.path!r} could be this clip or that of {other.where}; name files of videos with "
                f"several clips by their seconds: {clip.youtube_id}_{clip.start:06d}_{clip.end:06d}; or add --untrimmed "
                "if it is the whole video"
            )
        self._chosen.append((clip, chosen))
        return chosen.path

    def nothing(self, clips: Sequence[Clip]) -> str:
        """Return the error message for the case that no listed clip exists."""
        seen = [file.path for files in self._files.values() for file in files] + self._others
        what = f"{len(seen)} videos are there, e.g. {seen[0]!r}" if seen else "no video is there"
        name = f"{clips[0].youtube_id}_{clips[0].start:06d}_{clips[0].end:06d}.mp4" if clips else "ID.mp4"
        return (
            f"none of {len(clips)} listed clips is in {', '.join(self._roots)}: {what}; files must be named "
            f"{name} or {name[:11]}.mp4"
        )

    def notes(self) -> list[str]:
        """Return sentences about the search for the user; call it after `find` was called for every clip."""
        known = {*self._taken, *self._copies, *self._other_seconds}
        files = [file.path for files in self._files.values() for file in files]
        groups = [
            (self._astray(), "files lie in the folder of another split than their list's"),
            (self._misfiled(), "files lie in the folder of another class than their list's"),
            (self._copies, "files are further copies of a clip and were not taken"),
            (sorted(set(self._other_seconds)), "files are other seconds of a listed video and were not taken"),
            (sorted(set(files) - known), "videos are in none of the lists"),
            (sorted(set(self._others)), "videos are not named as clips of Kinetics"),
        ]
        return self._notes + [f"{len(group)} {text}, e.g. {group[0]!r}" for group, text in groups if group]

    def _astray(self) -> list[str]:
        return [file.path for clip, file in self._chosen if (named := _splits(file)) and clip.split not in named]

    def _misfiled(self) -> list[str]:
        misfiled = []
        for clip, file in self._chosen:
            folder = _plain(file.folders[-1])
            if clip.label is not None and folder in self._classes and folder != _plain(clip.label):
                misfiled.append(file.path)
        return misfiled


def _splits(file: ClipFile) -> set[str]:
    """Return the splits that the folders of a file are named after."""
    return {SPLITS[name.lower()] for name in file.folders if name.lower() in SPLITS}


def _plain(name: str) -> str:
    """Return a class name with letters and digits only: folder names write spaces, quotes and brackets in many ways."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
