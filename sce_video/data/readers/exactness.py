"""A word, once, where the decoder that was asked for is not exact: it may then return other frames than a forward decode.

Measured against a plain forward decode (2026-11-24; decord 0.6, torchcodec 0.17 with FFmpeg 5.1): decord is exact on H.264
in MP4 without edit list at a constant rate, torchcodec in exact mode on MP4 and Matroska files whatever is in them.
torchcodec returned other frames of AVI files with B-frames and of MPEG program streams, and none of transport streams.
"""

from __future__ import annotations

import os
import warnings

TORCHCODEC_IS_EXACT_ON = ("mp4", "matroska")  # names of `media.check_media`
_told: set[tuple[int, str]] = set()


class Inexact(UserWarning):
    """The chosen decoder may return other frames of a file than those at the indices asked for."""


def warn_inexact(decoder: str, path: str) -> None:
    """Warn that `decoder` is not exact on `path`, the first time in this process that it is so on any file."""
    if (os.getpid(), decoder) not in _told:
        _told.add((os.getpid(), decoder))
        warnings.warn(
            f"{path}: {decoder} may return other frames of this file than those asked for (and of others like it, which "
            f"are not named); decoder=auto reads every file exactly",
            Inexact,
            stacklevel=3,
        )
