"""Clips per second per core: each case opens a video, reads two random clips of 8 frames and closes it.

All cases read the same frames of the same files, each in its own process with one thread. Rounds compare CPU time within
one run. The limit decodes only the packets that the frames depend on, without opening, indexing or conversion. Without
--files, videos like those of Kinetics are encoded (see kinetics_like). --forms compares speed, size and quality of encodings
for data_prep/shrink.py. --shrunk compares the copies in a folder of data_prep/shrink.py to their sources.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import forms, kinetics_like
from benchmarks.measure import Measurement, Request, machine, measure_in_rounds, table
from sce_video.data.clips import random_clip, uniform_subsample
from sce_video.data.crops import Box
from sce_video.data.decode import open_video
from sce_video.errors import InputError
from sce_video.randomness import generator

CLIPS, FRAMES, SECONDS = 2, 8, 2.56
REPEATS = 5  # of all files in a round; the fastest counts
RIVAL = "decord, two calls"
LIMIT = "the limit: these packets decoded"
CASES: dict[str, tuple[str, dict[str, Any], str]] = {  # name -> (function, arguments, required library)
    LIMIT: ("limit", {}, "av"),
    "ours": ("ours", {}, "av"),
    "ours, crops of it": ("ours", {"way": "clips"}, "av"),
    "ours, crops as planes": ("ours", {"way": "planes"}, "av"),
    "ours, no loop filter on B-frames": ("ours", {"loop_filter": "reference"}, "av"),
    "ours, no loop filter": ("ours", {"loop_filter": "off"}, "av"),
    RIVAL: ("decord_calls", {}, "decord"),
    "decord, one call for the union": ("decord_calls", {"union": True}, "decord"),
    "torchcodec, clip sampler": ("torchcodec_sampler", {}, "torchcodec"),
    "torchcodec, one call for the union": ("torchcodec_union", {}, "torchcodec"),
    "PyAV, everything in order": ("in_order", {}, "av"),
    "pytorchvideo": ("pytorchvideo", {}, "pytorchvideo"),
}
Timed = Callable[[], float]
Job = tuple[str, list[list[int]]]  # a file and the frame indices of each clip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the sub-command."""
    parser.add_argument("--files", nargs="+", default=[], help="videos; default: encode new ones")
    parser.add_argument("--count", type=int, default=6, help="number of videos to encode")
    parser.add_argument("--rounds", type=int, default=9, help="rounds; each runs every case in turn")
    parser.add_argument("--forms", action="store_true", help="compare encodings for shrinking videos")
    parser.add_argument("--shrunk", metavar="FOLDER", help="folder of data_prep/shrink.py: compare copies to sources")


