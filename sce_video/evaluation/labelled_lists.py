"""Read the lists that finetuning trains and tests on, and number their classes jointly."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.finetune import FinetuneConfig
from ..data import loader, manifest
from ..data.manifest import Video
from ..distributed import warn
from ..errors import InputError


@dataclass
class Lists:
    """Labelled lists with a joint numbering of their classes."""

    videos: dict[str, list[Video]]  # train, test and, if given, val
    ids: dict[str, list[int]]
    classes: list[str]


def read_lists(cfg: FinetuneConfig) -> Lists:
    """Read the lists, number their classes, and warn about doubtful lists.

    Raises InputError if a class of the test or val list has no training video: it can never be predicted.
    """
    sources = {"train": cfg.train, "test": cfg.test} | ({"val": cfg.val} if cfg.val else {})
    videos = {
        name: loader.read_videos(
            source,
            split="train" if name == "train" else "val",
            root=cfg.root,
            labels=cfg.labels.value,
            known_health=cfg.data.health,
            training=name == "train",
        )
        for name, source in sources.items()
    }
    classes, ids = manifest.label_ids(*videos.values())
    trained = {video.label for video in videos["train"]}
    for name in videos:
        if unknown := sorted({str(video.label) for video in videos[name]} - {str(label) for label in trained}):
            raise InputError(
                f"{len(unknown)} classes of {sources[name]} have no video in {cfg.train}, e.g. {unknown[0]!r}, where the "
                f"classes are {sorted(str(label) for label in trained)[:3]}...: the lists do not belong together"
            )
        if name != "train":
            warn(manifest.compare(videos["train"], videos[name]))
    return Lists(videos, dict(zip(videos, ids, strict=True)), classes)
