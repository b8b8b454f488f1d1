"""The supervised loop: finetune a pretrained encoder for action recognition, or train a linear probe on it.

    python tools/finetune.py recipe=ucf101 checkpoint=runs/k400 train=train.csv test=test.csv out=runs/k400_ucf
    python tools/finetune.py recipe=linear_k400 checkpoint=runs/k400 train=train.csv test=val.csv

One random clip per video and epoch, cross-entropy, then the full test protocol: probabilities averaged over
clips x crops (`classification.py`). Which weights are tested is `testing.select`: the last, or the best on a validation
list; best on the test list only when asked for, and the report says so.
As in pretraining the step count is the only state of order and schedules; the same command on the same folder resumes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import distributed, schedules
from .augment import mixing
from .config.finetune import FinetuneConfig, Select
from .data.dataset import Batch
from .data.decode import DecodeError
from .errors import Stopped
from .evaluation import classify
from .randomness import generator
from .runs import fault_injection
from .runs.background_save import Saver
from .runs.folder import RunFolder
from .runs.rank_check import check_ranks_are_equal
from .runs.status import Status
from .runs.stop import StopRequest
from .training.finetune_setup import FinetuneRun, load_batches, load_best, save, set_up
from .training.log import RunLog
from .training.setup import AUTOCAST, settle
from .training.splits import print_splits, split_configs
from .training.update import share

SELECTED = {
    Select.last: "the last weights",
    Select.val: "the weights that were best on the validation list",
    Select.test: "the weights that were best on the test list itself (the usual practice; it flatters)",
}


def finetune(cfg: FinetuneConfig) -> list[dict[str, Any]]:
    """Train and test as cfg says, or continue; with splits, one after another. Return what result.json holds, per split."""
    out = Path(cfg.out or f"runs/finetune_{cfg.name}")
    with distributed.session(cfg.system.device.value) as device, StopRequest(out) as stop, Status(out) as whole:
        results = []
        for number, one in enumerate(configs := split_configs(cfg, out)):
            with RunFolder(Path(one.out), one, stop) as place:
                run = set_up(one, device, place)
                if cfg.splits:
                    whole.begin(number, len(configs))
                results.append(train_and_test(run, stop))
        if cfg.splits and distributed.rank() == 0:
            print_splits(out, cfg.splits, results)
        return results


def train_and_test(run: FinetuneRun, stop: StopRequest) -> dict[str, Any]:
    """Train one run to its end, test it, write its files, and return its result."""
    cfg = run.cfg
    main = distributed.rank() == 0
    written = run.folder / "result.json"
    if run.step == run.total_steps and written.exists():
        result: dict[str, Any] = json.loads(written.read_text())
        if main:
            print(f"{run.folder} is done: top-1 {100 * result['test']['top1']:.2f} %")
        return result
    log = RunLog(
        run.folder if main else None,
        start_step=run.step,
        total_steps=run.total_steps,
        steps_per_epoch=run.steps_per_epoch,
        clips_per_step=cfg.optim.batch,
        every=cfg.system.log_every,
        processes=distributed.world_size(),
    )
    try:
        log.message(f"{'continuing' if run.step else 'training'} {describe(run)}")
        with stop.deferred(), load_batches(run) as batches, run.saver(log.message) as saver:
            train(run, batches, saver, log, stop)
        return test(run, log)
    except DecodeError as error:
        raise Stopped(f"no video can be read any more: {error}") from error
    finally:
        log.close()


def train(run: FinetuneRun, batches: Iterator[Batch], saver: Saver, log: RunLog, stop: StopRequest) -> None:
    """Take all steps that are left, or raise Preempted after the one in which some rank was asked to stop."""
    cfg = run.cfg
    network: Any = distributed.parallel(run.classifier, run.device, compress=cfg.optim.sends_bf16)
    warmup_steps = round(cfg.optim.warmup_epochs * run.steps_per_epoch)
    run.place.at(run.step)
    while run.step < run.total_steps:
        fault_injection.at_step(run.step, run.classifier)
        lr = schedules.warmup_cosine(
            run.taken, base=cfg.optim.lr, warmup_steps=warmup_steps, total_steps=run.total_steps
        )
        for group in run.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        run.updates.begin()
        losses, right, paths = [], [], []
        for micro in range(cfg.optim.accumulate):
            batch = log.fetch(batches)
            run.skipped.note(batch.failures)
            paths += batch.paths
            last = micro == cfg.optim.accumulate - 1
            with nullcontext() if last or network is run.classifier else network.no_sync():
                loss, correct = forward_backward(run, network, batch)
            losses.append(loss)
            right.append(correct)
        run.skipped.report(log, now=log.due(run.step + 1))
        shared = share(losses, run.classifier, run.optimizer, run.scaler, stop=stop.asked())
        run.updates.make(shared, run.optimizer, run.scaler, paths, log.message, step=run.step, lr=lr)
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        run.place.at(run.step)
        if log.due(run.step) and math.isfinite(shared.loss):
            top1 = distributed.mean(torch.cat(right).float().mean()).item()
            log.step(run.step, {"loss": shared.loss, "gradient_norm": shared.gradient_norm, "top1": top1}, lr=lr)
        look_and_save(run, saver, log, shared.stopping)
        if shared.stopping and run.step < run.total_steps:
            settle(run.place, saver)
            raise stop.preempted(run.step)
    settle(run.place, saver)


def forward_backward(run: FinetuneRun, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Augment a micro-batch on the device, add its gradients, and return its loss and which rows were right (bool)."""
    cfg = run.cfg
    keys = list(zip(batch.epochs, batch.rows, strict=True))
    generators = [generator(cfg.seed, "augment", *key) for key in keys]
    clips = run.augment(batch.views[0].to(run.device).unpack(), generators)
    ids = run.lists.ids["train"]
    # A replaced video brings its own label.
    labels = torch.tensor([ids[source] for source in batch.sources], device=run.device)
    targets = F.one_hot(labels, len(run.lists.classes)).float()
    if cfg.augment.mixup_alpha or cfg.augment.cutmix_alpha:
        drawn = mixing.draw(cfg.seed, keys, mixup_alpha=cfg.augment.mixup_alpha, cutmix_alpha=cfg.augment.cutmix_alpha)
        clips, targets = mixing.apply(clips, targets, drawn)
    width = run.classifier.linear.in_features
    draws = [torch.rand(width, generator=generator(cfg.seed, "dropout", *key)) for key in keys]
    dtype = AUTOCAST.get(cfg.optim.precision)
    with torch.autocast(run.device.type, dtype=dtype, enabled=dtype is not None):
        logits = network(clips, torch.stack(draws).to(run.device))
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=cfg.optim.label_smoothing)
    run.scaler.scale(loss / cfg.optim.accumulate).backward()  # type: ignore[no-untyped-call]
    return loss.detach(), (logits.argmax(dim=1) == labels).detach()


