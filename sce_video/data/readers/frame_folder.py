"""A video as JPEG pictures, in a folder or packed in one zip file, behind the readers' contract.

    clip.frames/   000000.jpg 000001.jpg ... video.json       as `data_prep/shrink.py --form jpeg-folder` writes it
    clip.frames.zip                                           the same, stored without compression: one file on the disk
    video.json     {"fps": "30000/1001", "num_frames": 300, "height": 256, "width": 340}

Folders of others are read as they are, whatever they are called: pictures numbered without a hole from 0 or 1
(`img_00001.jpg` of mmaction2 and SlowFast; `flow_*` beside them is passed over). Pictures have no time, so such a folder
needs a rate: `{"fps": "30"}` as `video.json` in it or in one of the three folders above it; one file does for a data set.
There is no default, for a guess would change the length of every clip without a word.

Every frame is decoded in full by Pillow. Its reduced-size decoding (`draft`) is not used: `max_short_side` promises the
full frame scaled bilinearly, which that is not. An orientation in the pictures' EXIF data is not applied; extracted
frames have none. Pictures are only ever read one by one: nothing is unpacked, no name in a zip leads anywhere.
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
MAX_ZIP_ENTRIES = 65_534  # what the zip format counts without its extension; longer videos go into folders
FOLDERS_ABOVE = 3  # that are searched for the rate
PICTURE = re.compile(r"(?!flow_)([^/\\]*?)(\d+)\.jpe?g", re.I)
# What zipfile raises for damaged or hostile files, and Pillow for pictures.
ZIP_ERRORS = (
    OSError,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    KeyError,
    ValueError,
    struct.error,
)
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class FrameFolder(FrameReader):
    """One video as pictures. path: the folder, or the zip file.

    Raises DecodeError: nothing there, no pictures, a hole in their numbers, no rate, a zip that is compressed.
    """

    decoder = "jpeg"

    def __init__(self, path: str, *, limits: Limits = LIMITS) -> None:
        super().__init__(path)
        self._limits = limits
        self._zip = None if os.path.isdir(path) else _opened_zip(path)
        try:
            about = self._description()
            self._names = None if "num_frames" in about else self._numbered()
            self.num_frames = _whole(about, "num_frames", path) if self._names is None else len(self._names)
            limits.check_count(path, self.num_frames)
            self.fps = self._rate(about)
            if self._names is None and "height" in about:
                self.height, self.width = (_whole(about, side, path) for side in ("height", "width"))
            else:
                self.height, self.width = self._picture(0).shape[:2]
            limits.check_size(path, self.width, self.height)
        except DecodeError:
            self.close()
            raise

    def _description(self) -> dict[str, Any]:
        """Return what video.json beside the pictures says; {} without one."""
        if self._zip is None:
            return _read_description(os.path.join(self.path, DESCRIPTION)) or {}
        if DESCRIPTION not in self._zip.namelist():
            return {}
        return _parsed(self._stored(DESCRIPTION, MAX_DESCRIPTION_BYTES), f"{self.path}/{DESCRIPTION}")

    def _rate(self, about: dict[str, Any]) -> Fraction:
        """Return the rate from video.json in the folder or above it."""
        place, folder = f"{self.path}/{DESCRIPTION}", os.path.abspath(self.path)
        for _ in range(FOLDERS_ABOVE):
            if "fps" in about:
                break
            folder = os.path.dirname(folder)
            place = os.path.join(folder, DESCRIPTION)
            about = _read_description(place) or {}
        if "fps" not in about:
            raise DecodeError(
                f'{self.path}: pictures have no rate; write {{"fps": "30"}}, or what it is, to {DESCRIPTION} in this '
                "folder or, for all videos at once, in one above it"
            )
        try:
            rate = Fraction(str(about["fps"]))
        except (ValueError, ZeroDivisionError):
            rate = Fraction(0)
        if rate <= 0:
            raise DecodeError(f"{place}: fps is {about['fps']!r}, it must be a number above 0 or a fraction in quotes")
        return rate

    def _numbered(self) -> list[str]:
        """Return the pictures' names in order."""
        found: dict[str, dict[int, str]] = {}
        for name in self._zip.namelist() if self._zip else os.listdir(self.path):
            if match := PICTURE.fullmatch(name):
                if int(match[2]) in (series := found.setdefault(match[1], {})):
                    raise DecodeError(f"{self.path}: {name!r} and {series[int(match[2])]!r} have the same number")
                series[int(match[2])] = name
        if not found:
            raise DecodeError(f"{self.path}: no numbered JPEG pictures lie in it")
        if len(found) > 1:
            names = sorted(next(iter(series.values())) for series in found.values())
            raise DecodeError(
                f"{self.path}: pictures of more than one series lie in it, e.g. {names[0]!r}, {names[1]!r}"
            )
        (series,) = found.values()
        first, last = min(series), max(series)
        if first > 1 or last - first + 1 != len(series):
            hole = next(number for number in range(min(first, 1), last + 1) if number not in series)
            raise DecodeError(f"{self.path}: there is no picture number {hole}: frames are missing")
        return [series[number] for number in sorted(series)]

    def _stored(self, name: str, most: int) -> bytes:
        """Return the content of a picture or of video.json, of at most `most` bytes."""
        try:
            if self._zip is None:
                return _read_file(os.path.join(self.path, name), most)
            info = self._zip.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                raise DecodeError(f"{self.path}: {name} is compressed or encrypted; pack pictures with `zip -0 -j`")
            if info.file_size > most:
                raise DecodeError(f"{self.path}: {name} has {info.file_size} bytes, more than the {most} allowed")
            return self._zip.read(info)
        except ZIP_ERRORS as error:
            if isinstance(error, DecodeError):
                raise
            raise DecodeError(f"{self.path}: {name}: {reason_of(error)}") from error

    def _picture(self, index: int) -> Any:
        name = f"{index:06d}.jpg" if self._names is None else self._names[index]
        content = self._stored(name, MAX_PICTURE_BYTES)
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                self._limits.check_size(f"{self.path}/{name}", *image.size)  # before anything is decoded
                return np.array(image.convert("RGB"))
        except PICTURE_ERRORS as error:
            raise DecodeError(f"{self.path}: {name}: {reason_of(error)}") from error

    def _images(self, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
        for index in indices:
            yield index, self._picture(index)

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()


def _opened_zip(path: str) -> zipfile.ZipFile:
    """Open a zip file whose table of contents is small enough to be held in memory."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DecodeError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            file.seek(max(os.path.getsize(path) - 22, 0))
            end = file.read(22)
        if len(end) < 22 or end[:4] != b"PK\x05\x06":
            raise DecodeError(f"{path}: it does not end as a {FRAMES_ZIP} must: cut short, or no zip file")
        entries, size = struct.unpack("<10xHL6x", end)
        if entries > MAX_ZIP_ENTRIES or size > MAX_ZIP_ENTRIES * 128:
            raise DecodeError(
                f"{path}: a zip file holds {MAX_ZIP_ENTRIES} pictures at most; put longer videos into folders"
            )
        return zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"{path}: {reason_of(error)}") from error


def _read_file(path: str, most: int) -> bytes:
    """Read a regular file of at most `most` bytes; others, pipes too, raise OSError at once."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_size > most:
            raise OSError(f"not a regular file of at most {most} bytes")
        return file.read()


def _read_description(path: str) -> dict[str, Any] | None:
    try:
        return _parsed(_read_file(path, MAX_DESCRIPTION_BYTES), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DecodeError(f"{path}: {reason_of(error)}") from error


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        about = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"{where}: no JSON: {reason_of(error)}") from error
    if not isinstance(about, dict):
        raise DecodeError(f'{where}: it must hold an object such as {{"fps": "30"}}')
    return about


def _whole(about: dict[str, Any], name: str, path: str) -> int:
    value = about.get(name)
    if not isinstance(value, int) or value < 1:
        raise DecodeError(f"{path}: {name} in its {DESCRIPTION} is {value!r}, it must be a whole number above 0")
    return value
