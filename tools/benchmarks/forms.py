"""Encodings of shrunk training videos, and their quality: PSNR compared to the source.

Unreferenced B-frames (no pyramid) make an encoding fast to read, because a reader can skip them. A short distance between
key frames, `fastdecode` (no loop filter, no arithmetic coding) and fewer pixels also help.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from sce_video.data.crops import short_side


class Form(NamedTuple):
    """Options of an encoding: short_side in pixels, gop in frames between key frames, consecutive b_frames.

    pyramid, fast_decode (tune) and crf are x264's. adaptive: x264 chooses up to b_frames B-frames; else always b_frames.
    """

    short_side: int
    gop: int
    b_frames: int
    pyramid: bool = False
    adaptive: bool = False
    fast_decode: bool = True
    crf: int = 21


FORMS = {
    "256 g250 b3 pyramid": Form(256, 250, 3, pyramid=True, adaptive=True, fast_decode=False),
    "256 g32 b0": Form(256, 32, 0, fast_decode=False),
    "256 g32 b7": Form(256, 32, 7, fast_decode=False),
    "256 g32 b7 fastdecode": Form(256, 32, 7),  # what data_prep/shrink.py --short-side 256 writes
    "256 g32 b7 fastdecode crf23": Form(256, 32, 7, crf=23),
    "256 g32 b7 adaptive fastdecode crf23": Form(256, 32, 7, adaptive=True, crf=23),
    "256 g64 b15 fastdecode": Form(256, 64, 15),
    "224 g32 b7 fastdecode": Form(224, 32, 7),
    "160 g32 b7 fastdecode": Form(160, 32, 7),
    "128 g32 b7 fastdecode": Form(128, 32, 7),  # what data_prep/shrink.py --short-side 128 writes
    "128 g32 b7 fastdecode crf18": Form(128, 32, 7, crf=18),
}


def encode(source: str, target: Any, form: Form) -> str:
    """Write a copy of every frame in this encoding, without audio; return its path."""
    with av.open(source) as before, av.open(str(target), "w") as after:
        read = before.streams.video[0]
        height, width = size(read.height, read.width, form)
        stream = after.add_stream("libx264", rate=read.average_rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {
            "g": str(form.gop),
            "bf": str(form.b_frames),
            "crf": str(form.crf),
            "preset": "faster",
            "x264-params": f"b-pyramid={'normal' if form.pyramid else 'none'}:b-adapt={int(form.adaptive)}:mbtree=0",
            **({"tune": "fastdecode"} if form.fast_decode else {}),
        }
        converter = VideoReformatter()
        for number, frame in enumerate(before.decode(read)):
            scaled = converter.reformat(frame, width, height, "yuv420p", interpolation="BICUBIC", threads=1)
            scaled.pts, scaled.time_base = number, 1 / read.average_rate
            scaled.pict_type = 0  # else x264 keeps the source's choice of B-frames
            after.mux(stream.encode(scaled))
        after.mux(stream.encode())
    return str(target)


def size(height: int, width: int, form: Form) -> tuple[int, int]:
    """Return the even (height, width) of the copy, at most the source's."""
    if min(height, width) > form.short_side:
        height, width = short_side(height, width, form.short_side)
    return height // 2 * 2, width // 2 * 2


def compute_psnr(source: str, copy: str, *, every: int = 10) -> float:
    """Return the luma PSNR in dB of every `every`-th frame, compared to the source scaled to the copy's size."""
    errors = []
    with av.open(source) as before, av.open(copy) as after:
        converter = VideoReformatter()
        frames = zip(before.decode(video=0), after.decode(video=0), strict=True)
        for number, (wanted, got) in enumerate(frames):
            if number % every == 0:
                scaled = converter.reformat(wanted, got.width, got.height, "gray", interpolation="BICUBIC", threads=1)
                found = converter.reformat(got, format="gray", threads=1)
                difference = scaled.to_ndarray().astype(float) - found.to_ndarray().astype(float)
                errors.append(np.mean(difference**2))
    return 10 * math.log10(255**2 / max(float(np.mean(errors)), 1e-9))
