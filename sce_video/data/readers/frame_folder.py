"""A `FrameReader` on JPEG pictures in a folder or a zip file.

    clip.frames/   000000.jpg 000001.jpg ... video.json       as `data_prep/shrink.py --form jpeg-folder` writes it
    clip.frames.zip                                           the same files, uncompressed: one file on disk
    video.json     {"fps": "30000/1001", "num_frames": 300, "height": 256, "width": 340}

Folders from other tools are read too, under any name, if their pictures are numbered without gaps from 0 or 1
(`img_00001.jpg` of mmaction2 and SlowFast; `flow_*` files are ignored). Such a folder needs a frame rate: a `video.json`
with `{"fps": "30"}` in it or in one of the three folders above it, so that one file serves a data set. There is no
default: a wrong rate would silently change the length of every clip.

Pillow decodes every frame in full: its reduced-size decoding (`draft`) differs from the bilinear scaling that
`max_short_side` promises. EXIF orientation is ignored; extracted frames have none. Nothing is extracted to disk.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from .media import FRAMES_ZIP, LIMITS, DecodeError, Limits, reason_of
from .reader import FrameReader

DESCRIPTION = "video.json"
MAX_DESCRIPTION_BYTES = 1 << 20
MAX_PICTURE_BYTES = 64 << 20
MAX_ZIP_ENTRIES = 65_534  # limit of the zip format without ZIP64; longer videos need a folder
RATE = re.compile(r"\d{1,7}(\.\d{1,20})?|\d{1,9}/0*[1-9]\d{0,8}")  # no powers of ten: Fraction takes hours for 1e999999999
FOLDERS_ABOVE = 3  # parent folders searched for the frame rate
PICTURE = re.compile(r"(?!flow_)([^/\\]*?)(\d+)\.jpe?g", re.I)
# Errors of zipfile on damaged or hostile files, and of Pillow on pictures.
ZIP_ERRORS = (OSError, zipfile.BadZipFile, RuntimeError, EOFError, KeyError, ValueError, struct.error)
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class FrameFolder(FrameReader):
    """Reads a folder or zip file of pictures.

    Raises DecodeError for a missing path, no pictures, gaps in their numbers, no frame rate, or a compressed zip.
    """

    decoder = "jpeg"

    def __init__(self, path: str, *, limits: Limits = LIMITS) -> None:
        super().__init__(path)
        self._limits = limits
        self._zip = None if os.path.isdir(path) else _open_zip(path)
        try:
            info = self._read_own_description()
            self._names = None if "num_frames" in info else self._list_pictures()
            self.num_frames = _get_positive(info, "num_frames", path) if self._names is None else len(self._names)
            limits.check_count(path, self.num_frames)
            self.fps = self._read_rate(info)
            if self._names is None and "height" in info:
                self.height, self.width = (_get_positive(info, side, path) for side in ("height", "width"))
            else:
                self.height, self.width = self._read_picture(0).shape[:2]
            limits.check_size(path, self.width, self.height)
        except DecodeError:
            self.close()
            raise

    def _read_own_description(self) -> dict[str, Any]:
        """Return the content of the video.json beside the pictures, {} without one."""
        if self._zip is None:
            return _read_description(os.path.join(self.path, DESCRIPTION)) or {}
        if DESCRIPTION not in self._zip.namelist():
            return {}
        return _parse_description(self._read_stored(DESCRIPTION, MAX_DESCRIPTION_BYTES), f"{self.path}/{DESCRIPTION}")

    def _read_rate(self, info: dict[str, Any]) -> Fraction:
        """Return the frame rate from video.json in the folder or in one above it."""
        file, folder = f"{self.path}/{DESCRIPTION}", os.path.abspath(self.path)
        for _ in range(FOLDERS_ABOVE):
            if "fps" in info:
                break
            folder = os.path.dirname(folder)
            file = os.path.join(folder, DESCRIPTION)
            info = _read_description(file) or {}
        if "fps" not in info:
            raise DecodeError(
                f'{self.path}: pictures have no rate; write {{"fps": "30"}}, with their frame rate, to {DESCRIPTION} in '
                "this folder or, for all videos at once, in one above it"
            )
        text = str(info["fps"])
        rate = Fraction(text) if RATE.fullmatch(text) else Fraction(0)
        if not rate:
            raise DecodeError(f"{file}: fps is {info['fps']!r}, it must be a number above 0 or a fraction in quotes")
        return rate

    def _list_pictures(self) -> list[str]:
        """Return the pictures' names in order of their numbers."""
        found: dict[str, dict[int, str]] = {}
        for name in self._zip.namelist() if self._zip else os.listdir(self.path):
            if match := PICTURE.fullmatch(name):
                if int(match[2]) in (series := found.setdefault(match[1], {})):
                    raise DecodeError(f"{self.path}: {name!r} and {series[int(match[2])]!r} have the same number")
                series[int(match[2])] = name
        if not found:
            raise DecodeError(f"{self.path}: it holds no numbered JPEG pictures")
        if len(found) > 1:
            names = sorted(next(iter(series.values())) for series in found.values())
            raise DecodeError(f"{self.path}: pictures of more than one series lie in it, e.g. {names[0]!r}, {names[1]!r}")
        (series,) = found.values()
        first, last = min(series), max(series)
        if first > 1 or last - first + 1 != len(series):
            gap = next(number for number in range(min(first, 1), last + 1) if number not in series)
            raise DecodeError(f"{self.path}: there is no picture number {gap}: frames are missing")
        return [series[number] for number in sorted(series)]

    def _read_stored(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a picture or of video.json; raise DecodeError above `max_bytes`."""
        try:
            if self._zip is None:
                return read_file(os.path.join(self.path, name), max_bytes)
            info = self._zip.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                raise DecodeError(f"{self.path}: {name} is compressed or encrypted; pack pictures with `zip -0 -j`")
            if info.file_size > max_bytes:
                raise DecodeError(f"{self.path}: {name} has {info.file_size} bytes, more than the {max_bytes} allowed")
            return self._zip.read(info)
        except ZIP_ERRORS as error:
            if isinstance(error, DecodeError):
                raise
            raise DecodeError(f"{self.path}: {name}: {reason_of(error)}") from error

    def _read_picture(self, index: int) -> Any:
        name = f"{index:06d}.jpg" if self._names is None else self._names[index]
        content = self._read_stored(name, MAX_PICTURE_BYTES)
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                self._limits.check_size(f"{self.path}/{name}", *image.size)  # before decoding
                return np.array(image.convert("RGB"))
        except PICTURE_ERRORS as error:
            raise DecodeError(f"{self.path}: {name}: {reason_of(error)}") from error

    def _images(self, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
        for index in indices:
            yield index, self._read_picture(index)

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()


def _open_zip(path: str) -> zipfile.ZipFile:
    """Open a zip file; raise DecodeError if its directory is too large for memory."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DecodeError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            file.seek(max(os.path.getsize(path) - 22, 0))
            end = file.read(22)
        if len(end) < 22 or end[:4] != b"PK\x05\x06":
            raise DecodeError(f"{path}: it does not end as a {FRAMES_ZIP} must: truncated, or not a zip file")
        entries, size = struct.unpack("<10xHL6x", end)
        if entries > MAX_ZIP_ENTRIES or size > MAX_ZIP_ENTRIES * 128:
            raise DecodeError(f"{path}: a zip file holds {MAX_ZIP_ENTRIES} pictures at most; put longer videos into folders")
        return zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"{path}: {reason_of(error)}") from error


def read_file(path: str, max_bytes: int) -> bytes:
    """Read a regular file; raise OSError without blocking for others (pipes) and for more than `max_bytes`."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode) or info.st_size > max_bytes:
            raise OSError(f"not a regular file of at most {max_bytes} bytes")
        return file.read()


def _read_description(path: str) -> dict[str, Any] | None:
    try:
        return _parse_description(read_file(path, MAX_DESCRIPTION_BYTES), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DecodeError(f"{path}: {reason_of(error)}") from error


def _parse_description(content: bytes, where: str) -> dict[str, Any]:
    try:
        info = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"{where}: no JSON: {reason_of(error)}") from error
    if not isinstance(info, dict):
        raise DecodeError(f'{where}: it must hold an object such as {{"fps": "30"}}')
    return info


def _get_positive(info: dict[str, Any], name: str, path: str) -> int:
    value = info.get(name)
    if not isinstance(value, int) or value < 1:
        raise DecodeError(f"{path}: {name} in its {DESCRIPTION} is {value!r}, it must be a positive integer")
    return value
