"""A run with labels as one object: set up with every check before the first write, saved, and resumed.

What counts is in the checkpoint: the classifier with its batch-norm statistics, optimiser, scaler, step, and the best
validation so far; its weights are kept apart in `best/`. All draws are keyed by (seed, epoch, row), so nothing else is
needed to continue exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from . import __version__, augmenting, checkpoint, distributed, encoders, optim
from .command_line import check_run_folder, start_run_folder
from .config import Precision
from .data import loader, manifest
from .data.dataset import Batch, ClipDataset, RandomScaled
from .data.manifest import Video
from .errors import InputError
from .evaluation_config import FinetuneConfig, Select
from .log import SkippedVideos, warn
from .models.encoder import Classifier, FrozenEncoder
from .multi_view import Views, test_size
from .run import check_precision, restore, training_state


@dataclass
class Lists:
    """The labelled lists, their classes numbered together."""

    videos: dict[str, list[Video]]  # train, test and, if given, val
    ids: dict[str, list[int]]
    classes: list[str]


@dataclass
class FinetuneRun:
    """What is set up once and used in every step."""

    cfg: FinetuneConfig
    device: torch.device
    folder: Path
    lists: Lists
    encoder: FrozenEncoder  # name, normalisation and clip length; its backbone is the classifier's
    clip: dict[str, float]  # num_frames, clip_seconds, size
    augment: augmenting.Augmenter
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    skipped: SkippedVideos
    workers: int  # decoding processes
    steps_per_epoch: int
    total_steps: int
    step: int = 0  # optimiser steps taken
    best_top1: float = -1.0  # of the list that selects
    best_step: int = 0

    @property
    def selecting(self) -> str | None:
        """The list that is looked at while training: it selects, or is only watched; None if there is none."""
        if self.cfg.testing.select is Select.test:
            return "test"
        return "val" if "val" in self.lists.videos else None

    def views(self, *, quick: bool = False) -> Views:
        """Return the views for testing: the full protocol, or one clip's centre crop."""
        testing = self.cfg.testing
        return Views(
            clips_per_video=1 if quick else testing.clips_per_video,
            num_crops=1 if quick else testing.num_crops,
            num_frames=int(self.clip["num_frames"]),
            clip_seconds=self.clip["clip_seconds"],
            size=testing.size or test_size(int(self.clip["size"])),
        )


def set_up(cfg: FinetuneConfig, device: torch.device) -> FinetuneRun:
    """Check everything, build everything, load the newest checkpoint; the first thing written is the run folder."""
    folder = Path(cfg.out or f"runs/finetune_{cfg.name}")
    known = check_run_folder(folder, cfg)
    check_precision(cfg.optim.precision, device)
    encoder = load_or_build(cfg)
    clip = {
        "num_frames": cfg.data.num_frames or encoder.clip["num_frames"],
        "clip_seconds": cfg.data.clip_seconds or encoder.clip["clip_seconds"],
        "size": cfg.augment.size or encoder.clip["size"],
    }
    boxes(cfg, int(clip["size"]))  # refuses misfits
    cfg.augment.view.check_size(int(clip["size"]), "augment.view")
    lists = read_lists(cfg)
    train = lists.videos["train"]
    steps_per_epoch = len(train) // cfg.optim.batch
    loader.steps(len(train), cfg.seed, cfg.optim.batch, cfg.optim.accumulate, 0, steps_per_epoch)  # refuses misfits
    loader.check_readable(train, seed=cfg.seed, decoder=cfg.data.decoder.value)
    workers = loader.share_cores(device, cfg.system.workers)
    classifier = build_classifier(cfg, encoder, clip, len(lists.classes), device)
    run = FinetuneRun(
        cfg=cfg,
        device=device,
        folder=folder,
        lists=lists,
        encoder=encoder,
        clip=clip,
        augment=build_augmenter(cfg, encoder, clip, device, steps_per_epoch * cfg.optim.epochs * cfg.optim.batch),
        classifier=classifier,
        optimizer=build_optimizer(cfg, classifier),
        scaler=torch.amp.GradScaler(device.type, enabled=cfg.optim.precision is Precision.fp16),
        skipped=SkippedVideos(folder, len(train), cfg.data.max_bad_fraction),
        workers=workers,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * cfg.optim.epochs,
    )
    resume(run)
    distributed.barrier()  # nobody looks at the folder any more
    if distributed.rank() == 0 and not known:
        start_run_folder(folder, cfg)
    return run


def load_or_build(cfg: FinetuneConfig) -> FrozenEncoder:
    """Return the encoder to start from: the checkpoint's, its network with random weights, or one from scratch."""
    if cfg.checkpoint:
        encoder = encoders.load_encoder(cfg.checkpoint, cfg.backbone or None)
        return encoders.untrained_like(encoder, seed=cfg.seed) if cfg.model.random_weights else encoder
    clip = {
        "num_frames": cfg.data.num_frames,
        "clip_seconds": cfg.data.clip_seconds,
        "size": cfg.augment.size,
    }
    usual = encoders.USUAL
    return encoders.untrained_encoder(cfg.backbone, seed=cfg.seed, mean=usual["mean"], std=usual["std"], clip=clip)


def build_augmenter(
    cfg: FinetuneConfig, encoder: FrozenEncoder, clip: dict[str, float], device: torch.device, clips: int
) -> augmenting.Augmenter:
    """Return what augments this run's clips, of all processes together."""
    return augmenting.build(
        [cfg.augment.view],
        cfg.system,
        num_frames=int(clip["num_frames"]),
        size=int(clip["size"]),
        mean=encoder.mean,
        std=encoder.std,
        antialias=cfg.augment.antialias,
        device=device,
        clips=clips // distributed.world_size(),
    )


