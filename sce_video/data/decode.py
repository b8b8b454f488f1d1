"""Reading chosen frames of a video file: `open_video(path)` -> a reader with one contract over PyAV and decord.

Frame i is the i-th frame in presentation order that a plain forward decode shows, with the file's rotation applied.

`auto` is the fastest exact reader for the file. That is PyAV with our own seeking: more than twice as fast as decord on
files as Kinetics is downloaded (docs/decoding.md), and right where decord is silently wrong or never returns (edit lists,
packed B-frames, MPEG-TS). `FrameReader.decoder` tells which one reads a file.

A reader belongs to the process that opened it: open it in the worker, close it there, never keep one across a fork.
Only files that `media.check_media` lets through reach a decoder.
"""

from __future__ import annotations

import os

from .decord_reader import DecordReader
from .media import FORMATS, DecodeError, check_media
from .pyav_reader import LOOP_FILTERS, PyAVReader
from .reader import FrameReader

__all__ = ["DECODERS", "FORMATS", "LOOP_FILTERS", "DecodeError", "FrameReader", "check_media", "open_video"]

DECODERS = ("auto", "decord", "pyav")


def open_video(path: str, decoder: str = "auto", *, loop_filter: str = "exact") -> FrameReader:
    """Open a video file for reading frames; decoder is `auto`, `decord` or `pyav`.

    loop_filter: `exact`, or `reference` and `off` for faster and no longer exact decoding by PyAV, see PyAVReader.

    Raises DecodeError when the file is missing, is no video, or holds no frame.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}")
    check_media(path)
    absolute = os.path.realpath(path)
    if decoder == "decord":
        return DecordReader(absolute)
    return PyAVReader(absolute, loop_filter=loop_filter)
