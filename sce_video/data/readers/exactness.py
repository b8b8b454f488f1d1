"""Warn once per process if the chosen decoder is not exact on a file: its frames may differ from a forward decode.

Measured against a forward decode (2026-11-24; decord 0.6, torchcodec 0.17 with FFmpeg 5.1): decord is exact on H.264 in
MP4 without edit list at a constant rate, torchcodec in exact mode on all MP4 and Matroska files. torchcodec returned other
frames of AVI files with B-frames and of MPEG program streams, and no frames of transport streams.
"""

from __future__ import annotations

import os
import warnings

from ...errors import printable

TORCHCODEC_IS_EXACT_ON = ("mp4", "matroska")  # as named by `media.check_media`
_warned: set[tuple[int, str]] = set()  # (process id, decoder)


class Inexact(UserWarning):
    """The chosen decoder may return frames other than those requested."""


def warn_inexact(decoder: str, path: str) -> None:
    """Warn that `decoder` is not exact on `path`, once per process and decoder."""
    if (os.getpid(), decoder) not in _warned:
        _warned.add((os.getpid(), decoder))
        warnings.warn(
            f"{printable(path)}: {decoder} may return other frames of this file than those asked for (and of others like it, "
            f"which are not named); decoder=auto reads every file exactly",
            Inexact,
            stacklevel=3,
        )
