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
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

# FFmpeg's names of the demuxers that PyAV may use: media containers that refer to no other files.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg"
FRAMES_FOLDER, FRAMES_ZIP = ".frames", ".frames.zip"  # extensions of folders and zips of pictures, see frame_folder.py
PICTURES = (".jpg", ".jpeg", ".png", ".webp")  # extensions of single pictures, see picture.py
HEAD = 4096
# Words by which FFmpeg detects HLS, ffconcat, DASH, SDP, IMF and VobSub, and players detect SMIL, ASX and PLS.
NAMES_FILES = re.compile(
    rb"#EXTM3U|ffconcat|<MPD|c=IN|<CompositionPlaylist|# VobSub|<smil|<asx|\[playlist\]|<AssetMap|m=video", re.I
)
# Boxes with which MP4, MOV and 3GP files begin, segments of streams (styp) and files of cameras (uuid, udta, meta) too.
MP4_BOXES = b"ftyp moov mdat free wide skip pnot styp uuid udta meta moof sidx emsg junk prfl prft ssix PICT pict".split()
# Files that are no container that this reads, to be refused by name.
OTHERS = {
    **{b"GIF8": "a GIF picture", b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture or a stream of them"},
    **{b"\x06\x0e+4\x02\x05\x01\x01": "an MXF file", b"\x1f\x07\x00": "a raw DV stream", b"DKIF": "an IVF file"},
    **{b"\0\0\0\x01": "a raw stream (H.264 or HEVC)", b"\0\0\x01": "a raw stream (H.264, HEVC or MPEG-4)"},
    **{b"YUV4MPEG2": "uncompressed video (Y4M)", b".RMF": "a RealMedia file", b"nut/multimedia": "a NUT file"},
    **{b"PK\x03\x04": "a zip file", b"\x1f\x8b": "a gzip file", b"fLaC": "a FLAC sound", b"%PDF": "a PDF"},
}


class DecodeError(RuntimeError):
    """A file cannot be read as a video; the message names the file and the reason."""


class NoVideo(DecodeError):
    """The container holds no video stream."""


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


def choose_video(path: str, container: Any) -> Any:
    """Return the video stream to read: the first with the default flag, else the first; never an attached picture.

    Raises NoVideo without one, DecodeError if FFmpeg has no decoder for its codec.
    """
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        raise NoVideo(f"{path}: no video stream in it{', only a cover picture' * bool(container.streams.video)}")
    chosen = next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])
    if chosen.codec_context is None:
        raise DecodeError(f"{path}: FFmpeg has no decoder for its video's codec")
    return chosen


def demux(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of a stream, the empty last one included."""
    while True:
        with suppress(IndexError):  # PyAV does not know streams that begin after the header; the next call goes on behind it
            yield from container.demux(stream)
            return


def is_frames(path: str) -> bool:
    """Return whether `path` is a folder of pictures or has the extension of a zip of pictures."""
    return path.lower().endswith(FRAMES_ZIP) or os.path.isdir(path)


def is_picture(path: str) -> bool:
    """Return whether `path` has the extension of a single picture, in capitals or not, and is no folder."""
    return path.lower().endswith(PICTURES) and not os.path.isdir(path)


def check_media(path: str) -> str:
    """Return FFmpeg's name of the container that `path` begins with.

    Raises DecodeError unless it is a regular file that begins as a media container and not as a playlist.
    """
    parts = [_read_head(path, 0)]
    if parts[0][:3] == b"ID3":  # a title before the container (ID3v2, 3.1): FFmpeg skips it
        size = sum((byte & 127) << shift for byte, shift in zip(parts[0][6:10], (21, 14, 7, 0), strict=False))
        parts.append(_read_head(path, 10 + size))
    container = _detect_container(parts[-1])
    texts = [part.partition(b"\0")[0] for part in parts]  # FFmpeg searches the text before the first zero byte
    if container is None or any(len(text) == len(part) for text, part in zip(texts, parts, strict=True)):
        other = container is None and next((name for start, name in OTHERS.items() if parts[-1].startswith(start)), None)
        known = f"{other}; not a container that this reads" if other else "its first bytes are not those of a video container"
        raise DecodeError(f"{path}: {known}")
    if any(NAMES_FILES.search(text) for text in texts):
        raise DecodeError(f"{path}: begins like a video and goes on like a playlist, which would make a decoder open other files")
    return container


def _read_head(path: str, start: int) -> bytes:
    """Return HEAD bytes from `start` on."""
    if "\0" in path:
        raise DecodeError(f"{path!r}: a file name cannot contain a zero byte")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise DecodeError(f"{path}: {os.strerror(error.errno or 0)}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DecodeError(f"{path}: not a regular file")
        head = os.pread(handle, HEAD, start)
    except OSError as error:
        raise DecodeError(f"{path}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(handle)
    if not head:
        raise DecodeError(f"{path}: the file is empty" if not start else f"{path}: nothing follows its title")
    return head


def _detect_container(head: bytes) -> str | None:
    known = {
        "mp4": head[4:8] in MP4_BOXES,  # MP4, MOV, 3GP
        "matroska": head[:4] == b"\x1aE\xdf\xa3",  # WebM too
        "avi": head[:4] == b"RIFF" and head[8:12] == b"AVI ",
        "flv": head[:4] == b"FLV\x01" and head[5:9] == b"\0\0\0\x09",
        "ogg": head[:5] == b"OggS\0",
        "asf": head[:8] == b"0&\xb2u\x8ef\xcf\x11",  # WMV too
        "mpeg": head[:4] in (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3"),  # program and video streams
    }
    lengths = (188, 192, 204)  # of a transport packet: plain, M2TS, with error correction
    is_transport = not any(known.values()) and any(_has_packets(head, first, n) for n in lengths for first in range(n))
    return "mpegts" if is_transport else next((name for name, found in known.items() if found), None)


def _has_packets(head: bytes, first: int, length: int) -> bool:
    """Return whether transport packets, at least two (five if the file does not begin with one), follow each other."""
    starts = head[first::length]
    return len(starts) >= (2 if first in (0, 4) else 5) and set(starts) == {0x47}


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message without its number and file name, at most 200 characters."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]