def run(options: argparse.Namespace) -> None:
    """Measure every case whose library is installed, and print the table."""
    print(machine(["torch", "av", "decord", "torchcodec", "pytorchvideo"]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.shrunk:
            _compare_copies(*_read_copies(Path(options.shrunk)), rounds=options.rounds)
            return
        files = options.files or kinetics_like.make(Path(folder), options.count)
        if options.forms:
            _compare_forms(files, Path(folder), rounds=options.rounds)
            return
        jobs = [plan(path) for path in files]
        print(f"{len(files)} files, {_size(files) / 1e6:.1f} MB, {CLIPS} clips x {FRAMES} frames over {SECONDS} s of each")
        requests = {}
        for name, (case, arguments, library) in CASES.items():
            if importlib.util.find_spec(library) is None:
                print(f"{name}: {library} is not installed here")
            else:
                requests[name] = _request(case, jobs, **arguments)
        rows = measure_in_rounds(requests, options.rounds, repeats=REPEATS)
        print(table(rows, RIVAL if RIVAL in rows else LIMIT))
        _print_rates(rows, len(files))


def plan(path: str) -> Job:
    """Draw the clips of a file as in training; return the file and the frame indices."""
    with open_video(path) as video:
        clips = []
        for view in range(CLIPS):
            start, end = random_clip(video.seconds, SECONDS, generator(0, "benchmark", os.path.basename(path), view))
            first, last = video.window(start, end)
            clips.append((first + uniform_subsample(last - first, FRAMES)).tolist())
    return path, clips


def _request(case: str, jobs: Sequence[Job], **arguments: Any) -> Request:
    return Request(__name__, case, {"jobs": jobs, **arguments}, clock="process_time")


def _print_rates(rows: dict[str, Measurement], files: int) -> None:
    limits = rows[LIMIT].seconds
    for name, row in rows.items():
        share = statistics.median(own / other for own, other in zip(limits, row.seconds, strict=True))
        print(f"{name}: {CLIPS * files / row.median:.1f} clips/s/core, {share:.2f} of the limit")


def _size(files: Sequence[str]) -> int:
    return sum(os.path.getsize(path) for path in files)


def _compare_forms(files: list[str], folder: Path, *, rounds: int) -> None:
    made = {"as it is": files}
    for name, form in forms.FORMS.items():
        print(f"encoding {name}", file=sys.stderr, flush=True)
        made[name] = [forms.encode(path, folder / f"{name}_{number}.mp4", form) for number, path in enumerate(files)]
    rows = measure_in_rounds(
        {name: _request("ours", [plan(p) for p in paths]) for name, paths in made.items()}, rounds, repeats=REPEATS
    )
    print(table(rows, "as it is"))
    for name, paths in made.items():
        pairs = list(zip(files, paths, strict=True))
        quality = statistics.mean(forms.compute_psnr(source, copy) for source, copy in pairs) if name in forms.FORMS else 99.0
        rate = CLIPS * len(files) / rows[name].median
        times = statistics.median(b / a for a, b in zip(rows[name].seconds, rows["as it is"].seconds, strict=True))
        print(
            f"{name}: {_size(paths) / _size(files):.2f} of the bytes, PSNR {quality:.1f} dB, {rate:.0f} clips/s/core, "
            f"{times:.1f} times as it is"
        )


def _read_copies(folder: Path) -> tuple[list[str], list[str]]:
    table_of_copies = folder / "shrunk.csv"
    if not table_of_copies.is_file():
        raise InputError(f"{folder} has no shrunk.csv: give a folder that data_prep/shrink.py has completed")
    with open(table_of_copies, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    if not rows:
        raise InputError(f"{table_of_copies} lists no copy")
    return [row["path"] for row in rows], [str(folder / "videos" / row["output"]) for row in rows]


def _compare_copies(sources: list[str], copies: list[str], *, rounds: int) -> None:
    """Compare reading the same frame indices from sources and copies."""
    jobs = [plan(path) for path in sources]
    requests = {
        "sources": _request("ours", jobs),
        "copies": _request("ours", [(copy, clips) for copy, (_, clips) in zip(copies, jobs, strict=True)]),
    }
    rows = measure_in_rounds(requests, rounds, repeats=REPEATS)
    print(table(rows, "sources"))
    for name, paths in (("sources", sources), ("copies", copies)):
        rate = CLIPS * len(paths) / rows[name].median
        print(f"{name}: {len(paths)} files, {_size(paths) / 1e6:.1f} MB, {rate:.1f} clips/s/core")


def limit(jobs: list[Job]) -> Timed:
    """Decode only the packets that the frames depend on, held in memory."""
    from sce_video.data.readers.pyav import PyAVReader

    readers = [PyAVReader(path) for path, _ in jobs]  # keep them open while their packets are used
    wanted = [sorted({index for clip in clips for index in clip}) for _, clips in jobs]
    stretches = [s for reader, indices in zip(readers, wanted, strict=True) for s in reader.needed_packets(indices)]

    def timed() -> float:
        assert readers
        for packets in stretches:
            decoder = packets[0].stream.codec_context
            decoder.flush_buffers()
            for packet in (*packets, None):
                decoder.decode(packet)
        return 0.0

    return timed


def ours(jobs: list[Job], way: str = "frames", loop_filter: str = "exact") -> Timed:
    """Read all clips with one open and one decode pass."""

    def timed() -> float:
        total = 0.0
        for path, clips in jobs:
            with open_video(path, "pyav", loop_filter=loop_filter) as video:
                indices = [torch.tensor(clip) for clip in clips]
                boxes = [Box(8, 8, video.height // 2, video.width // 2)] * len(clips)
                if way == "frames":
                    total += float(video.read(torch.cat(indices))[0, 0, 0, 0])
                elif way == "clips":
                    video.read_clips(indices, boxes)
                else:
                    video.read_planes(indices, boxes)
        return total

    return _in_one_thread(timed)


def decord_calls(jobs: list[Job], union: bool = False) -> Timed:
    """Read with decord: one get_batch call per clip, or one for the union of frames."""
    import decord

    def timed() -> float:
        total = 0.0
        for path, clips in jobs:
            reader = decord.VideoReader(path, num_threads=1)
            wanted = [sorted({index for clip in clips for index in clip})] if union else clips
            for indices in wanted:
                total += float(reader.get_batch(indices).asnumpy()[0, 0, 0, 0])
        return total

    return _in_one_thread(timed)


def torchcodec_sampler(jobs: list[Job]) -> Timed:
    """Read with torchcodec's clip sampler and its defaults; it draws its own clips."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.samplers import clips_at_random_indices

    def timed() -> float:
        for path, clips in jobs:
            decoder = VideoDecoder(path, num_ffmpeg_threads=1)
            step = max(1, (clips[0][-1] - clips[0][0]) // (FRAMES - 1))
            clips_at_random_indices(decoder, num_clips=CLIPS, num_frames_per_clip=FRAMES, num_indices_between_frames=step)
        return 0.0

    return _in_one_thread(timed)


def torchcodec_union(jobs: list[Job]) -> Timed:
    """Read with torchcodec in exact mode: one call for all frames."""
    from torchcodec.decoders import VideoDecoder

    def timed() -> float:
        total = 0.0
        for path, clips in jobs:
            wanted = sorted({index for clip in clips for index in clip})
            total += float(VideoDecoder(path, num_ffmpeg_threads=1).get_frames_at(wanted).data[0, 0, 0, 0])
        return total

    return _in_one_thread(timed)


def in_order(jobs: list[Job]) -> Timed:
    """Decode with PyAV from the start to the last requested frame; convert only the requested ones."""
    import av

    def timed() -> float:
        total = 0.0
        for path, clips in jobs:
            wanted = {index for clip in clips for index in clip}
            with av.open(path) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        total += float(frame.to_ndarray(format="rgb24")[0, 0, 0])
                    if number == max(wanted):
                        break
        return total

    return _in_one_thread(timed)


def pytorchvideo(jobs: list[Job]) -> Timed:
    """Read with pytorchvideo's EncodedVideo: one get_clip call per clip, then subsample frames evenly."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    def timed() -> float:
        for path, clips in jobs:
            with contextlib.closing(EncodedVideo.from_path(path, decode_audio=False)) as video:
                for clip in clips:
                    start = clip[0] / kinetics_like.RATE
                    video.get_clip(start, start + SECONDS)["video"][:, :: len(clip)].clone()
        return 0.0

    return _in_one_thread(timed)


def _in_one_thread(timed: Timed) -> Timed:
    torch.set_num_threads(1)
    return timed
