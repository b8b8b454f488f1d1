"""From options to a run: check everything first, then build, then continue from the newest checkpoint.

Nothing is written before every check has passed; the first thing written is the run folder. A checkpoint holds what
training changes: the method's tensors (networks with their batch-norm statistics, queue and pointer), the optimiser, the
scaler and the step. The order of the data and the schedules are functions of the step, so nothing else is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__, distributed
from ..config.pretrain import Fit, PretrainConfig
from ..config.shared import Augmentation, Changed, Exchange, Optim, Precision, Reading, ResizeOn, System, Transport
from ..data import loader, manifest, mixture
from ..data.crops import RandomResized
from ..data.dataset import ClipDataset
from ..data.decode import DecodeError
from ..data.manifest import Video
from ..errors import InputError, Stopped
from ..evaluation.views import AUTOCAST
from ..methods import check_method
from ..models.recompute import change_passes
from ..runs import checkpoint
from ..runs.background_save import Saver
from ..runs.folder import RunFolder
from ..runs.rank_check import check_ranks_are_equal, together
from . import optim, rows
from .augmenter import Augmenter
from .extension import load_finished, load_initial, parameter_groups
from .handing_on import remarks, write_lists
from .log import RunLog, SkippedVideos, draw_views
from .loop import Run
from .memory import describe_needs, fit_to_gpus
from .monitor import CollapseAlarm, Monitor
from .update import Updates

EXCHANGED = {Exchange.fp32: torch.float32, Exchange.bf16: torch.bfloat16}
QUARANTINE = "quarantine.jsonl"
HELD_OUT_BANK, HELD_OUT_QUERIES = 2048, 512  # videos scored at most, so that scoring stays cheap


def open_session(system: System, precision: Precision) -> AbstractContextManager[torch.device]:
    """Join the process group, if there is one, and enter this rank's device: see `distributed.session`."""
    return distributed.session(
        system.device.value,
        system.backend.value,
        # The step watch is shorter: it names the step, and writes the stack of each rank.
        timeout_seconds=system.step_timeout + 120,
        precision=precision.value,
        deterministic=system.deterministic,
    )


# Checks: nothing is made, nothing is written.


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


def check_machine(options: Optim, device: torch.device) -> None:
    """Raise InputError for options that this device or these processes cannot do. All ranks call it."""
    check_summable(EXCHANGED[options.exchange], device)
    with together():
        check_precision(options.precision, device)


def check_videos(
    options: Optim, videos: Sequence[Video], *, seed: int, decoder: str, clip_seconds: float, more: str = ""
) -> None:
    """Raise InputError unless some videos can be read, and the batch fits their number and the processes."""
    manifest.warn_of_short(videos, clip_seconds)
    with together():
        loader.check_readable(videos, seed=seed, decoder=decoder)
    loader.check_batch(len(videos), options.batch, options.accumulate, distributed.world_size(), more)


# Building.


