"""Shared by the programs that score frozen features: read two labelled lists, compare two encoders, write one table.

The second encoder is the same network with random weights, the baseline of every table.
"""

from __future__ import annotations

import os
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
from ..errors import InputError, log
from ..models.encoder import FrozenEncoder
from ..runs import checkpoint
from ..runs.files import to_json, write_atomically
from ..weights.load import load_encoder, untrained_like
from .extract import Features, extract_all
from .views import Views, choose_counts, test_size


@dataclass
class Task:
    """Two lists with a joint numbering of their classes, and the encoders to compare by row name."""

    train: list[Video]
    test: list[Video]
    sources: dict[str, str]  # train, test: the options' values
    classes: list[str]
    ids: dict[str, list[int]]  # train, test: the class of each row
    views: Views
    checkpoint: str
    encoders: dict[str, FrozenEncoder]

    @property
    def test_name(self) -> str:
        return Path(self.sources["test"]).stem

    def labels(self, found: Features, split: str) -> Tensor:
        """Return the classes int64 [N] of the readable videos."""
        return torch.tensor([self.ids[split][row] for row in found.rows])


def prepare(cfg: EncoderOptions, train: str, test: str) -> Task:
    """Read the lists, warn on stderr about doubtful ones, and load the encoders."""
    encoder = load_encoder(
        cfg.checkpoint, cfg.backbone or None, trust=cfg.trust, key=cfg.weights.key, branch=cfg.weights.branch.value
    )
    lists = [
        loader.read_videos(source, split=split, root=cfg.root, labels=cfg.labels.value, known_health=cfg.health)
        for source, split in ((train, "train"), (test, "val"))
    ]
    classes, ids = manifest.label_ids(*lists)
    warn(manifest.compare(*lists))
    if distributed.rank() == 0:
        log.info(encoder.report)
    untrained = untrained_like(encoder, seed=cfg.seed)
    views = choose_views(cfg, encoder)
    manifest.warn_of_short([*lists[0], *lists[1]], views.clip_seconds)
    return Task(
        train=lists[0],
        test=lists[1],
        sources={"train": train, "test": test},
        classes=classes,
        ids={"train": ids[0], "test": ids[1]},
        views=views,
        checkpoint=str(cfg.checkpoint),
        encoders={"checkpoint": encoder, "random weights": untrained},
    )


def choose_views(cfg: EncoderOptions, encoder: FrozenEncoder) -> Views:
    """Return the views of the options, by default those of pretraining with crops of 8/7 of its size."""
    seconds = cfg.clip_seconds or encoder.clip["clip_seconds"]
    return Views(
        *choose_counts(cfg.clips_per_video, cfg.num_crops, seconds),
        num_frames=cfg.num_frames or int(encoder.clip["num_frames"]),
        clip_seconds=seconds,
        size=cfg.size or test_size(int(encoder.clip["size"])),
        precision=cfg.precision.value,
    )


def extract(
    task: Task, cfg: EncoderOptions, device: torch.device, *, kinds: Sequence[str]
) -> dict[str, tuple[Features, Features]]:
    """Return each encoder's features of the train and the test list. Decodes each video at most once."""
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
        log.info(f"{decoded} of {total} videos decoded, the others read from the cache")
    return dict(zip(task.encoders, zip(*lists, strict=True), strict=True))  # type: ignore[arg-type]


def describe(task: Task) -> dict[str, Any]:
    """Return the checkpoint, lists and views as entries of the JSON file."""
    return {
        "checkpoint": task.checkpoint,
        "backbone": task.encoders["checkpoint"].name,
        "train": {"list": task.sources["train"], "videos": len(task.train)},
        "test": {"list": task.sources["test"], "videos": len(task.test)},
        "classes": len(task.classes),
        "views": vars(task.views),
    }


def count_videos(train: Features, test: Features) -> dict[str, Any]:
    """Return the numbers of scored videos and the paths of the unreadable ones."""
    return {
        "scored": {"train": len(train.rows), "test": len(test.rows)},
        "unreadable": sorted({failure.path for failure in (*train.failures, *test.failures)}),
    }


def format_headline(result: dict[str, Any]) -> str:
    """Return the first line of a table: the lists, the network and the views."""
    views = result["views"]
    return (
        f"{result['test']['videos']} test videos, {result['train']['videos']} training videos, {result['classes']} "
        f"classes; {result['backbone']}, {views['clips_per_video']} clips x {views['num_crops']} crops, "
        f"{views['num_frames']} frames of {views['size']} px"
    )


def format_counts(result: dict[str, Any], row: dict[str, Any]) -> str:
    """Return `scored/listed` of the test and the train list."""
    return ", ".join(f"{row['scored'][split]}/{result[split]['videos']}" for split in ("test", "train"))


def print_unreadable(result: dict[str, Any]) -> None:
    """Print the unreadable videos to stderr."""
    for path in result["rows"]["checkpoint"]["unreadable"]:
        log.info(f"not scored, unreadable: {path}")


def choose_output_file(out: str, source: str, stem: str, ending: str = ".json") -> Path:
    """Return the path of the result file. Never overwrites a file.

    out: the option's value; empty: `stem` and `ending` beside the checkpoints, numbered if that exists.
    Raises InputError if the file cannot be written.
    """
    if out:
        return create_folder_for(Path(out))
    path = Path(source)
    folder = path.parent if path.is_file() else checkpoint.find(path).parent.parent
    names = [f"{stem}{ending}", *(f"{stem}_{number}{ending}" for number in range(2, 10_000))]
    return create_folder_for(next(folder / name for name in names if not (folder / name).exists()))


def create_folder_for(path: Path) -> Path:
    """Create the folder of a new file and return its path. Raises InputError if it exists or cannot be written."""
    if path.exists():
        raise InputError(f"out={path} exists: choose another file, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError(f"{path.parent} cannot be written: give out= a file in a writable folder")
    return path


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result and print its path."""
    write_atomically(path, to_json(result) + "\n")
    print(f"written: {path}")
