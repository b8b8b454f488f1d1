"""The gate before every decoder: only regular files whose first bytes are a known container's pass it.

Playlists and lists of files make FFmpeg open other files or the network, whatever their name is (RELIABILITY: S1). FFmpeg
recognises most of them by their first bytes, some by words anywhere in the text before the first zero byte, so that
`FLV` and a session description is a session description to it. Hence three rules: the first bytes in full, a zero byte
soon, and none of those words before it. Sizes are limited too: `Limits`.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any, NamedTuple

# The demuxers that PyAV may use, by FFmpeg's names: media containers, nothing that refers to other files.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg"
FRAMES_FOLDER, FRAMES_ZIP = ".frames", ".frames.zip"  # endings of videos as pictures, see frame_folder
HEAD = 4096
# By these FFmpeg recognises what names other files: HLS, ffconcat, DASH, SDP, IMF, VobSub; and what players do: SMIL, ASX, PLS.
NAMES_FILES = re.compile(
    rb"#EXTM3U|ffconcat|<MPD|c=IN|<CompositionPlaylist|# VobSub|<smil|<asx|\[playlist\]|<AssetMap|m=video", re.I
)


class DecodeError(RuntimeError):
    """This file cannot be read as a video; the message says why and names it."""


class TooLarge(DecodeError):
    """The frames are larger or more than `Limits` allows."""


class Limits(NamedTuple):
    """The largest video that is opened; a small file may claim pictures that fill the memory.

    frame_pixels: height times width (4K cinema is 8.8 million). frames: 18 hours at 30 fps.
    """

    frame_pixels: int = 4096 * 2304
    frames: int = 2_000_000

    def check_size(self, path: str, width: int, height: int) -> None:
        """Raise TooLarge for frames of so many pixels."""
        if width * height > self.frame_pixels:
            raise TooLarge(f"{path}: {width}x{height} pixels are more than the {self.frame_pixels} allowed")

    def check_count(self, path: str, frames: int) -> None:
        """Raise TooLarge for so many frames."""
        if frames > self.frames:
            raise TooLarge(f"{path}: it has more than the {self.frames} frames allowed")


LIMITS = Limits()


def open_container(path: str, limits: Limits, *, header_only: bool = False) -> Any:
    """Return PyAV's container of a file that has passed the gate; to be closed. Raises what PyAV raises, and OSError.

    FFmpeg decodes a picture of each stream in order to know it, and the limit on pictures counts already then.
    header_only: it may neither decode nor look into packets, and tells what the header holds, in a sixth of the time.
    """
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(limits.frame_pixels)}
    if header_only:
        options |= {"codec_whitelist": "none", "fflags": "+noparse"}
    # Titles that are not UTF-8 are no reason to refuse a video; PyAV 19 no longer asks.
    lenient: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(path, options=options, **lenient)


def is_frames(path: str) -> bool:
    """Whether `path` is, or is named like, a video as pictures: a folder, or a zip file of them."""
    return path.lower().endswith(FRAMES_ZIP) or os.path.isdir(path)


def check_media(path: str) -> str:
    """Return the container that `path` begins like, one of FFmpeg's names for it.

    Raises DecodeError unless it is a regular file that begins like a media container and like nothing else.
    """
    head = _head(path)
    container = _container(head)
    text, zero, _ = head.partition(b"\0")  # what FFmpeg's searches in text see
    if container is None or not zero:
        raise DecodeError(f"{path}: its first bytes are not those of a video container")
    if NAMES_FILES.search(text):
        raise DecodeError(
            f"{path}: begins like a video and goes on like a playlist, which would make a decoder open more"
        )
    return container


def _head(path: str) -> bytes:
    if "\0" in path:
        raise DecodeError(f"{path!r}: a file's name has no zero byte")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise DecodeError(f"{path}: {os.strerror(error.errno or 0)}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DecodeError(f"{path}: not a regular file")
        head = os.read(handle, HEAD)
    except OSError as error:
        raise DecodeError(f"{path}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(handle)
    if not head:
        raise DecodeError(f"{path}: the file is empty")
    return head


def _container(head: bytes) -> str | None:
    known = {
        "mp4": head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot"),  # MP4, MOV, 3GP
        "matroska": head[:4] == b"\x1aE\xdf\xa3",  # WebM too
        "avi": head[:4] == b"RIFF" and head[8:12] == b"AVI ",
        "flv": head[:4] == b"FLV\x01" and head[5:9] == b"\0\0\0\x09",
        "ogg": head[:5] == b"OggS\0",
        "asf": head[:8] == b"0&\xb2u\x8ef\xcf\x11",  # WMV too
        "mpeg": head[:4] in (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3"),  # program and video streams
        "mpegts": _packets(head, 0, 188) or _packets(head, 4, 192),  # the second is M2TS
    }
    return next((name for name, found in known.items() if found), None)


def _packets(head: bytes, first: int, length: int) -> bool:
    """Whether transport packets begin at `first` and every `length` bytes from there: two at least, all that are here."""
    starts = head[first::length]
    return len(starts) >= 2 and set(starts) == {0x47}


def reason_of(error: BaseException) -> str:
    """Return what an error says, without number and file name where it has them: one line, at most 200 characters."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]
