"""Features of a manifest with a frozen encoder: several clips and crops per video from one decode, averaged.

Protocol (SCE, section 6): evenly spread clips, the short side scaled to the crop size, 1 or 3 square crops; features
of all views are averaged without normalising each. What retrieval, kNN and the monitor share. Any number of processes:
each takes its share of the rows and all get the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from . import augment, distributed
from .data import crops
from .data.dataset import Batch, EvaluationDataset, Failure, collate
from .data.loader import prepare_worker
from .data.manifest import Video
from .errors import InputError

CLIPS_AT_ONCE = 32  # clips in one forward pass: bounds memory whatever the number of views


class Features(NamedTuple):
    """Features float32 [N, width] on the CPU of the videos that could be read, their rows, and those that could not."""

    features: Tensor
    rows: list[int]
    failures: list[Failure]


def test_size(size: int) -> int:
    """Return the crop size for testing, 8/7 of the training size: 256 for 224, 128 for 112."""
    return round(size * 8 / 7)


def test_crops(frames: Tensor, *, size: int, num_crops: int) -> Tensor:
    """Cut `num_crops` (1: centre, 3: along the longer side) squares after scaling the short side to `size`.

    frames uint8 [T, h, w, 3] -> float in 0..1 [num_crops, 3, T, size, size].
    """
    clip = frames.permute(3, 0, 1, 2).float() / 255
    clip = augment.resize(clip, crops.short_side(clip.shape[-2], clip.shape[-1], size))
    height, width = clip.shape[-2:]
    boxes = crops.three_crops(height, width, size) if num_crops == 3 else [crops.center_crop(height, width, size)]
    return torch.stack([clip[..., b.top : b.top + size, b.left : b.left + size] for b in boxes])


@torch.no_grad()
def extract(
    encoder: nn.Module,
    videos: Sequence[Video],
    *,
    device: torch.device,
    clips_per_video: int,
    num_crops: int,
    num_frames: int,
    clip_seconds: float,
    size: int,
    decoder: str = "auto",
    workers: int = 0,
) -> Features:
    """Return the features of all videos, averaged over clips_per_video x num_crops views, in the manifest's order.

    encoder: float clips in 0..1 [B, 3, T, size, size] -> [B, width], on `device`, in evaluation mode.
    """
    dataset = EvaluationDataset(
        videos, clips_per_video=clips_per_video, num_frames=num_frames, clip_seconds=clip_seconds, decoder=decoder
    )
    own = range(distributed.rank(), len(videos), distributed.world_size())
    loader: DataLoader[Batch] = DataLoader(
        Subset(dataset, own),  # type: ignore[arg-type]
        batch_size=max(1, CLIPS_AT_ONCE // (clips_per_video * num_crops)),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=prepare_worker if workers else None,
    )
    rows: list[int] = []
    failures: list[Failure] = []
    parts: list[Tensor] = []
    for batch in loader:
        failures += batch.failures
        rows += batch.rows
        if not batch.rows:
            continue
        total: Tensor | float = 0.0
        for view in batch.views:
            clips = view.to(device).unpack()
            crop = torch.stack([test_crops(frames, size=size, num_crops=num_crops) for frames in clips])
            flat = crop.flatten(0, 1)  # [B * crops, 3, T, S, S]
            output = torch.cat([encoder(chunk).float() for chunk in flat.split(CLIPS_AT_ONCE)])
            total = total + output.view(len(clips), num_crops, -1).sum(dim=1)
        parts.append((total / (len(batch.views) * num_crops)).cpu())  # type: ignore[union-attr]
    return _merge(distributed.gather_objects((torch.cat(parts) if parts else None, rows, failures)))


def _merge(shares: list[tuple[Tensor | None, list[int], list[Failure]]]) -> Features:
    """Put the shares of all ranks into the manifest's order."""
    failures = [failure for _, _, failed in shares for failure in failed]
    found = [(part, rows) for part, rows, _ in shares if part is not None]
    if not found:
        raise InputError(f"none of the videos could be read, e.g. {failures[0].reason if failures else 'empty list'}")
    rows = [row for _, part_rows in found for row in part_rows]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    features = torch.cat([part for part, _ in found])[order]
    return Features(features, [rows[i] for i in order], failures)
