"""Files that a program writes: manifests, missing.txt and summary.json, whole or not at all, never over something else.

The same input gives the same bytes, so that a program can be run again: what is there already and equal is left, what is
there and differs is refused before anything is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from journal import write_atomically

from sce_video.data.manifest import Video
from sce_video.errors import InputError


def csv_text(videos: Sequence[Video], folder: str | Path) -> str:
    """Return `path,label` rows (`path` alone if no video has a label) for a manifest that will lie in `folder`.

    Paths below `folder` are written relative to it, so that the whole can be moved; others are absolute.
    """
    base = os.path.join(os.path.abspath(folder), "")
    labelled = any(video.label is not None for video in videos)
    lines = ["path,label" if labelled else "path"]
    for video in videos:
        path = video.path[len(base) :] if video.path.startswith(base) else video.path
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", path):
            path = f"./{path}"  # a file's name, which manifest.read would take for an address
        lines.append(f"{quoted(path)},{quoted(video.label or '')}" if labelled else quoted(path))
    return "\n".join(lines) + "\n"


def quoted(value: str) -> str:
    """Return a value as a CSV field, in quotes only where it must be."""
    return '"' + value.replace('"', '""') + '"' if re.search(r'[",\r\n]|^\s|\s$', value) else value


def write_all(files: Mapping[str, str], folder: str | Path) -> list[str]:
    """Write texts by name into `folder`, made if need be; return the names that were new.

    Raises InputError: one of them is there with other content (then none is written), or the disk refuses.
    """
    target = Path(folder)
    contents = {name: text.encode("utf-8", "surrogateescape") for name, text in files.items()}
    try:
        for name, content in contents.items():
            if (target / name).exists() and (target / name).read_bytes() != content:
                raise InputError(
                    f"{str(target / name)!r} exists with other content and is not overwritten: "
                    "give another --out, or move it away"
                )
        target.mkdir(parents=True, exist_ok=True)
        new = [name for name in contents if not (target / name).exists()]
        for name in new:
            write_atomically(target / name, contents[name])
    except OSError as error:
        raise InputError(f"cannot write to {str(target)!r}: {os.strerror(error.errno or 0)}") from error
    return new
