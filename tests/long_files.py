"""Long files in seconds: short encoded clips joined by stream copy, as often as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from sce_video.data.decode import open_video


def encode_scene(
    path: Path, seed: int, *, num_frames: int = 100, rate: int = 25, gop: int = 25, b_frames: int = 2, noise: int = 0
) -> Path:
    """A clip of smooth noise that drifts: every frame differs from every other one, and scenes from each other.

    noise: amplitude of fine noise, anew in every frame, which makes the file large.
    """
    random = np.random.default_rng(seed)
    low = random.integers(0, 255, (9, 12, 3)).astype(np.float32)
    other = random.integers(0, 255, (9, 12, 3)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        stream.options = {
            "g": str(gop),
            "bf": str(b_frames),
            "preset": "faster",
            "crf": "28",
            "x264-params": "scenecut=0:threads=1",
        }
        for number in range(num_frames):
            share = number / max(1, num_frames - 1)
            picture = ((1 - share) * low + share * other).repeat(8, axis=0).repeat(8, axis=1)
            picture[4:12, : 8 + number % 80] = 255  # a bar that tells the frame
            picture = (picture + random.uniform(-noise, noise, picture.shape)).clip(0, 255) if noise else picture
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


def join(parts: Sequence[Path], out: Path, **options: str) -> Path:
    """Write the packets of the parts one after another into `out`, whose ending is its container; nothing is encoded."""
    first = av.open(str(parts[0]))
    with av.open(str(out), "w", options=options) as container:
        template = first.streams.video[0]
        stream = container.add_stream_from_template(template)
        base, offset = template.time_base, 0
        read: dict[Path, list[tuple[bytes, int, int, int, bool]]] = {}
        for part in parts:
            if part not in read:
                with av.open(str(part)) as source:
                    read[part] = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in source.demux(video=0) if p.size]
            packets = read[part]
            for data, pts, dts, duration, key in packets:
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.duration = pts + offset, dts + offset, duration
                packet.time_base, packet.is_keyframe, packet.stream = base, key, stream
                container.mux(packet)
            offset += sum(duration for *_, duration, _ in packets)
    first.close()
    return out


def all_frames(path: Path) -> Tensor:
    """Every frame of a forward decode, uint8 [N, H, W, 3]."""
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)])


def seconds_of(path: Path) -> float:
    with open_video(str(path)) as reader:
        return float(reader.seconds)
