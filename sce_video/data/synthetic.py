"""The built-in data set: small labelled videos of moving shapes, rendered here and encoded as H.264.

A class is a pair (shape, motion). Each of the 8 shapes occurs with 2 of the 8 motions, so there are 16 classes: the shape
alone classifies half of the videos, shape and motion all of them. Colours, textures, background, position, size, speed,
tilt, camera drift and noise are nuisances. Appearance is redrawn about every second with linear fades, so that two clips
of a video share little but shape and motion; colour histograms tell little (`tests/test_synthetic.py`). Horizontal flips
keep the class.

Variants tried (2026-11, tiny network, 150 steps of 64 videos; kNN accuracy untrained -> SCE, chance 6 %): objects
randomly lighter or darker than the ground, strong textures: 13 -> 7 (supervised: 47); objects always lighter, weak
textures: 15 -> 20; the same with clips standardised by the network's first layer, as now: 41 -> 85.

Files have 30 frames per second and a key frame every 250 frames, as Kinetics, so that the demo decodes like real training.
Videos depend on (split, index) only: no seed, the same files everywhere. `build` writes lists for `data.manifest`.
The built-in images are frames of these videos, with the shape as the class.
"""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32

VERSION = 1  # part of the cache folder's name: increment it when rendering changes
HEIGHT, WIDTH = 64, 80  # pixels
FRAMES_PER_SECOND = 30
NUM_FRAMES = 120  # 4 seconds
GOP = 250  # maximum distance of key frames in frames, as in Kinetics files
VIDEOS = {"train": 768, "val": 256}
IMAGE_FRAMES = (15, 45, 75, 105)  # of each video: about a second apart, so that their appearance differs
MOTIONS = ("up", "down", "sideways", "grow", "shrink", "spin", "bob", "sway")


def _star(x: Array, y: Array) -> Array:
    distance: Array = np.hypot(x, y) * (1.0 - 0.4 * np.cos(5 * np.arctan2(x, -y))) - 0.75
    return distance


# Signed distance (up to scale) from the outline in object coordinates, y down; negative inside.
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda x, y: np.hypot(x, y) - 0.9,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.22,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.8,
    "triangle": lambda x, y: np.maximum(y - 0.55, 0.866 * np.abs(x) - 0.5 * y - 0.55),
    "star": _star,
    "cross": lambda x, y: np.minimum(np.maximum(np.abs(x), 3 * np.abs(y)), np.maximum(3 * np.abs(x), np.abs(y))) - 0.95,
    "bars": lambda x, y: np.maximum(np.abs(x) - 0.9, 1.5 * (np.abs(np.abs(y) - 0.6) - 0.27)),
    "hourglass": lambda x, y: np.maximum(np.abs(x) - np.abs(y) - 0.08, np.abs(y) - 0.9),
}
CLASSES = tuple((shape, MOTIONS[(index + offset) % len(MOTIONS)]) for index, shape in enumerate(SHAPES) for offset in (0, 3))
CLASS_NAMES = tuple(f"{shape}_{motion}" for shape, motion in CLASSES)


def _fading(rng: np.random.Generator, seconds: Array, low: float, high: float, *shape: int) -> Array:
    """Draw values from U[low, high] about once a second and interpolate linearly: [T, *shape]."""
    knots = int(np.ceil(seconds[-1] / 1.2)) + 2
    values = rng.uniform(low, high, (knots, *shape)).astype(np.float32)
    position = seconds / 1.2 + rng.uniform(0, 1)
    left = position.astype(int)
    weight = (position - left).reshape(-1, *[1] * len(shape)).astype(np.float32)
    faded: Array = values[left] * (1 - weight) + values[np.minimum(left + 1, knots - 1)] * weight
    return faded


def _texture(rng: np.random.Generator, x: Array, y: Array, seconds: Array) -> Array:
    """Return two crossed sinusoidal gratings with drifting direction and phase: values in [-1, 1], shape of x."""
    angle, phase, scale = (
        _fading(rng, seconds, low, high)[:, None, None] for low, high in ((0, np.pi), (0, 6 * np.pi), (2.0, 7.0))
    )
    along = np.cos(angle) * x + np.sin(angle) * y
    across = -np.sin(angle) * x + np.cos(angle) * y
    texture: Array = np.sin(scale * along + phase) * np.cos(0.7 * scale * across - phase)
    return texture


def _draw_path(rng: np.random.Generator, motion: str, seconds: Array) -> tuple[Array, Array, Array, Array]:
    """Return centre x, centre y, size (half the extent; all in frame heights) and tilt (radians): [T] each."""
    speed = rng.uniform(0.75, 1.25)
    phase = rng.uniform(0, 1)
    direction = rng.choice((-1.0, 1.0))
    cycle = (0.6 * speed * seconds + phase).astype(np.float32)
    sawtooth = cycle % 1.0
    wave = np.sin(2 * np.pi * cycle)
    x = rng.uniform(-0.15, 0.15) + np.zeros_like(cycle)
    y = rng.uniform(-0.08, 0.08) + np.zeros_like(cycle)
    size = rng.uniform(0.28, 0.36) + np.zeros_like(cycle)
    tilt = rng.uniform(-0.25, 0.25) + np.zeros_like(cycle)
    if motion in ("up", "down"):
        y = (0.5 - sawtooth if motion == "up" else sawtooth - 0.5) * 1.3
    elif motion == "sideways":
        x = direction * (sawtooth - 0.5) * 1.5
    elif motion in ("grow", "shrink"):
        size = 0.14 + 0.26 * (sawtooth if motion == "grow" else 1 - sawtooth)
    elif motion == "spin":
        tilt = direction * 2 * np.pi * cycle
    elif motion == "bob":
        y = y + 0.18 * wave
    elif motion == "sway":
        tilt = 0.9 * wave
    return x.astype(np.float32), y.astype(np.float32), size.astype(np.float32), tilt.astype(np.float32)


