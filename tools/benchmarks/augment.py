"""One view's augmentation of a batch of clips, ours against torchvision, kornia and torchaug, with the same parameters.

Every case gets the same uint8 frames, boxes and drawn parameters, runs in a process of its own, in turn, and its result is
compared with ours. Views are SCE's: the first always blurred, the second seldom. kornia must be installed for the Python
that --kornia names, torchaug 0.3.3 (which needs torchvision below 0.20) for that of --torchaug; a library that is not there
is left out and named in the output.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Measurement, Request, machine, measure, peak_bytes
from sce_video import augment
from sce_video.data import crops
from sce_video.randomness import generator

VIEWS = {"view1": augment.View(), "view2": augment.View(blur_probability=0.1, solarize_probability=0.2)}
MEAN, STD = 0.45, 0.225


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the sub-command."""
    parser.add_argument("--clips", type=int, default=8, help="clips in the batch")
    parser.add_argument("--frames", type=int, default=8, help="frames per clip")
    parser.add_argument("--height", type=int, default=256, help="of the source frames, pixels")
    parser.add_argument("--width", type=int, default=340)
    parser.add_argument("--size", type=int, default=224, help="of the output clips, pixels")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()], help="one table for each")
    parser.add_argument("--views", nargs="+", default=list(VIEWS), choices=list(VIEWS))
    parser.add_argument("--rounds", type=int, default=3, help="rounds; each runs every case in turn")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls per round")
    parser.add_argument("--kornia", default=sys.executable, help="Python interpreter with kornia")
    parser.add_argument("--torchaug", default="", help="Python interpreter with torchaug; default: skip torchaug")


def run(options: argparse.Namespace) -> None:
    """Measure every case, and print a table for each number of threads and view."""
    print(machine(["torch", "torchvision"]))
    rivals = {"torchvision": sys.executable, "kornia": options.kornia, "torchaug": options.torchaug}
    versions = {name: version_of(name, python) for name, python in rivals.items()}
    print("rivals: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print(
        f"{options.clips} clips of {options.frames} x {options.height} x {options.width} -> {options.size}, "
        f"medians of {options.rounds * options.repeats} calls: {options.rounds} rounds of {options.repeats}"
    )
    present = {name: rivals[name] for name, version in versions.items() if version != "not there"}
    with tempfile.TemporaryDirectory() as folder:
        source = make_input(Path(folder) / "input.pt", options)
        for threads in dict.fromkeys(options.threads):
            for view in options.views:
                print(f"\n{view}, {threads} thread{'s' if threads > 1 else ''}")
                requests = cases(str(source), view, threads, present)
                rows = in_turn(requests, options.rounds, options.repeats)
                print(table(rows, options.clips, differences(folder, rows, view)), flush=True)


def make_input(path: Path, options: argparse.Namespace) -> Path:
    """Write noise frames (the worst case for caches), SCE's random boxes, and each view's parameters."""
    pixels = torch.Generator().manual_seed(0)
    shape = (options.clips, options.frames, options.height, options.width, 3)
    boxes = [
        crops.random_resized(options.height, options.width, area=(0.2, 0.766), ratio=(0.75, 4 / 3), generator=generator("box", b))
        for b in range(options.clips)
    ]
    fixed = {"size": options.size, "mean": MEAN, "std": STD, "kernel": 23, "threshold": 0.5}
    drawn = {
        name: augment.draw(view, [generator("benchmark", name, b) for b in range(options.clips)]).to_dict()
        for name, view in VIEWS.items()
    }
    clips = torch.randint(256, shape, generator=pixels, dtype=torch.uint8)
    torch.save({"clips": clips, "boxes": torch.tensor(boxes), "fixed": fixed, **drawn}, path)
    return path


def ours(source: str, view: str, threads: int, target: str) -> Callable[[], list[float]]:
    """Return our case; it finds the mean of the result and by how many bytes the peak grew."""
    torch.set_num_threads(threads)
    data = torch.load(source, weights_only=True)
    drawn = augment.Parameters.from_dict(data[view])
    before = peak_bytes()

    def timed() -> list[float]:
        cut = [
            clip[:, top : top + height, left : left + width]
            for clip, (top, left, height, width) in zip(data["clips"], data["boxes"].tolist(), strict=True)
        ]
        result = augment.apply(
            VIEWS[view], [clip.contiguous() for clip in cut], drawn, size=data["fixed"]["size"], mean=MEAN, std=STD
        )
        if not Path(target).exists():
            torch.save(result, target)
        return [result.mean().item(), peak_bytes() - before]

    return timed


def cases(source: str, view: str, threads: int, rivals: dict[str, str]) -> dict[str, tuple[Request, str]]:
    """Return the requests and their Python interpreters by name."""
    folder = Path(source).parent
    shared: dict[str, Any] = {"source": source, "view": view, "threads": threads}
    arguments = {**shared, "target": str(folder / f"ours {view}.pt")}
    found = {"ours": (Request("benchmarks.augment", "ours", arguments), sys.executable)}
    for name, python in rivals.items():
        arguments = {**shared, "library": name, "target": str(folder / f"{name} {view}.pt")}
        found[name] = (Request("benchmarks.augment_rivals", "rival", arguments), python)
    return found


def in_turn(requests: dict[str, tuple[Request, str]], rounds: int, repeats: int) -> dict[str, Measurement]:
    """Run every case in each round, so that other load on the machine affects all cases equally."""
    rows: dict[str, Measurement] = {}
    for number in range(rounds):
        for name, (request, python) in requests.items():
            new = measure(request, repeats=repeats, python=python)
            old = rows.get(name, Measurement([], 0, new.found))
            found = [new.found[0], max(new.found[1], old.found[1])]
            rows[name] = Measurement(old.seconds + new.seconds, max(old.peak_bytes, new.peak_bytes), found)
            print(f"round {number + 1}, {name}: {new.median:.2f} s", file=sys.stderr, flush=True)
    return rows


def differences(folder: str, rows: dict[str, Measurement], view: str) -> dict[str, float]:
    """Return the largest difference of each case's result from ours, in 255ths of the range of pixels."""
    results = {name: torch.load(Path(folder) / f"{name} {view}.pt", weights_only=True) for name in rows}
    mine = results["ours"]
    return {name: (result - mine).abs().max().item() * STD * 255 for name, result in results.items()}


def table(rows: dict[str, Measurement], clips: int, difference: dict[str, float]) -> str:
    """Return one line per case; the ratio is of the medians of the seconds.

    peak: of the whole process, with torch and what a case loads; grown by: what of it the calls take.
    """
    best = rows["ours"].median
    heads = ("clips/s", "lowest..highest", "peak MB", "grown by", "ours is faster by", "differs by /255")
    lines = [f"{'case':<16} " + " ".join(f"{head:>{len(head) + 2}}" for head in heads)]
    for name, row in rows.items():
        span = f"{clips / max(row.seconds):.1f}..{clips / min(row.seconds):.1f}"
        values = (
            f"{clips / row.median:.1f}",
            span,
            f"{row.peak_bytes / 1e6:.0f}",
            f"{row.found[1] / 1e6:.0f}",
            f"{row.median / best:.2f}",
            f"{difference[name]:.4f}",
        )
        pairs = zip(values, heads, strict=True)
        lines.append(f"{name:<16} " + " ".join(f"{value:>{len(head) + 2}}" for value, head in pairs))
    return "\n".join(lines)


def version_of(library: str, python: str) -> str:
    """Return the version of a library in another Python, or "not there"."""
    if not python:
        return "not there"
    script = f"import {library}, importlib.metadata as m; print(m.version('{library}'))"
    result = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else "not there"
