"""Reading chosen frames of a video: `open_video(path)` -> a reader with one contract (`reader.FrameReader`) for all kinds.

Frame i is the i-th frame in presentation order that a plain forward decode shows, with the file's rotation applied.

`auto` is the fastest exact reader for the file. That is PyAV with our own seeking: more than twice as fast as decord on
files as Kinetics is downloaded (docs/decoding.md), and right where decord is silently wrong or never returns (edit lists,
packed B-frames, MPEG-TS). A decoder asked for by name is taken, with a warning where it is not exact.
`FrameReader.decoder` tells which one reads a file.

A reader belongs to the process that opened it: open it in the worker, close it there, never keep one across a fork.
Only files that `media.check_media` lets through reach a decoder.
"""

from __future__ import annotations

import os

from .readers.decord import DecordReader
from .readers.exactness import warn_inexact
from .readers.frame_folder import FrameFolder
from .readers.media import FORMATS, LIMITS, DecodeError, Limits, check_media, is_frames
from .readers.pyav import LOOP_FILTERS, PyAVReader
from .readers.reader import FrameReader
from .readers.torchcodec import TorchcodecReader

__all__ = ["DECODERS", "FORMATS", "LOOP_FILTERS", "DecodeError", "FrameReader", "Limits", "check_media", "open_video"]

DECODERS = ("auto", "decord", "pyav", "torchcodec")


def open_video(path: str, decoder: str = "auto", *, loop_filter: str = "exact", limits: Limits = LIMITS) -> FrameReader:
    """Open a video for reading frames: a file, or frames as pictures in a folder or a zip (see `frame_folder`).

    decoder: of files, one of DECODERS. loop_filter: `exact`, or `reference` and `off` for faster and no longer exact
    decoding by PyAV, see PyAVReader. limits: the largest video that is opened.

    Raises DecodeError when it is missing, is no video, holds no frame, or is larger than the limits.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}")
    if is_frames(path):
        return FrameFolder(path, limits=limits)
    container = check_media(path)
    absolute = os.path.realpath(path)
    # Always first: decord and torchcodec know neither whitelists nor limits, and see only what came through these.
    reader = PyAVReader(absolute, is_mp4=container == "mp4", loop_filter=loop_filter, limits=limits)
    if decoder in ("auto", "pyav"):
        return reader
    with reader:
        if decoder == "decord" and not reader.plain_mp4:
            warn_inexact("decord", absolute)
        named: FrameReader = (
            DecordReader(absolute)
            if decoder == "decord"
            else TorchcodecReader(absolute, container=container, stream=reader.stream_index, fps=reader.fps)
        )
        named.pixel_aspect = reader.pixel_aspect
        return named
