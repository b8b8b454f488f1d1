"""Video retrieval: for each test video, is one of its k nearest training videos of the same class?

Protocol (SCE, section 6): features of clips_per_video x num_crops views averaged, each set centred by its own mean,
L2-normalised, cosine similarity. Every table has a row of the same network with random weights: the floor.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, distributed, encoders, features, metrics
from .config import RetrievalConfig
from .data import loader
from .data.manifest import Video, label_ids
from .errors import InputError
from .models.encoder import FrozenEncoder

KS = (1, 5, 10, 20, 25)


def retrieve(cfg: RetrievalConfig) -> dict[str, Any]:
    """Run the protocol, print the table, write the JSON file and return what it holds."""
    with distributed.session(cfg.device.value) as device:
        encoder = encoders.load_encoder(cfg.checkpoint, cfg.backbone or None)
        train, test = (
            loader.read_videos(source, split=split, root=cfg.root, labels=cfg.labels.value)
            for source, split in ((cfg.train, "train"), (cfg.test, "val"))
        )
        classes, ids = label_ids(train, test)
        out = output_file(cfg)
        untrained = encoders.untrained_encoder(
            encoder.name, seed=cfg.seed, mean=encoder.mean, std=encoder.std, clip=encoder.clip
        )
        rows = {
            name: score(network.to(device), (train, test), ids, cfg, device)
            for name, network in (("checkpoint", encoder), ("random weights", untrained))
        }
        result = {
            "checkpoint": str(cfg.checkpoint),
            "backbone": encoder.name,
            "train": {"list": cfg.train, "videos": len(train)},
            "test": {"list": cfg.test, "videos": len(test)},
            "classes": len(classes),
            "views_per_video": [cfg.clips_per_video, cfg.num_crops],
            "clip": settings(cfg, encoder),
            "rows": rows,
        }
        if distributed.rank() == 0:
            print_table(result)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=2) + "\n")
            print(f"written: {out}")
        return result


def settings(cfg: RetrievalConfig, encoder: FrozenEncoder) -> dict[str, float]:
    """Return num_frames, clip_seconds and size: as given, else as in pretraining (crops 8/7 of its size)."""
    return {
        "num_frames": cfg.num_frames or int(encoder.clip["num_frames"]),
        "clip_seconds": cfg.clip_seconds or encoder.clip["clip_seconds"],
        "size": cfg.size or features.test_size(int(encoder.clip["size"])),
    }


def score(
    encoder: FrozenEncoder,
    lists: tuple[list[Video], list[Video]],
    ids: list[list[int]],
    cfg: RetrievalConfig,
    device: torch.device,
) -> dict[str, Any]:
    """Return recall_at_k of one encoder, and how many of the listed videos were scored."""
    clip = settings(cfg, encoder)
    bank, query = (
        features.extract(
            encoder,
            videos,
            device=device,
            clips_per_video=cfg.clips_per_video,
            num_crops=cfg.num_crops,
            num_frames=int(clip["num_frames"]),
            clip_seconds=clip["clip_seconds"],
            size=int(clip["size"]),
            decoder=cfg.decoder.value,
            workers=loader.share_cores(device, cfg.workers),
        )
        for videos in lists
    )
    bank_labels, query_labels = (
        torch.tensor([labels[row] for row in part.rows]) for part, labels in zip((bank, query), ids, strict=True)
    )
    recall = metrics.recall_at_k(query.features, query_labels, bank.features, bank_labels, KS)
    return {
        "recall_at_k": {str(k): value for k, value in recall.items()},
        "scored": {"train": len(bank.rows), "test": len(query.rows)},
        "unreadable": sorted({failure.path for failure in (*bank.failures, *query.failures)}),
    }


def output_file(cfg: RetrievalConfig) -> Path:
    """Return where the result goes; a file that exists is never written over."""
    if cfg.out:
        if os.path.exists(cfg.out):
            raise InputError(f"out={cfg.out} exists: choose another file, or remove it")
        return Path(cfg.out)
    source = Path(cfg.checkpoint)
    folder = source.parent if source.is_file() else checkpoint.find(source).parent.parent
    stem = f"retrieval_{Path(cfg.test).stem}"
    names = [f"{stem}.json", *(f"{stem}_{number}.json" for number in range(2, 10_000))]
    return next(folder / name for name in names if not (folder / name).exists())


def print_table(result: dict[str, Any]) -> None:
    """Print the rows in percent, and every video that is missing from them."""
    clips, num_crops = result["views_per_video"]
    print(
        f"{result['test']['videos']} queries, bank of {result['train']['videos']}, {result['classes']} classes, "
        f"{clips} clips x {num_crops} crops, {result['clip']['num_frames']} frames of {result['clip']['size']} px"
    )
    print(f"{result['backbone']:<16}" + "".join(f"{f'R@{k}':>8}" for k in KS) + "   scored (test, train)")
    for name, row in result["rows"].items():
        values = "".join(f"{100 * row['recall_at_k'][str(k)]:8.1f}" for k in KS)
        scored = (f"{row['scored'][part]}/{result[part]['videos']}" for part in ("test", "train"))
        print(f"{name:<16}{values}   {', '.join(scored)}")
    for path in result["rows"]["checkpoint"]["unreadable"]:
        print(f"not scored, unreadable: {path}", file=sys.stderr)
