"""THE loop: every method is trained here, on one process or many.

A step: schedule, then for each micro-batch fetch, augment, forward, backward; reduce loss and stop flag over ranks, update,
after-step; log, evaluate, check that ranks hold equal tensors, save. The step count is the only state of data order and
schedules. Once per step all ranks get the mean loss, the gradient norm and the stop flag in one synchronisation: all of them
skip an update that is not finite, or stop, at the same step. Faults: `docs/reliability.md`. Read next: `methods/sce.py`,
`update.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed, schedules
from ..data.workers import Batches
from ..methods import Step, check_gradients, check_step
from ..runs import fault_injection
from ..runs.background_save import Saver
from ..runs.folder import RunFolder
from ..runs.rank_check import check_ranks_are_equal
from ..runs.stop import StopRequest
from .augmenter import Augmenter, Prepared
from .log import RunLog, SkippedVideos
from .monitor import CollapseAlarm
from .update import Shared, Updates, share


@dataclass
class Run:
    """Everything that the loop uses. Only `step`, `notes` and the counts in `updates` and `skipped` change."""

    method: Any  # an nn.Module that is a methods.Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    augment: Augmenter
    folder: RunFolder
    skipped: SkippedVideos
    updates: Updates
    open_batches: Callable[[int], Batches]  # the micro-batches from a step on
    save: Callable[..., None]  # (run, saver, folder="checkpoints", keep=0): hands a checkpoint to the saver
    base_lr: float
    warmup_steps: int
    steps_per_epoch: int
    total_steps: int
    accumulate: int  # micro-batches per step
    autocast: torch.dtype | None  # of the networks; None: float32
    compress: bool  # gradients travel between ranks as bfloat16
    save_every: int  # steps
    agree_every: int  # steps; 0: never
    keep: int  # checkpoints
    keep_every: int  # steps; 0: none
    evaluate: Callable[[Run, RunLog, Saver], None] | None = None  # called every `evaluate_every` steps and at the end
    evaluate_every: int = 1
    ahead: bool = False  # augment the next batch while the networks compute
    alarm: CollapseAlarm | None = None
    notes: dict[str, Any] = field(default_factory=dict)  # figures that a checkpoint keeps beside the tensors
    look: Callable[[Sequence[Tensor], Sequence[str]], None] | None = None  # called with the first batch's views and files
    remarks: Sequence[str] = ()  # lines on what the run needs and does, for its start
    taken: Callable[[int], str] | None = None  # a line on the rows of an epoch, for its end
    step: int = 0  # batches trained on

    @property
    def updates_made(self) -> int:
        """Optimiser steps made: the clock of all schedules. Less than `step` where updates were skipped."""
        return self.step - self.updates.skipped


def train(run: Run, log: RunLog, stop: StopRequest) -> None:
    """Take all steps that are left, or raise Preempted after the one in which some rank was asked to stop."""
    saver = Saver(keep=run.keep, keep_every=run.keep_every, report=log.message)
    with stop.deferred(), run.open_batches(run.step) as batches, saver:
        unused = bool(getattr(run.method, "without_gradient", ()))
        network: Any = distributed.parallel(run.method, run.augment.device, compress=run.compress, unused=unused)
        first = run.step
        prepared = Prepared(run.augment, lambda: log.fetch(batches), ahead=run.ahead)
        run.folder.at(run.step)
        while run.step < run.total_steps:
            fault_injection.at_step(run.step, run.method)
            where = run.updates_made / run.total_steps
            lr = set_learning_rate(run)
            run.updates.begin()
            steps, paths = accumulate_gradients(run, network, prepared, where)
            if run.step == first:
                check_gradients(run.method)
            figures = share([step.loss for step in steps], run.method, run.optimizer, run.scaler, stop=stop.asked())
            prepared.go_ahead()
            shared = figures()
            run.skipped.report(log, now=log.due(run.step + 1))
            if run.updates.make(shared, run.optimizer, run.scaler, paths, log.message, step=run.step, lr=lr):
                run.method.after_step(join_keys(steps), where)
            run.optimizer.zero_grad(set_to_none=True)
            run.step += 1
            run.folder.at(run.step)
            log.progress(run.step, shared.loss, lr)

            if log.due(run.step):
                record(run, log, steps, shared, lr)
            evaluate(run, log, saver)
            if run.agree_every and run.step % run.agree_every == 0:
                check_ranks_are_equal(run.method.state_dict(), run.step)
            save(run, saver, stopping=shared.stopping)
            if shared.stopping and run.step < run.total_steps:
                settle(run.folder, saver)
                raise stop.preempted(run.step)
        settle(run.folder, saver)


def set_learning_rate(run: Run) -> float:
    """Set the rate of this step in every parameter group and return it, without the groups' own scales."""
    lr = schedules.warmup_cosine(run.updates_made, base=run.base_lr, warmup_steps=run.warmup_steps, total_steps=run.total_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


def accumulate_gradients(run: Run, network: nn.Module, prepared: Prepared, where: float) -> tuple[list[Step], list[str]]:
    """Add the gradients of a step's micro-batches; return their results and the files of this rank's clips."""
    steps, paths = [], []
    for micro in range(run.accumulate):
        batch, views = prepared.next()
        run.skipped.note(batch.failures)
        paths += batch.paths
        views = fault_injection.poisoned(views, run.step)
        if run.look and run.step == micro == 0:
            run.look(views, batch.paths)
        steps.append(pass_through(run, network, views, batch, where, last=micro == run.accumulate - 1))
        if micro < run.accumulate - 1:
            prepared.go_ahead()
    return steps, paths


def pass_through(run: Any, network: nn.Module, views: list[Tensor], batch: Any, where: float, *, last: bool = True) -> Step:
    """Take a micro-batch forward and backward, one part of the method's loss after another; return the parts' sum."""
    parts = run.method.count_parts(len(views)) if hasattr(run.method, "count_parts") else 1
    done: list[Step] = []
    for part in range(parts):
        more = {"part": part, "keys": done[0].keys if done else ()} if parts > 1 else {}
        # DDP averages the gradients over ranks in the last backward pass of a step only.
        average = last and part == parts - 1
        with nullcontext() if average or network is run.method else network.no_sync():  # type: ignore[operator]
            with torch.autocast(views[0].device.type, dtype=run.autocast) if run.autocast else nullcontext():
                step: Step = network(views, batch, where, **more)
            check_step(step, run.method)
            run.scaler.scale(step.loss / run.accumulate).backward()
        done.append(step._replace(loss=step.loss.detach()))
    loss = torch.stack([step.loss for step in done]).sum()
    return Step(loss, done[0].keys, {name: value for step in done for name, value in step.figures.items()})


def join_keys(steps: Sequence[Step]) -> list[Tensor]:
    """Return the keys of all micro-batches, view by view."""
    return [torch.cat(view) for view in zip(*(step.keys for step in steps), strict=True)]


def record(run: Run, log: RunLog, steps: Sequence[Step], shared: Shared, lr: float) -> None:
    """Log a step's figures. All ranks call it: figures that are tensors are averaged over micro-batches and ranks."""
    measured, known = {}, {}
    for name, value in steps[-1].figures.items():
        if isinstance(value, Tensor):
            values = [torch.as_tensor(step.figures[name]) for step in steps]
            measured[name] = distributed.mean(torch.stack(values).mean()).item()
        else:
            known[name] = value
    if not math.isfinite(shared.loss):
        return
    own = {"loss": shared.loss, "gradient_norm": shared.gradient_norm, "skipped": float(run.updates.skipped)}
    log.step(run.step, measured | own | known, lr=lr)
    if run.alarm and "feature_std" in measured:  # a method without keys has no such figure
        run.alarm.look(run.step, measured["feature_std"], log.message)


def evaluate(run: Run, log: RunLog, saver: Saver) -> None:
    """Evaluate where it is due; the time that it takes counts neither as a step's nor for the speed."""
    if run.evaluate and (run.step == run.total_steps or run.step % run.evaluate_every == 0):
        run.folder.pause()
        run.evaluate(run, log, saver)
        run.folder.at(run.step)
        log.restart_clock(run.step)


def save(run: Run, saver: Saver, *, stopping: bool) -> None:
    """Save every `save_every` steps, at the end, and when some rank was asked to stop; look at the save before it."""
    saver.check()
    done = run.step == run.total_steps
    if distributed.rank() == 0 and (done or stopping or run.step % run.save_every == 0):
        run.save(run, saver)


def settle(folder: RunFolder, saver: Saver) -> None:
    """Wait until the last checkpoint is written: others read it, and torchrun ends all ranks once one has left."""
    folder.pause()
    saver.finish()
    distributed.barrier()