def set_up_pretraining(
    cfg: PretrainConfig, build_method: Callable[[PretrainConfig], nn.Module], device: torch.device, folder: RunFolder
) -> tuple[Run, Monitor | None, Path | None]:
    """Check and build everything, and load the newest checkpoint.

    Return the run, what scores it while it trains, and the folder of the lists of a split into training and held-out videos.
    """
    check_machine(cfg.optim, device)
    with together():
        videos, held, sources = rows.read(cfg.data)
    if cfg.optim.fit is Fit.auto:
        fit_to_gpus(cfg, build_method, device)
    check_videos(
        cfg.optim, videos, seed=cfg.seed, decoder=cfg.data.decoder.value, clip_seconds=cfg.data.clip_seconds, more=rows.MORE
    )
    workers = loader.share_cores(device, cfg.system.workers)
    monitor = build_monitor(cfg, videos, held, device, workers)
    torch.manual_seed(cfg.seed)  # for initial weights only: all else draws from keyed generators
    method = build_method(cfg)
    check_method(method, num_global=cfg.augment.global_views, num_local=len(cfg.augment.local.all_crops()))
    with together():
        loaded = load_initial(cfg, method, folder.path)
    run = build_run(
        cfg.optim,
        cfg.system,
        synchronise(method, device),
        groups=parameter_groups(cfg, method),
        augment=build_augmenter(cfg, device),
        dataset=build_dataset(cfg, videos, device),
        workers=workers,
        folder=folder,
        max_bad_fraction=cfg.data.max_bad_fraction,
        about={
            "videos": len(videos),
            "rows": rows.digest(videos),
            "encoder": {"backbone": cfg.model.backbone, "mean": cfg.augment.mean, "std": cfg.augment.std} | clip(cfg),
            "branch": getattr(method, "branch", "online"),
        },
        notes={"untrained": {}},
        sources=sources,
    )
    if distributed.rank() == 0:
        hours = loader.sampled_hours(videos, cfg.data.decoder.value)
        needs = describe_needs(run.method, run.optimizer, run.total_steps, hours, cfg.system)
        run.remarks = [*loaded, f"needs: {needs}", *remarks(cfg, videos, scored=monitor is not None), *mixture.describe(sources)]
        run.look = partial(draw_views, folder.path / "views.png", cfg.augment.mean, cfg.augment.std)
    run.alarm = CollapseAlarm(cfg.monitor.collapse_std, cfg.monitor.collapse_steps, stop=cfg.monitor.stop_on_collapse)
    run.evaluate_every = cfg.monitor.every_epochs * run.steps_per_epoch
    origin = Path(cfg.after or folder.path)

    def check_list(meta: Mapping[str, Any]) -> None:
        rows.check_count(cfg.data.train, len(videos), meta["videos"], origin)
        rows.check(origin, videos, meta, accept=cfg.data.changed is Changed.accept)

    resume(run, check_list, after=Path(cfg.after) if cfg.after else None)
    rows.keep(folder.path, videos)
    lists = folder.path / "lists" if held else None
    if lists is not None and distributed.rank() == 0:
        write_lists(lists, videos, held)
    return run, monitor, lists


def synchronise(method: nn.Module, device: torch.device, *, norms: bool = True) -> nn.Module:
    """Move a method to its device and give every rank rank 0's tensors; with `norms`, batch norms use all ranks' rows."""
    method = method.to(device)
    if norms:
        method = distributed.synchronise_batch_norm(method)
    distributed.broadcast_module(method)
    return method