def look_and_save(run: FinetuneRun, saver: Saver, log: RunLog, stopping: bool) -> None:
    """Look at the selecting list every testing.every_epochs and at the end; save every system.save_every, then, on request."""
    cfg, done = run.cfg, run.step == run.total_steps
    epoch, rest = divmod(run.step, run.steps_per_epoch)
    if run.selecting and (done or (rest == 0 and epoch % cfg.testing.every_epochs == 0)):
        run.place.pause()
        figures, _ = look(run, run.selecting, quick=True)
        run.place.at(run.step)
        log.evaluation(run.step, {f"{run.selecting}_{name}": figures[name] for name in ("top1", "top5")})
        log.message(f"epoch {epoch}: {run.selecting} top-1 {100 * figures['top1']:.2f} % (1 view)")
        if figures["top1"] > run.best_top1:
            run.best_top1, run.best_step = figures["top1"], run.step
            if distributed.rank() == 0:
                save(run, saver, folder="best", keep=1)
        log.restart_clock(run.step)
    if cfg.system.agree_every and run.step % cfg.system.agree_every == 0:
        check_ranks_are_equal(run.classifier.state_dict(), run.step)
    saver.check()
    if distributed.rank() == 0 and (done or stopping or run.step % cfg.system.save_every == 0):
        save(run, saver)


def look(run: FinetuneRun, split: str, *, quick: bool) -> tuple[dict[str, float], classify.Predictions]:
    """Return the scores on a list and the predictions; the classifier goes on training as before."""
    run.classifier.eval()
    predictions = classify.predict(
        lambda clips: run.classifier((clips - run.encoder.mean) / run.encoder.std),
        run.lists.videos[split],
        run.views(quick=quick),
        device=run.device,
        decoder=run.cfg.data.decoder.value,
        workers=run.workers,
        title=f"{split} list",
    )
    run.classifier.train()
    return classify.scores(predictions, run.lists.ids[split], len(run.lists.videos[split])), predictions


def test(run: FinetuneRun, log: RunLog) -> dict[str, Any]:
    """Run the full protocol with the selected weights, write the report's files, and return result.json's content."""
    select = run.cfg.testing.select
    if select is not Select.last:
        load_best(run)
    figures, predictions = look(run, "test", quick=False)
    views = run.views()
    result: dict[str, Any] = {
        "checkpoint": run.cfg.checkpoint or None,
        "weights": "random" if run.cfg.model.random_weights or not run.cfg.checkpoint else "checkpoint",
        "backbone": run.encoder.name,
        "frozen": run.cfg.model.frozen,
        "train": {"list": run.cfg.train, "videos": len(run.lists.videos["train"])},
        "test": {"list": run.cfg.test, **figures},
        "views": vars(views),
        "selected": SELECTED[select],
        "step": run.total_steps if select is Select.last else run.best_step,
        "unreadable": [failure.path for failure in predictions.failures],
    }
    if distributed.rank() == 0:
        result["per_class"] = classify.write_report(
            run.folder, predictions, run.lists.videos["test"], run.lists.ids["test"], run.lists.classes
        )
        (run.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    missing = figures["listed"] - figures["scored"]
    log.message(
        f"test: top-1 {100 * figures['top1']:.2f} %, top-5 {100 * figures['top5']:.2f} % of "
        f"{figures['scored']:.0f}/{figures['listed']:.0f} videos, {views.clips_per_video} clips x {views.num_crops} "
        f"crops, {SELECTED[select]}"
        + (f"; with the {missing:.0f} unreadable ones {100 * figures['top1_of_listed']:.2f} %" if missing else "")
    )
    for failure in predictions.failures:
        log.message(f"not scored, unreadable: {failure.reason}")
    log.message(f"done: {run.folder}/result.json, predictions.csv, per_class.csv, confusion.csv")
    return result


def describe(run: FinetuneRun) -> str:
    """Return one line on what this run does, with the derived numbers."""
    cfg = run.cfg
    what = "a linear layer on a frozen" if cfg.model.frozen else "all of a"
    start = f"from {cfg.checkpoint}" if cfg.checkpoint and not cfg.model.random_weights else "with random weights"
    return (
        f"{what} {run.encoder.name} {start}: {len(run.lists.videos['train'])} videos, {len(run.lists.classes)} classes, "
        f"{cfg.optim.epochs} epochs x {run.steps_per_epoch} steps of {cfg.optim.batch}, lr {cfg.optim.lr:g}, "
        f"{distributed.world_size()} process(es) on {run.device.type}, from step {run.step} of {run.total_steps}, into "
        f"{run.folder}"
    )
