"""The check before every decoder: only regular files that begin with the bytes of a known media container pass.

Playlists make FFmpeg open other files or the network, whatever their file name. FFmpeg detects most of them by their
first bytes, and some by words anywhere before the first zero byte: it reads `FLV` followed by a session description as a
session description. So a file must begin with a container's full signature, contain a zero byte in its first HEAD bytes,
and contain none of those words before it. `Limits` bounds the sizes.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any, NamedTuple

# FFmpeg's names of the demuxers that PyAV may use: media containers that refer to no other files.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg"
FRAMES_FOLDER, FRAMES_ZIP = ".frames", ".frames.zip"  # extensions of folders and zips of pictures, see frame_folder.py
HEAD = 4096
# Words by which FFmpeg detects HLS, ffconcat, DASH, SDP, IMF and VobSub, and players detect SMIL, ASX and PLS.
NAMES_FILES = re.compile(
    rb"#EXTM3U|ffconcat|<MPD|c=IN|<CompositionPlaylist|# VobSub|<smil|<asx|\[playlist\]|<AssetMap|m=video", re.I
)


class DecodeError(RuntimeError):
    """A file cannot be read as a video; the message names the file and the reason."""


class TooLarge(DecodeError):
    """A video exceeds `Limits`."""


class Limits(NamedTuple):
    """The largest video that may be opened; a small file may declare frames that fill the memory.

    frame_pixels: height times width (4K cinema is 8.8 million). frames: 18 hours at 30 fps.
    """

    frame_pixels: int = 4096 * 2304
    frames: int = 2_000_000

    def check_size(self, path: str, width: int, height: int) -> None:
        """Raise TooLarge if width times height exceeds the limit."""
        if width * height > self.frame_pixels:
            raise TooLarge(f"{path}: {width}x{height} pixels are more than the {self.frame_pixels} allowed")

    def check_count(self, path: str, frames: int) -> None:
        """Raise TooLarge if the number of frames exceeds the limit."""
        if frames > self.frames:
            raise TooLarge(f"{path}: it has more than the {self.frames} frames allowed")


LIMITS = Limits()


def open_container(path: str, limits: Limits, *, header_only: bool = False) -> Any:
    """Open a file that has passed `check_media` with PyAV; the caller closes it. Raises PyAV's errors and OSError.

    FFmpeg probes each stream by decoding a picture; `limits` applies there too.
    header_only: do not decode or parse packets and read the header only, in a sixth of the time.
    """
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(limits.frame_pixels)}
    if header_only:
        options |= {"codec_whitelist": "none", "fflags": "+noparse"}
    # Accept titles that are not UTF-8; PyAV 19 has no such option.
    lenient: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(path, options=options, **lenient)


def is_frames(path: str) -> bool:
    """Return whether `path` is a folder of pictures or has the extension of a zip of pictures."""
    return path.lower().endswith(FRAMES_ZIP) or os.path.isdir(path)


def check_media(path: str) -> str:
    """Return FFmpeg's name of the container that `path` begins with.

    Raises DecodeError unless it is a regular file that begins as a media container and not as a playlist.
    """
    head = _read_head(path)
    container = _detect_container(head)
    text, zero, _ = head.partition(b"\0")  # FFmpeg searches the text before the first zero byte
    if container is None or not zero:
        raise DecodeError(f"{path}: its first bytes are not those of a video container")
    if NAMES_FILES.search(text):
        raise DecodeError(f"{path}: begins like a video and goes on like a playlist, which would make a decoder open other files")
    return container


def _read_head(path: str) -> bytes:
    if "\0" in path:
        raise DecodeError(f"{path!r}: a file name cannot contain a zero byte")
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


def _detect_container(head: bytes) -> str | None:
    known = {
        "mp4": head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot"),  # MP4, MOV, 3GP
        "matroska": head[:4] == b"\x1aE\xdf\xa3",  # WebM too
        "avi": head[:4] == b"RIFF" and head[8:12] == b"AVI ",
        "flv": head[:4] == b"FLV\x01" and head[5:9] == b"\0\0\0\x09",
        "ogg": head[:5] == b"OggS\0",
        "asf": head[:8] == b"0&\xb2u\x8ef\xcf\x11",  # WMV too
        "mpeg": head[:4] in (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3"),  # program and video streams
        "mpegts": _has_packets(head, 0, 188) or _has_packets(head, 4, 192),  # the second is M2TS
    }
    return next((name for name, found in known.items() if found), None)


def _has_packets(head: bytes, first: int, length: int) -> bool:
    """Return whether transport packets, at least two, begin at `first` and at every `length` bytes after it."""
    starts = head[first::length]
    return len(starts) >= 2 and set(starts) == {0x47}


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message without its number and file name, at most 200 characters."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]
