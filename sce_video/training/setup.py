"""A pretraining run as one object: set up with every check before the first write, saved, and resumed.

What counts is in the checkpoint: online and target network with their batch-norm statistics, queue and pointer,
optimiser, scaler, step. The order of the data and the schedules are functions of the step, so nothing else is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__, distributed
from ..config.pretrain import PretrainConfig
from ..config.shared import Exchange, Precision, ResizeOn, Transport
from ..data import loader
from ..data.dataset import ClipDataset, RandomResized
from ..data.manifest import Video
from ..data.workers import Batches
from ..errors import InputError
from ..runs import checkpoint
from ..runs.background_save import Saver
from ..runs.folder import RunFolder
from ..runs.rank_check import check_ranks_are_equal, together
from . import augmenter, optim
from .log import SkippedVideos
from .monitor import CollapseAlarm, Monitor
from .update import Updates

EXCHANGED = {Exchange.fp32: torch.float32, Exchange.bf16: torch.bfloat16}
QUARANTINE = "quarantine.jsonl"
AUTOCAST = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


@dataclass
class Run:
    """What is set up once and used in every step."""

    cfg: PretrainConfig
    device: torch.device
    place: RunFolder
    videos: list[Video]
    steps_per_epoch: int
    total_steps: int
    augment: list[augmenter.Augmenter]  # one per view
    method: Any  # see methods: online, forward, after_step
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    monitor: Monitor | None
    skipped: SkippedVideos
    updates: Updates
    alarm: CollapseAlarm
    workers: int  # decoding processes
    step: int = 0  # batches trained on
    untrained: dict[str, float] = field(default_factory=dict)  # what the monitor scored before the first

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.place.path

    @property
    def taken(self) -> int:
        """Optimiser steps taken: the clock of all schedules. Less than `step` where updates were skipped."""
        return self.step - self.updates.skipped

    def saver(self, report: Callable[[str], None]) -> Saver:
        """Return what writes the checkpoints; `report` gets a line about a failed one."""
        return Saver(keep=self.cfg.system.keep, keep_every=self.cfg.system.keep_every, report=report)


def set_up(
    cfg: PretrainConfig, build_method: Callable[[PretrainConfig], Any], device: torch.device, place: RunFolder
) -> Run:
    """Check everything, build everything, load the newest checkpoint; the first thing written is the run folder."""
    check_summable(EXCHANGED[cfg.optim.exchange], device)
    with together():
        check_precision(cfg.optim.precision, device)
        videos = loader.read_videos(
            cfg.data.train, split="train", root=cfg.data.root, known_health=cfg.data.health, training=True
        )
        loader.check_readable(videos, seed=cfg.seed, decoder=cfg.data.decoder.value)
    steps_per_epoch = len(videos) // cfg.optim.batch
    loader.steps(
        len(videos), cfg.seed, cfg.optim.batch, cfg.optim.accumulate, 0, steps_per_epoch
    )  # refuses a batch that does not fit the data or the processes
    workers = loader.share_cores(device, cfg.system.workers)
    monitor = build_monitor(cfg, device, workers)

    torch.manual_seed(cfg.seed)  # for initial weights only: all else draws from keyed generators
    method: Any = distributed.synchronise_batch_norm(build_method(cfg).to(device), device)
    distributed.broadcast_module(method)
    optimizer = optim.build(
        cfg.optim.name.value,
        optim.without_decay_on_vectors(method.online.parameters(), cfg.optim.weight_decay),
        lr=cfg.optim.lr,
        momentum=cfg.optim.momentum,
        trust_coefficient=cfg.optim.trust_coefficient,
    )
    run = Run(
        cfg=cfg,
        device=device,
        place=place,
        videos=videos,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * cfg.optim.epochs,
        augment=build_augmenters(cfg, device, steps_per_epoch * cfg.optim.epochs * cfg.optim.batch),
        method=method,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=cfg.optim.precision is Precision.fp16),
        monitor=monitor,
        skipped=SkippedVideos(place.path, len(videos), cfg.data.max_bad_fraction),
        updates=Updates(place.path, method),
        alarm=CollapseAlarm(cfg.monitor.collapse_std, cfg.monitor.collapse_steps, stop=cfg.monitor.stop_on_collapse),
        workers=workers,
    )
    resume(run)
    check_ranks_are_equal(method.state_dict(), run.step)
    place.begin(run.step, run.total_steps)
    return run


def build_augmenters(cfg: PretrainConfig, device: torch.device, clips: int) -> list[augmenter.Augmenter]:
    """Return what augments each view, of which all processes together have so many clips."""
    return augmenter.build(
        cfg.augment.views,
        cfg.augment.sizes,
        cfg.system,
        num_frames=cfg.data.num_frames,
        mean=cfg.augment.mean,
        std=cfg.augment.std,
        antialias=cfg.augment.antialias,
        device=device,
        clips=clips // distributed.world_size(),
    )


def save(run: Run, saver: Saver) -> None:
    """Have a checkpoint written of everything that counts. Called by rank 0."""
    state = training_state(run.method, run.optimizer, run.scaler)
    meta = {
        "version": __version__,
        "torch": torch.__version__,
        "videos": len(run.videos),
        "untrained": run.untrained,
        "updates": run.updates.state(),
        "encoder": {"backbone": run.cfg.model.backbone, "mean": run.cfg.augment.mean, "std": run.cfg.augment.std}
        | clip(run.cfg),
    }
    saver.save(run.folder / "checkpoints", run.step, state, meta)


def resume(run: Run) -> None:
    """Load the newest whole checkpoint of the run folder, if there is one."""
    found = checkpoint.load_newest(run.folder / "checkpoints")
    if found is None:
        return
    state, meta = found
    if meta["videos"] != len(run.videos):
        raise InputError(
            f"{run.cfg.data.train} lists {len(run.videos)} videos, the run in {run.folder} began with {meta['videos']}: "
            "the order of the data would change; restore the list, or choose another out="
        )
    restore(state, run.method, run.optimizer, run.scaler)
    run.step, run.untrained = meta["step"], meta["untrained"]
    run.updates.resume(meta["updates"])


def settle(place: RunFolder, saver: Saver) -> None:
    """Wait until the last checkpoint is written: others read it, and torchrun ends all ranks once one has left."""
    place.pause()
    saver.finish()
    distributed.barrier()


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise InputError for half precision on a CPU."""
    if precision is not Precision.fp32 and device.type != "cuda":
        # torch's CPU convolutions give now and then non-finite gradients in bfloat16 (seen with 2.11 and 2.15).
        raise InputError(f"optim.precision={precision.value} needs a GPU: add optim.precision=fp32")


