"""THE loop: pretrain an encoder without labels, on one process or many, and continue where a run was stopped.

    python tools/pretrain.py                                  # the demo: built-in videos, minutes on a CPU
    python tools/pretrain.py recipe=sce_r3d18_k400 data.train=/data/k400/train.csv
    torchrun --nproc-per-node 8 tools/pretrain.py recipe=...  # the same on 8 GPUs

Order of a step: schedule, fetch, move, augment, forward, backward, check, optimiser, after-step, log, save.
The step count is the only state of data order and schedules; the same command on the same folder resumes. Once a step
the loss and gradient norm of all ranks are read back, so that all of them stop before an update that is not finite.
Read next: `methods/sce.py`, `data/dataset.py`, `augment/pipeline.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import distributed, schedules
from .config import PretrainConfig
from .data.dataset import Batch, Failure
from .data.decode import DecodeError
from .errors import Stopped
from .log import RunLog
from .methods import Step
from .methods.sce import SCE
from .models import backbones
from .models.encoder import MLP, Encoder
from .randomness import generator
from .run import AUTOCAST, Run, check_finite, load_batches, save, set_up


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

    Raises InputError before anything is written, Stopped when training cannot go on.
    """
    with distributed.session(cfg.system.device.value) as device:
        run = set_up(cfg, build_method, device)
        main = distributed.rank() == 0
        log = RunLog(
            run.folder if main else None,
            start_step=run.step,
            total_steps=run.total_steps,
            steps_per_epoch=run.steps_per_epoch,
            clips_per_step=2 * cfg.optim.batch,
            every=cfg.system.log_every,
            processes=distributed.world_size(),
        )
        try:
            log.message(f"{'continuing' if run.step else 'training'} {describe(run)}")
            if run.monitor and not run.step:
                run.untrained = run.monitor.score(run.method.online.backbone)
                log.evaluation(0, run.untrained)
                log.message(f"untrained network: {scores(run.untrained)}")
            train(run, log)
            closing_lines(run, log)
        except DecodeError as error:
            raise Stopped(f"no video can be read any more: {error}") from error
        finally:
            log.close()
        return run.folder


def train(run: Run, log: RunLog) -> None:
    """Take all steps that are left."""
    cfg = run.cfg
    batches = iter(load_batches(run))
    network: Any = distributed.parallel(run.method, run.device)
    warmup_steps = round(cfg.optim.warmup_epochs * run.steps_per_epoch)
    failures: list[Failure] = []
    while run.step < run.total_steps:
        where = run.step / run.total_steps
        lr = schedules.warmup_cosine(
            run.step, base=cfg.optim.lr, warmup_steps=warmup_steps, total_steps=run.total_steps
        )
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        steps, paths = [], []
        for micro in range(cfg.optim.accumulate):
            batch = log.fetch(batches)
            failures += batch.failures
            paths += batch.paths
            last = micro == cfg.optim.accumulate - 1
            with nullcontext() if last or network is run.method else network.no_sync():
                steps.append(forward_backward(run, network, batch, where))
        losses = [step.loss for step in steps]
        loss, gradient_norm = check_finite(
            losses, run.method.online, run.optimizer, run.scaler, paths, step=run.step, lr=lr
        )
        run.scaler.step(run.optimizer)
        run.scaler.update()
        if math.isfinite(gradient_norm):  # else fp16 overflowed and the optimiser has skipped the step
            run.method.after_step([torch.cat(view) for view in zip(*(s.keys for s in steps), strict=True)], where)
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        if log.due(run.step):
            figures = {name: distributed.mean(value).item() for name, value in steps[-1].figures.items()}
            figures |= {"loss": loss, "gradient_norm": gradient_norm, "ema_momentum": run.method.momentum_at(where)}
            log.step(run.step, figures, lr=lr)
        if log.due(run.step) or not distributed.active():
            run.skipped.report(failures, log)
            failures = []
        evaluate_and_save(run, log)


def forward_backward(run: Run, network: nn.Module, batch: Batch, where: float) -> Step:
    """Augment a micro-batch on the device, compute its loss and add its gradients."""
    cfg = run.cfg
    views = []
    for number, (view, packed) in enumerate(zip((cfg.augment.view1, cfg.augment.view2), batch.views, strict=True)):
        keys = zip(batch.epochs, batch.rows, strict=True)
        generators = [generator(cfg.seed, "augment", epoch, row, number) for epoch, row in keys]
        clips = packed.to(run.device).unpack()
        views.append(run.augment(view, clips, generators, batch.differences[number]))
    dtype = AUTOCAST.get(cfg.optim.precision)
    with torch.autocast(run.device.type, dtype=dtype, enabled=dtype is not None):
        step: Step = network(views, where)
    run.scaler.scale(step.loss / cfg.optim.accumulate).backward()  # type: ignore[no-untyped-call]
    return step


def evaluate_and_save(run: Run, log: RunLog) -> None:
    """Score the encoder every monitor.every_epochs and at the end, save every system.save_every steps and at the end."""
    cfg, done = run.cfg, run.step == run.total_steps
    epoch, rest = divmod(run.step, run.steps_per_epoch)
    if run.monitor and (done or (rest == 0 and epoch % cfg.monitor.every_epochs == 0)):
        figures = run.monitor.score(run.method.online.backbone)
        log.evaluation(run.step, figures)
        log.message(f"epoch {epoch}: {scores(figures)} | untrained network: {scores(run.untrained)}")
        log.restart_clock(run.step)
    if distributed.rank() == 0 and (done or run.step % cfg.system.save_every == 0):
        save(run)


def describe(run: Run) -> str:
    """Return one line on what this run does, with the derived numbers."""
    cfg = run.cfg
    return (
        f"{cfg.name}: {len(run.videos)} videos, {cfg.model.backbone}, {cfg.optim.epochs} epochs x "
        f"{run.steps_per_epoch} steps of {cfg.optim.batch}, lr {cfg.optim.lr:g}, {distributed.world_size()} "
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
