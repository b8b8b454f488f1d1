"""Examine the health of a video as pictures: decode every picture (the part of examine.py for folders and zip files)."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from jobs.workers import Alive

from sce_video.data.decode import FrameReader
from sce_video.data.readers.frame_folder import FrameFolder
from sce_video.data.readers.media import DecodeError, TooLarge
from sce_video.errors import printable

SAMPLE_FRAMES = 8  # decoded at each of three positions by --quick


def examine_pictures(path: str, alive: Alive, *, quick: bool, min_frames: int) -> dict[str, Any]:
    """Return `status`, `reason` and the columns that exist for pictures."""
    row: dict[str, Any] = {"sha256": sha256_of_all(path, alive)} if os.path.exists(path) else {}
    try:
        with FrameFolder(path) as video:
            row |= _measured(video)
            for index in _indices(video.num_frames, quick=quick):
                try:
                    video.read([index])
                except DecodeError as error:
                    reason = printable(str(error).removeprefix(f"{path}: "))
                    return {
                        **row,
                        "frames": index,
                        "status": "truncated",
                        "reason": f"breaks off at frame {index} of {video.num_frames}: {reason}",
                    }
                alive()
    except TooLarge as error:
        return {**row, "status": "refused", "reason": printable(str(error).removeprefix(f"{path}: "))}
    except DecodeError as error:
        return {**row, "status": "unreadable", "reason": printable(str(error).removeprefix(f"{path}: "))}
    if row["frames"] < min_frames:
        return {**row, "status": "short", "reason": f"{row['frames']} frame{'s' * (row['frames'] != 1)}"}
    return {**row, "status": "ok", "reason": ""}


def _measured(video: FrameReader) -> dict[str, Any]:
    return {
        "container": "pictures",
        "codec": "mjpeg",
        "fps": round(float(video.fps), 6),
        "frames": video.num_frames,
        "frames_promised": video.num_frames,
        "frames_hidden": 0,
        "seconds": round(float(video.seconds), 6),
        "start_seconds": 0.0,
        "end_seconds": round(float(video.seconds), 6),
        "key_frame_interval": 1,
        "variable_rate": False,
        "has_audio": False,
        "width": video.width,
        "height": video.height,
        "rotation": 0,
        "pixel_format": "rgb24",
    }


def _indices(num_frames: int, *, quick: bool) -> list[int]:
    if not quick:
        return list(range(num_frames))
    starts = (0, (num_frames - SAMPLE_FRAMES) // 2, num_frames - SAMPLE_FRAMES)
    return sorted({i for start in starts for i in range(max(start, 0), min(start + SAMPLE_FRAMES, num_frames))})


def sha256_of_all(path: str, alive: Alive) -> str:
    """Return the SHA-256 of the bytes of a zip file, or of the names and bytes of the regular files of a folder, sorted."""
    names = sorted(os.listdir(path)) if os.path.isdir(path) else [""]
    digest = hashlib.sha256()
    for name in names:
        file_path = os.path.join(path, name) if name else path
        if not os.path.isfile(file_path):
            continue
        digest.update(os.fsencode(name))
        with open(file_path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                alive()
    return digest.hexdigest()