def check_summable(dtype: torch.dtype, device: torch.device) -> None:
    """Raise InputError where gradients of this type cannot be summed over processes. All ranks call it."""
    if not distributed.can_sum(dtype, device):
        name = str(dtype).removeprefix("torch.")
        raise InputError(f"optim.exchange: these processes cannot sum {name} on {device.type}: use optim.exchange=fp32")


def training_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> checkpoint.State:
    """Return what training changes, for a checkpoint; `restore` puts it back."""
    return {"method": module.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}


def restore(
    state: checkpoint.State, module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Put what `training_state` returned back. Raises InputError if a part is missing or does not fit, e.g. the queue."""
    try:
        module.load_state_dict(state["method"])
    except RuntimeError as error:
        raise InputError(f"the checkpoint does not fit this network: {error}; choose another out=") from error
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])


def build_dataset(cfg: PretrainConfig, videos: list[Video], device: torch.device) -> ClipDataset:
    """Return the views of the videos, as they reach the device."""
    local, ratio = cfg.augment.local, (cfg.augment.ratio_min, cfg.augment.ratio_max)
    box = RandomResized(area=(cfg.augment.area_min, cfg.augment.area_max), ratio=ratio)
    local_box = RandomResized(area=(local.area_min, local.area_max), ratio=ratio)
    return ClipDataset(
        videos,
        num_frames=cfg.data.num_frames,
        clip_seconds=cfg.data.clip_seconds,
        draw_boxes=[box, box, *[local_box] * local.views],
        difference_probability=cfg.augment.temporal_difference_probability,
        speed=(cfg.data.speed_min, cfg.data.speed_max),
        frame_jitter=cfg.data.frame_jitter,
        seed=cfg.seed,
        decoder=cfg.data.decoder.value,
        loop_filter=cfg.data.loop_filter.value,
        planes=as_planes(cfg.data.transport, device),
        resize_to=cfg.augment.sizes if cfg.data.resize_on is ResizeOn.worker else None,
        antialias=cfg.augment.antialias,
    )


def load_batches(run: Run) -> Batches:
    """Return the micro-batches that are left."""
    cfg = run.cfg
    return loader.build(
        build_dataset(cfg, run.videos, run.device),
        loader.steps(len(run.videos), cfg.seed, cfg.optim.batch, cfg.optim.accumulate, run.step, run.total_steps),
        workers=run.workers,
        pin_memory=run.device.type == "cuda",
        read_timeout=cfg.system.read_timeout,
        worker_videos=cfg.system.worker_videos,
        quarantine=run.folder / QUARANTINE,
    )


def as_planes(transport: Transport, device: torch.device) -> bool:
    """Whether clips travel as planes. On a CPU nothing is saved: the library's conversion in the worker is faster than ours."""
    return transport is Transport.planes or (transport is Transport.auto and device.type == "cuda")


def clip(cfg: PretrainConfig) -> dict[str, float]:
    """Return what the clips of this recipe are: num_frames, clip_seconds, size."""
    return {"num_frames": cfg.data.num_frames, "clip_seconds": cfg.data.clip_seconds, "size": cfg.augment.size}


def build_monitor(cfg: PretrainConfig, device: torch.device, workers: int) -> Monitor | None:
    """Return the online evaluation, if lists for it were given."""
    if not cfg.monitor.train:
        return None
    bank, query = (
        loader.read_videos(
            source,
            split=split,
            root=cfg.monitor.root,
            labels=cfg.monitor.labels.value,
            known_health=cfg.data.health,
        )
        for source, split in ((cfg.monitor.train, "train"), (cfg.monitor.val, "val"))
    )
    return Monitor(
        bank,
        query,
        device=device,
        mean=cfg.augment.mean,
        std=cfg.augment.std,
        clip=clip(cfg),
        clips_per_video=cfg.monitor.clips_per_video,
        k=cfg.monitor.k,
        temp=cfg.monitor.temp,
        decoder=cfg.data.decoder.value,
        workers=workers,
    )
