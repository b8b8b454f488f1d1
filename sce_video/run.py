"""A pretraining run as one object: set up with every check before the first write, saved, and resumed.

What counts is in the checkpoint: online and target network with their batch-norm statistics, queue and pointer,
optimiser, scaler, step. The order of the data and the schedules are functions of the step, so nothing else is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import __version__, augmenting, checkpoint, distributed, optim
from .command_line import check_run_folder, start_run_folder
from .config import Precision, PretrainConfig
from .data import loader
from .data.dataset import Batch, ClipDataset, RandomResized
from .data.manifest import Video
from .errors import InputError, Stopped
from .log import SkippedVideos
from .monitor import Monitor

AUTOCAST = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


@dataclass
class Run:
    """What is set up once and used in every step."""

    cfg: PretrainConfig
    device: torch.device
    folder: Path
    videos: list[Video]
    steps_per_epoch: int
    total_steps: int
    augment: augmenting.Augmenter
    method: Any  # see methods: online, forward, after_step
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    monitor: Monitor | None
    skipped: SkippedVideos
    workers: int  # decoding processes
    step: int = 0  # optimiser steps taken
    untrained: dict[str, float] = field(default_factory=dict)  # what the monitor scored before the first


def set_up(cfg: PretrainConfig, build_method: Callable[[PretrainConfig], Any], device: torch.device) -> Run:
    """Check everything, build everything, load the newest checkpoint; the first thing written is the run folder."""
    folder = Path(cfg.out or f"runs/{cfg.name}")
    known = check_run_folder(folder, cfg)
    check_precision(cfg.optim.precision, device)
    videos = loader.read_videos(cfg.data.train, split="train", root=cfg.data.root)
    steps_per_epoch = len(videos) // cfg.optim.batch
    loader.steps(
        len(videos), cfg.seed, cfg.optim.batch, cfg.optim.accumulate, 0, steps_per_epoch
    )  # refuses a batch that does not fit the data or the processes
    loader.check_readable(videos, seed=cfg.seed, decoder=cfg.data.decoder.value)
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
        folder=folder,
        videos=videos,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * cfg.optim.epochs,
        augment=build_augmenter(cfg, device, 2 * steps_per_epoch * cfg.optim.epochs * cfg.optim.batch),
        method=method,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=cfg.optim.precision is Precision.fp16),
        monitor=monitor,
        skipped=SkippedVideos(folder, len(videos), cfg.data.max_bad_fraction),
        workers=workers,
    )
    resume(run)
    distributed.barrier()  # nobody looks at the folder any more
    if distributed.rank() == 0 and not known:
        start_run_folder(folder, cfg)
    return run


def build_augmenter(cfg: PretrainConfig, device: torch.device, clips: int) -> augmenting.Augmenter:
    """Return what augments this run's clips, of all processes together."""
    return augmenting.build(
        [cfg.augment.view1, cfg.augment.view2],
        cfg.system,
        num_frames=cfg.data.num_frames,
        size=cfg.augment.size,
        mean=cfg.augment.mean,
        std=cfg.augment.std,
        antialias=cfg.augment.antialias,
        device=device,
        clips=clips // distributed.world_size(),
    )


def save(run: Run) -> None:
    """Write a checkpoint of everything that counts."""
    state = training_state(run.method, run.optimizer, run.scaler)
    meta = {
        "version": __version__,
        "torch": torch.__version__,
        "videos": len(run.videos),
        "untrained": run.untrained,
        "encoder": {"backbone": run.cfg.model.backbone, "mean": run.cfg.augment.mean, "std": run.cfg.augment.std}
        | clip(run.cfg),
    }
    checkpoint.save(run.folder / "checkpoints", run.step, state, meta, keep=run.cfg.system.keep)


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


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise InputError for half precision on a CPU."""
    if precision is not Precision.fp32 and device.type != "cuda":
        # torch's CPU convolutions give now and then non-finite gradients in bfloat16 (seen with 2.11 and 2.15).
        raise InputError(f"optim.precision={precision.value} needs a GPU: add optim.precision=fp32")


def training_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> checkpoint.State:
    """Return what training changes, for a checkpoint; `restore` puts it back."""
    return {"method": module.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}


def restore(
    state: checkpoint.State, module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Put what `training_state` returned back."""
    module.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])


def check_finite(
    losses: Sequence[Tensor],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    paths: Sequence[str],
    *,
    step: int,
    lr: float,
) -> tuple[float, float]:
    """Return the loss and gradient norm of all ranks together; the step's one synchronisation with the device.

    losses: this rank's, one per micro-batch; paths: its files. Raises Stopped on every rank, before any update, when
    they are not finite. Under fp16 a gradient norm alone may overflow: the scaler then skips the step and lowers its
    scale.
    """
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    local = torch.stack([loss.detach() for loss in losses]).mean()
    both: Tensor = torch.stack([distributed.mean(local), torch.nn.utils.get_total_norm(gradients).to(local.dtype)])
    loss, gradient_norm = both.tolist()
    if math.isfinite(loss) and (math.isfinite(gradient_norm) or scaler.is_enabled()):
        return loss, gradient_norm
    guilty = [] if math.isfinite(loss) != math.isfinite(local.item()) else paths
    files = [path for share in distributed.gather_objects(guilty) for path in share]
    raise Stopped(
        f"loss {loss} and gradient norm {gradient_norm} at step {step} (lr {lr:.3g}): nothing was updated; the last "
        f"checkpoint is good. Likely the learning rate is too high. The batch's files: {', '.join(files)}"
    )


def load_batches(run: Run) -> DataLoader[Batch]:
    """Return the loader of the micro-batches that are left."""
    cfg = run.cfg
    dataset = ClipDataset(
        run.videos,
        num_views=2,
        num_frames=cfg.data.num_frames,
        clip_seconds=cfg.data.clip_seconds,
        draw_box=RandomResized(
            area=(cfg.augment.area_min, cfg.augment.area_max), ratio=(cfg.augment.ratio_min, cfg.augment.ratio_max)
        ),
        difference_probability=cfg.augment.temporal_difference_probability,
        speed=(cfg.data.speed_min, cfg.data.speed_max),
        frame_jitter=cfg.data.frame_jitter,
        seed=cfg.seed,
        decoder=cfg.data.decoder.value,
    )
    return loader.build(
        dataset,
        loader.steps(len(run.videos), cfg.seed, cfg.optim.batch, cfg.optim.accumulate, run.step, run.total_steps),
        workers=run.workers,
        pin_memory=run.device.type == "cuda",
    )


def clip(cfg: PretrainConfig) -> dict[str, float]:
    """Return what the clips of this recipe are: num_frames, clip_seconds, size."""
    return {"num_frames": cfg.data.num_frames, "clip_seconds": cfg.data.clip_seconds, "size": cfg.augment.size}


def build_monitor(cfg: PretrainConfig, device: torch.device, workers: int) -> Monitor | None:
    """Return the online evaluation, if lists for it were given."""
    if not cfg.monitor.train:
        return None
    bank, query = (
        loader.read_videos(source, split=split, root=cfg.monitor.root, labels=cfg.monitor.labels.value)
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