def read_lists(cfg: FinetuneConfig) -> Lists:
    """Read the lists and number their classes; doubts about them are printed.

    Raises InputError if a class of the test or val list has no training video: it could never be predicted.
    """
    sources = {"train": cfg.train, "test": cfg.test} | ({"val": cfg.val} if cfg.val else {})
    videos = {
        name: loader.read_videos(
            source, split="train" if name == "train" else "val", root=cfg.root, labels=cfg.labels.value
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


def build_classifier(
    cfg: FinetuneConfig, encoder: FrozenEncoder, clip: dict[str, float], num_classes: int, device: torch.device
) -> Classifier:
    """Put a linear layer on the encoder's backbone; equal on all ranks, batch norms synchronised where trained."""
    with torch.no_grad():
        size = int(clip["size"])
        width = encoder(torch.zeros(1, 3, int(clip["num_frames"]), size, size)).shape[1]
    torch.manual_seed(cfg.seed)  # for the linear layer's weights only: all else draws from keyed generators
    classifier = Classifier(
        encoder.backbone,
        width,
        num_classes,
        dropout=cfg.model.dropout,
        frozen=cfg.model.frozen,
        freeze_norm=cfg.model.freeze_norm,
    ).to(device)
    if not cfg.model.frozen:
        distributed.synchronise_batch_norm(classifier, device)
    distributed.broadcast_module(classifier)
    return classifier.train()


def build_optimizer(cfg: FinetuneConfig, classifier: Classifier) -> torch.optim.Optimizer:
    """Build the optimiser over what is trained, stage by stage where layer_decay is not 1."""
    options = cfg.optim
    if options.layer_decay == 1.0:
        groups = optim.without_decay_on_vectors(classifier.parameters(), options.weight_decay)
    else:
        groups = optim.by_depth(classifier.stages(), options.weight_decay, options.layer_decay)
    return optim.build(
        options.name.value,
        groups,
        lr=options.lr,
        momentum=options.momentum,
        trust_coefficient=options.trust_coefficient,
    )


def boxes(cfg: FinetuneConfig, size: int) -> RandomScaled:
    """Return what draws the part of the frame that a clip shows; InputError if the short sides do not fit the crop."""
    low = cfg.augment.short_side_min or round(size * 8 / 7)
    high = cfg.augment.short_side_max or round(size * 10 / 7)
    if not size <= low <= high:
        raise InputError(
            f"augment.short_side_min..short_side_max ({low}..{high}) must begin at augment.size ({size}) or above"
        )
    return RandomScaled(size=size, short_sides=(low, high))


def load_batches(run: FinetuneRun) -> DataLoader[Batch]:
    """Return the loader of the micro-batches that are left."""
    cfg, train = run.cfg, run.lists.videos["train"]
    dataset = ClipDataset(
        train,
        num_views=1,
        num_frames=int(run.clip["num_frames"]),
        clip_seconds=run.clip["clip_seconds"],
        draw_box=boxes(cfg, int(run.clip["size"])),
        speed=(cfg.data.speed_min, cfg.data.speed_max),
        frame_jitter=cfg.data.frame_jitter,
        seed=cfg.seed,
        decoder=cfg.data.decoder.value,
    )
    sampler = loader.steps(len(train), cfg.seed, cfg.optim.batch, cfg.optim.accumulate, run.step, run.total_steps)
    return loader.build(dataset, sampler, workers=run.workers, pin_memory=run.device.type == "cuda")


def save(run: FinetuneRun, *, folder: str = "checkpoints", keep: int) -> None:
    """Write a checkpoint of everything that counts."""
    state = training_state(run.classifier, run.optimizer, run.scaler)
    meta = {
        "version": __version__,
        "torch": torch.__version__,
        "videos": len(run.lists.videos["train"]),
        "classes": run.lists.classes,
        "best_top1": run.best_top1,
        "best_step": run.best_step,
        "encoder": {"backbone": run.encoder.name, "mean": run.encoder.mean, "std": run.encoder.std, **run.clip},
    }
    checkpoint.save(run.folder / folder, run.step, state, meta, keep=keep)


def resume(run: FinetuneRun) -> None:
    """Load the newest whole checkpoint of the run folder, if there is one."""
    found = checkpoint.load_newest(run.folder / "checkpoints")
    if found is None:
        return
    state, meta = found
    expected = {"videos": len(run.lists.videos["train"]), "classes": run.lists.classes}
    for what, value in expected.items():
        if meta[what] != value:
            raise InputError(
                f"{run.cfg.train} is not the list that the run in {run.folder} began with ({what}: {_short(meta[what])} "
                f"then, {_short(value)} now): restore the list, or choose another out="
            )
    restore(state, run.classifier, run.optimizer, run.scaler)
    run.step, run.best_top1, run.best_step = meta["step"], meta["best_top1"], meta["best_step"]


def load_best(run: FinetuneRun) -> None:
    """Put the weights of the best validation into the classifier."""
    found = checkpoint.load_newest(run.folder / "best")
    if found is None:
        raise InputError(f"{run.folder / 'best'} holds no checkpoint: it was moved away")
    run.classifier.load_state_dict(found[0]["method"])


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{len(value)} classes, {', '.join(map(str, value[:3]))}, ..."
    return str(value)