def build_run(
    options: Optim,
    system: System,
    method: nn.Module,
    *,
    groups: list[dict[str, Any]],
    augment: Augmenter,
    dataset: ClipDataset,
    workers: int,
    folder: RunFolder,
    max_bad_fraction: float,
    about: dict[str, Any],
    notes: dict[str, Any],
    sources: tuple[mixture.Source, ...] = (),
) -> Run:
    """Build the parts that every method shares. about: what a checkpoint says of the run; notes: figures that it keeps."""
    device, num_videos = augment.device, len(dataset.videos)
    change_passes(method, fused_norm=system.fused_norm, recompute=system.recompute)
    steps_per_epoch = num_videos // options.batch
    total_steps = steps_per_epoch * options.epochs

    return Run(
        method=method,
        optimizer=optim.build(
            options.name.value, groups, lr=options.lr, momentum=options.momentum, trust_coefficient=options.trust_coefficient
        ),
        scaler=torch.amp.GradScaler(device.type, enabled=options.precision is Precision.fp16),
        augment=augment,
        folder=folder,
        skipped=SkippedVideos(folder.path, num_videos, max_bad_fraction),
        updates=Updates(folder.path, method),
        open_batches=lambda step: loader.build(
            dataset,
            loader.steps(num_videos, augment.seed, options.batch, options.accumulate, step, total_steps, sources),
            workers=workers,
            pin_memory=device.type == "cuda",
            read_timeout=system.read_timeout,
            worker_videos=system.worker_videos,
            quarantine=folder.path / QUARANTINE,
        ),
        save=partial(save, about=about),
        base_lr=options.lr,
        warmup_steps=round(options.warmup_epochs * steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        accumulate=options.accumulate,
        autocast=AUTOCAST[options.precision.value],
        compress=options.sends_bf16,
        save_every=system.save_every,
        agree_every=system.agree_every,
        keep=system.keep,
        keep_every=system.keep_every,
        notes=notes,
        ahead=system.overlap and device.type == "cuda",
        taken=partial(mixture.describe_epoch, augment.seed, sources, steps_per_epoch * options.batch) if sources else None,
    )


def save(run: Run, saver: Saver, name: str = "checkpoints", keep: int = 0, *, about: Mapping[str, Any]) -> None:
    """Hand a checkpoint to the saver, for the folder `name` of the run; keep: another number than the saver's."""
    meta = {"version": __version__, "torch": torch.__version__, **about, **run.notes, "updates": run.updates.state()}
    saver.save(run.folder.path / name, run.step, training_state(run.method, run.optimizer, run.scaler), meta, keep=keep)


def build_augmenter(cfg: PretrainConfig, device: torch.device) -> Augmenter:
    """Return the augmentation of all views."""
    return Augmenter(
        views=cfg.augment.views,
        sizes=cfg.augment.sizes,
        seed=cfg.seed,
        mean=cfg.augment.mean,
        std=cfg.augment.std,
        antialias=cfg.augment.antialias,
        device=device,
        **how_to_augment(cfg.system, device),
    )


def how_to_augment(system: System, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `Augmenter` that do not change its values: dtype and layout of the clips, batched or not."""
    on_gpu = device.type == "cuda"
    auto = system.augmentation is Augmentation.auto
    return {
        "dtype": torch.bfloat16 if system.bf16_clips else torch.float32,
        "channels_last": on_gpu if system.channels_last is None else system.channels_last,
        "batched": on_gpu if auto else system.augmentation is Augmentation.batched,
    }


def build_dataset(cfg: PretrainConfig, videos: list[Video], device: torch.device) -> ClipDataset:
    """Return the views of the videos, as they reach the device."""
    local, ratio = cfg.augment.local, (cfg.augment.ratio_min, cfg.augment.ratio_max)
    box = RandomResized(area=(cfg.augment.area_min, cfg.augment.area_max), ratio=ratio)
    local_boxes = [RandomResized(area=(crop.area_min, crop.area_max), ratio=ratio) for crop in local.all_crops()]
    return ClipDataset(
        videos,
        num_frames=cfg.data.num_frames,
        clip_seconds=cfg.data.clip_seconds,
        gap=(cfg.data.min_gap, math.inf if cfg.data.max_gap is None else cfg.data.max_gap),
        draw_boxes=[*[box] * cfg.augment.global_views, *local_boxes],
        difference_probability=cfg.augment.temporal_difference_probability,
        seed=cfg.seed,
        **reading_arguments(cfg.data, device),
        resize_to=cfg.augment.sizes if cfg.data.resize_on is ResizeOn.worker else None,
        antialias=cfg.augment.antialias,
    )


def reading_arguments(options: Reading, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `ClipDataset` that the reading options give, for pretraining and finetuning alike."""
    return {
        "speed": (options.speed_min, options.speed_max),
        "frame_jitter": options.frame_jitter,
        "decoder": options.decoder.value,
        "loop_filter": options.loop_filter.value,
        "planes": as_planes(options.transport, device),
    }


def as_planes(transport: Transport, device: torch.device) -> bool:
    """Whether clips travel as planes. On a CPU nothing is saved: the library's conversion in the worker is faster than ours."""
    return transport is Transport.planes or (transport is Transport.auto and device.type == "cuda")


def clip(cfg: PretrainConfig) -> dict[str, float]:
    """Return the clips of this recipe: num_frames, clip_seconds, size (pixels)."""
    return {"num_frames": cfg.data.num_frames, "clip_seconds": cfg.data.clip_seconds, "size": cfg.augment.size}


def build_monitor(
    cfg: PretrainConfig, videos: list[Video], held: list[Video], device: torch.device, workers: int
) -> Monitor | None:
    """Return the evaluation while training: of the lists given for it, of the held-out videos, or without labels.

    The built-in videos are scored in runs on them only.
    """
    options, query = cfg.monitor, None
    if options.train and (cfg.data.train in loader.BUILT_IN or not {options.train, options.val} & {*loader.BUILT_IN}):
        sources = ((options.train, "train"), (options.val, "val"))
        bank, query = (
            loader.read_videos(source, split=split, root=options.root, labels=options.labels.value, known_health=cfg.data.health)
            for source, split in sources
        )
        lists = [f"{source} ({split})" if source in loader.BUILT_IN else source for source, split in sources]
    elif held:
        bank, query = loader.spread(videos, HELD_OUT_BANK), loader.spread(held, HELD_OUT_QUERIES)
        lists = [cfg.data.train, "those held out"]
    elif options.videos:
        bank, lists = loader.spread(videos, options.videos), [cfg.data.train, ""]
    else:
        return None
    return Monitor(
        bank,
        query,
        lists=(lists[0], lists[1]),
        device=device,
        mean=cfg.augment.mean,
        std=cfg.augment.std,
        clip=clip(cfg),
        clips_per_video=options.clips_per_video,
        k=options.k,
        temp=options.temp,
        decoder=cfg.data.decoder.value,
        workers=workers,
        precision=cfg.optim.precision.value,
    )


# Continuing.


def resume(run: Run, check_list: Callable[[Mapping[str, Any]], None], after: Path | None = None) -> None:
    """Load the newest whole checkpoint of the run folder, if there is one, and begin.

    after: a finished run; without a checkpoint of its own the run begins at step 0 with that one's state.
    check_list: raises InputError if the list of videos is not the one that a checkpoint's meta data names.
    """
    needed = ("updates", "videos", *run.notes)
    own = checkpoint.load_newest(run.folder.path / "checkpoints", needed=needed)
    found = load_finished(after, needed) if after and own is None else own
    if found is not None:
        state, meta = found
        check_list(meta)
        restore(state, run.method, run.optimizer, run.scaler)
        run.notes = {name: meta[name] for name in run.notes}
    if own is not None:
        run.updates.resume(own[1]["updates"])
        run.step = own[1]["step"]
    check_ranks_are_equal(run.method.state_dict(), run.step)
    run.folder.begin(run.step, run.total_steps)


def training_state(module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> checkpoint.State:
    """Return the state of training for a checkpoint; `restore` loads it."""
    return {"method": module.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}


def restore(state: checkpoint.State, module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Load a `training_state`. Raises InputError if a part is missing or does not fit, e.g. the queue."""
    try:
        module.load_state_dict(state["method"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the checkpoint does not fit this network: {reason}; choose another out=") from error
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])


@contextmanager
def open_log(run: Run, *, clips_per_step: int, every: int) -> Iterator[RunLog]:
    """Yield the log of the run, closed at the end. Raises Stopped when no video can be read any more."""
    log = RunLog(
        run.folder.path if distributed.rank() == 0 else None,
        start_step=run.step,
        total_steps=run.total_steps,
        steps_per_epoch=run.steps_per_epoch,
        clips_per_step=clips_per_step,
        every=every,
        processes=distributed.world_size(),
        taken=run.taken,
    )
    try:
        yield log
    except DecodeError as error:
        raise Stopped(f"no video can be read any more: {error}") from error
    finally:
        log.close()
