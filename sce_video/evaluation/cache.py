"""A cache of features on disk, shared by all programs: a video is decoded once per encoder and views.

Each folder under `<cache>/features/` (see `cache_folder`) holds `about.json` and parts `*.npz`. Its name is a digest of the
encoder's weights and normalisation, the views and PROTOCOL. The key of a video is its real path, size, modification time and
segment, so lists may be reordered, split or joined, and a changed file is decoded again. Labels are not stored. Parts are
written atomically and carry the zip format's checksums; a damaged part is skipped and logged. The folder may be deleted at
any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import health
from ..data.manifest import Video
from ..data.synthetic import cache_folder
from ..errors import log
from ..models.encoder import FrozenEncoder
from ..runs import checkpoint
from ..runs.files import replace_atomically, write_atomically

PROTOCOL = 1  # raise it when a change gives other features for the same encoder, views and file


def identify(video: Video) -> str | None:
    """Return the key of a row: real path, size in bytes, modification time, and segment; None if the file is missing."""
    found = health.stamp(video.path)
    part = f"\0{video.segment}" if video.segment else ""
    return None if found is None else f"{os.path.realpath(video.path)}\0{found.bytes}\0{found.changed_ns}{part}"


LATER = (("precision", "fp32"), ("short_side", 0))  # entries of views that were not there before


class FeatureCache:
    """The features of one encoder and one set of views, in `folder`."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = about

    @staticmethod
    def of(encoder: FrozenEncoder, views: dict[str, Any]) -> FeatureCache:
        """Return the cache of an encoder and views. Writes nothing."""
        views = {name: value for name, value in views.items() if (name, value) not in LATER}
        about = {"protocol": PROTOCOL, "backbone": encoder.name, "mean": encoder.mean, "std": encoder.std, **views}
        weights = checkpoint.state_digest(encoder.state_dict())
        key = hashlib.sha256(json.dumps([about, weights], sort_keys=True).encode()).hexdigest()[:20]
        name = encoder.name.replace(":", "_").replace("/", "_")
        return FeatureCache(cache_folder() / "features" / f"{name}_{key}", {**about, "weights": weights})

    def load(self, videos: Sequence[str | None], kinds: Sequence[str]) -> tuple[list[int], dict[str, Tensor]]:
        """Return the rows of `videos` (keys, see `identify`) that are cached, and their features [N, width] by kind."""
        wanted: dict[str, list[int]] = {}
        for row, name in enumerate(videos):
            if name is not None:
                wanted.setdefault(name, []).append(row)
        rows: list[int] = []
        parts: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        for path in sorted(self.folder.glob("[!.]*.npz")):
            try:
                with np.load(path, allow_pickle=False) as part:
                    names = json.loads(part["videos"].tobytes())
                    hits = [(i, row) for i, name in enumerate(names) for row in wanted.get(name, ())]
                    if not hits:
                        continue
                    read = {kind: torch.from_numpy(part[kind][[i for i, _ in hits]]) for kind in kinds}
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                log.info(f"skipped: cached features {path} are damaged ({error})")
                continue
            for kind in kinds:
                parts[kind].append(read[kind])
            rows += [row for _, row in hits]
            for i, _ in hits:
                wanted.pop(names[i], None)
        return rows, {kind: torch.cat(tensors) for kind, tensors in parts.items() if tensors}

    def add(self, videos: Sequence[str | None], features: dict[str, Tensor]) -> None:
        """Write the features [N, width] of `videos` (keys, see `identify`) as a new part."""
        named = [(i, name) for i, name in enumerate(videos) if name is not None]
        kept = [i for i, _ in named]
        arrays = {kind: tensor[kept].numpy() for kind, tensor in features.items()}
        arrays["videos"] = np.frombuffer(json.dumps([name for _, name in named]).encode(), dtype=np.uint8)
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        if not about.exists():
            write_atomically(about, json.dumps(self.about, indent=2) + "\n")
        with replace_atomically(self.folder / f"{uuid.uuid4().hex}.npz") as work, open(work, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
