"""H.264 copies written by the ffmpeg program, for machines whose ffmpeg is the one to be used: `shrink.py --engine ffmpeg`.

The same form as PyAV's (transcode.py), by the program's own decoder and x264, so that bytes differ from those of PyAV and
of other versions. It gets an argument list, never a shell's line; absolute names behind `file:`; the formats and the
protocol that are allowed; one thread; the memory limit of the worker that starts it; and it dies with that worker. The
source is decoded by PyAV first, whose frames the copy is compared with: a damaged file never gets to the program.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from probe import rotation_of
from training_form import Form, Shown, Timing, frames_of, scale_values, shown, size_in
from workers import Alive, die_with

from sce_video.data.readers.media import FORMATS, LIMITS, DecodeError
from sce_video.errors import InputError

GOP = 32
B_FRAMES = 7
PRESET = "faster"
X264 = "b-pyramid=none:b-adapt=0:threads=1:lookahead-threads=1:mbtree=0"
OLDEST = (5, 1)  # has -fps_mode


def check_program() -> str:
    """Return the version of the ffmpeg on PATH; InputError if there is none that will do."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise InputError("--engine ffmpeg: there is no ffmpeg program on PATH; install one, or leave --engine out")
    told = subprocess.run([program, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    found = re.match(r"ffmpeg version n?((\d+)\.(\d+)\S*)", told.stdout)
    if found and (int(found[2]), int(found[3])) < OLDEST:
        raise InputError(f"--engine ffmpeg: {program} is version {found[1]}, 5.1 or newer is needed")
    encoders = subprocess.run(
        [program, "-hide_banner", "-encoders"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if "libx264" not in encoders.stdout:
        raise InputError(f"--engine ffmpeg: {program} was built without libx264")
    return found[1] if found else told.stdout.split("\n")[0][:80]


def write(container: Any, stream: Any, working: Path, form: Form, timing: Timing, alive: Alive) -> Shown:
    """Write the copy of an opened source; return what the source shows."""
    firsts: list[Any] = []

    def watched() -> Iterator[tuple[Any, float]]:
        for frame, seconds in frames_of(container, stream, timing):
            if not firsts:
                firsts.append(frame)
            yield frame, seconds

    found = shown(watched(), timing.rate, alive)
    if not found.times:
        raise DecodeError("no frame in it")
    _run(_command(container.name, stream, firsts[0], working, form, timing, len(found.times)), alive)
    return found


def _command(
    source: str, stream: Any, first: Any, working: Path, form: Form, timing: Timing, num_frames: int
) -> list[str]:
    width, height = size_in(form, first.width, first.height, Fraction(stream.sample_aspect_ratio or 1))
    if rotation_of(first) in (90, 270):  # ffmpeg turns frames before the filters see them
        width, height = height, width
    tick = 1 / timing.rate if timing.even else stream.time_base
    times = f"settb={tick.numerator}/{tick.denominator},setpts={'N' if timing.even else 'PTS-STARTPTS'}"
    scale = f"scale={scale_values(first, width, height)},format=yuv420p,setsar=1"
    return [
        *(shutil.which("ffmpeg") or "ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", "-progress", "pipe:1"),
        *("-protocol_whitelist", "file", "-format_whitelist", FORMATS, "-max_pixels", str(LIMITS.frame_pixels)),
        *("-threads", "1", "-i", f"file:{source}", "-map", f"0:{stream.index}", "-vf", f"{times},{scale}"),
        *("-fps_mode", "passthrough", "-enc_time_base", f"{tick.numerator}:{tick.denominator}"),
        *("-frames:v", str(num_frames + 1)),  # no more work than the source has, and more is found to be wrong
        *("-c:v", "libx264", "-preset", PRESET, "-tune", "fastdecode", "-crf", str(form.crf), "-g", str(GOP)),
        *("-bf", str(B_FRAMES), "-x264-params", X264, "-threads", "1", "-filter_threads", "1"),
        *("-map_metadata", "-1", "-map_chapters", "-1", "-movflags", "+faststart", "-fflags", "+bitexact"),
        *("-f", "mp4", f"file:{os.path.abspath(working)}"),
    ]


def _run(command: list[str], alive: Alive) -> None:
    """Run the program, a sign of life with every frame it gets on.

    Raises DecodeError when it fails, OSError when the disk is full.
    """
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
            preexec_fn=partial(die_with, os.getpid()),
        )
        last = ""
        with process:
            for line in process.stdout or ():
                if line.startswith("frame=") and line != last:
                    last = line
                    alive()
        told.seek(0)
        reason = told.read(100_000).decode(errors="replace").strip()
    if process.returncode:
        if os.strerror(errno.ENOSPC) in reason:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise DecodeError(f"ffmpeg: {(reason.splitlines() or [f'exit code {process.returncode}'])[-1][:200]}")
