"""THE loop: pretrain an encoder without labels, on one process or many, and continue where a run was stopped.

    python tools/pretrain.py                                  # the demo: built-in videos, minutes on a CPU
    python tools/pretrain.py recipe=sce_r3d18_k400 data.train=/data/k400/train.csv
    torchrun --nproc-per-node 8 tools/pretrain.py recipe=...  # the same on 8 GPUs

Order of a step: schedule, fetch, move, augment, forward, backward, share, update, after-step, log, save.
The step count is the only state of data order and schedules; the same command on the same folder resumes. Once a step
the loss and gradient norm of all ranks are read back, so that all of them skip an update that is not finite, and with them
whether one was asked to stop. What can go wrong, and what then happens: `docs/reliability.md`.
Read next: `methods/sce.py`, `data/dataset.py`, `augment/pipeline.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import distributed, schedules
from .config.pretrain import PretrainConfig
from .data.dataset import Batch
from .data.decode import DecodeError
from .errors import Stopped
from .methods import Step
from .methods.sce import SCE
from .models import backbones
from .models.encoder import MLP, Encoder
from .randomness import generator
from .runs import fault_injection
from .runs.background_save import Saver
from .runs.folder import RunFolder
from .runs.rank_check import check_ranks_are_equal
from .runs.stop import StopRequest
from .training.log import RunLog
from .training.preview import preview
from .training.setup import AUTOCAST, Run, load_batches, save, set_up, settle
from .training.update import Shared, share


def build_sce(cfg: PretrainConfig) -> SCE:
    """Build SCE and its networks as the recipe says."""
    backbone, width = backbones.build(cfg.model.backbone)
    hidden, projection = cfg.model.hidden, cfg.model.projection
    online = Encoder(
        backbone,
        MLP([width, hidden, hidden, projection], last_norm=True),
        MLP([projection, hidden, projection], last_norm=False),
    )
    return SCE(
        online,
        queue_size=cfg.sce.queue,
        width=projection,
        temp=cfg.sce.temp,
        temp_target=cfg.sce.temp_target,
        coeff=cfg.sce.coeff,
        momentum=cfg.sce.momentum,
        mask_positive=cfg.sce.mask_positive,
        temp_target_start=cfg.sce.temp_target_start,
        coeff_start=cfg.sce.coeff_start,
        warmup=cfg.sce.warmup_epochs / cfg.optim.epochs,
        symmetric=cfg.sce.symmetric,
        generator=generator(cfg.seed, "queue"),
    )


def pretrain(cfg: PretrainConfig, build_method: Callable[[PretrainConfig], Any] = build_sce) -> Path:
    """Train as cfg says, or continue, and return the run folder.

    With cfg.preview only that picture is written, and its path returned.

    Raises InputError before anything is written, Stopped when training cannot go on, Preempted when it was asked to stop.
    """
    if cfg.preview:
        return preview(cfg)
    folder = cfg.run_folder
    with (
        distributed.session(cfg.system.device.value) as device,
        StopRequest(folder) as stop,
        RunFolder(folder, cfg, stop) as place,
    ):
        run = set_up(cfg, build_method, device, place)
        main = distributed.rank() == 0
        log = RunLog(
            run.folder if main else None,
            start_step=run.step,
            total_steps=run.total_steps,
            steps_per_epoch=run.steps_per_epoch,
            clips_per_step=len(cfg.augment.views) * cfg.optim.batch,
            every=cfg.system.log_every,
            processes=distributed.world_size(),
        )
        try:
            log.message(f"{'continuing' if run.step else 'training'} {describe(run)}")
            if run.monitor and not run.step:
                run.untrained = run.monitor.score(run.method.online.backbone)
                log.evaluation(0, run.untrained)
                log.message(f"untrained network: {scores(run.untrained)}")
            with stop.deferred(), load_batches(run) as batches, run.saver(log.message) as saver:
                train(run, batches, saver, log, stop)
            closing_lines(run, log)
        except DecodeError as error:
            raise Stopped(f"no video can be read any more: {error}") from error
        finally:
            log.close()
        return run.folder


def train(run: Run, batches: Iterator[Batch], saver: Saver, log: RunLog, stop: StopRequest) -> None:
    """Take all steps that are left, or raise Preempted after the one in which some rank was asked to stop."""
    cfg = run.cfg
    network: Any = distributed.parallel(run.method, run.device, compress=cfg.optim.sends_bf16)
    warmup_steps = round(cfg.optim.warmup_epochs * run.steps_per_epoch)
    run.place.at(run.step)
    while run.step < run.total_steps:
        fault_injection.at_step(run.step, run.method)
        where = run.taken / run.total_steps
        lr = schedules.warmup_cosine(
            run.taken, base=cfg.optim.lr, warmup_steps=warmup_steps, total_steps=run.total_steps
        )
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        run.updates.begin()
        steps, paths = [], []
        for micro in range(cfg.optim.accumulate):
            batch = log.fetch(batches)
            run.skipped.note(batch.failures)
            paths += batch.paths
            last = micro == cfg.optim.accumulate - 1
            with nullcontext() if last or network is run.method else network.no_sync():
                steps.append(forward_backward(run, network, batch, where))
        run.skipped.report(log, now=log.due(run.step + 1))
        shared = share([step.loss for step in steps], run.method.online, run.optimizer, run.scaler, stop=stop.asked())
        if run.updates.make(shared, run.optimizer, run.scaler, paths, log.message, step=run.step, lr=lr):
            run.method.after_step([torch.cat(view) for view in zip(*(s.keys for s in steps), strict=True)], where)
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        run.place.at(run.step)
        if log.due(run.step):
            record(run, log, steps[-1], shared, where, lr)
        evaluate_and_save(run, saver, log, shared.stopping)
        if shared.stopping and run.step < run.total_steps:
            settle(run.place, saver)
            raise stop.preempted(run.step)
    settle(run.place, saver)


def forward_backward(run: Run, network: nn.Module, batch: Batch, where: float) -> Step:
    """Augment a micro-batch on the device, compute its loss and add its gradients."""
    cfg = run.cfg
    views = []
    for number, (augment, packed) in enumerate(zip(run.augment, batch.views, strict=True)):
        keys = zip(batch.epochs, batch.rows, strict=True)
        generators = [generator(cfg.seed, "augment", epoch, row, number) for epoch, row in keys]
        clips = packed.to(run.device).unpack()
        views.append(augment(clips, generators, batch.differences[number]))
    dtype = AUTOCAST.get(cfg.optim.precision)
    views = fault_injection.poisoned(views, run.step)
    with torch.autocast(run.device.type, dtype=dtype, enabled=dtype is not None):
        step: Step = network(views, where)
    run.scaler.scale(step.loss / cfg.optim.accumulate).backward()  # type: ignore[no-untyped-call]
    return step


def record(run: Run, log: RunLog, step: Step, shared: Shared, where: float, lr: float) -> None:
    """Log a step's figures; called by all ranks."""
    figures = {name: distributed.mean(value).item() for name, value in step.figures.items()}
    if math.isfinite(shared.loss):
        figures |= {"loss": shared.loss, "gradient_norm": shared.gradient_norm, "skipped": float(run.updates.skipped)}
        log.step(run.step, figures | {"ema_momentum": run.method.momentum_at(where)}, lr=lr)
        if "feature_std" in figures:  # another method may have no such figure
            run.alarm.look(run.step, figures["feature_std"], log.message)


