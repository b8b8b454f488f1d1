"""Videos as Kinetics is downloaded: 340 x 256, 10 s, 30 frames per second, H.264 with B-frames, a key frame every 250, AAC.

What is shown moves, is textured and grainy, so that the encoder spends what it spends on Kinetics: 0.5 to 1 Mbit/s.
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
    """Write `count` files, of different content and motion, and return their paths."""
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
    """Return uint8 [num_frames, 256, 340, 3]: a textured plane that a camera pans over, and a disc that crosses it."""
    random = np.random.default_rng(number)
    picture = sum(
        F.interpolate(
            torch.from_numpy(random.normal(0, 128 / scale**0.5, (1, 3, 480 // scale, 640 // scale)).astype(np.float32)),
            (480, 640),
            mode="bicubic",
        )
        for scale in (80, 20, 8)
    )
    plane = (128 + picture[0].permute(1, 2, 0).numpy()).clip(0, 255)  # type: ignore[index]
    disc = random.uniform(0, 255, (3,))
    speed = random.uniform(0.5, 2.0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frames = np.empty((num_frames, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for t in range(num_frames):
        top = round(110 + 100 * np.sin(speed * t / 45))
        left = round(150 + 140 * np.sin(speed * t / 70))
        frame = plane[top : top + HEIGHT, left : left + WIDTH].copy()
        frame[(rows - 128) ** 2 + (columns - (speed * 3 * t) % WIDTH) ** 2 < 1600] = disc
        frame += random.normal(0, 6, (HEIGHT, WIDTH, 1))
        frames[t] = frame.clip(0, 255)
    return frames
