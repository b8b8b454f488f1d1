"""A run with labels as one object: set up with every check before the first write, saved, and resumed.

What counts is in the checkpoint: the classifier with its batch-norm statistics, optimiser, scaler, step, and the best
validation so far; its weights are kept apart in `best/`. All draws are keyed by (seed, epoch, row), so nothing else is
needed to continue exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__, distributed
from ..config.finetune import FinetuneConfig, Select
from ..config.shared import Precision, ResizeOn
from ..data import loader
from ..data.dataset import ClipDataset, RandomScaled
from ..data.workers import Batches
from ..errors import InputError
from ..evaluation.labelled_lists import Lists, read_lists
from ..evaluation.views import Views, test_size
from ..models.encoder import Classifier, FrozenEncoder
from ..runs import checkpoint
from ..runs.background_save import Saver
from ..runs.folder import RunFolder
from ..runs.rank_check import check_ranks_are_equal, together
from ..weights import load
from . import augmenter, optim
from .log import SkippedVideos
from .setup import EXCHANGED, QUARANTINE, as_planes, check_precision, check_summable, restore, training_state
from .update import Updates


@dataclass
class FinetuneRun:
    """What is set up once and used in every step."""

    cfg: FinetuneConfig
    device: torch.device
    place: RunFolder
    lists: Lists
    encoder: FrozenEncoder  # name, normalisation and clip length; its backbone is the classifier's
    clip: dict[str, float]  # num_frames, clip_seconds, size
    augment: augmenter.Augmenter
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    skipped: SkippedVideos
    updates: Updates
    workers: int  # decoding processes
    steps_per_epoch: int
    total_steps: int
    step: int = 0  # batches trained on
    best_top1: float = -1.0  # of the list that selects
    best_step: int = 0

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.place.path

    @property
    def taken(self) -> int:
        """Optimiser steps taken: the clock of the schedule. Less than `step` where updates were skipped."""
        return self.step - self.updates.skipped

    def saver(self, report: Callable[[str], None]) -> Saver:
        """Return what writes the checkpoints; `report` gets a line about a failed one."""
        return Saver(keep=self.cfg.system.keep, keep_every=self.cfg.system.keep_every, report=report)

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


def set_up(cfg: FinetuneConfig, device: torch.device, place: RunFolder) -> FinetuneRun:
    """Check everything, build everything, load the newest checkpoint; the first thing written is the run folder."""
    check_precision(cfg.optim.precision, device)
    check_summable(EXCHANGED[cfg.optim.exchange], device)
    encoder = load_or_build(cfg)
    clip = {
        "num_frames": cfg.data.num_frames or encoder.clip["num_frames"],
        "clip_seconds": cfg.data.clip_seconds or encoder.clip["clip_seconds"],
        "size": cfg.augment.size or encoder.clip["size"],
    }
    boxes(cfg, int(clip["size"]))  # refuses misfits
    cfg.augment.view.check_size(int(clip["size"]), "augment.view")
    with together():
        lists = read_lists(cfg)
        loader.check_readable(lists.videos["train"], seed=cfg.seed, decoder=cfg.data.decoder.value)
    train = lists.videos["train"]
    steps_per_epoch = len(train) // cfg.optim.batch
    loader.steps(len(train), cfg.seed, cfg.optim.batch, cfg.optim.accumulate, 0, steps_per_epoch)  # refuses misfits
    workers = loader.share_cores(device, cfg.system.workers)
    classifier = build_classifier(cfg, encoder, clip, len(lists.classes), device)
    run = FinetuneRun(
        cfg=cfg,
        device=device,
        place=place,
        lists=lists,
        encoder=encoder,
        clip=clip,
        augment=build_augmenter(cfg, encoder, clip, device, steps_per_epoch * cfg.optim.epochs * cfg.optim.batch),
        classifier=classifier,
        optimizer=build_optimizer(cfg, classifier),
        scaler=torch.amp.GradScaler(device.type, enabled=cfg.optim.precision is Precision.fp16),
        skipped=SkippedVideos(place.path, len(train), cfg.data.max_bad_fraction),
        updates=Updates(place.path, classifier),
        workers=workers,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * cfg.optim.epochs,
    )
    resume(run)
    check_ranks_are_equal(classifier.state_dict(), run.step)
    place.begin(run.step, run.total_steps)
    return run


def load_or_build(cfg: FinetuneConfig) -> FrozenEncoder:
    """Return the encoder to start from: the checkpoint's, its network with random weights, or one from scratch."""
    if cfg.checkpoint:
        encoder = load.load_encoder(cfg.checkpoint, cfg.backbone or None)
        return load.untrained_like(encoder, seed=cfg.seed) if cfg.model.random_weights else encoder
    clip = {
        "num_frames": cfg.data.num_frames,
        "clip_seconds": cfg.data.clip_seconds,
        "size": cfg.augment.size,
    }
    usual = load.USUAL
    return load.untrained_encoder(cfg.backbone, seed=cfg.seed, mean=usual["mean"], std=usual["std"], clip=clip)


def build_augmenter(
    cfg: FinetuneConfig, encoder: FrozenEncoder, clip: dict[str, float], device: torch.device, clips: int
) -> augmenter.Augmenter:
    """Return what augments this run's clips, of all processes together."""
    return augmenter.build(
        [cfg.augment.view],
        [int(clip["size"])],
        cfg.system,
        num_frames=int(clip["num_frames"]),
        mean=encoder.mean,
        std=encoder.std,
        antialias=cfg.augment.antialias,
        device=device,
        clips=clips // distributed.world_size(),
    )[0]


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


def load_batches(run: FinetuneRun) -> Batches:
    """Return the micro-batches that are left."""
    cfg, train = run.cfg, run.lists.videos["train"]
    dataset = ClipDataset(
        train,
        num_frames=int(run.clip["num_frames"]),
        clip_seconds=run.clip["clip_seconds"],
        draw_boxes=[boxes(cfg, int(run.clip["size"]))],
        speed=(cfg.data.speed_min, cfg.data.speed_max),
        frame_jitter=cfg.data.frame_jitter,
        seed=cfg.seed,
        decoder=cfg.data.decoder.value,
        loop_filter=cfg.data.loop_filter.value,
        planes=as_planes(cfg.data.transport, run.device),
        resize_to=[int(run.clip["size"])] if cfg.data.resize_on is ResizeOn.worker else None,
        antialias=cfg.augment.antialias,
    )
    sampler = loader.steps(len(train), cfg.seed, cfg.optim.batch, cfg.optim.accumulate, run.step, run.total_steps)
    return loader.build(
        dataset,
        sampler,
        workers=run.workers,
        pin_memory=run.device.type == "cuda",
        read_timeout=cfg.system.read_timeout,
        worker_videos=cfg.system.worker_videos,
        quarantine=run.folder / QUARANTINE,
    )


def save(run: FinetuneRun, saver: Saver, *, folder: str = "checkpoints", keep: int = 0) -> None:
    """Have a checkpoint written of everything that counts. Called by rank 0."""
    state = training_state(run.classifier, run.optimizer, run.scaler)
    meta = {
        "version": __version__,
        "torch": torch.__version__,
        "videos": len(run.lists.videos["train"]),
        "classes": run.lists.classes,
        "best_top1": run.best_top1,
        "best_step": run.best_step,
        "updates": run.updates.state(),
        "encoder": {"backbone": run.encoder.name, "mean": run.encoder.mean, "std": run.encoder.std, **run.clip},
    }
    saver.save(run.folder / folder, run.step, state, meta, keep=keep)


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
    run.updates.resume(meta["updates"])
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
