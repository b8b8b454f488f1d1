"""Encode videos like those of Kinetics: 340 x 256, 10 s, 30 frames per second, H.264 with B-frames, a key frame every 250, AAC.

Motion, texture and grain give x264's default settings bit rates like those of Kinetics: 0.25 to 0.36 Mbit/s and 43 to 49 %
unreferenced frames (82 files of Kinetics-400: quartiles 0.21 to 0.38 Mbit/s, 33 to 45 %).
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

RATE, HEIGHT, WIDTH = 30, 256, 340
KINETICS = {"g": "250", "bf": "3", "preset": "medium", "crf": "23"}


def make(folder: Path, count: int, *, seconds: int = 10) -> list[str]:
    """Write `count` files with different content and motion, and return their paths."""
    return [_make(folder / f"kinetics_like_{number}.mp4", number, seconds) for number in range(count)]


def _make(path: Path, number: int, seconds: int) -> str:
    frames = render(number, RATE * seconds)
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=RATE), container.add_stream("aac", rate=44100)
        video.height, video.width, video.pix_fmt, video.options = HEIGHT, WIDTH, "yuv420p", KINETICS
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        hum = np.random.default_rng(number).normal(0, 0.1, (1, 44100 * seconds)).astype(np.float32)
        for start in range(0, hum.shape[1] - 1023, 1024):
            samples = np.ascontiguousarray(hum[:, start : start + 1024])
            sound = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 44100, start
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return str(path)


def render(number: int, num_frames: int) -> np.ndarray:
    """Render uint8 [num_frames, 256, 340, 3]: a camera pans, turns and zooms over a textured plane with three discs.

    Everything moves by fractions of a pixel, so that B-frames cost as much to decode as in real videos.
    """
    random = np.random.default_rng(number)
    plane, *discs = [_draw_texture(random, side) for side in (640, 120, 120, 120)]
    phases, speed = random.uniform(0, 2 * np.pi, (4, 4)), random.uniform(0.5, 2.0) / 45
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH), indexing="ij")
    frames = np.empty((num_frames, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for t in range(num_frames):
        swing = np.sin(speed * t * np.array([0.7, 0.5, 0.6, 1.0]) + phases[0])
        scale = 0.45 * (1 + 0.1 * swing[1])
        frame = _sample(plane, scale * columns, scale * rows, 0.05 * swing[0], 0.45 * swing[2], 0.45 * swing[3])
        for disc, phase, pace in zip(discs, phases[1:], (0.8, 1.1, 1.4), strict=True):
            swing = np.sin(speed * t * np.array([pace, 1.9 - pace, 1.0]) + phase[:3])
            radius = 0.3 + 0.1 * swing[2]
            across = (columns - 0.8 * swing[0]) * WIDTH / HEIGHT / radius
            down = (rows - 0.7 * swing[1]) / radius
            inside = (across**2 + down**2 < 1).float()
            frame = frame.lerp(_sample(disc, across, down, 0.6 * speed * t + phase[3]), inside)
        grain = random.normal(0, 2, (HEIGHT, WIDTH, 1))
        frames[t] = (frame[0].permute(1, 2, 0).numpy() + grain).clip(0, 255)
    return frames


def _draw_texture(random: np.random.Generator, side: int) -> torch.Tensor:
    """Draw a random picture [1, 3, side, side] in 0..255, with detail at four scales."""
    layers = [
        F.interpolate(
            torch.from_numpy(random.normal(0, 24 / cell**0.5, (1, 3, side // cell, side // cell)).astype(np.float32)),
            (side, side),
            mode="bicubic",
        )
        for cell in (60, 20, 8, 4)
    ]
    shade = torch.from_numpy(random.uniform(60, 200, (1, 3, 1, 1)).astype(np.float32))
    return (shade + torch.stack(layers).sum(dim=0)).clamp(0, 255)


def _sample(
    picture: torch.Tensor, x: torch.Tensor, y: torch.Tensor, turn: float, left: float = 0.0, top: float = 0.0
) -> torch.Tensor:
    """Sample the picture at the points (x, y), rotated and shifted; its sides are at -1 and 1."""
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    grid = torch.stack([x * cos - y * sin + left, x * sin + y * cos + top], dim=-1)
    return F.grid_sample(picture, grid[None], padding_mode="reflection", align_corners=False)
