"""What the programs that score frozen features have in common: two labelled lists, two encoders, one table.

The second encoder is the same network with random weights: the floor of every table.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import distributed
from ..config.evaluate import EncoderOptions
from ..data import loader, manifest
from ..data.manifest import Video
from ..distributed import warn
from ..errors import InputError
from ..models.encoder import FrozenEncoder
from ..runs import checkpoint
from ..weights.load import load_encoder, untrained_like
from .extract import Features, extract_all
from .views import Views, test_size


@dataclass
class Task:
    """Lists with their classes numbered together, and the encoders to compare, by their row's name."""

    train: list[Video]
    test: list[Video]
    sources: dict[str, str]  # train, test: as given
    classes: list[str]
    ids: dict[str, list[int]]  # train, test: the class of each row
    views: Views
    checkpoint: str
    encoders: dict[str, FrozenEncoder]

    @property
    def test_name(self) -> str:
        return Path(self.sources["test"]).stem

    def labels(self, found: Features, split: str) -> Tensor:
        """Return the classes int64 [N] of the videos that could be read."""
        return torch.tensor([self.ids[split][row] for row in found.rows])


def prepare(cfg: EncoderOptions, train: str, test: str) -> Task:
    """Read the lists and load the encoders; say on stderr what makes results on these lists doubtful."""
    encoder = load_encoder(cfg.checkpoint, cfg.backbone or None)
    lists = [
        loader.read_videos(source, split=split, root=cfg.root, labels=cfg.labels.value, known_health=cfg.health)
        for source, split in ((train, "train"), (test, "val"))
    ]
    classes, ids = manifest.label_ids(*lists)
    warn(manifest.compare(*lists))
    if distributed.rank() == 0:
        print(encoder.report, file=sys.stderr)
    untrained = untrained_like(encoder, seed=cfg.seed)
    return Task(
        train=lists[0],
        test=lists[1],
        sources={"train": train, "test": test},
        classes=classes,
        ids={"train": ids[0], "test": ids[1]},
        views=views_of(cfg, encoder),
        checkpoint=str(cfg.checkpoint),
        encoders={"checkpoint": encoder, "random weights": untrained},
    )


def views_of(cfg: EncoderOptions, encoder: FrozenEncoder) -> Views:
    """Return the views: as given, else as in pretraining (crops 8/7 of its size)."""
    return Views(
        clips_per_video=cfg.clips_per_video,
        num_crops=cfg.num_crops,
        num_frames=cfg.num_frames or int(encoder.clip["num_frames"]),
        clip_seconds=cfg.clip_seconds or encoder.clip["clip_seconds"],
        size=cfg.size or test_size(int(encoder.clip["size"])),
    )


def extract(
    task: Task, cfg: EncoderOptions, device: torch.device, *, kinds: Sequence[str]
) -> dict[str, tuple[Features, Features]]:
    """Return for each encoder the features of the train and of the test list; every video is decoded once at most."""
    networks = [encoder.to(device) for encoder in task.encoders.values()]
    lists = [
        extract_all(
            networks,
            videos,
            task.views,
            device=device,
            kinds=kinds,
            decoder=cfg.decoder.value,
            workers=loader.share_cores(device, cfg.workers),
            cached=cfg.cache,
            title=f"{name} list",
        )
        for name, videos in (("train", task.train), ("test", task.test))
    ]
    if distributed.rank() == 0:
        decoded = sum(max(part.decoded for part in parts) for parts in lists)
        total = sum(len(parts[0].rows) for parts in lists)
        print(f"{decoded} of {total} videos decoded, the others known from earlier runs", file=sys.stderr)
    return dict(zip(task.encoders, zip(*lists, strict=True), strict=True))  # type: ignore[arg-type]


def describe(task: Task) -> dict[str, Any]:
    """Return what was compared, for the JSON file."""
    return {
        "checkpoint": task.checkpoint,
        "backbone": task.encoders["checkpoint"].name,
        "train": {"list": task.sources["train"], "videos": len(task.train)},
        "test": {"list": task.sources["test"], "videos": len(task.test)},
        "classes": len(task.classes),
        "views": vars(task.views),
    }


def counted(train: Features, test: Features) -> dict[str, Any]:
    """Return how many videos were scored, and which could not be read."""
    return {
        "scored": {"train": len(train.rows), "test": len(test.rows)},
        "unreadable": sorted({failure.path for failure in (*train.failures, *test.failures)}),
    }


def headline(result: dict[str, Any]) -> str:
    """Return a line that says what was compared."""
    views = result["views"]
    return (
        f"{result['test']['videos']} test videos, {result['train']['videos']} training videos, {result['classes']} "
        f"classes; {result['backbone']}, {views['clips_per_video']} clips x {views['num_crops']} crops, "
        f"{views['num_frames']} frames of {views['size']} px"
    )


def scored(result: dict[str, Any], row: dict[str, Any]) -> str:
    """Return `scored/listed` of the test and the train list."""
    return ", ".join(f"{row['scored'][split]}/{result[split]['videos']}" for split in ("test", "train"))


def print_unreadable(result: dict[str, Any]) -> None:
    """Name on stderr the videos that no row counts."""
    for path in result["rows"]["checkpoint"]["unreadable"]:
        print(f"not scored, unreadable: {path}", file=sys.stderr)


def output_file(out: str, source: str, stem: str) -> Path:
    """Return where a result goes; a file that exists is never written over.

    out: as given; empty: `stem`.json beside the checkpoints, numbered if there is one already.
    Raises InputError, before anything is computed, if it could not be written there.
    """
    if out:
        return new_file(Path(out))
    path = Path(source)
    folder = path.parent if path.is_file() else checkpoint.find(path).parent.parent
    names = [f"{stem}.json", *(f"{stem}_{number}.json" for number in range(2, 10_000))]
    return new_file(next(folder / name for name in names if not (folder / name).exists()))


def new_file(path: Path) -> Path:
    """Return the path of a file that is to be written, its folder made; InputError if it exists or cannot be written."""
    if path.exists():
        raise InputError(f"out={path} exists: choose another file, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError(f"{path.parent} cannot be written: give out=, a file in a folder of yours")
    return path


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result and say where."""
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path}")