def evaluate_and_save(run: Run, saver: Saver, log: RunLog, stopping: bool) -> None:
    """Score the encoder every monitor.every_epochs and at the end; save every system.save_every steps, then and on request."""
    cfg, done = run.cfg, run.step == run.total_steps
    epoch, rest = divmod(run.step, run.steps_per_epoch)
    if run.monitor and (done or (rest == 0 and epoch % cfg.monitor.every_epochs == 0)):
        run.place.pause()
        figures = run.monitor.score(run.method.online.backbone)
        run.place.at(run.step)
        log.evaluation(run.step, figures)
        log.message(f"epoch {epoch}: {scores(figures)} | untrained network: {scores(run.untrained)}")
        log.restart_clock(run.step)
    if cfg.system.agree_every and run.step % cfg.system.agree_every == 0:
        check_ranks_are_equal(run.method.state_dict(), run.step)
    saver.check()
    if distributed.rank() == 0 and (done or stopping or run.step % cfg.system.save_every == 0):
        save(run, saver)


def describe(run: Run) -> str:
    """Return one line on what this run does, with the derived numbers."""
    cfg, local = run.cfg, run.cfg.augment.local
    smaller = f" with {local.views} local view(s) of {local.size} px" if local.views else ""
    return (
        f"{cfg.name}: {len(run.videos)} videos, {cfg.model.backbone}, {cfg.optim.epochs} epochs x "
        f"{run.steps_per_epoch} steps of {cfg.optim.batch}{smaller}, lr {cfg.optim.lr:g}, {distributed.world_size()} "
        f"process(es) on {run.device.type}, from step {run.step} of {run.total_steps}, into {run.folder}"
    )


def scores(figures: dict[str, float]) -> str:
    """Return an evaluation's figures in words."""
    if not figures:
        return "not scored"
    missing = figures["videos_listed"] - figures["videos_read"]
    return f"kNN {100 * figures['knn_top1']:.1f} %, R@1 {100 * figures['r_at_1']:.1f} %" + (
        f" ({missing:.0f} videos unreadable)" if missing else ""
    )


def closing_lines(run: Run, log: RunLog) -> None:
    """Say where everything is and what to do with it."""
    lists = (
        f"train={run.cfg.monitor.train} test={run.cfg.monitor.val}"
        if run.monitor
        else "train=<labelled list> test=<labelled list>"
    )
    log.message(f"done: run folder {run.folder}; next: python tools/retrieval.py checkpoint={run.folder} {lists}")
