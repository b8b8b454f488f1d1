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
from typing import Any, NamedTuple

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
    """Features of the videos that could be read, float32 [N, width] on the CPU, by kind (see `extract_all`)."""

    features: dict[str, Tensor]
    rows: list[int]  # of the manifest, ascending
    failures: list[Failure]
    decoded: int  # videos decoded now; the others came from the cache


def test_size(size: int) -> int:
    """Return the crop size for testing, 8/7 of the training size: 256 for 224, 128 for 112."""
    return round(size * 8 / 7)


def test_crops(frames: Tensor, *, size: int, num_crops: int, out: Tensor | None = None) -> Tensor:  # noqa: PT028
    """Cut `num_crops` (1: centre, 3: along the longer side) squares after scaling the short side to `size`.

    frames uint8 [T, h, w, 3] -> float32 in 0..1 [num_crops, 3, T, size, size], written into `out` if given.
    """
    clip = frames.permute(3, 0, 1, 2).contiguous()  # bytes are cheap to turn around, floats are not
    height, width = crops.short_side(clip.shape[-2], clip.shape[-1], size)
    scaled = (height, width) != tuple(clip.shape[-2:])
    if scaled:
        clip = augment.resize(clip.float().div_(255), (height, width))
    boxes = crops.three_crops(height, width, size) if num_crops == 3 else [crops.center_crop(height, width, size)]
    if out is None:
        out = torch.empty((num_crops, *clip.shape[:2], size, size), device=clip.device)
    for place, box in zip(out, boxes, strict=True):
        place.copy_(clip[..., box.top : box.top + size, box.left : box.left + size])
    return out if scaled else out.div_(255)


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
    # One buffer for all batches: fresh memory of this size costs more than filling it.
    group = max(1, at_once // views.num_crops)
    shape = (group, views.num_crops, 3, views.num_frames, views.size, views.size)
    buffer = torch.empty(shape, device=device)
    hidden = None if title and distributed.rank() == 0 else True  # None: shown on a terminal only
    with tqdm(total=len(own), desc=title, unit="video", disable=hidden) as bar:
        for batch in batches:
            bar.update(len(batch.rows) + len(batch.failures))
            yield batch.rows, _outputs(network, batch, views, device, buffer), batch.failures
            del batch  # before the next one is decoded


def _outputs(
    network: Callable[[Tensor], Tensor], batch: Batch, views: Views, device: torch.device, buffer: Tensor
) -> Tensor:
    """Return the outputs [videos, views, width] of a batch of whole frames, a buffer of crops at a time."""
    by_view = [view.to(device).unpack() for view in batch.views]
    by_video = [clip for clips in zip(*by_view, strict=True) for clip in clips]  # video by video, clip by clip
    outputs = []
    for start in range(0, len(by_video), len(buffer)):
        few = by_video[start : start + len(buffer)]
        for clip, place in zip(few, buffer, strict=False):
            test_crops(clip, size=views.size, num_crops=views.num_crops, out=place)
        outputs.append(network(buffer[: len(few)].flatten(0, 1)).float().cpu())
    return torch.cat(outputs).unflatten(0, (-1, views.count)) if outputs else torch.empty(0)


def extract(encoder: FrozenEncoder, videos: Sequence[Video], views: Views, **options: Any) -> Features:
    """Return one encoder's features; see `extract_all`."""
    return extract_all([encoder], videos, views, **options)[0]


def extract_all(
    encoders: Sequence[FrozenEncoder],
    videos: Sequence[Video],
    views: Views,
    *,
    device: torch.device,
    kinds: Sequence[str] = ("backbone",),
    decoder: str = "auto",
    workers: int = 0,
    cached: bool = False,
    title: str = "",
) -> list[Features]:
    """Return the features of all videos in the manifest's order, for each encoder, on every rank, from one decode.

    kinds: `backbone` (pooled backbone output) and `projector` (the projector's, where an encoder has one), averaged over
    all views; `backbone_1_view` and `projector_1_view`, of the middle view alone.
    cached: keep all kinds on disk (see feature_cache), take from there what an earlier run of any program has left, and
    so go on where an interrupted one stopped.

    Raises InputError if no video could be read.
    """
    stores = [Store(encoder, videos, views, kinds, decoder, cached) for encoder in encoders]
    missing = sorted(set.union(*(store.missing() for store in stores)))
    active = [store for store in stores if store.missing()]
    network = _SideBySide([store.encoder for store in active])
    failures: list[Failure] = []
    try:
        for rows, output, failed in view_outputs(
            network,
            videos,
            views,
            device=device,
            decoder=decoder,
            workers=workers,
            rows=missing,
            title=title,
        ):
            failures += failed
            for store, own in zip(active, output.split(network.widths, dim=-1) if rows else (), strict=bool(rows)):
                store.add(rows, own)
    finally:
        for store in active:
            store.write()
    return [store.merged(failures) for store in stores]


class _SideBySide:
    """Clips -> all encoders' features and projections in one row; `widths` is known after the first batch."""

    def __init__(self, encoders: Sequence[FrozenEncoder]) -> None:
        self.encoders = encoders
        self.widths: list[int] = []

    def __call__(self, clips: Tensor) -> Tensor:
        outputs = []
        for encoder in self.encoders:
            features = encoder(clips)
            projections = [] if encoder.projector is None else [encoder.project(features)]
            outputs.append(torch.cat([features, *projections], dim=1))
        self.widths = [output.shape[1] for output in outputs]
        return torch.cat(outputs, dim=1)


class Store:
    """One encoder's features while they are being made: those from the cache, this rank's new ones, and those to write."""

    def __init__(
        self,
        encoder: FrozenEncoder,
        videos: Sequence[Video],
        views: Views,
        kinds: Sequence[str],
        decoder: str,
        cached: bool,
    ) -> None:
        self.encoder, self.videos, self.views, self.kinds = encoder, videos, views, kinds
        self.cache = FeatureCache.of(encoder, {**vars(views), "decoder": decoder}) if cached else None
        self.found, self.known = self.cache.load(videos, kinds) if self.cache else ([], {})
        # Machines may have caches of their own: what counts is what every rank has found.
        self.everywhere = set.intersection(*(set(rows) for rows in distributed.gather_objects(self.found)))
        self.rows: list[int] = []
        self.parts: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        self.unwritten: list[tuple[list[int], dict[str, Tensor]]] = []
        self.since = time.monotonic()

    def missing(self) -> set[int]:
        """Return the rows that have to be decoded."""
        return set(range(len(self.videos))) - self.everywhere

    def add(self, rows: list[int], output: Tensor) -> None:
        """Take outputs [len(rows), views, features + projections]."""
        summary = {}
        width = self._feature_width(output.shape[-1])
        for name, piece in (("backbone", output[..., :width]), ("projector", output[..., width:])):
            if piece.shape[-1]:
                summary[name] = piece.mean(dim=1)
                summary[f"{name}_1_view"] = piece[:, self.views.middle].clone()
        self.rows += rows
        for kind in self.kinds:
            self.parts[kind].append(summary[kind])
        if self.cache:
            self.unwritten.append((rows, summary))
            waiting = sum(len(rows) for rows, _ in self.unwritten)
            if waiting >= FLUSH_VIDEOS or time.monotonic() - self.since > FLUSH_SECONDS:
                self.write()

    def write(self) -> None:
        """Write what is not in the cache yet."""
        if self.cache and self.unwritten:
            summaries = [summary for _, summary in self.unwritten]
            arrays = {kind: torch.cat([summary[kind] for summary in summaries]) for kind in summaries[0]}
            self.cache.add([self.videos[row] for rows, _ in self.unwritten for row in rows], arrays)
        self.unwritten, self.since = [], time.monotonic()

    def merged(self, failures: list[Failure]) -> Features:
        """Put what was known everywhere and the new ones of all ranks into the manifest's order."""
        own = {kind: torch.cat(parts) if parts else None for kind, parts in self.parts.items()}
        shares = distributed.gather_objects((own, self.rows, failures))
        failures = [failure for _, _, failed in shares for failure in failed]
        new_rows = [row for _, rows, _ in shares for row in rows]
        kept_rows = self.everywhere - set(new_rows)
        kept = [i for i, row in enumerate(self.found) if row in kept_rows]
        rows = [self.found[i] for i in kept] + new_rows
        if not rows:
            raise InputError(
                f"none of the videos could be read, e.g. {failures[0].reason if failures else 'empty list'}"
            )
        order = torch.tensor(sorted(range(len(rows)), key=rows.__getitem__))
        features = {}
        for kind in self.kinds:
            parts = [self.known[kind][kept]] if kept else []
            parts += [part for tensors, _, _ in shares if (part := tensors[kind]) is not None]
            features[kind] = torch.cat(parts)[order]
        return Features(features, sorted(rows), failures, len(new_rows))

    def _feature_width(self, total: int) -> int:
        if self.encoder.projector is None:
            return total
        last = [parameter for parameter in self.encoder.projector.parameters() if parameter.dim() == 2][-1]
        return total - last.shape[0]
