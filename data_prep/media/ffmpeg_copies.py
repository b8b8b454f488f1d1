"""Write H.264 copies with the ffmpeg program: `shrink.py --engine ffmpeg`.

The form is that of transcode.py, but decoder and x264 are those of the program, so that the bytes differ from PyAV and
between versions. The program gets an argument list without a shell, absolute paths after `file:`, the allowed formats and
protocol, one thread, and the memory limit of its worker, and it dies with the worker. PyAV decodes the source first, for
the comparison, so that a damaged file never reaches the program.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from jobs.workers import Alive

from media.copy_form import Form, Shown, Timing, frames_of, scale_values, shown, size_in
from sce_video.data.readers.media import FORMATS, LIMITS, DecodeError
from sce_video.data.readers.orientation import of_frame
from sce_video.errors import InputError
from sce_video.runs.stop import die_with_parent

GOP = 32
B_FRAMES = 7
PRESET = "faster"
X264 = "b-pyramid=none:b-adapt=0:threads=1:lookahead-threads=1:mbtree=0"
OLDEST = (5, 1)  # has -fps_mode


def check_program() -> str:
    """Return the version of the ffmpeg program on PATH; raise InputError if there is none with the needed features."""
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
    """Write the copy of an opened source; return the compared parts of the source."""
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


def _command(source: str, stream: Any, first: Any, working: Path, form: Form, timing: Timing, num_frames: int) -> list[str]:
    width, height = size_in(form, first.width, first.height, Fraction(stream.sample_aspect_ratio or 1))
    if of_frame(first).transpose:  # ffmpeg rotates frames before the filters
        width, height = height, width
    tick = 1 / timing.rate if timing.times is None else stream.time_base
    times = f"settb={tick.numerator}/{tick.denominator},setpts={'N' if timing.times is None else 'PTS-STARTPTS'}"
    scale = f"scale={scale_values(first, width, height)},format=yuv420p,setsar=1"
    return [
        *(shutil.which("ffmpeg") or "ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", "-progress", "pipe:1"),
        *("-protocol_whitelist", "file", "-format_whitelist", FORMATS, "-max_pixels", str(LIMITS.frame_pixels)),
        *("-threads", "1", "-i", f"file:{source}", "-map", f"0:{stream.index}", "-vf", f"{times},{scale}"),
        *("-fps_mode", "passthrough", "-enc_time_base", f"{tick.numerator}:{tick.denominator}"),
        *("-frames:v", str(num_frames + 1)),  # bounds the work; one frame too many fails the comparison
        *("-c:v", "libx264", "-preset", PRESET, "-tune", "fastdecode", "-crf", str(form.crf), "-g", str(GOP)),
        *("-bf", str(B_FRAMES), "-x264-params", X264, "-threads", "1", "-filter_threads", "1"),
        *("-map_metadata", "-1", "-map_chapters", "-1", "-movflags", "+faststart", "-fflags", "+bitexact"),
        *("-f", "mp4", f"file:{os.path.abspath(working)}"),
    ]


def _run(command: list[str], alive: Alive) -> None:
    """Run the program and call `alive` for every frame that it reports.

    Raises DecodeError if it fails, OSError if the disk is full.
    """
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
            preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),
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
