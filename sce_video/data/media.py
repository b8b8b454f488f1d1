"""The gate before every decoder: only regular files whose first bytes are a known container's pass it.

Playlists and lists of files make FFmpeg open other files or the network, whatever their name is (RELIABILITY: S1).
"""

from __future__ import annotations

import os
import stat

# The demuxers that PyAV may use, by FFmpeg's names: media containers, nothing that refers to other files.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg"


class DecodeError(RuntimeError):
    """This file cannot be read as a video; the message says why and names it."""


def check_media(path: str) -> None:
    """Raise DecodeError unless `path` is a regular file that begins like a media container."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise DecodeError(f"{path}: {os.strerror(error.errno or 0)}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DecodeError(f"{path}: not a regular file")
        head = os.read(handle, 512)
    finally:
        os.close(handle)
    if not head:
        raise DecodeError(f"{path}: the file is empty")
    known = (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot")  # MP4, MOV, 3GP
        or head[:4] == b"\x1aE\xdf\xa3"  # Matroska, WebM
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or head[:3] == b"FLV"
        or head[:4] == b"OggS"
        or head[:4] == b"0&\xb2u"  # ASF, WMV
        or head[:4] in (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")  # MPEG program and video streams
        or (head[0] == 0x47 and head[188:189] == b"G")  # MPEG-TS
        or (head[4:5] == b"G" and head[196:197] == b"G")  # M2TS
    )
    if not known:
        raise DecodeError(f"{path}: its first bytes are not those of a video container")