def render(split: str, index: int) -> tuple[NDArray[np.uint8], int]:
    """Render video `index` of a split; return frames uint8 [NUM_FRAMES, HEIGHT, WIDTH, 3] and the class 0..15."""
    label = index % len(CLASSES)
    shape, motion = CLASSES[label]
    rng = np.random.default_rng([VERSION, list(VIDEOS).index(split), index])
    seconds = (np.arange(NUM_FRAMES) / FRAMES_PER_SECOND).astype(np.float32)
    rows = (np.arange(HEIGHT, dtype=np.float32) + 0.5) / HEIGHT - 0.5
    columns = ((np.arange(WIDTH, dtype=np.float32) + 0.5) - WIDTH / 2) / HEIGHT
    y, x = np.broadcast_arrays(rows[None, :, None], columns[None, None, :])
    drift = np.cumsum(rng.normal(0, 0.004, (NUM_FRAMES, 2)), axis=0).astype(np.float32)
    x, y = x + drift[:, 0, None, None], y + drift[:, 1, None, None]  # [T, H, W], frame heights

    centre_x, centre_y, size, tilt = (value[:, None, None] for value in _draw_path(rng, motion, seconds))
    size = size * _fading(rng, seconds, 0.85, 1.15)[:, None, None]
    aside, below = (x - centre_x) / size, (y - centre_y) / size
    own_x, own_y = np.cos(tilt) * aside + np.sin(tilt) * below, np.cos(tilt) * below - np.sin(tilt) * aside
    distance = SHAPES[shape](own_x, own_y) * size * HEIGHT  # roughly pixels
    inside = np.clip(0.5 - distance, 0, 1)[..., None]

    # The object is brighter than the ground in every channel.
    ground = _fading(rng, seconds, 0.05, 0.45, 3)[:, None, None]
    figure = ground + _fading(rng, seconds, 0.25, 0.55, 3)[:, None, None]
    ground = ground + 0.05 * _texture(rng, 4 * x, 4 * y, seconds)[..., None]
    figure = figure + 0.05 * _texture(rng, own_x, own_y, seconds)[..., None]
    frames = ground * (1 - inside) + figure * inside
    frames += 0.02 * rng.standard_normal((*x.shape, 1), dtype=np.float32)
    return (np.clip(frames, 0, 1, out=frames) * 255 + 0.5).astype(np.uint8), label


def encode(path: Path, frames: NDArray[np.uint8], *, frames_per_second: int = FRAMES_PER_SECOND, gop: int = GOP) -> None:
    """Encode uint8 frames [T, H, W, 3] (even H and W) as an H.264 file, deterministically to the byte."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Threads and the macroblock tree make x264's output nondeterministic.
        stream.options = {"preset": "faster", "crf": "20", "g": str(gop), "threads": "1", "mbtree": "0"}
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _make(folder: str, split: str, index: int) -> list[tuple[str, str]]:
    """Write a video; return its row of the list, path and class."""
    frames, label = render(split, index)
    name = f"{split}/{CLASS_NAMES[label]}/{index:04d}.mp4"
    encode(_in_folder(folder, name), frames)
    return [(name, CLASS_NAMES[label])]


def _make_images(folder: str, split: str, index: int) -> list[tuple[str, str]]:
    """Write some frames of a video as pictures; return their rows."""
    frames, label = render(split, index)
    shape = CLASSES[label][0]
    rows = [(f"{split}/{shape}/{index:04d}_{number:03d}.png", shape) for number in IMAGE_FRAMES]
    for (name, _), number in zip(rows, IMAGE_FRAMES, strict=True):
        importlib.import_module(f"{__package__}.readers.picture").write_png(_in_folder(folder, name), frames[number])
    return rows


def _in_folder(folder: str, name: str) -> Path:
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def cache_folder() -> Path:
    """Return the cache folder: $SCE_VIDEO_CACHE, else $XDG_CACHE_HOME/sce_video, else ~/.cache/sce_video."""
    own = os.environ.get("SCE_VIDEO_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sce_video"


def build(
    folder: Path | None = None,
    *,
    images: bool = False,
    progress: Callable[[int, int], None] | None = None,
    jobs: int | None = None,
) -> Path:
    """Make the videos, or the images, and their manifests if missing; return the folder with train.csv and val.csv.

    Concurrent calls are safe: the first to finish is kept. progress is called with (videos done, all videos).
    """
    final = folder or cache_folder() / f"{'synthetic_images' if images else 'synthetic'}_v{VERSION}"
    if (final / "val.csv").exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        done, total = 0, sum(VIDEOS.values())
        with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("spawn")) as pool:
            for split, count in VIDEOS.items():
                rows = []
                make = _make_images if images else _make
                for found in pool.map(make, [str(work)] * count, [split] * count, range(count), chunksize=8):
                    rows += found
                    done += 1
                    if progress:
                        progress(done, total)
                with open(work / f"{split}.csv", "w", newline="") as file:
                    csv.writer(file).writerows([("path", "label"), *rows])
        try:
            work.rename(final)
        except OSError:
            if not (final / "val.csv").exists():  # a failure, not another process that finished first
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final
