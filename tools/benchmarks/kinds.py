"""Which frames the decoders return of files that are hard to read: right, wrong or refused, by kind of file.

--folder holds one folder per kind, as `python tests/reported_files.py FOLDER` writes them. Every file is read by every
decoder of `open_video` in a process of its own: first all frames, then four at random places by new readers. Right means
the frames of a decode of the freshly opened file, as displayed: as many, at the same indices, of the same size, each with a
mean difference below 2 of 255 (decoders round colours differently).
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import av
import numpy as np

from benchmarks.measure import machine
from sce_video.data.decode import DecodeError, open_video
from sce_video.data.readers.media import LIMITS, choose_video, demux, open_container
from sce_video.data.readers.orientation import of_frame
from sce_video.errors import InputError

DECODERS = ("auto", "decord", "torchcodec")
SECONDS = 20  # for one file
OUTCOMES = ("right", "wrong", "refused", "hung", "crashed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the sub-command."""
    parser.add_argument("--folder", type=Path, required=True, help="one folder of videos per kind")
    parser.add_argument("--list", action="store_true", help="also print the outcome of every file")


def run(options: argparse.Namespace) -> None:
    """Read every file with every decoder that is installed, and print the table."""
    kinds = sorted(path for path in options.folder.iterdir() if path.is_dir())
    if not kinds:
        raise InputError(f"{options.folder} holds no folders of videos: python tests/reported_files.py {options.folder}")
    print(machine(["av", "decord", "torchcodec"]), flush=True)
    decoders = [name for name in DECODERS if name == "auto" or importlib.util.find_spec(name)]
    print(f"| kind | files | {' | '.join(decoders)} |\n|---|---|{'---|' * len(decoders)}")
    total: dict[str, Counter[str]] = {name: Counter() for name in decoders}
    for kind in kinds:
        files = sorted(path for path in kind.iterdir() if not path.name.startswith("of_"))
        cells = []
        for decoder in decoders:
            found = {path.name: outcome_of(path, decoder) for path in files}
            if options.list:
                print(f"  {decoder}: {found}", file=sys.stderr)
            counts = Counter(found.values())
            total[decoder] += counts
            cells.append(_describe(counts))
        print(f"| {kind.name} | {len(files)} | {' | '.join(cells)} |", flush=True)
    print(f"| all | {sum(total['auto'].values())} | {' | '.join(_describe(total[name]) for name in decoders)} |")


def outcome_of(path: Path, decoder: str) -> str:
    """Return one of OUTCOMES."""
    code = f"from benchmarks.kinds import compare; print(compare({str(path)!r}, {decoder!r}))"
    try:
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "hung"
    return result.stdout.split()[-1] if result.returncode == 0 else "crashed"


def compare(path: str, decoder: str) -> str:
    """Read a file and return `right`, `wrong` or `refused`."""
    warnings.simplefilter("ignore")
    av.logging.set_level(av.logging.PANIC)
    try:
        expected = _forward_decode(path)
    except (av.FFmpegError, DecodeError):
        expected = []  # to be refused
    try:
        with open_video(path, decoder) as video:
            count = video.num_frames
            found = dict(enumerate(video.read(range(count)).numpy()))
        draw = random.Random(path)
        for index in [count - 1, *(draw.randrange(count) for _ in range(3))]:
            with open_video(path, decoder) as video:
                if not _is_close(video.read([index])[0].numpy(), found[index]):
                    return "wrong"
    except DecodeError:
        return "refused"
    same = len(expected) == count and all(_is_close(found[index], frame) for index, frame in enumerate(expected))
    return "right" if same else "wrong"


def _forward_decode(path: str) -> list[np.ndarray]:
    with open_container(path, LIMITS) as container:
        stream = choose_video(path, container)
        frames = (frame for packet in demux(container, stream) for frame in packet.decode())
        return [of_frame(frame).apply(frame.to_ndarray(format="rgb24")) for frame in frames]


def _is_close(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one.astype(int) - other).mean() < 2)


def _describe(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
