"""Many views of every video from one decode, and the features of a manifest made of them.

Protocol (SCE, section 6): evenly spread clips, the short side scaled to the crop size, 1 or 3 square crops, clip by clip;
features of all views are averaged without normalising each, softmax probabilities likewise (`classification.py`).

`view_outputs` is what testing, retrieval, kNN, probes and search share: one open and one decode pass per video; crops are
cut on the device. Any number of processes: each takes its share of the rows, `extract` gives all of them the whole.
A video that cannot be read is listed, never replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from . import augment, distributed
from .data import crops
from .data.dataset import Batch, EvaluationDataset, Failure, collate
from .data.loader import STALL_SECONDS, prepare_worker
from .data.manifest import Video
from .errors import InputError
from .feature_cache import FeatureCache
from .models.encoder import FrozenEncoder

# Views in one forward pass: bounds memory whatever their number. On a CPU few stay in the caches.
VIEWS_AT_ONCE = {"cuda": 32, "cpu": 8}
NATIVE_SHORT_SIDE = 256  # frames are scaled down to it while decoding: the size in which Kinetics is distributed
FLUSH_VIDEOS, FLUSH_SECONDS = 1024, 120.0  # what an interrupted extraction loses at most


@dataclass(frozen=True)
class Views:
    """Which views of a video are looked at: clips_per_video evenly spread clips x num_crops (1 or 3) crops of each."""

    clips_per_video: int
    num_crops: int
    num_frames: int
    clip_seconds: float
    size: int  # of the square crops, pixels

    @property
    def count(self) -> int:
        """Views per video. Their order: clip 0 crop 0, clip 0 crop 1, ..., clip 1 crop 0, ..."""
        return self.clips_per_video * self.num_crops

    @property
    def middle(self) -> int:
        """Index of the centre crop of the middle clip: what `1 view` means in our tables."""
        return self.clips_per_video // 2 * self.num_crops + self.num_crops // 2


class Features(NamedTuple):
    """Features of the videos that could be read, float32 [N, width] on the CPU, by kind (see `extract`)."""

    features: dict[str, Tensor]
    rows: list[int]  # of the manifest, ascending
    failures: list[Failure]
    decoded: int  # videos decoded now; the others came from the cache


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
def view_outputs(
    network: Callable[[Tensor], Tensor],
    videos: Sequence[Video],
    views: Views,
    *,
    device: torch.device,
    decoder: str = "auto",
    workers: int = 0,
    rows: Sequence[int] | None = None,
    title: str = "",
) -> Iterator[tuple[list[int], Tensor, list[Failure]]]:
    """Yield (rows, outputs, failures) for this rank's share of the rows, a few videos at a time.

    network: float clips in 0..1 [B, 3, T, size, size] on `device` -> [B, width].
    outputs: float32 [len(rows), views.count, width] on the CPU, of the videos that could be read.
    rows: those of `videos` to look at, by default all. title: of the progress bar; empty: none.
    """
    rows = range(len(videos)) if rows is None else rows
    own = [rows[i] for i in range(distributed.rank(), len(rows), distributed.world_size())]
    dataset = EvaluationDataset(
        videos,
        clips_per_video=views.clips_per_video,
        num_frames=views.num_frames,
        clip_seconds=views.clip_seconds,
        max_short_side=max(NATIVE_SHORT_SIDE, views.size),
        decoder=decoder,
    )
    at_once = VIEWS_AT_ONCE[device.type]
    batches: DataLoader[Batch] = DataLoader(
        Subset(dataset, own),  # type: ignore[arg-type]
        batch_size=max(1, at_once // views.count),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=prepare_worker if workers else None,
        timeout=STALL_SECONDS if workers else 0,
    )
    hidden = None if title and distributed.rank() == 0 else True  # None: shown on a terminal only
    with tqdm(total=len(own), desc=title, unit="video", disable=hidden) as bar:
        for batch in batches:
            bar.update(len(batch.rows) + len(batch.failures))
            clips = [view.to(device).unpack() for view in batch.views]
            by_video = [clip for video in zip(*clips, strict=True) for clip in video]  # video by video, clip by clip
            outputs = []
            for start in range(0, len(by_video), group := max(1, at_once // views.num_crops)):
                cut = [
                    test_crops(clip, size=views.size, num_crops=views.num_crops)
                    for clip in by_video[start : start + group]
                ]
                outputs.append(network(torch.cat(cut)).float().cpu())
            width = outputs[0].shape[1] if outputs else 0
            yield (
                batch.rows,
                torch.cat(outputs).view(-1, views.count, width) if outputs else torch.empty(0),
                batch.failures,
            )


def extract(
    encoder: FrozenEncoder,
    videos: Sequence[Video],
    views: Views,
    *,
    device: torch.device,
    kinds: Sequence[str] = ("backbone",),
    decoder: str = "auto",
    workers: int = 0,
    cached: bool = False,
    title: str = "",
) -> Features:
    """Return the features of all videos in the manifest's order, on every rank.

    kinds: `backbone` (pooled backbone output) and `projector` (the projector's, where the encoder has one), averaged
    over all views; `backbone_1_view` and `projector_1_view`, of the middle view alone. All kinds come from one pass.
    cached: keep them on disk (see feature_cache), take from there what an earlier run of any program has left, and so
    go on where an interrupted one stopped.

    Raises InputError if no video could be read.
    """
    cache = FeatureCache.of(encoder, {**vars(views), "decoder": decoder}) if cached else None
    found, known = cache.load(videos, kinds) if cache else ([], {})
    everywhere = set.intersection(*(set(rows) for rows in distributed.gather_objects(found)))
    missing = [row for row in range(len(videos)) if row not in everywhere]
    rows: list[int] = []
    parts: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    failures: list[Failure] = []
    pending = Pending(cache, videos)
    network = _WithProjection(encoder)
    outputs = view_outputs(
        network,
        videos,
        views,
        device=device,
        decoder=decoder,
        workers=workers,
        rows=missing,
        title=title,
    )
    try:
        for done, output, failed in outputs:
            failures += failed
            if done:
                summary = _summary(output, network.width, views)
                rows += done
                for kind in kinds:
                    parts[kind].append(summary[kind])
                pending.add(done, summary)
    finally:
        pending.write()
    own = {kind: torch.cat(tensors) if tensors else None for kind, tensors in parts.items()}
    return _merge((everywhere, found, known), distributed.gather_objects((own, rows, failures)))


class Pending:
    """Features that are not on disk yet."""

    def __init__(self, cache: FeatureCache | None, videos: Sequence[Video]) -> None:
        self.cache, self.videos = cache, videos
        self.rows: list[int] = []
        self.summaries: list[dict[str, Tensor]] = []
        self.since = time.monotonic()

    def add(self, rows: list[int], summary: dict[str, Tensor]) -> None:
        """Take more, and write when enough is there."""
        self.rows += rows
        self.summaries.append(summary)
        if len(self.rows) >= FLUSH_VIDEOS or time.monotonic() - self.since > FLUSH_SECONDS:
            self.write()

    def write(self) -> None:
        """Write what is there, if there is a cache."""
        if self.cache and self.rows:
            arrays = {kind: torch.cat([summary[kind] for summary in self.summaries]) for kind in self.summaries[0]}
            self.cache.add([self.videos[row] for row in self.rows], arrays)
        self.rows, self.summaries, self.since = [], [], time.monotonic()


class _WithProjection:
    """Clips -> features and, behind them in the same row, projections where the encoder has a projector."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        self.encoder = encoder
        self.width = 0  # of the features; known after the first batch

    def __call__(self, clips: Tensor) -> Tensor:
        features: Tensor = self.encoder(clips)
        self.width = features.shape[1]
        if self.encoder.projector is None:
            return features
        return torch.cat([features, self.encoder.project(features)], dim=1)


def _summary(output: Tensor, width: int, views: Views) -> dict[str, Tensor]:
    """Split [B, views, width of features + of projections] into kinds, [B, ...] each."""
    summary = {}
    for name, piece in (("backbone", output[..., :width]), ("projector", output[..., width:])):
        if piece.shape[-1]:
            summary[name] = piece.mean(dim=1)
            summary[f"{name}_1_view"] = piece[:, views.middle].clone()
    return summary


Known = tuple[set[int], list[int], dict[str, Tensor]]
Share = tuple[dict[str, Tensor | None], list[int], list[Failure]]


def _merge(known: Known, shares: list[Share]) -> Features:
    """Put what was known everywhere and the shares of all ranks into the manifest's order."""
    everywhere, found, tensors = known
    failures = [failure for _, _, failed in shares for failure in failed]
    kept = [i for i, row in enumerate(found) if row in everywhere]
    rows = [found[i] for i in kept] + [row for _, own_rows, _ in shares for row in own_rows]
    if not rows:
        raise InputError(f"none of the videos could be read, e.g. {failures[0].reason if failures else 'empty list'}")
    order = torch.tensor(sorted(range(len(rows)), key=rows.__getitem__))
    features = {}
    for kind in shares[0][0]:
        parts = [tensors[kind][kept]] if kept else []
        parts += [part for own, _, _ in shares if (part := own[kind]) is not None]
        features[kind] = torch.cat(parts)[order]
    decoded = sum(len(own_rows) for _, own_rows, _ in shares)
    return Features(features, sorted(rows), failures, decoded)
