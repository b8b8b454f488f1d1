"""Features on disk: a video is decoded once per encoder and choice of views, whichever program asks for it.

A folder per key under `<cache>/features/` (see `cache_folder`), with `about.json` and parts `*.npz`. The key is a digest of
the encoder's weights, its normalisation, the views and PROTOCOL; inside, a video is known by its real path, size and time
of change, so that lists may be reordered, split or joined, and a file that was changed is decoded again. Labels are not
stored. Parts are written under another name first and carry the zip format's checksums: a damaged one is left out and
named. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
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
from ..models.encoder import FrozenEncoder
from ..runs import checkpoint

PROTOCOL = 1  # raise it whenever the same encoder, views and file give other features than before


def identity(video: Video) -> str | None:
    """Return what a video is known by: real path, bytes and time of change; None if it is not there."""
    found = health.stamp(video.path)
    return None if found is None else f"{os.path.realpath(video.path)}\0{found.bytes}\0{found.changed_ns}"


class FeatureCache:
    """The features of one encoder and one choice of views in `folder`."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = about

    @staticmethod
    def of(encoder: FrozenEncoder, views: dict[str, Any]) -> FeatureCache:
        """Return the cache for this encoder and these views; nothing is written yet."""
        about = {"protocol": PROTOCOL, "backbone": encoder.name, "mean": encoder.mean, "std": encoder.std, **views}
        weights = checkpoint.state_digest(encoder.state_dict())
        key = hashlib.sha256(json.dumps([about, weights], sort_keys=True).encode()).hexdigest()[:20]
        name = encoder.name.replace(":", "_").replace("/", "_")
        return FeatureCache(cache_folder() / "features" / f"{name}_{key}", {**about, "weights": weights})

    def load(self, videos: Sequence[str | None], kinds: Sequence[str]) -> tuple[list[int], dict[str, Tensor]]:
        """Return the rows of `videos` (each an `identity`) that are here, and their features [N, width] by kind."""
        wanted: dict[str, list[int]] = {}
        for row, name in enumerate(videos):
            if name is not None:
                wanted.setdefault(name, []).append(row)
        rows: list[int] = []
        parts: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as part:
                    names = json.loads(part["videos"].tobytes())
                    here = [(i, row) for i, name in enumerate(names) for row in wanted.get(name, ())]
                    if not here:
                        continue
                    read = {kind: torch.from_numpy(part[kind][[i for i, _ in here]]) for kind in kinds}
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                print(f"passed over: cached features {path} are damaged ({error})", file=sys.stderr)
                continue
            for kind in kinds:
                parts[kind].append(read[kind])
            rows += [row for _, row in here]
            for i, _ in here:
                wanted.pop(names[i], None)
        return rows, {kind: torch.cat(tensors) for kind, tensors in parts.items() if tensors}

    def add(self, videos: Sequence[str | None], features: dict[str, Tensor]) -> None:
        """Write the features [N, width] of these videos (each an `identity`) as one more part."""
        named = [(i, name) for i, name in enumerate(videos) if name is not None]
        kept = [i for i, _ in named]
        arrays = {kind: tensor[kept].numpy() for kind, tensor in features.items()}
        arrays["videos"] = np.frombuffer(json.dumps([name for _, name in named]).encode(), dtype=np.uint8)
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        if not about.exists():
            about.write_text(json.dumps(self.about, indent=2) + "\n")
        final = self.folder / f"{uuid.uuid4().hex}.npz"
        work = final.with_suffix(".writing")
        with open(work, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(work, final)
