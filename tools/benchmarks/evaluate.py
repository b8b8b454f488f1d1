"""Read all test views of a video with one open and decode pass, compared to opening the file for every view.

A trivial network makes decoding and cropping dominate; every case must return the same mean over all views. Without --files,
one video is encoded like those of Kinetics: 10 s of H.264, 340 x 256, 30 frames per second, a key frame every 250 frames,
B-frames. Goal: 8 times the videos per second, and no more memory than the clips as uint8 at short side 256 and one batch on
the device.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Request, machine, measure, measure_in_rounds, peak_bytes, table
from sce_video import augment
from sce_video.data import clips, crops, synthetic
from sce_video.data.decode import open_video
from sce_video.data.manifest import Video
from sce_video.evaluation.views import VIEWS_AT_ONCE, Views, cut_crops, view_outputs

RIVAL = "an open per view"
CASES = {RIVAL: "open_per_view", "an open per clip": "open_per_clip", "one pass": "one_pass"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the sub-command."""
    parser.add_argument("--files", nargs="+", default=[], help="videos; default: encode a new one")
    parser.add_argument("--decoder", default="auto", help="auto, pyav or decord")
    parser.add_argument("--clips", type=int, default=10, help="clips per video")
    parser.add_argument("--crops", type=int, default=3, choices=(1, 3), help="crops per clip")
    parser.add_argument("--frames", type=int, default=8, help="frames per clip, over 2.56 s")
    parser.add_argument("--size", type=int, default=256, help="crop, pixels")
    parser.add_argument("--seconds", type=int, default=10, help="length of the encoded video")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; each runs every case in turn")


def run(options: argparse.Namespace) -> None:
    """Measure every case in its own process with one thread, and print the table."""
    print(machine(["torch", "av", "decord"]))
    with tempfile.TemporaryDirectory() as folder:
        files = options.files or [make_video(Path(folder) / "kinetics_like.mp4", options.seconds)]
        views = {
            "clips_per_video": options.clips,
            "num_crops": options.crops,
            "num_frames": options.frames,
            "clip_seconds": 2.56,
            "size": options.size,
        }
        arguments = {"files": files, "views": views, "decoder": options.decoder}
        with open_video(files[0], options.decoder) as video:
            print(
                f"{len(files)} files, {options.clips} clips x {options.crops} crops of {options.frames} frames of "
                f"{options.size} px, one thread; the first: {video.width} x {video.height}, {float(video.seconds):.1f} s, "
                f"read by {video.decoder}",
                flush=True,
            )
            shown = crops.short_side(video.height, video.width, 256)
        rows = measure_in_rounds({name: Request(__name__, case, arguments) for name, case in CASES.items()}, options.rounds)
        own = measure(Request(__name__, "memory_of_one_pass", arguments, warm_up=0)).found
    assert all(abs(row.found - rows[RIVAL].found) < 1e-6 for row in rows.values()), "all cases must return the same mean"
    print(table(rows, RIVAL))
    ratio = rows[RIVAL].median / rows["one pass"].median
    print(f"one pass: {len(files) / rows['one pass'].median:.2f} videos/s, {ratio:.1f} times {RIVAL}")
    as_uint8 = options.clips * options.frames * shown[0] * shown[1] * 3
    at_once = max(1, VIEWS_AT_ONCE["cpu"] // options.crops) * options.crops
    batch = at_once * 3 * options.frames * options.size**2 * 4
    print(
        f"one pass, peak memory above the program with one small view: {own / 1e6:.0f} MB; the clips as uint8 at short side "
        f"256 are {as_uint8 / 1e6:.0f} MB, a batch of {at_once} float views {batch / 1e6:.0f} MB"
    )


def make_video(path: Path, seconds: int) -> str:
    """Encode a pan over a picture with noise; return the path."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(0, 255, (3, 40, 60)).astype(np.float32))
    picture = F.interpolate(coarse[None], (400, 640), mode="bicubic")[0].permute(1, 2, 0).clamp(0, 255).numpy()
    frames = []
    for t in range(30 * seconds):
        top, left = round(70 + 70 * np.sin(t / 40)), round(150 + 150 * np.sin(t / 65))
        noisy = picture[top : top + 256, left : left + 340] + random.normal(0, 4, (256, 340, 1))
        frames.append(noisy.clip(0, 255).astype(np.uint8))
    synthetic.encode(path, np.stack(frames), gop=250)
    return str(path)


def network(views: Tensor) -> Tensor:
    """Return the mean per channel: clips [B, 3, T, H, W] -> [B, 3]."""
    return views.mean(dim=(2, 3, 4))


Found = Callable[[], float]


def memory_of_one_pass(files: list[str], views: dict[str, float], decoder: str) -> Callable[[], int]:
    """Measure the growth of peak resident memory in bytes from one view of one frame of 16 px to all views."""
    small = one_pass(files, {**views, "clips_per_video": 1, "num_crops": 1, "num_frames": 1, "size": 16}, decoder)
    whole = one_pass(files, views, decoder)

    def timed() -> int:
        small()
        before = peak_bytes()
        whole()
        return peak_bytes() - before

    return timed


def one_pass(files: list[str], views: dict[str, float], decoder: str) -> Found:
    """Read all views with `view_outputs`."""
    torch.set_num_threads(1)
    videos = [Video(path, None) for path in files]
    look = Views(**views)  # type: ignore[arg-type]

    def timed() -> float:
        found = view_outputs(network, videos, look, device=torch.device("cpu"), decoder=decoder)
        return torch.cat([outputs for _, outputs, _ in found]).double().mean().item()

    return timed


def open_per_view(files: list[str], views: dict[str, float], decoder: str) -> Found:
    """Open the file for each view, and discard the other crops of the clip."""
    return _open_often(files, Views(**views), decoder, per_view=True)  # type: ignore[arg-type]


def open_per_clip(files: list[str], views: dict[str, float], decoder: str) -> Found:
    """Open the file for each clip."""
    return _open_often(files, Views(**views), decoder, per_view=False)  # type: ignore[arg-type]


def _open_often(files: list[str], views: Views, decoder: str, *, per_view: bool) -> Found:
    torch.set_num_threads(1)

    def timed() -> float:
        outputs = []
        for path in files:
            for clip in range(views.clips_per_video):
                for crop in range(views.num_crops) if per_view else (None,):
                    with open_video(path, decoder) as video:
                        times = clips.constant_clips(video.seconds, views.clip_seconds, views.clips_per_video)
                        first, last = video.window(*times[clip])
                        frames = video.read(first + clips.uniform_subsample(last - first, views.num_frames))
                    if crop is None:
                        outputs.append(network(cut_crops(frames, size=views.size, num_crops=views.num_crops)))
                    else:
                        outputs.append(network(_cut_crop(frames, views, crop)[None]))
        return torch.cat(outputs).double().mean().item()

    return timed


def _cut_crop(frames: Tensor, views: Views, crop: int) -> Tensor:
    """Cut one crop, without the cost of the others: uint8 [T, h, w, 3] -> float [3, T, size, size]."""
    clip = frames.permute(3, 0, 1, 2).contiguous()
    height, width = crops.short_side(clip.shape[-2], clip.shape[-1], views.size)
    if (height, width) != clip.shape[-2:]:
        clip = augment.resize(clip.float().div_(255), (height, width))
    boxes = (
        crops.three_crops(height, width, views.size) if views.num_crops == 3 else [crops.center_crop(height, width, views.size)]
    )
    box = boxes[crop]
    cut = clip[..., box.top : box.top + views.size, box.left : box.left + views.size]
    return cut if cut.is_floating_point() else cut.float().div_(255)
