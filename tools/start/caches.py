"""The caches that all programs share: what is in them, how large they are, and how to clear them."""

from __future__ import annotations

import shutil
from pathlib import Path

from sce_video.data.synthetic import cache_folder
from sce_video.errors import InputError

KINDS = {
    **{"features": "features of evaluated videos", "synthetic": "built-in videos or images"},
    **{"frame_indexes": "where the frames of long videos are", "durations": "lengths of videos, for data.seconds_per_row"},
}


def entries() -> dict[str, Path]:
    """Return the folders in the cache by name: features/<network> and the built-in videos."""
    folder = cache_folder()
    kinds = ("features/*", "synthetic_*v*", "frame_indexes", "durations")
    found = [path for kind in kinds for path in folder.glob(kind) if path.is_dir()]
    return {str(path.relative_to(folder)): path for path in sorted(found)}


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def list_cache() -> list[str]:
    """Return a line for each entry, its size and what it is, and the sum."""
    sizes = {name: size_of(path) for name, path in entries().items()}
    lines = [
        f"{size / 1e6:10.1f} MB  {name}  ({next((what for kind, what in KINDS.items() if name.startswith(kind)), 'other')})"
        for name, size in sizes.items()
    ]
    return [*lines, f"{sum(sizes.values()) / 1e6:10.1f} MB  in {cache_folder()}; SCE_VIDEO_CACHE=FOLDER moves all of it"]


def clear_cache(name: str) -> list[str]:
    """Remove an entry, or `all`; return a line for each. They are made anew when they are needed."""
    known = entries()
    if name != "all" and name not in known:
        raise InputError(f"{name!r} is not in the cache: {', '.join([*known, 'all'])}")
    chosen = known if name == "all" else {name: known[name]}
    lines = [f"removed {one}, {size_of(path) / 1e6:.1f} MB" for one, path in chosen.items()]
    for path in chosen.values():
        shutil.rmtree(path)
    return lines
