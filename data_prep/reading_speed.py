"""How much faster the copies that shrink.py made are read: clips per processor second before and after.

python data_prep/reading_speed.py /data/small
python data_prep/reading_speed.py /data/small --decoder pyav --files 50

Each file is opened, two random clips are read in one go, and it is closed, as training does, in this process and one thread.
The same clips are read from the sources and the copies, in turns, and the best of --repeats counts: compare the ratio, for
the machine may be busy. Processor time, without waiting for the disk.
"""

from __future__ import annotations

import csv
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import program
import torch
from endings import told

from sce_video.data.clips import frame_window, random_clip, uniform_subsample
from sce_video.data.decode import DECODERS, open_video
from sce_video.errors import InputError

CLIPS = 2


def main(arguments: Sequence[str]) -> None:
    """Run the program with the arguments of its command line."""
    with told():
        parser = program.parser(__doc__)
        parser.add_argument("out", type=Path, help="a folder made by shrink.py")
        parser.add_argument("--decoder", choices=DECODERS, default="auto", help="default: auto, as in training")
        parser.add_argument("--files", type=program.positive, default=20, help="how many, evenly taken (default: 20)")
        parser.add_argument("--repeats", type=program.positive, default=3, help="default: 3")
        parser.add_argument("--clip-seconds", type=float, default=2.56, help="default: 2.56")
        parser.add_argument("--num-frames", type=program.positive, default=8, help="of a clip (default: 8)")
        given = parser.parse_args(arguments)
        torch.set_num_threads(1)
        sources, copies = files_of(given.out, given.files)
        rates: list[list[float]] = [[], []]
        for _ in range(given.repeats):
            for paths, found in zip((sources, copies), rates, strict=True):
                seconds = read(paths, given.decoder, given.clip_seconds, given.num_frames)
                found.append(CLIPS * len(paths) / seconds)
        before, after = (max(found) for found in rates)
        print(
            f"{len(sources)} files, decoder {given.decoder}, {given.num_frames} frames of {given.clip_seconds} s: "
            f"{before:.1f} clips/s before, {after:.1f} after ({after / before:.2f} x), "
            f"spread {min(rates[0]):.1f}-{before:.1f}, {min(rates[1]):.1f}-{after:.1f}; "
            f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
        )


def files_of(out: Path, number: int) -> tuple[list[str], list[str]]:
    """Return the paths of some sources and of their copies; InputError if shrink.py has not finished in `out`."""
    if not (out / "shrunk.csv").is_file():
        raise InputError(f"{out} has no shrunk.csv: give a folder in which data_prep/shrink.py has finished")
    with open(out / "shrunk.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    rows = rows[:: max(len(rows) // number, 1)][:number]
    if not rows:
        raise InputError(f"{out}/shrunk.csv lists no copy")
    return [row["path"] for row in rows], [os.path.join(out, "videos", row["output"]) for row in rows]


def read(paths: Sequence[str], decoder: str, clip_seconds: float, num_frames: int) -> float:
    """Read two random clips of each file, the same ones every time; return the processor seconds."""
    generator = torch.Generator().manual_seed(0)
    begun = time.process_time()
    for path in paths:
        with open_video(path, decoder) as video:
            indices = []
            for _ in range(CLIPS):
                start, end = random_clip(video.seconds, clip_seconds, generator)
                first, last = frame_window(video.fps, start, end, video.num_frames)
                indices.append(first + uniform_subsample(last - first, num_frames))
            video.read(torch.cat(indices))
    return time.process_time() - begun


if __name__ == "__main__":
    program.run(main)
