"""Extract the features of a manifest: the mean over all views of each video, for several encoders from one decode.

The views' features are averaged without normalising each (SCE, section 6). Every rank returns all of them, and `cache.py`
keeps them on disk for other programs. `views.py` defines the views and their order.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import distributed
from ..data.dataset import Failure
from ..data.manifest import Video
from ..errors import InputError
from ..models.encoder import FrozenEncoder
from .cache import FeatureCache, identify
from .views import Views, gather_in_order, view_outputs

FLUSH_VIDEOS, FLUSH_SECONDS = 1024, 120.0  # an interrupted extraction loses at most this much


class Features(NamedTuple):
    """Features of the readable videos by kind (see `extract_all`), float32 [N, width] on the CPU."""

    features: dict[str, Tensor]
    rows: list[int]  # of the manifest, ascending
    failures: list[Failure]
    decoded: int  # number of videos decoded now; the others came from the cache


def extract(encoder: FrozenEncoder, videos: Sequence[Video], views: Views, **options: Any) -> Features:
    """Return the features of one encoder; options as in `extract_all`."""
    return extract_all([encoder], videos, views, **options)[0]


def by_view(encoder: FrozenEncoder, videos: Sequence[Video], views: Views, **options: Any) -> Tensor:
    """Return the features [N, views.count, width] of the readable videos, on every rank; options as in `view_outputs`."""
    own = [(rows, output) for rows, output, _ in view_outputs(encoder, videos, views, **options) if rows]
    _, found = gather_in_order([row for rows, _ in own for row in rows], [output for _, output in own])
    if found is None:
        raise InputError(f"none of {len(videos)} videos can be read, e.g. {videos[0].path}")
    return found


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
    """Return each encoder's features of all videos, in the manifest's order, on every rank. Decodes each video once.

    kinds: `backbone` (pooled backbone output) and `projector` (its output, if the encoder has one), averaged over all
    views; `backbone_1_view` and `projector_1_view` of the middle view only.
    cached: write all kinds to the cache (see cache.py) and read cached videos from it, so an interrupted run continues.

    Raises InputError if no video can be read.
    """
    names = [identify(video) if cached else None for video in videos]
    stores = [_FeatureStore(encoder, names, views, kinds, decoder, cached) for encoder in encoders]
    missing = sorted(set.union(*(store.missing_rows() for store in stores)))
    active = [store for store in stores if store.missing_rows()]
    network = _ConcatenatedEncoders([store.encoder for store in active])
    failures: list[Failure] = []
    try:
        for rows, output, failed in view_outputs(
            network, videos, views, device=device, decoder=decoder, workers=workers, rows=missing, title=title
        ):
            failures += failed
            if rows:
                parts = output.split([sum(pair) for pair in network.widths], dim=-1)
                for store, part, pair in zip(active, parts, network.widths, strict=True):
                    store.add(rows, *part.split(pair, dim=-1))
    finally:
        for store in active:
            store.write()
    return [store.merge(failures) for store in stores]


class _ConcatenatedEncoders:
    """Map clips to the concatenated features and projections of all encoders; sets `widths`, a pair per encoder."""

    def __init__(self, encoders: Sequence[FrozenEncoder]) -> None:
        self.encoders = encoders
        self.widths: list[tuple[int, int]] = []

    def __call__(self, clips: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for encoder in self.encoders:
            features = encoder(clips)
            outputs += [features, features[:, :0] if encoder.projector is None else encoder.project(features)]
        widths = [output.shape[1] for output in outputs]
        self.widths = list(zip(widths[::2], widths[1::2], strict=True))
        return torch.cat(outputs, dim=1)


class _FeatureStore:
    """One encoder's features during extraction: from the cache, new on this rank, and not yet written.

    names: each video's key (`cache.identify`); None for a missing_rows file or without a cache.
    """

    def __init__(
        self, encoder: FrozenEncoder, names: Sequence[str | None], views: Views, kinds: Sequence[str], decoder: str, cached: bool
    ) -> None:
        self.encoder, self.names, self.views, self.kinds = encoder, names, views, kinds
        self.cache = FeatureCache.of(encoder, {**vars(views), "decoder": decoder}) if cached else None
        self.found, self.known = self.cache.load(names, kinds) if self.cache else ([], {})
        # Machines may have separate caches: use only the rows that every rank has found.
        self.everywhere = set.intersection(*(set(rows) for rows in distributed.gather_objects(self.found)))
        self.rows: list[int] = []
        self.parts: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        self.unwritten: list[tuple[list[int], dict[str, Tensor]]] = []
        self.since = time.monotonic()

    def missing_rows(self) -> set[int]:
        """Return the rows to decode."""
        return set(range(len(self.names))) - self.everywhere

    def add(self, rows: list[int], features: Tensor, projections: Tensor) -> None:
        """Add features and projections [len(rows), views, ...]; without a projector, projections have width 0."""
        summary = {}
        for name, piece in (("backbone", features), ("projector", projections)):
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
        """Write the new features to the cache."""
        if self.cache and self.unwritten:
            summaries = [summary for _, summary in self.unwritten]
            arrays = {kind: torch.cat([summary[kind] for summary in summaries]) for kind in summaries[0]}
            self.cache.add([self.names[row] for rows, _ in self.unwritten for row in rows], arrays)
        self.unwritten, self.since = [], time.monotonic()

    def merge(self, failures: list[Failure]) -> Features:
        """Return the cached features and the new ones of all ranks, in the manifest's order."""
        new = {kind: distributed.gather_rows(torch.cat(parts) if parts else None) for kind, parts in self.parts.items()}
        shares = distributed.gather_objects((self.rows, failures))
        failures = [failure for _, failed in shares for failure in failed]
        new_rows = [row for rows, _ in shares for row in rows]
        kept_rows = self.everywhere - set(new_rows)
        kept = [i for i, row in enumerate(self.found) if row in kept_rows]
        rows = [self.found[i] for i in kept] + new_rows
        if not rows:
            raise InputError(f"none of the videos could be read, e.g. {failures[0].reason if failures else 'empty list'}")
        order = torch.tensor(sorted(range(len(rows)), key=rows.__getitem__))
        features = {}
        for kind in self.kinds:
            parts = [self.known[kind][kept]] if kept else []
            found = new[kind]
            features[kind] = torch.cat(parts if found is None else [*parts, found])[order]
        return Features(features, sorted(rows), failures, len(new_rows))
